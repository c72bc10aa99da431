"""Sets up a run: continues its newest checkpoint, or starts it, once settings, data and RUN folder agree."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

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
from trainer.data.rows import Rows, input_for, open_rows
from trainer.initial_weights import InitialWeights
from trainer.networks import CHANNELS
from trainer.options import TrainOptions
from trainer.stream_models import StreamModel
from trainer.train_state import RanksDiffer, TrainState

Generations = tuple[tuple[str, ...], ...]
"""Names of generations, of each data set."""


def set_up(options: TrainOptions, group: distributed.Group) -> TrainState:
    """The run in the folder of `options` as its newest checkpoint has it, or at its start."""
    options = _as_repeated(options, group)
    before, damage = checkpoints.newest(options.output) if options.resume == "auto" else (None, None)
    if len(set(group.gather(before.steps if before else 0))) > 1:
        differ = f"The ranks find different checkpoints in {options.output}"
        raise RanksDiffer(f"{differ}: put it where all see it")
    streams = options.configuration.input.streams
    train_split, test_split = options.lists or ("train", "val")
    rows = open_rows(options.data, train_split, streams, before.generations if before else None)
    start = None
    if options.init and not before:
        start = group.broadcast_from_rank0(lambda: initial_weights.find(str(options.init)))
    given = checkpoints.load(start.file) if start and not start.image else None
    configuration = _settled(options, group, before, given, rows)
    if before and before.state["step"] == 0 and (latest := newer_generations(options, rows, group)):
        older, rows = rows, open_rows(options.data, train_split, streams, latest)
        if group.first:
            epoch = before.state["epoch"]
            print(f"New generations join epoch {epoch}: {len(rows)} clips, not {len(older)}", file=sys.stderr)
    wanted = configuration.run.evaluate_every > 0
    held_out = open_rows(options.data, test_split, streams, rows.generations) if wanted else None
    input_for(rows, configuration.input)  # raises now, before the folder becomes this run's
    models = _built(configuration, len(rows.classes))
    if not before:
        _initialise(options, start, given, configuration, models, rows, group.first)
    network = configuration.network
    for stream, model in models.items() if configuration.optimisation.freeze else ():
        model.freeze(stream_models.last_layers(network.name, network.options, stream))
    init = before.configuration.get("init") if before else start.as_dict() if start else {}
    state = TrainState(configuration, group, rows, held_out, models, before, options.cache, init)
    _take_folder(options, state, damage)
    return state


def newer_generations(options: TrainOptions, rows: Rows, group: distributed.Group) -> Generations | None:
    """The data sets' present generations where the run wants them and `rows` lack some; else None."""
    if options.generations != "latest":
        return None
    split = "train" if options.lists is None else options.lists.train
    found = group.broadcast_from_rank0(lambda: open_rows(options.data, split, ()).generations)
    return found if found != rows.generations else None


def _settled(
    options: TrainOptions,
    group: distributed.Group,
    before: Checkpoint | None,
    given: Checkpoint | None,
    rows: Rows,
) -> Configuration:
    """The call's settings with its data's, weights' and run's; raises ConfigurationError for another run."""
    configuration = with_data(options.configuration, rows.short_side, rows.flow_bound)
    if before and before.configuration.get("init", options.init):  # early versions did not note --init
        given = before  # fed as its initial weights were
    if given:
        configuration = fed_as(configuration, given.input)
    if theirs := group.broadcast_from_rank0(lambda: _recorded(options, before)):
        configuration = as_begun(configuration, theirs)
        group.broadcast_from_rank0(lambda: _check_same_run(options, configuration, theirs, before, rows))
    return configuration


def _take_folder(options: TrainOptions, state: TrainState, damage: str | None) -> None:
    """Makes the folder this run's; last, so that a call that cannot run changes nothing there."""
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
            launches.record(options.output, call_of(options), launch)
        run_log.write_json(options.output / run_log.CONFIGURATION, state.settings)
    group.wait()


