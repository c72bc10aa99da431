# PYTHON_ARGCOMPLETE_OK
"""The console script ``quovadis``: the commands of both halves."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline import command_line
from pipeline.__main__ import PREPARE
from trainer.__main__ import GROUPS


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command of either half; returns its exit code."""
    return command_line.main(
        "quovadis", "From a Kinetics list to trained networks.", [PREPARE, *GROUPS], words
    )


if __name__ == "__main__":
    sys.exit(main())
