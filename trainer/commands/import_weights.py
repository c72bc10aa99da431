"""``import``: others' weights as a checkpoint."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pipeline.command_line import Command, Common
from trainer.options import ImportOptions


@dataclass(frozen=True, kw_only=True)
class Import(Common):
    """Options of import."""

    options: ImportOptions


def _run(call: Import) -> int:
    from trainer.weights import importing

    print(importing.run(call.options), file=sys.stderr)
    return 0


COMMAND = Command("import", "make a checkpoint of weights that others have published", Import, _run)
