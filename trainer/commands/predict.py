"""``predict``: what is to be seen in videos."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from trainer.choices import PRECISIONS
from trainer.commands import add_checkpoints, checkpoints, command, failed


def add(commands) -> None:
    """Enters the command."""
    predict = command(commands, "predict", _run, "the most probable classes of videos")
    predict.add_argument("videos", nargs="+", metavar="VIDEO", help="a file, an http address or a YouTube id")
    add_checkpoints(predict)
    predict.add_argument("--top", type=int, default=5, metavar="N", help="classes to print; default 5")
    predict.add_argument(
        "--annotate", type=Path, metavar="OUT.mp4", help="write the video with each moment's classes over it"
    )
    predict.add_argument("--threads", type=int, metavar="N", help="for the flow; default: one a core")
    predict.add_argument("--precision", choices=PRECISIONS, default="fp32")
    predict.add_argument(
        "--strict", action="store_true", help="end with 1 where any video failed, not only all"
    )
    predict.add_argument("--json", action="store_true", help="print a JSON list, one object a video")


def _run(options: argparse.Namespace) -> int:
    from trainer.predict import Prediction, PredictOptions, predict

    job = PredictOptions(
        checkpoints=checkpoints(options),
        videos=tuple(options.videos),
        top=options.top,
        annotate=options.annotate,
        threads=options.threads or os.cpu_count() or 1,
        precision=options.precision,
    )
    found: list[Prediction] = []
    for name, answer in zip(options.videos, predict(job), strict=True):
        if not isinstance(answer, Prediction):
            print(f"{name}: {answer}", file=sys.stderr)
            continue
        found.append(answer)
        if not options.json:
            if len(options.videos) > 1:
                print(f"==> {name}")
            for label, probability in answer.classes:
                print(f"{probability:.4f}\t{label}", flush=True)
    if options.json:
        print(json.dumps([answer.as_dict() for answer in found], indent=2))
    missing = len(options.videos) - len(found)
    if missing and len(options.videos) > 1:
        print(f"{missing} of {len(options.videos)} videos failed", file=sys.stderr)
    return failed(missing, len(found), options.strict)
