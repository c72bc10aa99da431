"""The training loop: `train`. Data, models, checkpoints and records come from their own modules.

python -m trainer train --data ROOT --network i3d --output RUN
torchrun --nproc-per-node 8 -m trainer train --data ROOT --network i3d --output RUN
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from trainer import checkpoint as checkpoints
from trainer import distributed, initial_weights, run_log, stream_models, weights
from trainer import launch as launches
from trainer.checkpoint import Checkpoint
from trainer.configuration import (
    FED,
    Configuration,
    ConfigurationError,
    Difference,
    Sections,
    as_begun,
    difference,
    fed_as,
    with_current_names,
    with_data,
)
from trainer.data import sampler
from trainer.data.batches import by_step
from trainer.data.cache import Cache
from trainer.data.lists import Lists
from trainer.data.rows import Rows, input_for, open_rows
from trainer.evaluate import Stopped
from trainer.initial_weights import InitialWeights
from trainer.networks import CHANNELS
from trainer.train_state import TrainingError, TrainState

__all__ = ["Interrupted", "TrainOptions", "TrainState", "TrainingError", "set_up", "train"]


class RanksDiffer(TrainingError):
    """The ranks do not see the same RUN: not yet, or never."""


class Interrupted(TrainingError):
    """SIGTERM or Ctrl-C; the run was saved first."""


Generations = tuple[tuple[str, ...], ...]
"""Names of generations, of each data set."""


@dataclass(frozen=True)
class TrainOptions:
    """One call of ``train``: what, on which data sets, into which folder, from where."""

    configuration: Configuration
    data: tuple[str, ...]
    output: Path
    resume: str = "auto"  # auto | none
    init: str | None = None  # a checkpoint to start from, or imagenet:FILE
    cache: Cache | None = None  # of what is read from elsewhere
    lists: Lists | None = None  # published lists of what trains and what tests, instead of the splits
    generations: str = "kept"  # kept: those that the run began with | latest: new ones join as epochs begin


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
    """Trains to the run's length; or to the end of an epoch, and True, where new clips are to join."""
    group, run = state.group, state.configuration.run
    recorder = run_log.Recorder(options.output, state.done, state.steps) if group.first else None

    def told() -> bool:
        return interrupt.requested

    try:
        if state.evaluation_due:  # the run was killed before the last epoch's was kept
            state.evaluate(options.output, recorder, told)
        last = time.monotonic()
        for parts in by_step(state.batches(state.start, state.steps - state.done)):
            record = state.step(parts)
            now = time.monotonic()
            record |= {"clips_per_second": run.batch_size / (now - last)}
            last = now
            if recorder:
                recorder.step(record)
            epoch_ends = state.start[1] == 0
            stop = state.anyone(interrupt.requested)
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
                state.evaluate(options.output, recorder, told)
                last = time.monotonic()
            if epoch_ends and not state.finished and _latest(options, state.rows, group):
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


def _latest(options: TrainOptions, rows: Rows, group: distributed.Group) -> Generations | None:
    """The data sets' generations, where the run is to have them and `rows` are not of all; else None."""
    if options.generations != "latest":
        return None
    split = "train" if options.lists is None else options.lists.train
    found = group.broadcast_from_rank0(lambda: open_rows(options.data, split, ()).generations)
    return found if found != rows.generations else None


def set_up(options: TrainOptions, group: distributed.Group) -> TrainState:
    """The run as it stands in its folder, or at its start."""
    options = _as_repeated(options, group)
    before, damage = checkpoints.newest(options.output) if options.resume == "auto" else (None, None)
    if len(set(group.gather(before.steps if before else 0))) > 1:
        raise RanksDiffer(
            f"The ranks find different checkpoints in {options.output}: put it where all see it"
        )
    streams, splits = (
        options.configuration.input.streams,
        ("train", "val") if options.lists is None else options.lists,
    )
    rows = open_rows(options.data, splits[0], streams, before.generations if before else None)
    configuration = with_data(options.configuration, rows.short_side, rows.flow_bound)
    start = (
        group.broadcast_from_rank0(lambda: initial_weights.find(str(options.init)))
        if options.init and not before
        else None
    )
    given = checkpoints.load(start.file) if start and not start.image else None
    if before and before.configuration.get("init", options.init):  # a run of before may not know of it
        given = before  # which was fed as the weights that it began with
    if given:
        configuration = fed_as(configuration, given.input)
    if theirs := group.broadcast_from_rank0(lambda: _on_record(options, before)):
        configuration = as_begun(configuration, theirs)
        group.broadcast_from_rank0(lambda: _same_run(options, configuration, theirs, before, rows))
    if before and before.state["step"] == 0 and (latest := _latest(options, rows, group)):
        older, rows = rows, open_rows(options.data, splits[0], streams, latest)
        if group.first:
            epoch = before.state["epoch"]
            print(f"New generations join epoch {epoch}: {len(rows)} clips, not {len(older)}", file=sys.stderr)
    wanted = configuration.run.evaluate_every > 0
    held_out = open_rows(options.data, splits[1], streams, rows.generations) if wanted else None
    input_for(rows, configuration.input)  # now, and not when the folder is this run's
    built = _built(configuration, len(rows.classes))
    if before:
        for stream, model in built.items():
            model.network.load_state_dict(before.weights[stream])
    else:
        _initialise(options, start, given, configuration, built, rows, group.first)
    if configuration.optimisation.freeze:
        for stream, model in built.items():
            model.freeze(
                stream_models.last_layers(configuration.network.name, configuration.network.options, stream)
            )
    optimiser = before.optimiser or {} if before else {}
    state = TrainState(
        configuration,
        group,
        rows,
        held_out,
        built,
        done=before.steps if before else 0,
        start=(before.state["epoch"], before.state["step"]) if before else (0, 0),
        history=list(optimiser.get("history", [])),
        cache=options.cache,
        init=before.configuration.get("init") if before else start.as_dict() if start else {},
    )
    if before:
        state.optimiser.load_state_dict(optimiser["sgd"])
        state.scaler.load_state_dict(optimiser["scaler"])
    _settle(options, state, damage)
    return state


