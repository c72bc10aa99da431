"""The trainer's commands. Ends with 0 when done, 1 when the job failed, 2 when the call was wrong."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from trainer import launch
from trainer.commands import evaluate, export, features, import_weights, networks, predict, train

COMMANDS = (train, evaluate, features, predict, networks, import_weights, export)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        with _ended_like_by_ctrl_c():
            return options.command(options)
    except KeyboardInterrupt:
        print(f"Interrupted: {options.ended or 'the same command begins anew'}", file=sys.stderr)
        return 1
    except Exception as error:
        if options.debug:
            raise
        rank = f"rank {os.environ.get('RANK', 0)}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        print(f"{rank}{_sentence(error)}", file=sys.stderr)
        if _fails_again(error):
            launch.end()
        return 2 if _is_wrong_call(error) else 1


@contextlib.contextmanager
def _ended_like_by_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt for the length of the block; ``train`` has a handler of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m trainer", description="Train and use video networks on a data set that pipeline published."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


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
    from pipeline.outcome import CallError
    from trainer.data.rows import DamagedError

    return isinstance(error, CallError) and not isinstance(error, DamagedError)


def _fails_again(error: Exception) -> bool:
    """Whether the same call would come to the same end, so that no launcher need repeat it.

    What a node does not see, or cannot read, it may in a moment: storage that nodes share lags behind.
    """
    from trainer.checkpoint import CheckpointError
    from trainer.data.loader import TooManyFailures
    from trainer.train import Interrupted, RanksDiffer, TrainingError
    from trainer.weights import WeightsError

    final = TrainingError | TooManyFailures | CheckpointError | WeightsError
    passing = isinstance(error, Interrupted | RanksDiffer) or isinstance(error.__cause__, OSError)
    return _is_wrong_call(error) or (isinstance(error, final) and not passing)


if __name__ == "__main__":
    sys.exit(main())
