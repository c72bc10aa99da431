"""The training loop: `train`. Data, towers, checkpoints and records come from their own modules.

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
from trainer import distributed, run_log, stream_models, weights
from trainer import initial_weights as origins
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
    with_flow_bound,
)
from trainer.data import sampler
from trainer.data.batches import by_step
from trainer.data.cache import Cache
from trainer.data.lists import Lists
from trainer.data.rows import Rows, open_rows
from trainer.evaluate import Stopped
from trainer.initial_weights import Origin
from trainer.networks import CHANNELS
from trainer.training import Training, TrainingError

__all__ = ["Interrupted", "Job", "Training", "TrainingError", "set_up", "train"]


class RanksDiffer(TrainingError):
    """The ranks do not see the same RUN: not yet, or never."""


class Interrupted(TrainingError):
    """SIGTERM or Ctrl-C; the run was saved first."""


Generations = tuple[tuple[str, ...], ...]
"""Names of generations, of each data set."""


@dataclass(frozen=True)
class Job:
    """One call of ``train``: what, on which data sets, into which folder, from where."""

    configuration: Configuration
    data: tuple[str, ...]
    output: Path
    resume: str = "auto"  # auto | none
    init: str | None = None  # a checkpoint to start from, or imagenet:FILE
    cache: Cache | None = None  # of what is read from elsewhere
    lists: Lists | None = None  # published lists of what trains and what tests, instead of the splits
    generations: str = "kept"  # kept: those that the run began with | latest: new ones join as epochs begin


def train(job: Job) -> Path:
    """Trains until the run's length is reached, and returns its last checkpoint.

    Raises ConfigurationError, CheckpointError, TrainingError, RowsError, TooManyFailures.
    """
    if job.output.is_file():
        raise ConfigurationError(f"--output {job.output} is a file: name a folder")
    with distributed.join() as group, run_log.Interrupt() as interrupt:
        while _go(job, set_up(job, group), interrupt):
            job = replace(job, resume="auto")
        return checkpoints.find(job.output)


def _go(job: Job, training: Training, interrupt: run_log.Interrupt) -> bool:
    """Trains to the run's length; or to the end of an epoch, and True, where new clips are to join."""
    group, run = training.group, training.configuration.run
    recorder = run_log.Recorder(job.output, training.done, training.steps) if group.first else None

    def told() -> bool:
        return interrupt.requested

    try:
        if training.evaluation_due:  # the run was killed before the last epoch's was kept
            training.evaluate(job.output, recorder, told)
        last = time.monotonic()
        for parts in by_step(training.batches(training.start, training.steps - training.done)):
            record = training.step(parts)
            now = time.monotonic()
            record |= {"clips_per_second": run.batch_size / (now - last)}
            last = now
            if recorder:
                recorder.step(record)
            epoch_ends = training.start[1] == 0
            stop = training.anyone(interrupt.requested)
            if training.finished or training.evaluation_due:
                training.reestimate()
            if training.done % run.checkpoint_every == 0 or epoch_ends or training.finished or stop:
                training.save(job.output)
            if stop and (training.evaluation_due or not training.finished):
                raise Interrupted(
                    f"Stopped at step {training.done} of {training.steps}, saved in {job.output}: "
                    "the same command goes on from there"
                )
            if training.evaluation_due:
                training.evaluate(job.output, recorder, told)
                last = time.monotonic()
            if epoch_ends and not training.finished and _latest(job, training.rows, group):
                return True
    except Stopped:
        raise Interrupted(
            f"Stopped in the evaluation after step {training.done}, saved in {job.output}: "
            "the same command goes on from there"
        ) from None
    finally:
        if recorder:
            recorder.close()
    return False


def _latest(job: Job, rows: Rows, group: distributed.Group) -> Generations | None:
    """The data sets' generations, where the run is to have them and `rows` are not of all; else None."""
    if job.generations != "latest":
        return None
    split = "train" if job.lists is None else job.lists.train
    found = group.from_first(lambda: open_rows(job.data, split, ()).generations)
    return found if found != rows.generations else None


def set_up(job: Job, group: distributed.Group) -> Training:
    """The run as it stands in its folder, or at its start."""
    job = _as_repeated(job, group)
    before, damage = checkpoints.newest(job.output) if job.resume == "auto" else (None, None)
    if len(set(group.gather(before.steps if before else 0))) > 1:
        raise RanksDiffer(f"The ranks find different checkpoints in {job.output}: put it where all see it")
    streams, splits = job.configuration.input.streams, ("train", "val") if job.lists is None else job.lists
    rows = open_rows(job.data, splits[0], streams, before.generations if before else None)
    configuration = with_flow_bound(job.configuration, rows.flow_bound)
    origin = group.from_first(lambda: origins.find(str(job.init))) if job.init and not before else None
    given = checkpoints.load(origin.file) if origin and not origin.image else None
    if before and before.configuration.get("init", job.init):  # a run of before may not know of it
        given = before  # which was fed as the weights that it began with
    if given:
        configuration = fed_as(configuration, given.input)
    if theirs := group.from_first(lambda: _on_record(job, before)):
        configuration = as_begun(configuration, theirs)
        group.from_first(lambda: _same_run(job, configuration, theirs, before, rows))
    if before and before.state["step"] == 0 and (latest := _latest(job, rows, group)):
        older, rows = rows, open_rows(job.data, splits[0], streams, latest)
        if group.first:
            epoch = before.state["epoch"]
            print(f"New generations join epoch {epoch}: {len(rows)} clips, not {len(older)}", file=sys.stderr)
    wanted = configuration.run.evaluate_every > 0
    held_out = open_rows(job.data, splits[1], streams, rows.generations) if wanted else None
    built = _built(configuration, len(rows.classes))
    if before:
        for stream, tower in built.items():
            tower.network.load_state_dict(before.towers[stream])
    else:
        _initialise(job, origin, given, configuration, built, rows, group.first)
    if configuration.optimisation.freeze:
        for stream, tower in built.items():
            tower.freeze(
                stream_models.last_layers(configuration.network.name, configuration.network.options, stream)
            )
    optimiser = before.optimiser or {} if before else {}
    training = Training(
        configuration,
        group,
        rows,
        held_out,
        built,
        done=before.steps if before else 0,
        start=(before.state["epoch"], before.state["step"]) if before else (0, 0),
        history=list(optimiser.get("history", [])),
        cache=job.cache,
        origin=before.configuration.get("init") if before else origin.as_dict() if origin else {},
    )
    if before:
        training.optimiser.load_state_dict(optimiser["sgd"])
        training.scaler.load_state_dict(optimiser["scaler"])
    _settle(job, training, damage)
    return training


