"""``features``: sliding windows over whole videos."""

from __future__ import annotations

import argparse
import sys

from trainer.choices import PRECISIONS
from trainer.commands import add_checkpoints, checkpoints, command, failed


def add(commands) -> None:
    """Enters the command."""
    features = command(
        commands,
        "features",
        _run,
        "features of sliding windows over whole videos, a .npy each",
        "the same command goes on with the videos that have none yet",
    )
    features.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="a video (a file, an http address or a YouTube id), a folder of videos, or a published ROOT",
    )
    add_checkpoints(features)
    features.add_argument("--output", required=True, metavar="FOLDER", help="one .npy and .times.npy a video")
    features.add_argument(
        "--window", type=int, default=16, metavar="FRAMES", help="at the network's rate; default 16"
    )
    features.add_argument(
        "--stride", type=int, default=8, metavar="FRAMES", help="between windows; default 8"
    )
    features.add_argument("--batch-size", type=int, default=8, metavar="WINDOWS", help="default 8")
    features.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="videos read at once; default one a core, 8 at most",
    )
    features.add_argument("--precision", choices=PRECISIONS, default="fp32")
    features.add_argument(
        "--strict", action="store_true", help="end with 1 where any input failed, not only all"
    )


def _run(options: argparse.Namespace) -> int:
    from trainer.features import FAILED, FeaturesOptions, extract

    outcome = extract(
        FeaturesOptions(
            checkpoints=checkpoints(options),
            inputs=tuple(options.inputs),
            output=options.output,
            window=options.window,
            stride=options.stride,
            batch_size=options.batch_size,
            workers=options.workers,
            precision=options.precision,
        )
    )
    print(
        f"{outcome.written} written, {outcome.kept} there before, {len(outcome.failed)} failed",
        file=sys.stderr,
    )
    if outcome.failed:
        print(f"{options.output}/{FAILED} says why", file=sys.stderr)
    return failed(len(outcome.failed), outcome.written + outcome.kept, options.strict)
