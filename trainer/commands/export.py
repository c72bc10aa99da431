"""``export``: trained towers as a program of their own."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from trainer.commands import command


def add(commands) -> None:
    """Enters the command."""
    export = command(commands, "export", _run, "write a checkpoint's towers as one torch or ONNX program")
    export.add_argument("checkpoint", metavar="CKPT", help="run or checkpoint")
    export.add_argument("--stream", choices=("rgb", "flow"), help="this tower alone; default: all, added")
    export.add_argument("--output", type=Path, required=True, metavar="FILE", help="MODEL.pt2 or MODEL.onnx")
    export.add_argument("--json", action="store_true", help="print what stands inside as JSON")


def _run(options: argparse.Namespace) -> int:
    from trainer.export import export

    made = export(((options.checkpoint, options.stream),), options.output)
    if options.json:
        print(json.dumps(made.metadata, indent=2))
    inputs = ", ".join(f"{i['name']} {tuple(i['shape'])}" for i in made.metadata["inputs"])
    print(f"{made.path}: {inputs}".replace("'", ""), file=sys.stderr)
    if made.fixed:
        print(f"The number of frames is fixed: {made.fixed}", file=sys.stderr)
    return 0
