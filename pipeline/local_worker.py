"""A worker process of a local job: Beam's own, bound to the life of the process that launched it.

python -m pipeline.local_worker LAUNCHER_PID
"""

from __future__ import annotations

import sys

from pipeline import child


def main() -> None:
    """Watch the launcher from the first moment on: it may be killed before Beam has said a word."""
    child.die_with(int(sys.argv[1]))
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()
