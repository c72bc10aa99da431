"""Batches for training and evaluation, in an order that no number of ranks or workers changes.

rows = open_rows([root], "train", input.streams)
for batch in TrainBatches(rows, input, batch_size=6, seed=0, rank=rank, world=world, workers=4):
    rgb, flow = batch.inputs(device)
    loss = (batch.weight * cross_entropy(logits, batch.target, reduction="none")).sum()
    loss = loss * world / batch.total_weight        # so that DDP's mean over ranks is the batch's mean
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from trainer.data import sampler
from trainer.data.batch_worker import BatchPlan, BatchStream, FixedViews, RandomViews, Stopped
from trainer.data.batches import Batch, Input
from trainer.data.cache import Cache
from trainer.data.reading import ReadError
from trainer.data.rows import Rows, RowsError, input_for

_LEAST = 100  # clips: with fewer seen, one failure says nothing about the share
_log = logging.getLogger(__name__)


class TooManyFailures(RuntimeError):
    """More clips were unreadable than the run allows; the message says how many and the last reason."""


class _Batches:
    """Iterates a stream of batches in order, by worker processes; logs and counts failures."""

    def __init__(self, stream: BatchStream, workers: int, pin: bool, max_failures: float):
        self._stream, self._workers, self._pin, self._max_failures = stream, workers, pin, max_failures

    def __iter__(self) -> Iterator[Batch]:
        loader: DataLoader = DataLoader(
            self._stream,
            batch_size=None,
            num_workers=self._workers,
            pin_memory=self._pin,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # the default would draw from the generator that dropout uses
        )
        seen = failed = 0
        failure = ""
        for batch in loader:
            if isinstance(batch, Stopped):
                raise ReadError(batch.reason)
            seen += len(batch.target)
            failed += len(batch.failures)
            for failure in batch.failures:
                _log.warning("%s", failure)
            if batch.last and failed > self._max_failures * max(seen, _LEAST):
                raise TooManyFailures(
                    f"{failed} of {seen} clips were unreadable, more than {self._max_failures:.1%} "
                    f"(the last: {failure}); run python -m pipeline verify on the data set"
                )
            yield batch


class TrainBatches(_Batches):
    """Batches from `start`, the same for every world size and number of workers.

    A removed or unlabelled row keeps its place, with weight 0 and the pixels of another. A row that
    cannot be decoded is replaced, pixels and target, by one drawn from (seed, epoch, row).

    Args:
        batch_size: clips in a step over all ranks.
        micro_batch: most clips in one `Batch`; 0: this rank's whole share of a step. The parts of a share
            differ by one clip at most, so none has a lone clip where a network normalises over its batch.
        rank, world: which contiguous share of each global batch is this process's.
        workers: processes that read and decode; 0: this one. Each holds up to three batches in memory.
        start: (epoch, step within it) of the first batch.
        steps: how many to yield; None: no end.
        balanced: every class comes equally often (see `trainer.data.sampler.balanced_order`).
        pin: page-locked memory, for copies to a GPU.
        max_failures: share of undecodable clips over which `TooManyFailures` is raised.
        cache: keeps members of remote data sets on this machine.

    `steps_per_epoch` counts the whole global batches in an epoch. Raises RowsError where the rows cannot feed
    this input, batch size or world; while iterating, ReadError and TooManyFailures.
    """

    def __init__(
        self,
        rows: Rows,
        input: Input,
        *,
        batch_size: int,
        micro_batch: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        start: tuple[int, int] = (0, 0),
        steps: int | None = None,
        balanced: bool = False,
        pin: bool = False,
        max_failures: float = 0.01,
        cache: Cache | None = None,
    ):
        input = _fitted(rows, input, cache)
        if batch_size < world:
            idle = f"a batch of {batch_size} leaves some of {world} ranks idle"
            raise RowsError(f"{idle}: take a larger batch size")
        usable = ~rows.removed & (rows.target >= 0)
        if not usable.any():
            raise RowsError(f"no {rows.split} clip has a label: there is nothing to train on")
        try:
            places = sampler.places(rows.target, balanced)
            self.steps_per_epoch = sampler.steps_per_epoch(places, batch_size)
        except ValueError as error:
            raise RowsError(str(error)) from None
        share = sampler.share(range(batch_size), rank, world)
        parts = -(-len(share) // micro_batch) if micro_batch else 1
        first = start[0] * self.steps_per_epoch + start[1]
        taken = range(first, sys.maxsize if steps is None else first + steps)
        of_epoch = self.steps_per_epoch
        plans = _TrainPlans(rows, usable, seed, batch_size, share, parts, taken, of_epoch, balanced)
        views = RandomViews(rows, input, seed, np.flatnonzero(usable))
        super().__init__(BatchStream(plans, views, cache), workers, pin, max_failures)


class EvaluationBatches(_Batches):
    """Every labelled, present row exactly once over all ranks; each rank gets equally many batches.

    Which clips share a batch does not depend on the world size. Whole clips by default: clips of one
    length share a batch; an input of segments is always their snippets. Padding and undecodable clips have
    weight 0. Arguments not named here, and errors, are those of `TrainBatches`.

    Args:
        batch_size: clips in a batch of one rank.
        rank, world: of the batches, every world-th is this process's.
        frames: None for whole clips, else frames of each of `clips` windows spread evenly (input.stride).
        clips, crops: views of a clip; crops 1 is the centre, 3 both ends of the long side too.
    """

    def __init__(
        self,
        rows: Rows,
        input: Input,
        *,
        batch_size: int = 1,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        frames: int | None = None,
        clips: int = 1,
        crops: int = 1,
        pin: bool = False,
        max_failures: float = 0.01,
        cache: Cache | None = None,
    ):
        input = _fitted(rows, input, cache)
        if clips < 1 or crops not in (1, 3) or (frames is None and clips != 1):
            raise RowsError(f"{clips}x{crops} views are not possible: 1 clip when whole, and 1 or 3 crops")
        chosen = np.flatnonzero(~rows.removed & (rows.target >= 0))
        if not len(chosen):
            raise RowsError(f"no {rows.split} clip has a label: there is nothing to evaluate")
        whole = frames is None and not input.segments
        lengths = rows.frames[chosen] if whole else np.zeros(len(chosen), np.int32)
        batches = [
            group[i : i + batch_size]
            for group in (chosen[lengths == length] for length in np.unique(lengths))
            for i in range(0, len(group), batch_size)
        ]
        self._plans = _EvaluationPlans(rows, batches, rank, world)
        stream = BatchStream(self._plans, FixedViews(rows, input, frames, clips, crops), cache)
        super().__init__(stream, workers, pin, max_failures)

    def __len__(self) -> int:
        return len(self._plans)


@dataclass(frozen=True)
class _TrainPlans:
    """(first, every) -> this rank's plans first, first + every, ... of all its plans."""

    rows: Rows
    usable: np.ndarray
    seed: int
    batch_size: int
    share: range  # places in the global batch that are this rank's
    parts: int  # plans a step
    steps: range  # counted from epoch 0
    steps_per_epoch: int
    balanced: bool

    def __call__(self, first: int, every: int) -> Iterator[BatchPlan]:
        numbers = range(self.steps.start * self.parts + first, self.steps.stop * self.parts, every)
        for epoch, in_epoch in groupby(numbers, lambda n: n // (self.parts * self.steps_per_epoch)):
            turns = None
            if self.balanced:
                rows, turns = sampler.balanced_order(self.seed, epoch, self.rows.target)
            else:
                rows = sampler.epoch_order(self.seed, epoch, len(self.rows))
            for number in in_epoch:
                overall, part = divmod(number, self.parts)
                step = overall % self.steps_per_epoch
                batch = sampler.global_batch(rows, step, self.batch_size)
                here = sampler.share(self.share, part, self.parts)
                mine = slice(here.start, here.stop)
                yield BatchPlan(
                    epoch,
                    step,
                    batch[mine],
                    self.usable[batch[mine]].astype(np.float32),
                    tuple(self.rows.keys.take(batch).to_pylist()),
                    float(self.usable[batch].sum()),
                    None if turns is None else sampler.global_batch(turns, step, self.batch_size)[mine],
                    first=here.start - self.share.start,
                    last=part + 1 == self.parts,
                )


@dataclass(frozen=True)
class _EvaluationPlans:
    """(first, every) -> this rank's plans first, first + every, ...; the last are padded with weight 0."""

    rows: Rows
    batches: list[np.ndarray]  # rows of each
    rank: int
    world: int

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world)

    def __call__(self, first: int, every: int) -> Iterator[BatchPlan]:
        for step in range(first, len(self), every):
            number = step * self.world + self.rank
            padding = number >= len(self.batches)
            mine = self.batches[-1 if padding else number]
            weight = np.full(len(mine), 0 if padding else 1, np.float32)
            keys = tuple(self.rows.keys.take(mine).to_pylist())
            yield BatchPlan(0, step, mine, weight, keys, float(weight.sum()))


def _fitted(rows: Rows, input: Input, cache: Cache | None) -> Input:
    """`input_for`; also drops removed samples from the cache."""
    fitted = input_for(rows, input)
    if cache is not None:
        for digests in rows.digests.values():
            cache.forget(digests.filter(pa.array(rows.removed)).to_pylist())
    return fitted


def _start_worker(number: int) -> None:
    """Leaves Ctrl-C and SIGTERM to the main process, which still wants its next batch and ends its workers.

    A worker that is still there after that ends itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))  # seconds, as long as torchrun waits
