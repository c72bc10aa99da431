"""The commands' arguments, one module each: `add` enters its parser, which names what runs.

What a command imports is imported when it runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.data.cache import Cache
    from trainer.data.lists import Lists

PUBLISHED = (
    "DeepMind's I3D is published in github.com/google-deepmind/kinetics-i3d, data/checkpoints, and "
    "python -m trainer import --format deepmind PATH --output CKPT makes a checkpoint of it"
)


def command(
    commands, name: str, run: Callable[[argparse.Namespace], int], about: str, ended: str = ""
) -> argparse.ArgumentParser:
    """A new command's parser.

    Args:
        run: what the command does; its exit code.
        ended: what to tell who interrupts it.
    """
    parser = commands.add_parser(name, help=about, description=about)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=run, ended=ended)
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """The arguments that name data sets, and how they are read; see `cache` and `lists`."""
    parser.add_argument("--data", nargs="+", required=True, metavar="ROOT", help="published data sets")
    parser.add_argument(
        "--split-file",
        nargs="+",
        metavar="FILE",
        help="UCF-101's or HMDB-51's lists of one split, which say what trains and what tests",
    )
    parser.add_argument("--cache", metavar="FOLDER", help="keep what is read from elsewhere on this machine")
    parser.add_argument(
        "--cache-gib", type=float, default=50.0, metavar="N", help="the most that it holds (default 50)"
    )


def cache(options: argparse.Namespace) -> Cache | None:
    """The cache that was named, if any. Raises CacheError."""
    from trainer.data.cache import Cache

    return Cache.open(options.cache, options.cache_gib) if options.cache else None


def lists(options: argparse.Namespace) -> Lists | None:
    """What trains and what tests by the files that were named, if any. Raises ListError."""
    from trainer.data.lists import read

    return read(options.split_file) if options.split_file else None


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """The arguments that name trained towers; see `checkpoints`."""
    parser.add_argument("--rgb", metavar="RUN", help="run or checkpoint whose RGB tower to take")
    parser.add_argument("--flow", metavar="RUN", help="run or checkpoint whose flow tower to take")
    parser.add_argument("--checkpoint", metavar="RUN", help="run or checkpoint to take whole")


def checkpoints(options: argparse.Namespace) -> tuple[tuple[str, str | None], ...]:
    """The checkpoints that were named, each with the stream whose tower is wanted.

    Raises ConfigurationError where that is no choice.
    """
    from trainer.configuration import ConfigurationError

    if not (options.checkpoint or options.rgb or options.flow):
        raise ConfigurationError(f"name --rgb, --flow or both, or --checkpoint; {PUBLISHED}")
    if options.checkpoint and (options.rgb or options.flow):
        raise ConfigurationError("name either --checkpoint, or --rgb, --flow or both")
    named = [(options.checkpoint, None), (options.rgb, "rgb"), (options.flow, "flow")]
    return tuple((path, stream) for path, stream in named if path)


def failed(failures: int, done: int, strict: bool) -> int:
    """The exit code of a run over inputs: 1 where any failed if `strict`, else where nothing was done."""
    return 1 if failures and (strict or not done) else 0
