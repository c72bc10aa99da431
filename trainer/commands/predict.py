"""``predict``: the classes of videos."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from pipeline import plain_text
from pipeline.command_line import ANSWERS, Answer, Command, option, section
from trainer.commands import failed
from trainer.options import Checkpoints, PredictOptions


@dataclass(frozen=True, kw_only=True)
class Predict(Answer):
    """Options of predict."""

    models: Checkpoints
    options: dict[str, Any] = section(PredictOptions)
    strict: bool = option("exit with 1 if any video failed, not only if all did", False, group=ANSWERS)


def _run(call: Predict) -> int:
    from trainer.predict import Prediction, predict

    options = PredictOptions(checkpoints=call.models.named(), **call.options)
    found: list[Prediction] = []
    for name, answer in zip(options.videos, predict(options), strict=True):
        if not isinstance(answer, Prediction):
            print(f"{name}: {answer}", file=sys.stderr)
            continue
        found.append(answer)
        if not call.json:
            if len(options.videos) > 1:
                print(f"==> {name}")
            for label, probability in answer.classes:
                print(f"{probability:.4f}\t{plain_text.one_line(label)}", flush=True)
    if call.json:
        print(json.dumps([answer.as_dict() for answer in found], indent=2))
    missing = len(options.videos) - len(found)
    if missing and len(options.videos) > 1:
        print(f"{missing} of {len(options.videos)} videos failed", file=sys.stderr)
    return failed(missing, len(found), call.strict)


COMMAND = Command("predict", "the most probable classes of videos", Predict, _run)
