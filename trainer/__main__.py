"""The trainer's commands. Ends with 0 when done, 1 when the job failed, 2 when the call was wrong."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# What a command imports is imported when it runs, so that --help answers at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on where the last checkpoint was", file=sys.stderr)
        return 1
    except Exception as error:
        if options.debug:
            raise
        rank = f"rank {os.environ.get('RANK', 0)}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        print(f"{rank}{_sentence(error)}", file=sys.stderr)
        return 2 if _is_wrong_call(error) else 1


def _train(options: argparse.Namespace) -> int:
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


def _evaluate(options: argparse.Namespace) -> int:
    from trainer import evaluate
    from trainer.configuration import ConfigurationError

    if bool(options.checkpoint) == bool(options.rgb or options.flow):
        raise ConfigurationError("name either --checkpoint, or --rgb, --flow or both")
    named = [(options.checkpoint, None), (options.rgb, "rgb"), (options.flow, "flow")]
    job = evaluate.Job(
        checkpoints=tuple((path, stream) for path, stream in named if path),
        data=tuple(options.data),
        split=options.split,
        views=options.views,
        repeat_frame=options.repeat_frame,
        workers=options.workers,
        precision=options.precision,
    )
    scores = evaluate.main(job, options.output)
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(scores, indent=2) if options.json else evaluate.table(scores))
    return 0


def _networks(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from trainer import networks

    rows = [row for name in networks.names() for row in networks.describe(name)]
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    print(f"{'network':<18} {'stream':<6} {'input':<14} {'parameters':>12} {'GMACs':>8}  Kinetics-400 top-1")
    for row in rows:
        size = "x".join(map(str, row.input))
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.1f} %"
        print(
            f"{row.name:<18} {row.stream:<6} {size:<14} {row.parameters:>12,} {row.gmacs:>8.2f}  "
            f"{accuracy:<7} {row.source}"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m trainer", description="Train and use video networks on a data set that pipeline published."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = _command(
        commands, "train", _train, "train a network; also under torchrun, on any number of ranks"
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
    train.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"))
    train.add_argument("--resume", choices=("auto", "none"), default="auto", help="none starts RUN over")
    train.add_argument("--init", metavar="CHECKPOINT", help="start from its weights")
    train.add_argument("--evaluate-every", type=int, metavar="EPOCHS", help="on the val split; 0 never")
    train.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="default 500; also at epochs' ends"
    )

    evaluate = _command(commands, "evaluate", _evaluate, "top-1 and top-5 of a split, by stream and joint")
    evaluate.add_argument("--data", nargs="+", required=True, metavar="ROOT", help="published data sets")
    evaluate.add_argument("--split", default="val", choices=("train", "val", "test"))
    evaluate.add_argument("--rgb", metavar="RUN", help="run or checkpoint whose RGB tower to take")
    evaluate.add_argument("--flow", metavar="RUN", help="run or checkpoint whose flow tower to take")
    evaluate.add_argument("--checkpoint", metavar="RUN", help="run or checkpoint to take whole")
    evaluate.add_argument("--output", type=Path, metavar="FILE", help="default RUN/evaluate-<split>.json")
    evaluate.add_argument(
        "--views", type=_views, metavar="CLIPSxCROPS", help="default: whole clip, centre crop"
    )
    evaluate.add_argument(
        "--repeat-frame",
        action="store_true",
        help="show one frame of each clip, repeated: what motion is worth",
    )
    evaluate.add_argument("--workers", type=int, default=2, metavar="N", help="loader processes a rank")
    evaluate.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32")
    evaluate.add_argument("--json", action="store_true", help="print the scores as JSON")

    networks = _command(
        commands, "networks", _networks, "every network: input, size, cost, published accuracy"
    )
    networks.add_argument("--json", action="store_true")
    return parser


def _command(commands, name: str, run, about: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=run)
    return parser


def _views(text: str) -> tuple[int, int]:
    clips, _, crops = text.partition("x")
    if not (clips.isdigit() and crops.isdigit() and int(clips) > 0 and crops in ("1", "3")):
        raise argparse.ArgumentTypeError(f"{text} is no CLIPSxCROPS such as 10x3 (crops: 1 or 3)")
    return int(clips), int(crops)


def _sentence(error: Exception) -> str:
    """What to tell: our own errors speak for themselves, others are named."""
    said = " ".join(str(error).split()) or "no further word"
    ours = type(error).__module__.split(".")[0] in ("trainer", "pipeline")
    return (
        said
        if ours or isinstance(error, OSError)
        else f"{type(error).__name__}: {said} (--debug shows where)"
    )


def _is_wrong_call(error: Exception) -> bool:
    from trainer.configuration import ConfigurationError
    from trainer.data.rows import DamagedError, RowsError

    return isinstance(error, ConfigurationError | RowsError) and not isinstance(error, DamagedError)


if __name__ == "__main__":
    sys.exit(main())
