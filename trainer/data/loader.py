"""Batches for training and evaluation: order, reading, decoding and augmentation put together.

rows = open_rows([root], "train", input.streams)
for batch in TrainBatches(rows, input, batch_size=6, seed=0, rank=rank, world=world, workers=4):
    rgb, flow = batch.inputs(device)
    loss = (batch.weight * cross_entropy(logits, batch.target, reduction="none")).sum()
    loss = loss * world / batch.total_weight        # so that DDP's mean over ranks is the batch's mean
"""

from __future__ import annotations

from collections.abc import Iterator

from trainer.data.batch import Batch, Input
from trainer.data.rows import Rows


class TooManyFailures(RuntimeError):
    """More clips could not be decoded than the run allows; the message names the share and the first keys."""


class TrainBatches:
    """An endless run of batches from `start`, the same for every world size and number of workers.

    Args:
        rows: of the training split; see `trainer.data.rows.open_rows`.
        input: what the network is fed.
        batch_size: clips in a step over all ranks.
        seed: of order and augmentation.
        rank, world: which contiguous share of each global batch is this process's.
        workers: processes that read and decode; 0 does it in this one.
        start: (epoch, step within it) of the first batch.
        steps: batches to yield; None goes on for ever.
        pin: page-locked memory, for copies to a GPU.
        in_flight: reads under way at once in each worker.
        max_failures: share of undecodable clips over which `TooManyFailures` is raised.
    """

    def __init__(
        self,
        rows: Rows,
        input: Input,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        start: tuple[int, int] = (0, 0),
        steps: int | None = None,
        pin: bool = False,
        in_flight: int = 8,
        max_failures: float = 0.01,
    ):
        raise NotImplementedError

    steps_per_epoch: int

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError


class EvaluationBatches:
    """Every labelled, present row exactly once over all ranks; each rank gets equally many batches.

    Whole clips by default: clips of one length share a batch. Padding has weight 0.

    Args:
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
        in_flight: int = 8,
        max_failures: float = 0.01,
    ):
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError
