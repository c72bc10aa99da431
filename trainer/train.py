"""The training loop: `train`. Data, towers, checkpoints and records come from their own modules.

python -m trainer train --data ROOT --network i3d --output RUN
torchrun --nproc-per-node 8 -m trainer train --data ROOT --network i3d --output RUN
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import checkpoint as checkpoints
from trainer import distributed, evaluate, recording, towers, weights
from trainer.checkpoint import Checkpoint
from trainer.configuration import Configuration, ConfigurationError, difference, with_flow_bound
from trainer.data import order
from trainer.data.batch import Batch
from trainer.data.cache import Cache
from trainer.data.loader import EvaluationBatches, TrainBatches
from trainer.data.rows import Rows, open_rows
from trainer.networks import CHANNELS
from trainer.optimisation import learning_rate, sgd


class TrainingError(RuntimeError):
    """Training cannot go on; one sentence with the remedy."""


class Interrupted(TrainingError):
    """SIGTERM or Ctrl-C; the run was saved first."""


@dataclass(frozen=True)
class Job:
    """One call of ``train``: what, on which data sets, into which folder, from where."""

    configuration: Configuration
    data: tuple[str, ...]
    output: Path
    resume: str = "auto"  # auto | none
    init: str | None = None  # a checkpoint to start from, or imagenet:FILE
    cache: Cache | None = None  # of what is read from elsewhere


def train(job: Job) -> Path:
    """Trains until the run's length is reached, and returns its last checkpoint.

    Raises ConfigurationError, CheckpointError, TrainingError, RowsError, TooManyFailures.
    """
    with distributed.join() as group, recording.Interrupt() as interrupt:
        training = set_up(job, group)
        run = training.configuration.run
        recorder = recording.Recorder(job.output, training.done, training.steps) if group.first else None
        last = time.monotonic()
        try:
            for batch in training.batches():
                record = training.step(batch)
                now = time.monotonic()
                record |= {"clips_per_second": run.batch_size / (now - last)}
                last = now
                if recorder:
                    recorder.step(record)
                epoch_ends = batch.step + 1 == training.steps_per_epoch
                stop = training.anyone(interrupt.requested)
                if training.done % run.checkpoint_every == 0 or epoch_ends or training.finished or stop:
                    training.save(job.output)
                due = epoch_ends and run.evaluate_every and (batch.epoch + 1) % run.evaluate_every == 0
                if due and not stop:  # who asks for an end gets it, once the step is saved
                    scores = training.evaluate()
                    if recorder:
                        recorder.evaluation(training.done, batch.epoch, scores)
                if stop and not training.finished:
                    raise Interrupted(
                        f"Stopped at step {training.done} of {training.steps}, saved in {job.output}: "
                        "the same command goes on from there"
                    )
        finally:
            if recorder:
                recorder.close()
        return checkpoints.find(job.output)


@dataclass
class Training:
    """The state of a run on one rank: what a checkpoint holds, and what moves it on by a step."""

    configuration: Configuration
    group: distributed.Group
    rows: Rows
    validation: Rows | None  # where the run evaluates
    towers: dict[str, towers.Tower]
    done: int  # steps taken
    start: tuple[int, int]  # epoch and step within it of the next batch
    cache: Cache | None = None

    def __post_init__(self) -> None:
        run = self.configuration.run
        try:
            self.steps_per_epoch = order.steps_per_epoch(len(self.rows), run.batch_size)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        self.steps = run.steps or (run.epochs or 0) * self.steps_per_epoch
        self.objectives = {s: self.group.wrap(towers.Objective(t)) for s, t in self.towers.items()}
        self.optimiser = sgd(self.towers.values(), self.configuration.optimisation)
        self.precision = towers.precision_for(self.group.device, run.precision)
        self.scaler = torch.amp.GradScaler(self.group.device.type, enabled=self.precision == "fp16")

    @property
    def finished(self) -> bool:
        return self.done >= self.steps

    def batches(self) -> TrainBatches:
        """What is left of the run."""
        run = self.configuration.run
        return TrainBatches(
            self.rows,
            self.configuration.input,
            batch_size=run.batch_size,
            seed=run.seed,
            rank=self.group.rank,
            world=self.group.world,
            workers=run.workers,
            start=self.start,
            steps=max(0, self.steps - self.done),
            pin=self.group.device.type == "cuda",
            cache=self.cache,
        )

    def step(self, batch: Batch) -> dict[str, Any]:
        """One step of every tower; returns the line of metrics.jsonl, without the speed."""
        rate = learning_rate(self.done, self.steps, self.configuration.optimisation)
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = rate
        losses, accuracies = self.gradients(batch)
        if not np.isfinite(losses).all():
            raise TrainingError(
                f"The loss is {sum(losses)} at step {self.done + 1}: lower --lr, or take --precision fp32"
            )
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.done += 1
        self.start = (batch.epoch, batch.step + 1)
        if self.start[1] == self.steps_per_epoch:
            self.start = (batch.epoch + 1, 0)
        each = {f"loss_{s}": x for s, x in zip(self.towers, losses, strict=True)}
        each |= {f"top1_{s}": x for s, x in zip(self.towers, accuracies, strict=True)}
        return {
            "step": self.done,
            "epoch": batch.epoch,
            "loss": sum(losses) / len(losses),
            "lr": rate,
            "order": order.digest(batch.keys),
            **each,
        }

    def gradients(self, batch: Batch) -> tuple[list[float], list[float]]:
        """Sets the gradients of a batch; returns each tower's loss and share of right first choices.

        The loss is the mean over the global batch: DDP averages the ranks' gradients, so each rank's sum is
        divided by the global weight and multiplied by the number of ranks, whatever its share; and that sum
        is gathered over parts of `micro_batch` clips, which the ranks exchange once, after the last.
        """
        group, run = self.group, self.configuration.run
        mine = order.share(np.array(batch.keys), group.rank, group.world)
        total = max(batch.total_weight, 1.0)
        sums = torch.zeros(len(self.objectives), 2, device=group.device)
        self.optimiser.zero_grad(set_to_none=True)
        for clips, part in batch.parts(run.micro_batch):
            towers.seed_batch(self.towers.values(), run.seed, batch.epoch, mine[clips])
            pictures = part.inputs(group.device)
            target, weight = part.target.to(group.device), part.weight.to(group.device)
            more = clips.stop < len(batch.target)
            for number, objective in enumerate(self.objectives.values()):
                with group.alone(objective, more):
                    with towers.autocast(group.device, self.precision):
                        loss, correct = objective(pictures, target, weight)
                    self.scaler.scale(loss * group.world / total).backward()
                sums[number] += torch.stack([loss.detach(), correct])
        losses, accuracies = (group.sum(sums) / total).T.tolist()
        return losses, accuracies

    def anyone(self, requested: bool) -> bool:
        """Whether any rank was told to stop."""
        return bool(self.group.sum(torch.tensor(float(requested), device=self.group.device)) > 0)

    def save(self, output: Path) -> None:
        """Writes a checkpoint, after which every rank goes on from the same state."""
        self.group.average_statistics(self.towers.values())
        if self.group.first:
            checkpoints.save(output, self.checkpoint())
        self.group.wait()

    def checkpoint(self) -> Checkpoint:
        settings = self.configuration
        return Checkpoint(
            network=settings.network.name,
            options=dict(settings.network.options),
            input=settings.input,
            classes=self.rows.classes,
            generations=self.rows.generations,
            configuration=settings.as_dict(),
            state={"seed": settings.run.seed, "epoch": self.start[0], "step": self.start[1]},
            steps=self.done,
            towers={s: t.network.state_dict() for s, t in self.towers.items()},
            optimiser={"sgd": self.optimiser.state_dict(), "scaler": self.scaler.state_dict()},
            fingerprint=self.rows.fingerprint,
        )

    def evaluate(self) -> dict[str, Any]:
        """The scores on the validation split, of what was just saved: each rank has the same statistics."""
        group, rows = self.group, self.validation
        assert rows is not None
        batches = EvaluationBatches(
            rows,
            self.configuration.input,
            rank=group.rank,
            world=group.world,
            workers=self.configuration.run.workers,
            cache=self.cache,
        )
        for tower in self.towers.values():
            tower.eval()
        scores = evaluate.score(evaluate.predict(self.towers, batches, group), rows.classes)
        for tower in self.towers.values():
            tower.train()
        return {name: scores[name] for name in ("clips", *evaluate.STREAMS) if name in scores}


def set_up(job: Job, group: distributed.Group) -> Training:
    """The run as it stands in its folder, or at its start."""
    before, damage = checkpoints.newest(job.output) if job.resume == "auto" else (None, None)
    if len(set(group.gather(before.steps if before else 0))) > 1:
        raise TrainingError(f"The ranks find different checkpoints in {job.output}: put it where all see it")
    streams = job.configuration.input.streams
    rows = open_rows(job.data, "train", streams, before.generations if before else None)
    wanted = job.configuration.run.evaluate_every > 0
    validation = open_rows(job.data, "val", streams, rows.generations) if wanted else None
    configuration = with_flow_bound(job.configuration, rows.flow_bound)
    _same_run(job, configuration, before, rows)
    built = _built(configuration, len(rows.classes))
    if before:
        for stream, tower in built.items():
            tower.network.load_state_dict(before.towers[stream])
        training = Training(
            configuration,
            group,
            rows,
            validation,
            built,
            before.steps,
            (before.state["epoch"], before.state["step"]),
            job.cache,
        )
        assert before.optimiser is not None
        training.optimiser.load_state_dict(before.optimiser["sgd"])
        training.scaler.load_state_dict(before.optimiser["scaler"])
    else:
        if job.init and (image := job.init.removeprefix("imagenet:")) != job.init:
            told = weights.initialise((tower.network for tower in built.values()), image)
            if group.first:
                print("".join(f"--init: {sentence}\n" for sentence in told), end="", file=sys.stderr)
        elif job.init:
            fresh = towers.initialise(built, checkpoints.load(job.init), rows.classes)
            if fresh and group.first:
                print(f"--init: left fresh, the classes being others: {', '.join(fresh)}", file=sys.stderr)
        training = Training(configuration, group, rows, validation, built, 0, (0, 0), job.cache)
    if group.first:  # only now, so that a call that cannot be run leaves what is there
        job.output.mkdir(parents=True, exist_ok=True)
        if damage and before:
            print(damage, file=sys.stderr)
            checkpoints.set_aside(job.output, before.steps)
        if job.resume == "none":
            checkpoints.clear(job.output)
            recording.clear(job.output)
        recording.write_json(job.output / recording.CONFIGURATION, configuration.as_dict())
    group.wait()
    return training


def _built(configuration: Configuration, classes: int) -> dict[str, towers.Tower]:
    """Fresh towers, once their input has gone through them without values.

    Raises ConfigurationError for options or an input that the network does not take.
    """
    network, input = configuration.network, configuration.input
    try:
        with torch.device("meta"):
            empty = towers.build(network.name, network.options, configuration.towers, classes, input=input)
            size = (input.frames, input.crop, input.crop)
            rgb, flow = (torch.empty(1, CHANNELS[stream], *size) for stream in ("rgb", "flow"))
            for tower in empty.values():
                tower.eval()((rgb, flow))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{network.name} cannot be trained so: {error}") from None
    return towers.build(
        network.name, network.options, configuration.towers, classes, configuration.run.seed, input
    )


def _same_run(job: Job, configuration: Configuration, before: Checkpoint | None, rows: Rows) -> None:
    """Raises ConfigurationError where the folder holds another run than this one."""
    path = job.output / recording.CONFIGURATION
    if job.resume == "none":
        return
    if not path.exists() and before is None:
        return
    theirs = before.configuration if before else json.loads(path.read_text(encoding="utf-8"))
    phrase = difference(configuration, theirs)
    if phrase is None and before and before.classes != rows.classes:
        phrase = "the data set's classes are others"
    if phrase is None and before and before.fingerprint != rows.fingerprint:
        phrase = "it was trained on other clips than those of --data"
    if phrase:
        raise ConfigurationError(
            f"{job.output} holds another run ({phrase}): "
            "take another --output, or --resume none to start over"
        )
