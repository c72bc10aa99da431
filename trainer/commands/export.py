"""``export``: trained models as a program of their own."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.command_line import Answer, Command, option


@dataclass(frozen=True, kw_only=True)
class Export(Answer):
    """Options of export."""

    checkpoint: str = option("run or checkpoint", unit="CKPT", flag="checkpoint")
    stream: Literal["rgb", "flow"] | None = option(
        "export the model of this stream alone", None, shown="all models, their logits added"
    )
    output: Path = option("MODEL.pt2 or MODEL.onnx", unit="FILE")


def _run(call: Export) -> int:
    from trainer.export import export

    made = export(((call.checkpoint, call.stream),), call.output)
    if call.json:
        print(json.dumps(made.metadata, indent=2))
    inputs = ", ".join(f"{i['name']} {tuple(i['shape'])}" for i in made.metadata["inputs"])
    print(f"{made.path}: {inputs}".replace("'", ""), file=sys.stderr)
    if made.fixed:
        print(f"The number of frames is fixed: {made.fixed}", file=sys.stderr)
    return 0


COMMAND = Command("export", "write a checkpoint's models as one torch or ONNX program", Export, _run)
