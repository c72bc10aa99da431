"""Runs a worker process of a local job: Beam's own, which ends with the process that launched it.

python -m pipeline.job.local_workers LAUNCHER_PID
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.media import subprocesses


class _Log(io.FileIO):
    """Standard error that drops text which a full disk does not take.

    Beam prints a failure before it answers the launcher, which would wait forever if printing raised.
    """

    def write(self, text: Any) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)


def main(argv: Sequence[str] | None = None) -> None:
    """Run Beam's worker; watches the launcher before, since it may be killed before Beam connects."""
    sys.stderr = io.TextIOWrapper(_Log(2, "w", closefd=False), errors="backslashreplace", write_through=True)
    subprocesses.die_with(int((argv or sys.argv)[1]))
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(argv or sys.argv)


if __name__ == "__main__":
    main()
