"""``evaluate``: the scores of a split."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.command_line import Answer, Command, option, section
from trainer.choices import ConfigurationError
from trainer.options import Checkpoints, Data, EvaluateOptions


@dataclass(frozen=True, kw_only=True)
class Evaluate(Answer):
    """Options of evaluate."""

    data: Data
    models: Checkpoints
    options: dict[str, Any] = section(EvaluateOptions)
    output: Path | None = option("scores as JSON", None, unit="FILE", shown="RUN/evaluate-<split>.json")


def _run(call: Evaluate) -> int:
    from trainer import evaluate

    if "split" in call.options and call.data.split_file:
        raise ConfigurationError("--split-file says by itself which clips test: leave out --split")
    options = EvaluateOptions(
        checkpoints=call.models.named(),
        data=call.data.data,
        cache=call.data.open_cache(),
        lists=call.data.read_lists(),
        **call.options,
    )
    scores = evaluate.main(options, call.output)
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(scores, indent=2) if call.json else evaluate.table(scores))
    return 0


COMMAND = Command("evaluate", "top-1 and top-5 of a split, by stream and joint", Evaluate, _run)
