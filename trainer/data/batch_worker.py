"""From plans (which rows make a batch) to batches: what runs in each worker of the loader.

A plan says everything its batch depends on, so it does not matter which process does it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

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

_REPLACEMENTS = 16  # rows tried in the place of one before the data are given up


@dataclass(frozen=True)
class BatchPlan:
    """One rank's share of one step, or a part of that: what is assembled, and held in memory, at once."""

    epoch: int
    step: int
    rows: np.ndarray  # int64 (n,), of this rank's share
    weight: np.ndarray  # float32 (n,)
    keys: tuple[str, ...]  # training: of the global batch
    total_weight: float
    turns: np.ndarray | None = None  # int64 (n,): tells a row's comings in one epoch apart
    first: int = 0  # the place of its first row in the share
    last: bool = True  # whether the share ends with it


@dataclass(frozen=True)
class Stopped:
    """What a worker hands over instead of a batch when it cannot go on: one sentence."""

    reason: str


@dataclass(frozen=True)
class RandomViews:
    """Random cuts keyed by (seed, epoch, row); what cannot be had is replaced by rows drawn from that key."""

    rows: Rows
    input: Input
    seed: int
    usable: np.ndarray = field(repr=False)  # int64: the rows that may stand in for another
    views: int = 1

    def length(self, plan: BatchPlan) -> int:
        """Frames of each clip in a plan."""
        return self.input.frames

    def attempts(self, plan: BatchPlan, place: int) -> Iterator[tuple[int, list[View]]]:
        """The row of a place with its cut, then the rows that replace it."""
        own = int(plan.rows[place])
        moment = plan.epoch + (0 if plan.turns is None else int(plan.turns[place]) << 32)
        if plan.weight[place]:  # else it was removed: there is nothing to read
            yield own, [self._view(own, KeyedRandom(AUGMENTATION, self.seed, moment, own))]
        for attempt in range(1, _REPLACEMENTS):
            rng = KeyedRandom(AUGMENTATION, self.seed, moment, own, attempt)
            row = int(self.usable[rng.below(len(self.usable))])
            if row != own:
                yield row, [self._view(row, rng)]

    def _view(self, row: int, rng: KeyedRandom) -> View:
        return random_view(self.input, *_size(self.rows, row), rng)


@dataclass(frozen=True)
class FixedViews:
    """Fixed cuts; what cannot be had gets weight 0."""

    rows: Rows
    input: Input
    frames: int | None
    clips: int
    crops: int

    @property
    def views(self) -> int:
        """Views of each clip."""
        return self.clips * self.crops

    def length(self, plan: BatchPlan) -> int:
        """Frames of each view in a plan; whole clips of one plan are equally long."""
        if self.input.segments:
            return self.input.test_frames
        if self.frames is not None:
            return self.frames
        return len(range(0, int(self.rows.frames[plan.rows[0]]), self.input.stride))

    def attempts(self, plan: BatchPlan, place: int) -> Iterator[tuple[int, list[View]]]:
        """The row of a place with its cuts; there is no other."""
        row = int(plan.rows[place])
        size = _size(self.rows, row)
        yield row, evaluation_views(self.input, *size, self.frames, self.clips, self.crops)