def call_of(options: TrainOptions) -> str:
    """A text that is equal for repetitions of one call."""
    lists = options.lists and [sampler.digest(sorted(listed.ids)) for listed in options.lists]
    return repr((options.configuration, options.data, options.init, lists))


def _as_repeated(options: TrainOptions, group: distributed.Group) -> TrainOptions:
    """The options; resuming ones where torchrun or Slurm repeats a call that started RUN over."""
    if options.resume == "auto":
        return options
    known = [name for name in group.gather(launches.repeated(options.output, call_of(options))) if name]
    if not known:
        return options
    if group.first:
        again = f"{options.output} was started over by {known[0]}, which this is again: going on with it "
        print(again + "(under another --rdzv-id, ssh.sh's ID, it starts over)", file=sys.stderr)
    return replace(options, resume="auto")


def _initialise(
    options: TrainOptions,
    start: InitialWeights | None,
    given: Checkpoint | None,
    configuration: Configuration,
    models: dict[str, StreamModel],
    rows: Rows,
    first: bool,
) -> None:
    """Loads the weights that the call names into fresh models; prints what stays fresh, what they set."""
    if options.configuration.optimisation.freeze and not options.init:
        raise ConfigurationError("--freeze learns the last layer alone: name the rest's weights with --init")
    told: list[str] = []
    if given:
        fresh = stream_models.initialise(models, given, rows.classes)
        told = [f"left fresh, the classes being others: {', '.join(fresh)}"] if fresh else []
        fed, default = configuration.input, options.configuration.input
        taken = [f"{n} {getattr(fed, n)}" for n in FED if getattr(fed, n) != getattr(default, n)]
        told += [f"fed as the weights were: {', '.join(taken)}"] if taken else []
    elif start:
        told = weights.initialise((model.network for model in models.values()), start.file)
    if first:
        print("".join(f"--init: {sentence}\n" for sentence in told), end="", file=sys.stderr)


def _built(configuration: Configuration, classes: int) -> dict[str, StreamModel]:
    """Fresh models. Raises ConfigurationError for options or an input that the network does not take."""
    network, input, streams = configuration.network, configuration.input, configuration.model_streams
    try:
        with torch.device("meta"):  # computes nothing
            empty = stream_models.build(network.name, network.options, streams, classes, input=input)
            size = (input.frames, input.crop, input.crop)
            rgb, flow = (torch.empty(1, CHANNELS[stream], *size) for stream in ("rgb", "flow"))
            for model in empty.values():
                model.eval()((rgb, flow))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{network.name} cannot be trained so: {error}") from None
    return stream_models.build(network.name, network.options, streams, classes, configuration.run.seed, input)


def _recorded(options: TrainOptions, before: Checkpoint | None) -> Sections | None:
    """The settings of the run in the folder, whose newest checkpoint is `before`; None for no run."""
    path = options.output / run_log.CONFIGURATION
    if options.resume == "none" or (before is None and not path.exists()):
        return None
    return with_current_names(before.configuration if before else json.loads(path.read_text("utf-8")))


def _check_same_run(
    options: TrainOptions, mine: Configuration, theirs: Sections, before: Checkpoint | None, rows: Rows
) -> None:
    """Raises ConfigurationError where the folder holds another run, of the settings `theirs`."""
    found = difference(mine, theirs)
    if not found and "init" in theirs:
        phrase = initial_weights.difference(options.init, theirs["init"])
        found = Difference(phrase, "leave --init out to go on with it") if phrase else None
    if not found and before and before.classes != rows.classes:
        found = Difference("the data set's classes are others")
    if not found and before and before.fingerprint != rows.fingerprint:
        found = Difference("it was trained on other clips than those of --data")
    if found:
        remedy = f"{found.remedy}, or " if found.remedy else ""
        remedy += "take another --output, or --resume none to start over"
        raise ConfigurationError(f"{options.output} holds another run ({found.phrase}): {remedy}")
