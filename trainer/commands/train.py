"""``train``: a run, alone or under torchrun."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from trainer.commands import PRECISIONS, command


def add(commands) -> None:
    """Enters the command."""
    train = command(
        commands,
        "train",
        _run,
        "train a network; also under torchrun, on any number of ranks",
        "the same command goes on where the last checkpoint was",
    )
    train.add_argument("--data", nargs="+", required=True, metavar="ROOT", help="published data sets")
    train.add_argument("--output", type=Path, required=True, metavar="RUN", help="folder of this run")
    train.add_argument("--network", metavar="NAME", help="see the command networks; default i3d")
    train.add_argument("--stream", choices=("rgb", "flow", "both"), help="default: the network's")
    train.add_argument("--config", metavar="FILE", help="TOML file, or i3d (as published) or quick")
    train.add_argument("--frames", type=int, help="frames of a training clip")
    train.add_argument("--short-side", type=int, metavar="PIXELS", help="resize before the crop")
    train.add_argument("--crop", type=int, metavar="PIXELS")
    train.add_argument("--batch-size", type=int, metavar="CLIPS", help="of one step over all ranks")
    train.add_argument(
        "--micro-batch", type=int, metavar="CLIPS", help="that a rank takes at a time; 0: its whole share"
    )
    length = train.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, metavar="N")
    length.add_argument("--steps", type=int, metavar="N")
    train.add_argument("--lr", type=float, metavar="RATE", help="the peak of the learning rate")
    train.add_argument("--seed", type=int, metavar="N", help="of weights, order, augmentation and dropout")
    train.add_argument("--workers", type=int, metavar="N", help="loader processes a rank")
    train.add_argument("--precision", choices=PRECISIONS)
    train.add_argument("--resume", choices=("auto", "none"), default="auto", help="none starts RUN over")
    train.add_argument("--init", metavar="CHECKPOINT", help="start from its weights")
    train.add_argument("--evaluate-every", type=int, metavar="EPOCHS", help="on the val split; 0 never")
    train.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="default 500; also at epochs' ends"
    )


def _run(options: argparse.Namespace) -> int:
    from trainer import configuration
    from trainer.train import Job, train

    flags = {
        "network": {"name": options.network},
        "input": {name: getattr(options, name) for name in ("stream", "frames", "short_side", "crop")},
        "optimisation": {"lr": options.lr},
        "run": {
            name: getattr(options, name)
            for name in (
                "batch_size",
                "micro_batch",
                "epochs",
                "steps",
                "seed",
                "workers",
                "precision",
                "evaluate_every",
                "checkpoint_every",
            )
        },
    }
    settings = configuration.resolve(options.config, flags)
    job = Job(settings, tuple(options.data), options.output, options.resume, options.init)
    path = train(job)
    if int(os.environ.get("RANK", 0)) == 0:
        print(path, file=sys.stderr)
    return 0
