"""The training loop; `trainer.run_setup` starts or resumes a run, `trainer.train_state` takes its steps.

python -m trainer train --data ROOT --network i3d --output RUN
torchrun --nproc-per-node 8 -m trainer train --data ROOT --network i3d --output RUN
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from trainer import checkpoint as checkpoints
from trainer import distributed, run_log
from trainer.configuration import ConfigurationError
from trainer.data.batches import by_step
from trainer.evaluate import Stopped
from trainer.options import TrainOptions
from trainer.run_setup import newer_generations, set_up
from trainer.train_state import RanksDiffer, TrainingError, TrainState

__all__ = ["Interrupted", "RanksDiffer", "TrainOptions", "TrainState", "TrainingError", "set_up", "train"]


class Interrupted(TrainingError):
    """SIGTERM or Ctrl-C; the run was saved first."""


def train(options: TrainOptions) -> Path:
    """Trains until the run's length is reached, and returns its last checkpoint.

    Raises ConfigurationError, CheckpointError, TrainingError, RowsError, TooManyFailures.
    """
    if options.output.is_file():
        raise ConfigurationError(f"--output {options.output} is a file: name a folder")
    with distributed.join() as group, run_log.Interrupt() as interrupt:
        while _go(options, set_up(options, group), interrupt):
            options = replace(options, resume="auto")
        return checkpoints.find(options.output)


def _go(options: TrainOptions, state: TrainState, interrupt: run_log.Interrupt) -> bool:
    """Trains to the run's length; True where it stops at an epoch's end for new clips to join."""
    group, run = state.group, state.configuration.run
    recorder = run_log.Recorder(options.output, state.done, state.steps) if group.first else None

    try:
        if state.evaluation_due:  # the run was killed before the last epoch's was kept
            state.evaluate(options.output, recorder, lambda: interrupt.requested)
        last = time.monotonic()
        for parts in by_step(state.batches(state.start, state.steps - state.done)):
            record = state.step(parts)
            before, last = last, time.monotonic()
            record["clips_per_second"] = run.batch_size / (last - before)
            if recorder:
                recorder.step(record)
            epoch_ends = state.start[1] == 0
            stop = group.any(interrupt.requested)
            if state.finished or state.evaluation_due:
                state.reestimate()
            if state.done % run.checkpoint_every == 0 or epoch_ends or state.finished or stop:
                state.save(options.output)
            if stop and (state.evaluation_due or not state.finished):
                raise Interrupted(
                    f"Stopped at step {state.done} of {state.steps}, saved in {options.output}: "
                    "the same command goes on from there"
                )
            if state.evaluation_due:
                state.evaluate(options.output, recorder, lambda: interrupt.requested)
                last = time.monotonic()
            if epoch_ends and not state.finished and newer_generations(options, state.rows, group):
                return True
    except Stopped:
        raise Interrupted(
            f"Stopped in the evaluation after step {state.done}, saved in {options.output}: "
            "the same command goes on from there"
        ) from None
    finally:
        if recorder:
            recorder.close()
    return False
