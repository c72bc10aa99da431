"""Batches for training and evaluation: order, reading, decoding and augmentation put together.

rows = open_rows([root], "train", input.streams)
for batch in TrainBatches(rows, input, batch_size=6, seed=0, rank=rank, world=world, workers=4):
    rgb, flow = batch.inputs(device)
    loss = (batch.weight * cross_entropy(logits, batch.target, reduction="none")).sum()
    loss = loss * world / batch.total_weight        # so that DDP's mean over ranks is the batch's mean
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from typing import Any

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

__all__ = ["Batch", "EvaluationBatches", "Input", "ReadError", "RowsError", "TooManyFailures", "TrainBatches"]

_LEAST = 100  # clips: with fewer seen, one failure says nothing of the share
_log = logging.getLogger(__name__)


class TooManyFailures(RuntimeError):
    """More clips could not be had than the run allows; the message says how many and which was the last."""


class TrainBatches:
    """An endless run of batches from `start`, the same for every world size and number of workers.

    A removed or unlabelled row keeps its place, with weight 0 and the pixels of another. A row that
    cannot be decoded is replaced, pixels and target, by one drawn from (seed, epoch, row).

    Args:
        rows: of the training split; see `trainer.data.rows.open_rows`.
        input: what the network is fed.
        batch_size: clips in a step over all ranks.
        seed: of order and augmentation.
        rank, world: which contiguous share of each global batch is this process's.
        micro_batch: most clips that come at a time; 0: all of this rank's share of a step. The parts of a
            share come one after another, as even as can be, so that no clip is left alone where a network
            normalises over its batch.
        workers: processes that read and decode; 0 does it in this one. Each holds up to three such parts in
            memory.
        start: (epoch, step within it) of the first batch.
        steps: how many to yield the batches of; None goes on for ever.
        pin: page-locked memory, for copies to a GPU.
        in_flight: reads under way at once in each worker.
        balanced: every class comes equally often (see `trainer.data.sampler.balanced_order`).
        max_failures: share of undecodable clips over which `TooManyFailures` is raised.
        cache: a folder of this machine where members of remote data sets are kept.

    Attributes:
        steps_per_epoch: whole global batches in an epoch.

    Raises:
        RowsError: the rows cannot feed this input, batch size or world.
        ReadError, TooManyFailures: while iterating.
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
        in_flight: int = 8,
        max_failures: float = 0.01,
        cache: Cache | None = None,
    ):
        input = input_for(rows, input)
        _purge(rows, cache)
        if batch_size < world:
            raise RowsError(
                f"a batch of {batch_size} leaves some of {world} ranks idle: take a larger batch size"
            )
        usable = ~rows.removed & (rows.target >= 0)
        if not usable.any():
            raise RowsError(f"no {rows.split} clip has a label: there is nothing to train on")
        try:
            places = sampler.places(rows.target, balanced)
            self.steps_per_epoch = sampler.steps_per_epoch(places, batch_size)
        except ValueError as error:
            raise RowsError(str(error)) from None
        self._plans = _TrainingPlans(
            rows,
            usable,
            seed,
            batch_size,
            micro_batch,
            rank,
            world,
            start,
            steps,
            self.steps_per_epoch,
            balanced,
        )
        purpose = RandomViews(rows, input, seed, np.flatnonzero(usable))
        self._stream = BatchStream(self._plans, purpose, in_flight, cache)
        self._workers, self._pin, self._max_failures = workers, pin, max_failures

    def __iter__(self) -> Iterator[Batch]:
        return _watched(self._stream, self._workers, self._pin, self._max_failures)


