"""The rows that training or evaluation goes through: the indexes of one or more published data sets as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Rows:
    """Columns over n samples, in the order of the roots, then generation, shard and offset.

    A row's number is its identity in order and augmentation: it is stable while `generations` is.
    """

    roots: tuple[str, ...]
    split: str
    classes: tuple[str, ...]
    generations: tuple[tuple[str, ...], ...]  # of each root
    rate: int  # frames a second
    flow_bound: float | None  # pixels; None where the data sets have no flow
    shards: tuple[tuple[int, str], ...]  # number of the root, path below it
    keys: pa.StringArray
    target: np.ndarray  # int64, -1 without label
    removed: np.ndarray  # bool
    shard: np.ndarray  # int32, into `shards`
    frames: np.ndarray  # int32
    width: np.ndarray  # int32, pixels
    height: np.ndarray  # int32, pixels
    offsets: dict[str, np.ndarray] = field(default_factory=dict)  # stream -> int64, of the payload in its tar
    sizes: dict[str, np.ndarray] = field(default_factory=dict)  # stream -> int64, bytes

    def __len__(self) -> int:
        return len(self.target)


class RowsError(ValueError):
    """The data sets cannot feed this run; one sentence with the remedy."""


def open_rows(
    roots: Sequence[str],
    split: str,
    streams: Sequence[str],
    generations: Sequence[Sequence[str]] | None = None,
) -> Rows:
    """Open `split` of published data sets.

    Args:
        roots: folders or URLs of published data sets, all with the same classes, rate and flow bound.
        streams: those that will be read, of "rgb" and "flow".
        generations: for each root those to read (of a checkpoint); None for all there are.

    Raises:
        RowsError: no such split or generation, no flow, or data sets that do not go together.
    """
    raise NotImplementedError
