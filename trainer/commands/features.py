"""``features``: sliding windows over whole videos."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from pipeline.command_line import ANSWERS, Command, Common, option, section
from trainer.commands import failed
from trainer.options import Checkpoints, FeaturesOptions


@dataclass(frozen=True, kw_only=True)
class Features(Common):
    """Options of features."""

    models: Checkpoints
    options: dict[str, Any] = section(FeaturesOptions)
    strict: bool = option("exit with 1 if any input failed, not only if all did", False, group=ANSWERS)


def _run(call: Features) -> int:
    from trainer.features import FAILED, extract

    options = FeaturesOptions(checkpoints=call.models.named(), **call.options)
    outcome = extract(options)
    written, kept, failures = outcome.written, outcome.kept, len(outcome.failed)
    print(f"{written} written, {kept} there before, {failures} failed", file=sys.stderr)
    if failures:
        print(f"{options.output}/{FAILED} says why", file=sys.stderr)
    return failed(failures, written + kept, call.strict)


COMMAND = Command(
    "features",
    "features of sliding windows over whole videos, a .npy each",
    Features,
    _run,
    interrupted="the same command goes on with the videos that have none yet",
)
