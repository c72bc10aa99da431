"""``train``: a run, alone or under torchrun."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from trainer.choices import PRECISIONS
from trainer.commands import add_data, cache, command, lists


def add(commands) -> None:
    """Enters the command."""
    train = command(
        commands,
        "train",
        _run,
        "train a network; also under torchrun, on any number of ranks",
        "the same command goes on where the last checkpoint was",
    )
    add_data(train)
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
    train.add_argument("--schedule", metavar="NAME", help="step, plateau, cosine, one-cycle or constant")
    train.add_argument("--warmup", type=int, metavar="STEPS", help="in which the rate rises from none")
    train.add_argument("--balanced", action="store_true", default=None, help="each class equally often")
    train.add_argument("--seed", type=int, metavar="N", help="of weights, order, augmentation and dropout")
    train.add_argument("--workers", type=int, metavar="N", help="loader processes a rank")
    train.add_argument("--precision", choices=PRECISIONS)
    train.add_argument("--resume", choices=("auto", "none"), default="auto", help="none starts RUN over")
    train.add_argument(
        "--generations",
        choices=("kept", "latest"),
        default="kept",
        help="latest: what the data sets gain joins as an epoch begins; default: what RUN began with",
    )
    train.add_argument(
        "--init",
        metavar="CHECKPOINT",
        help="start from its weights; imagenet:FILE inflates an image network's",
    )
    train.add_argument("--freeze", action="store_true", default=None, help="let only the last layer learn")
    train.add_argument("--evaluate-every", type=int, metavar="EPOCHS", help="on the val split; 0 never")
    train.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="default 500; also at epochs' ends"
    )
    train.add_argument(
        "--max-failures",
        type=float,
        metavar="SHARE",
        help="of clips that do not decode, over which the run stops (default .01)",
    )


def _run(options: argparse.Namespace) -> int:
    from trainer import configuration
    from trainer.train import TrainOptions, train

    flags = {
        "network": {"name": options.network},
        "input": {name: getattr(options, name) for name in ("stream", "frames", "short_side", "crop")},
        "optimisation": {name: getattr(options, name) for name in ("lr", "schedule", "warmup", "freeze")},
        "run": {
            name: getattr(options, name)
            for name in (
                "batch_size",
                "micro_batch",
                "epochs",
                "steps",
                "balanced",
                "seed",
                "workers",
                "precision",
                "evaluate_every",
                "checkpoint_every",
                "max_failures",
            )
        },
    }
    settings = configuration.resolve(options.config, flags)
    job = TrainOptions(
        settings,
        tuple(options.data),
        options.output,
        options.resume,
        options.init,
        cache(options),
        lists(options),
        options.generations,
    )
    path = train(job)
    if int(os.environ.get("RANK", 0)) == 0:
        print(path, file=sys.stderr)
    return 0
