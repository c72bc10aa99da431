"""Reads, decodes and augments batches in a loader process.

A `BatchPlan` says everything its batch depends on, so any process may build it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from trainer.data.augmentation import View, evaluation_views, random_view
from trainer.data.batches import Batch, Input
from trainer.data.cache import Cache
from trainer.data.decoding import Undecodable, decode_flow, decode_rgb
from trainer.data.reading import Reader, ReadError, RemovedError, SampleError, ahead
from trainer.data.rows import Rows
from trainer.data.sampler import AUGMENTATION, KeyedRandom

_REPLACEMENTS = 16  # rows tried in place of one before the data are given up
_IN_FLIGHT = 8  # reads under way at once


@dataclass(frozen=True)
class BatchPlan:
    """The rows of one batch: one rank's share of one step, or a part of that share."""

    epoch: int
    step: int
    rows: np.ndarray  # int64 (n,), of this rank's share
    weight: np.ndarray  # float32 (n,)
    keys: tuple[str, ...]  # training: of the global batch
    total_weight: float
    turns: np.ndarray | None = None  # int64 (n,): tells repetitions of a row in one epoch apart
    first: int = 0  # place of the first row in the share
    last: bool = True  # whether the share ends with this part


@dataclass(frozen=True)
class Stopped:
    """Sent by a worker instead of a batch when it cannot go on: one sentence."""

    reason: str


@dataclass(frozen=True)
class RandomViews:
    """Training: one random view a clip, keyed by (seed, epoch, row); an unusable clip is replaced."""

    rows: Rows
    input: Input
    seed: int
    usable: np.ndarray = field(repr=False)  # int64: rows that may replace another
    count: int = 1  # views a clip

    def frames(self, plan: BatchPlan) -> int:
        """Frames of each clip."""
        return self.input.frames

    def attempts(self, plan: BatchPlan, place: int) -> Iterator[tuple[int, list[View]]]:
        """The row at a place with its view, then the rows that may replace it."""
        own = int(plan.rows[place])
        moment = plan.epoch + (0 if plan.turns is None else int(plan.turns[place]) << 32)
        if plan.weight[place]:  # 0: it was removed, and there is nothing to read
            yield own, [self._view(own, KeyedRandom(AUGMENTATION, self.seed, moment, own))]
        for attempt in range(1, _REPLACEMENTS):
            rng = KeyedRandom(AUGMENTATION, self.seed, moment, own, attempt)
            row = int(self.usable[rng.below(len(self.usable))])
            if row != own:
                yield row, [self._view(row, rng)]

    def _view(self, row: int, rng: KeyedRandom) -> View:
        return random_view(self.input, int(self.rows.frames[row]), *self.rows.size(row), rng)


@dataclass(frozen=True)
class FixedViews:
    """Evaluation: the same views every time; an unusable clip gets weight 0."""

    rows: Rows
    input: Input
    window: int | None  # frames; None: the whole clip
    clips: int
    crops: int

    @property
    def count(self) -> int:
        """Views a clip."""
        return self.clips * self.crops

    def frames(self, plan: BatchPlan) -> int:
        """Frames of each view; whole clips of one plan are equally long."""
        if self.input.segments:
            return self.input.test_frames
        if self.window is not None:
            return self.window
        return len(range(0, int(self.rows.frames[plan.rows[0]]), self.input.stride))

    def attempts(self, plan: BatchPlan, place: int) -> Iterator[tuple[int, list[View]]]:
        """The row at a place with its views; nothing replaces it."""
        row = int(plan.rows[place])
        size = int(self.rows.frames[row]), *self.rows.size(row)
        yield row, evaluation_views(self.input, *size, self.window, self.clips, self.crops)


class BatchStream(IterableDataset):
    """The batches of all plans: worker w of W builds those of plans(w, W), which are w, w + W, ..."""

    def __init__(
        self,
        plans: Callable[[int, int], Iterator[BatchPlan]],
        views: RandomViews | FixedViews,
        cache: Cache | None,
    ):
        self._plans, self._views, self._cache = plans, views, cache

    def __iter__(self) -> Iterator[Batch | Stopped]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            yield from self._batches(self._plans(first, every))
        except ReadError as error:
            yield Stopped(str(error))

    def _batches(self, plans: Iterator[BatchPlan]) -> Iterator[Batch]:
        reader = Reader(self._views.rows, self._views.input.streams, self._cache)
        wanted = ((plan, int(row)) for plan in plans for row in plan.rows)
        with contextlib.closing(ahead(reader, wanted, _IN_FLIGHT)) as reads:
            for plan, members in reads:
                others = (more for _, more in islice(reads, len(plan.rows) - 1))
                yield self._filled(plan, reader, chain([members], others))

    def _filled(self, plan: BatchPlan, reader: Reader, reads: Iterable[Future[dict[str, bytes]]]) -> Batch:
        """The batch of a plan, whose rows' members `reads` gives."""
        chooser, rows, failures = self._views, self._views.rows, list[str]()
        target, weight = np.full(len(plan.rows), -1, np.int64), plan.weight.copy()
        count, frames, side = len(plan.rows) * chooser.count, chooser.frames(plan), chooser.input.crop
        pixels = {
            stream: torch.zeros((count, channels, frames, side, side), dtype=torch.uint8)
            for stream, channels in (("rgb", 3), ("flow", 2))
            if stream in chooser.input.streams
        }
        scale = np.ones((count, 2), np.float32)
        for place, members in enumerate(reads):
            here = slice(place * chooser.count, (place + 1) * chooser.count)
            out = {stream: clips[here].numpy() for stream, clips in pixels.items()}
            for row, views in chooser.attempts(plan, place):
                size = rows.size(row)
                try:
                    found = members.result() if row == plan.rows[place] else reader.read(row)
                    if "rgb" in found:
                        decode_rgb(found["rgb"], views, size, rows.rate, out["rgb"])
                    if "flow" in found:
                        scale[here] = decode_flow(found["flow"], views, size, rows.rate, out["flow"])
                    target[place] = rows.target[row]
                    break
                except RemovedError:
                    continue
                except (Undecodable, SampleError) as error:
                    failures.append(f"{rows.keys[row].as_py()}: {error}")
            else:
                if isinstance(chooser, RandomViews):
                    why = "; ".join(failures[-2:]) or "they were taken down"
                    raise ReadError(
                        f"neither {rows.keys[int(plan.rows[place])].as_py()} nor any of the clips drawn in "
                        f"its place could be read: {why}; run python -m pipeline verify on the data set"
                    )
                weight[place] = 0
        return Batch(
            epoch=plan.epoch,
            step=plan.step,
            keys=plan.keys,
            rgb=pixels.get("rgb"),
            flow=pixels.get("flow"),
            flow_scale=torch.from_numpy(scale) if "flow" in pixels else None,
            target=torch.from_numpy(target),
            weight=torch.from_numpy(weight),
            total_weight=plan.total_weight,
            failures=tuple(failures),
            views=chooser.count,
            first=plan.first,
            last=plan.last,
        )
