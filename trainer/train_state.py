"""The state of a run: its steps, checkpoints and evaluations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from trainer import checkpoint as checkpoints
from trainer import distributed, run_log, stream_models, validation
from trainer.checkpoint import Checkpoint
from trainer.configuration import Configuration, ConfigurationError
from trainer.data import sampler
from trainer.data.batches import Batch
from trainer.data.cache import Cache
from trainer.data.loader import EvaluationBatches, TrainBatches
from trainer.data.rows import Rows
from trainer.optimisation import learning_rate, sgd


class TrainingError(RuntimeError):
    """Training cannot go on; one sentence with the remedy."""


class RanksDiffer(TrainingError):
    """The ranks do not see the same RUN; they may in a moment."""


@contextmanager
def _as_many_clips_as_go() -> Iterator[None]:
    """Raises TrainingError for too many clips for memory, or too few for batch normalisation."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise TrainingError(
            "A step does not fit into the GPU's memory: give --micro-batch fewer clips, which a rank then "
            "takes at a time for the same step, or take a smaller --batch-size or --crop"
        ) from None
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "This network normalises over the clips of a rank and needs two at a time: take a larger "
            "--batch-size, fewer ranks, or --micro-batch 0"
        ) from None


@dataclass
class TrainState:
    """The state of a run on one rank: everything in a checkpoint, and the step that advances it."""

    configuration: Configuration
    group: distributed.Group
    rows: Rows
    held_out: Rows | None  # where the run evaluates
    models: dict[str, stream_models.StreamModel]
    before: InitVar[Checkpoint | None]  # where a run goes on
    cache: Cache | None
    init: Mapping[str, str] | None  # name and sha256 of --init, empty without; None: unknown
    done: int = 0  # steps taken
    start: tuple[int, int] = (0, 0)  # epoch and step within it of the next batch
    history: list[dict[str, Any]] = field(default_factory=list)  # what each evaluation gave

    def __post_init__(self, before: Checkpoint | None) -> None:
        run, kept = self.configuration.run, (before.optimiser or {}) if before else {}
        if before:
            self.done, self.start = before.steps, (before.state["epoch"], before.state["step"])
            self.history = list(kept.get("history", []))
            for stream, model in self.models.items():
                model.network.load_state_dict(before.weights[stream])
        try:
            places = sampler.places(self.rows.target, run.balanced)
            self.steps_per_epoch = sampler.steps_per_epoch(places, run.batch_size)
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        epoch, step = self.start  # the epochs before may have been of fewer clips
        left = ((run.epochs or 0) - epoch) * self.steps_per_epoch - step
        self.steps = run.steps or self.done + left
        warmup = self.configuration.optimisation.warmup
        if self.group.first and warmup >= self.steps > self.done:
            rises = f"The rate rises over {warmup:,} steps and the run has {self.steps:,}"
            remedy = "give --warmup a part of them or 0, or take --config quick for a short run."
            print(f"{rises}, so that little is learned: {remedy}", file=sys.stderr)
        self.objectives = {s: self.group.wrap(stream_models.Objective(t)) for s, t in self.models.items()}
        self.optimiser = sgd(self.models.values(), self.configuration.optimisation)
        self.precision = stream_models.precision_for(self.group.device, run.precision)
        self.scaler = torch.amp.GradScaler(self.group.device.type, enabled=self.precision == "fp16")
        if before:
            self.optimiser.load_state_dict(kept["sgd"])
            self.scaler.load_state_dict(kept["scaler"])

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """The settings that identify this run, as in RUN/configuration.json."""
        known = {} if self.init is None else {"init": dict(self.init)}
        return {**self.configuration.as_dict(), **known}

    @property
    def finished(self) -> bool:
        return self.done >= self.steps

    @property
    def evaluation_due(self) -> bool:
        """Whether an epoch has ended whose evaluation is not yet kept."""
        (epoch, step), every = self.start, self.configuration.run.evaluate_every
        kept = self.history[-1]["epoch"] if self.history else -1
        return bool(every and epoch and step == 0 and epoch % every == 0 and kept < epoch - 1)

    def batches(self, start: tuple[int, int], steps: int) -> TrainBatches:
        """The batches of `steps` steps of the run from `start`, each at most `micro_batch` clips."""
        run = self.configuration.run
        return TrainBatches(
            self.rows,
            self.configuration.input,
            batch_size=run.batch_size,
            micro_batch=run.micro_batch,
            seed=run.seed,
            rank=self.group.rank,
            world=self.group.world,
            workers=run.workers,
            start=start,
            steps=steps,
            balanced=run.balanced,
            max_failures=run.max_failures,
            pin=self.group.device.type == "cuda",
            cache=self.cache,
        )

    @_as_many_clips_as_go()
    def step(self, parts: Iterable[Batch]) -> dict[str, Any]:
        """One step of every model on its batches; returns the line of metrics.jsonl, without the speed."""
        before = [record["loss"] for record in self.history]
        rate = learning_rate(self.done, self.steps, self.configuration.optimisation, before)
        for parameters in self.optimiser.param_groups:
            parameters["lr"] = rate
        losses, accuracies, replaced, batch = self.gradients(parts)
        if not np.isfinite(losses).all():
            raise TrainingError(
                f"The loss is {sum(losses)} at step {self.done + 1}: lower --lr, or take --precision fp32"
            )
        if longest := self.configuration.optimisation.clip_gradient:  # all parts and ranks are in it now
            self.scaler.unscale_(self.optimiser)
            for model in self.models.values():
                nn.utils.clip_grad_norm_(model.parameters(), longest)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.done += 1
        self.start = (batch.epoch, batch.step + 1)
        if self.start[1] == self.steps_per_epoch:
            self.start = (batch.epoch + 1, 0)
        return {
            "step": self.done,
            "epoch": batch.epoch,
            "loss": sum(losses) / len(losses),
            "lr": rate,
            "order": sampler.digest(batch.keys),
            "replaced": replaced,
            **{f"loss_{s}": x for s, x in zip(self.models, losses, strict=True)},
            **{f"top1_{s}": x for s, x in zip(self.models, accuracies, strict=True)},
        }

    def gradients(self, parts: Iterable[Batch]) -> tuple[list[float], list[float], int, Batch]:
        """Sets the gradients of a step: each model's loss and accuracy, the replaced clips, the last batch.

        The loss is the mean over the global batch: DDP averages the ranks' gradients, so each rank's sum is
        divided by the global weight and multiplied by the number of ranks. Gradients add up over the parts
        of a share; the ranks exchange them once, after the last.
        """
        group, run = self.group, self.configuration.run
        sums = torch.zeros(len(self.objectives) + 1, 2, device=group.device)
        self.optimiser.zero_grad(set_to_none=True)
        for part in parts:
            mine = sampler.share(np.array(part.keys), group.rank, group.world)[part.first :]
            stream_models.seed_batch(self.models.values(), run.seed, part.epoch, mine[: len(part.target)])
            total = max(part.total_weight, 1.0)
            sums[-1, 0] += len(part.failures)
            pictures = part.inputs(group.device)
            target, weight = part.target.to(group.device), part.weight.to(group.device)
            for number, objective in enumerate(self.objectives.values()):
                with group.no_sync(objective, not part.last):
                    with stream_models.autocast(group.device, self.precision):
                        loss, correct = objective(pictures, target, weight)
                    self.scaler.scale(loss * group.world / total).backward()
                sums[number] += torch.stack([loss.detach(), correct])
            if part.last:  # what comes next is the next step's, and need not be there yet
                break
        replaced = int(group.sum(sums)[-1, 0])
        losses, accuracies = (sums[:-1] / total).T.tolist()
        return losses, accuracies, replaced, part

    def save(self, output: Path) -> None:
        """Writes a checkpoint, after which every rank goes on from the same state."""
        self.group.average_statistics(self.models.values())
        if self.group.first:
            checkpoints.save(output, self.checkpoint())
        self.group.wait()

    def checkpoint(self) -> Checkpoint:
        settings, (epoch, step) = self.configuration, self.start
        optimiser, scaler = self.optimiser.state_dict(), self.scaler.state_dict()
        return Checkpoint(
            network=settings.network.name,
            options=dict(settings.network.options),
            input=settings.input,
            classes=self.rows.classes,
            generations=self.rows.generations,
            configuration=self.settings,
            state={"seed": settings.run.seed, "epoch": epoch, "step": step},
            steps=self.done,
            weights={s: t.network.state_dict() for s, t in self.models.items()},
            optimiser={"sgd": optimiser, "scaler": scaler, "history": self.history},
            fingerprint=self.rows.fingerprint,
        )

    def reestimate(self) -> None:
        """Recomputes batch norm statistics over the first steps of the order, where the run is set so."""
        if steps := self.configuration.run.reestimate:
            validation.reestimate(self.models, self.batches((0, 0), steps), self.group.device)

    def evaluate(self, output: Path, recorder: run_log.Recorder | None, stop: Callable[[], bool]) -> None:
        """Scores the saved state on the validation split and keeps the best.

        A network that is not published for whole clips sees one clip of the training length, from the middle.
        The scores are saved with the run's state before they are shown; a run killed before that evaluates
        again. Raises `evaluate.Stopped` once `stop` says yes on any rank.
        """
        group, run, input, rows = self.group, self.configuration.run, self.configuration.input, self.held_out
        assert rows is not None
        batches = EvaluationBatches(
            rows,
            input,
            rank=group.rank,
            world=group.world,
            workers=run.workers,
            frames=input.frames if input.test_views else None,
            max_failures=run.max_failures,
            cache=self.cache,
        )
        scores = validation.scores(self.models, batches, group, rows.classes, stop)
        if group.first and validation.best([scores]) > validation.best(self.history):
            checkpoints.keep_best(output)
        self.history.append({"step": self.done, "epoch": self.start[0] - 1, **scores})
        self.save(output)
        if recorder:
            recorder.evaluations(self.history)
