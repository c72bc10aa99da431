"""``evaluate``: the scores of a split."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from trainer.choices import PRECISIONS
from trainer.commands import add_checkpoints, add_data, cache, checkpoints, command, lists


def add(commands) -> None:
    """Enters the command."""
    evaluate = command(commands, "evaluate", _run, "top-1 and top-5 of a split, by stream and joint")
    add_data(evaluate)
    evaluate.add_argument("--split", choices=("train", "val", "test"), help="default val")
    add_checkpoints(evaluate)
    evaluate.add_argument("--output", type=Path, metavar="FILE", help="default RUN/evaluate-<split>.json")
    evaluate.add_argument(
        "--views", type=_views, metavar="CLIPSxCROPS|whole", help="default: as the network was published"
    )
    evaluate.add_argument(
        "--repeat-frame",
        action="store_true",
        help="show one frame of each clip, repeated: what motion is worth",
    )
    evaluate.add_argument("--workers", type=int, default=2, metavar="N", help="loader processes a rank")
    evaluate.add_argument("--precision", choices=PRECISIONS, default="fp32")
    evaluate.add_argument("--json", action="store_true", help="print the scores as JSON")


def _run(options: argparse.Namespace) -> int:
    from trainer import evaluate
    from trainer.configuration import ConfigurationError

    if options.split and options.split_file:
        raise ConfigurationError("--split-file says by itself which clips test: leave out --split")
    job = evaluate.EvaluateOptions(
        checkpoints=checkpoints(options),
        data=tuple(options.data),
        split=options.split or "val",
        views=options.views,
        repeat_frame=options.repeat_frame,
        workers=options.workers,
        precision=options.precision,
        cache=cache(options),
        lists=lists(options),
    )
    scores = evaluate.main(job, options.output)
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(scores, indent=2) if options.json else evaluate.table(scores))
    return 0


def _views(text: str) -> tuple[int, ...]:
    if text == "whole":
        return ()
    clips, _, crops = text.partition("x")
    if not (clips.isdigit() and crops.isdigit() and int(clips) > 0 and crops in ("1", "3")):
        raise argparse.ArgumentTypeError(
            f"{text} is neither whole nor CLIPSxCROPS such as 10x3 (crops: 1 or 3)"
        )
    return int(clips), int(crops)