class BatchStream(IterableDataset):
    """The plans of all workers, dealt in turn: worker w of W does plans w, w + W, ...

    Args:
        plans: (first, every) -> the plans first, first + every, ... in order.
        purpose: how a plan's rows become cuts.
        in_flight: reads under way at once.
        cache: of what is read from elsewhere.
    """

    def __init__(
        self,
        plans: Callable[[int, int], Iterator[BatchPlan]],
        purpose: RandomViews | FixedViews,
        in_flight: int,
        cache: Cache | None = None,
    ):
        self._plans = plans
        self._purpose = purpose
        self._in_flight = in_flight
        self._cache = cache

    def __iter__(self) -> Iterator[Batch | Stopped]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            yield from self._batches(self._plans(first, every))
        except ReadError as error:
            yield Stopped(str(error))

    def _batches(self, plans: Iterator[BatchPlan]) -> Iterator[Batch]:
        purpose = self._purpose
        reader = Reader(purpose.rows, purpose.input.streams, self._cache)
        wanted = ((plan, int(row)) for plan in plans for row in plan.rows)
        batch: _Unfinished | None = None
        with contextlib.closing(ahead(reader, wanted, self._in_flight)) as reads:
            for plan, _, members in reads:
                batch = batch or _Unfinished(purpose, reader, plan)
                if batch.add(members):
                    yield batch.finish()
                    batch = None


class _Unfinished:
    """A batch whose clips are put into their places one after another."""

    def __init__(self, purpose: RandomViews | FixedViews, reader: Reader, plan: BatchPlan):
        self._purpose, self._reader, self._plan = purpose, reader, plan
        self._filled = 0
        self._failures: list[str] = []
        self._weight = plan.weight.copy()
        self._target = np.full(len(plan.rows), -1, np.int64)
        count, frames, side = len(plan.rows) * purpose.views, purpose.length(plan), purpose.input.crop
        self._pixels = {
            stream: torch.zeros((count, channels, frames, side, side), dtype=torch.uint8)
            for stream, channels in (("rgb", 3), ("flow", 2))
            if stream in purpose.input.streams
        }
        self._scale = np.ones((count, 2), np.float32)

    def add(self, members: Future[dict[str, bytes]]) -> bool:
        """Decode the next clip into its place; True when the batch is full."""
        place, plan, purpose = self._filled, self._plan, self._purpose
        for row, cuts in purpose.attempts(plan, place):
            try:
                own = row == int(plan.rows[place])
                self._decode(place, row, cuts, members.result() if own else self._reader.read(row))
                self._target[place] = purpose.rows.target[row]
                break
            except RemovedError:
                continue
            except (Undecodable, SampleError) as error:
                self._failures.append(f"{purpose.rows.keys[row].as_py()}: {error}")
        else:
            if isinstance(purpose, RandomViews):
                key = purpose.rows.keys[int(plan.rows[place])].as_py()
                why = "; ".join(self._failures[-2:]) or "they were taken down"
                raise ReadError(
                    f"neither {key} nor any of the clips drawn in its place could be had: {why}; "
                    "run python -m pipeline verify on the data set"
                )
            self._weight[place] = 0
        self._filled += 1
        return self._filled == len(plan.rows)

    def finish(self) -> Batch:
        """The batch."""
        plan = self._plan
        return Batch(
            epoch=plan.epoch,
            step=plan.step,
            keys=plan.keys,
            rgb=self._pixels.get("rgb"),
            flow=self._pixels.get("flow"),
            flow_scale=torch.from_numpy(self._scale) if "flow" in self._pixels else None,
            target=torch.from_numpy(self._target),
            weight=torch.from_numpy(self._weight),
            total_weight=plan.total_weight,
            failures=tuple(self._failures),
            views=self._purpose.views,
            first=plan.first,
            last=plan.last,
        )

    def _decode(self, place: int, row: int, cuts: list[View], members: dict[str, bytes]) -> None:
        rows, views = self._purpose.rows, self._purpose.views
        size = (int(rows.width[row]), int(rows.height[row]))
        here = slice(place * views, (place + 1) * views)
        if "rgb" in members:
            decode_rgb(members["rgb"], cuts, size, rows.rate, self._pixels["rgb"][here].numpy())
        if "flow" in members:
            out = self._pixels["flow"][here].numpy()
            self._scale[here] = decode_flow(members["flow"], cuts, size, rows.rate, out)


def _size(rows: Rows, row: int) -> tuple[int, int, int]:
    return int(rows.frames[row]), int(rows.width[row]), int(rows.height[row])