def _settle(job: Job, training: Training, damage: str | None) -> None:
    """Makes the folder that of this run; only now, so that a call that cannot be run leaves what is there."""
    group = training.group
    launch = [name for names in group.gather(launches.names()) for name in names]
    if group.first:
        job.output.mkdir(parents=True, exist_ok=True)
        checkpoints.sweep(job.output)
        if damage:
            print(damage, file=sys.stderr)
            checkpoints.set_aside(job.output, training.done)
        if job.resume == "none":
            checkpoints.clear(job.output)
            run_log.clear(job.output)
            launches.record(job.output, _call(job), launch)
        run_log.write_json(job.output / run_log.CONFIGURATION, training.settings)
    group.wait()


def _call(job: Job) -> str:
    """What a repetition of a call has the same."""
    lists = job.lists and [sampler.digest(sorted(listed.ids)) for listed in job.lists]
    return repr((job.configuration, job.data, job.init, lists))


def _as_repeated(job: Job, group: distributed.Group) -> Job:
    """The job; where torchrun or Slurm repeats a call that started RUN over, one that goes on with it."""
    if job.resume == "auto":
        return job
    known = [name for name in group.gather(launches.repeated(job.output, _call(job))) if name]
    if not known:
        return job
    if group.first:
        print(
            f"{job.output} was started over by {known[0]}, which this is again: going on with it "
            "(under another --rdzv-id, ssh.sh's ID, it starts over)",
            file=sys.stderr,
        )
    return replace(job, resume="auto")


def _initialise(
    job: Job,
    origin: Origin | None,
    given: Checkpoint | None,
    configuration: Configuration,
    built: dict[str, stream_models.Tower],
    rows: Rows,
    first: bool,
) -> None:
    """Gives fresh towers the weights that the call names; says what stays fresh, and what came with them."""
    if job.configuration.optimisation.freeze and not job.init:
        raise ConfigurationError("--freeze learns the last layer alone: name the rest's weights with --init")
    told: list[str] = []
    if given:
        fresh = stream_models.initialise(built, given, rows.classes)
        told = [f"left fresh, the classes being others: {', '.join(fresh)}"] if fresh else []
        fed, default = configuration.input, job.configuration.input
        taken = [f"{n} {getattr(fed, n)}" for n in FED if getattr(fed, n) != getattr(default, n)]
        told += [f"fed as the weights were: {', '.join(taken)}"] if taken else []
    elif origin:
        told = weights.initialise((tower.network for tower in built.values()), origin.file)
    if first:
        print("".join(f"--init: {sentence}\n" for sentence in told), end="", file=sys.stderr)


def _built(configuration: Configuration, classes: int) -> dict[str, stream_models.Tower]:
    """Fresh towers, once their input has gone through them without values.

    Raises ConfigurationError for options or an input that the network does not take.
    """
    network, input = configuration.network, configuration.input
    try:
        with torch.device("meta"):
            empty = stream_models.build(
                network.name, network.options, configuration.towers, classes, input=input
            )
            size = (input.frames, input.crop, input.crop)
            rgb, flow = (torch.empty(1, CHANNELS[stream], *size) for stream in ("rgb", "flow"))
            for tower in empty.values():
                tower.eval()((rgb, flow))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{network.name} cannot be trained so: {error}") from None
    return stream_models.build(
        network.name, network.options, configuration.towers, classes, configuration.run.seed, input
    )


def _on_record(job: Job, before: Checkpoint | None) -> Sections | None:
    """What the run in the folder is set to, of which `before` is the newest checkpoint; None for no run."""
    path = job.output / run_log.CONFIGURATION
    if job.resume == "none" or (before is None and not path.exists()):
        return None
    return before.configuration if before else json.loads(path.read_text(encoding="utf-8"))


def _same_run(
    job: Job, configuration: Configuration, theirs: Sections, before: Checkpoint | None, rows: Rows
) -> None:
    """Raises ConfigurationError where the folder holds another run, of the record `theirs`, than this one."""
    found = difference(configuration, theirs)
    if found is None and "init" in theirs and (phrase := origins.difference(job.init, theirs["init"])):
        found = Difference(phrase, "leave --init out to go on with it")
    if found is None and before and before.classes != rows.classes:
        found = Difference("the data set's classes are others")
    if found is None and before and before.fingerprint != rows.fingerprint:
        found = Difference("it was trained on other clips than those of --data")
    if found:
        remedy = f"{found.remedy}, or " if found.remedy else ""
        raise ConfigurationError(
            f"{job.output} holds another run ({found.phrase}): "
            f"{remedy}take another --output, or --resume none to start over"
        )
