"""The trainer's commands. Ends with 0 when done, 1 when the job failed, 2 when the call was wrong."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from pipeline import command_line
from pipeline.command_line import Command, Group
from trainer import launch
from trainer.commands import evaluate, export, features, import_weights, networks, predict, train


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    about = "Train and use video networks on a data set that the pipeline has published."
    return command_line.main("python -m trainer", about, GROUPS, words)


def _guard(command: Command, debug: bool, run: Callable[[], int]) -> int:
    """Calls `run`; an exception becomes one sentence and an exit code."""
    try:
        with _sigterm_as_ctrl_c():
            return run()
    except KeyboardInterrupt:
        print(f"Interrupted: {command.interrupted or 'the same command starts again'}", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        rank = f"rank {os.environ.get('RANK', 0)}: " if int(os.environ.get("WORLD_SIZE", 1)) > 1 else ""
        if isinstance(error, ImportError) and (missing := command_line.missing_package(error)):
            print(f"{rank}{missing}", file=sys.stderr)
            return 1
        print(f"{rank}{_sentence(error)}", file=sys.stderr)
        if _fails_again(error):
            launch.end()
        return 2 if _is_wrong_call(error) else 1


GROUPS = (
    Group("Train", (train.COMMAND, evaluate.COMMAND, networks.COMMAND, import_weights.COMMAND), _guard),
    Group("Use", (features.COMMAND, predict.COMMAND, export.COMMAND), _guard),
)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt for the length of the block; ``train`` has a handler of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sentence(error: Exception) -> str:
    """The sentence for a user: our own errors as they are, others with their type."""
    said = " ".join(str(error).split()) or "no further word"
    if type(error).__module__.split(".")[0] in ("trainer", "pipeline") or isinstance(error, OSError):
        return said
    return f"{type(error).__name__}: {said} (--debug shows where)"


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