def _settle(options: TrainOptions, state: TrainState, damage: str | None) -> None:
    """Makes the folder that of this run; only now, so that a call that cannot be run leaves what is there."""
    group = state.group
    launch = [name for names in group.gather(launches.names()) for name in names]
    if group.first:
        options.output.mkdir(parents=True, exist_ok=True)
        checkpoints.sweep(options.output)
        if damage:
            print(damage, file=sys.stderr)
            checkpoints.set_aside(options.output, state.done)
        if options.resume == "none":
            checkpoints.clear(options.output)
            run_log.clear(options.output)
            launches.record(options.output, _call(options), launch)
        run_log.write_json(options.output / run_log.CONFIGURATION, state.settings)
    group.wait()


def _call(options: TrainOptions) -> str:
    """What a repetition of a call has the same."""
    lists = options.lists and [sampler.digest(sorted(listed.ids)) for listed in options.lists]
    return repr((options.configuration, options.data, options.init, lists))


def _as_repeated(options: TrainOptions, group: distributed.Group) -> TrainOptions:
    """The options; where torchrun or Slurm repeats a call that started RUN over, one that goes on with it."""
    if options.resume == "auto":
        return options
    known = [name for name in group.gather(launches.repeated(options.output, _call(options))) if name]
    if not known:
        return options
    if group.first:
        print(
            f"{options.output} was started over by {known[0]}, which this is again: going on with it "
            "(under another --rdzv-id, ssh.sh's ID, it starts over)",
            file=sys.stderr,
        )
    return replace(options, resume="auto")


def _initialise(
    options: TrainOptions,
    start: InitialWeights | None,
    given: Checkpoint | None,
    configuration: Configuration,
    built: dict[str, stream_models.StreamModel],
    rows: Rows,
    first: bool,
) -> None:
    """Gives fresh models the weights that the call names; says what stays fresh, and what came with them."""
    if options.configuration.optimisation.freeze and not options.init:
        raise ConfigurationError("--freeze learns the last layer alone: name the rest's weights with --init")
    told: list[str] = []
    if given:
        fresh = stream_models.initialise(built, given, rows.classes)
        told = [f"left fresh, the classes being others: {', '.join(fresh)}"] if fresh else []
        fed, default = configuration.input, options.configuration.input
        taken = [f"{n} {getattr(fed, n)}" for n in FED if getattr(fed, n) != getattr(default, n)]
        told += [f"fed as the weights were: {', '.join(taken)}"] if taken else []
    elif start:
        told = weights.initialise((model.network for model in built.values()), start.file)
    if first:
        print("".join(f"--init: {sentence}\n" for sentence in told), end="", file=sys.stderr)


def _built(configuration: Configuration, classes: int) -> dict[str, stream_models.StreamModel]:
    """Fresh models, once their input has gone through them without values.

    Raises ConfigurationError for options or an input that the network does not take.
    """
    network, input = configuration.network, configuration.input
    try:
        with torch.device("meta"):
            empty = stream_models.build(
                network.name, network.options, configuration.model_streams, classes, input=input
            )
            size = (input.frames, input.crop, input.crop)
            rgb, flow = (torch.empty(1, CHANNELS[stream], *size) for stream in ("rgb", "flow"))
            for model in empty.values():
                model.eval()((rgb, flow))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{network.name} cannot be trained so: {error}") from None
    return stream_models.build(
        network.name, network.options, configuration.model_streams, classes, configuration.run.seed, input
    )


def _on_record(options: TrainOptions, before: Checkpoint | None) -> Sections | None:
    """What the run in the folder is set to, of which `before` is the newest checkpoint; None for no run."""
    path = options.output / run_log.CONFIGURATION
    if options.resume == "none" or (before is None and not path.exists()):
        return None
    return with_current_names(before.configuration if before else json.loads(path.read_text("utf-8")))


def _same_run(
    options: TrainOptions,
    configuration: Configuration,
    theirs: Sections,
    before: Checkpoint | None,
    rows: Rows,
) -> None:
    """Raises ConfigurationError where the folder holds another run, of the record `theirs`, than this one."""
    found = difference(configuration, theirs)
    if (
        found is None
        and "init" in theirs
        and (phrase := initial_weights.difference(options.init, theirs["init"]))
    ):
        found = Difference(phrase, "leave --init out to go on with it")
    if found is None and before and before.classes != rows.classes:
        found = Difference("the data set's classes are others")
    if found is None and before and before.fingerprint != rows.fingerprint:
        found = Difference("it was trained on other clips than those of --data")
    if found:
        remedy = f"{found.remedy}, or " if found.remedy else ""
        raise ConfigurationError(
            f"{options.output} holds another run ({found.phrase}): "
            f"{remedy}take another --output, or --resume none to start over"
        )