class EvaluationBatches:
    """Every labelled, present row exactly once over all ranks; each rank gets equally many batches.

    Which clips share a batch does not depend on the world size. Whole clips by default: clips of one
    length share a batch; an input of segments is always their snippets. Padding and what cannot be decoded
    have weight 0.

    Args:
        rows, input, workers, pin, in_flight, max_failures, cache: as in `TrainBatches`.
        batch_size: clips in a batch of one rank.
        rank, world: of the batches, every world-th is this process's.
        frames: None for whole clips, else frames of each of `clips` windows spread evenly (input.stride).
        clips, crops: views of a clip; crops 1 is the centre, 3 both ends of the long side too.

    Raises:
        RowsError: the rows cannot feed this input, or the views make no sense.
        ReadError, TooManyFailures: while iterating.
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
        in_flight: int = 8,
        max_failures: float = 0.01,
        cache: Cache | None = None,
    ):
        input = input_for(rows, input)
        _purge(rows, cache)
        if clips < 1 or crops not in (1, 3) or (frames is None and clips != 1):
            raise RowsError(f"{clips}x{crops} views are not possible: 1 clip when whole, and 1 or 3 crops")
        whole = frames is None and not input.segments
        self._plans = _EvaluationPlans(rows, batch_size, rank, world, whole)
        self._stream = BatchStream(
            self._plans, FixedViews(rows, input, frames, clips, crops), in_flight, cache
        )
        self._workers, self._pin, self._max_failures = workers, pin, max_failures

    def __len__(self) -> int:
        return len(self._plans)

    def __iter__(self) -> Iterator[Batch]:
        return _watched(self._stream, self._workers, self._pin, self._max_failures)


class _TrainingPlans:
    """(first, every) -> this rank's plans first, first + every, ... counted from `start`."""

    def __init__(
        self,
        rows: Rows,
        usable: np.ndarray,
        seed: int,
        batch: int,
        micro_batch: int,
        rank: int,
        world: int,
        start: tuple[int, int],
        steps: int | None,
        steps_per_epoch: int,
        balanced: bool,
    ):
        self._rows, self._usable = rows, usable
        self._seed, self._batch, self._rank, self._world = seed, batch, rank, world
        self._first = start[0] * steps_per_epoch + start[1]
        self._end = None if steps is None else self._first + steps
        self._steps_per_epoch, self._balanced = steps_per_epoch, balanced
        share = len(sampler.share(range(batch), rank, world))
        self._parts = -(-share // micro_batch) if micro_batch else 1  # of each step

    def __call__(self, first: int, every: int) -> Iterator[BatchPlan]:
        known, rows, turns = -1, np.empty(0, np.int64), None
        number = self._first * self._parts + first
        while self._end is None or number < self._end * self._parts:
            number_of_step, part = divmod(number, self._parts)
            epoch, step = divmod(number_of_step, self._steps_per_epoch)
            if epoch != known:
                known = epoch
                if self._balanced:
                    rows, turns = sampler.balanced_order(self._seed, epoch, self._rows.target)
                else:
                    rows = sampler.epoch_order(self._seed, epoch, len(self._rows))
            batch = sampler.global_batch(rows, step, self._batch)
            places = sampler.share(range(self._batch), self._rank, self._world)
            here = sampler.share(places, part, self._parts)
            mine = batch[here.start : here.stop]
            turn = None if turns is None else sampler.global_batch(turns, step, self._batch)
            yield BatchPlan(
                epoch,
                step,
                mine,
                self._usable[mine].astype(np.float32),
                tuple(self._rows.keys.take(batch).to_pylist()),
                float(self._usable[batch].sum()),
                None if turn is None else turn[here.start : here.stop],
                first=here.start - places.start,
                last=part + 1 == self._parts,
            )
            number += every


class _EvaluationPlans:
    """(first, every) -> this rank's plans first, first + every, ...; the last ones padded with weight 0."""

    def __init__(self, rows: Rows, batch: int, rank: int, world: int, whole: bool):
        chosen = np.flatnonzero(~rows.removed & (rows.target >= 0))
        if not len(chosen):
            raise RowsError(f"no {rows.split} clip has a label: there is nothing to evaluate")
        lengths = rows.frames[chosen] if whole else np.zeros(len(chosen), np.int32)
        by_length = chosen[np.argsort(lengths, kind="stable")]
        edges = np.flatnonzero(np.diff(np.sort(lengths, kind="stable"))) + 1
        self._batches = [
            group[i : i + batch] for group in np.split(by_length, edges) for i in range(0, len(group), batch)
        ]
        self._rows, self._rank, self._world = rows, rank, world

    def __len__(self) -> int:
        return -(-len(self._batches) // self._world)

    def __call__(self, first: int, every: int) -> Iterator[BatchPlan]:
        for step in range(first, len(self), every):
            number = step * self._world + self._rank
            padding = number >= len(self._batches)
            mine = self._batches[-1 if padding else number]
            weight = np.full(len(mine), 0 if padding else 1, np.float32)
            keys = tuple(self._rows.keys.take(mine).to_pylist())
            yield BatchPlan(0, step, mine, weight, keys, float(weight.sum()))


def _watched(stream: BatchStream, workers: int, pin: bool, max_failures: float) -> Iterator[Batch]:
    """The batches of a stream in order; failures are logged and counted on the way."""
    loader: DataLoader = DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else each start would draw from the generator that dropout uses
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
        if batch.last and failed > max_failures * max(seen, _LEAST):
            raise TooManyFailures(
                f"{failed} of {seen} clips could not be had, more than {max_failures:.1%} "
                f"(the last: {failure}); run python -m pipeline verify on the data set"
            )
        yield batch


def _purge(rows: Rows, cache: Cache | None) -> None:
    """What was taken down does not stay on this machine."""
    if cache is not None:
        for digests in rows.digests.values():
            cache.forget(digests.filter(pa.array(rows.removed)).to_pylist())


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_worker(number: int) -> None:
    """Ctrl-C and SIGTERM, which may reach the whole process group, are the main process's to answer: it still
    wants its next batch, finishes its step and ends its workers. One that is left after that ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(30))  # seconds, as long as torchrun waits
