"""A worker process of a local job: Beam's own, bound to the life of the process that launched it.

python -m pipeline.job.local_workers LAUNCHER_PID
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from pipeline.media import subprocesses


class _Log(io.FileIO):
    """Standard error on a disk that may be full: what it does not take is lost, and nothing else is.

    Beam prints a failure before it answers the launcher, which waits for ever where printing raises.
    """

    def write(self, text) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Watch the launcher from the first moment on: it may be killed before Beam has said a word."""
    sys.stderr = io.TextIOWrapper(_Log(2, "w", closefd=False), errors="backslashreplace", write_through=True)
    subprocesses.die_with(int((argv or sys.argv)[1]))
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(argv or sys.argv)


if __name__ == "__main__":
    main()
