"""The order of samples, a pure function of (seed, epoch, rows), and keyed random numbers.

Owns the order, its division into global batches and rank shares, and the augmentation's random numbers.
The hash is splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014)
on 64-bit integers, so nothing depends on numpy's or a platform's generators.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

S = TypeVar("S", np.ndarray, range)

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15

ORDER, AUGMENTATION, BALANCE = 1, 2, 3
"""First words of keys, one a use, so that no two uses share a stream of numbers."""


def keyed(*words: int) -> int:
    """A 64-bit hash of integers, in order; the key from which a sample's random numbers are drawn."""
    key = 0
    for word in words:
        key = _finalise(((key + _GAMMA) & _MASK) ^ (word & _MASK))
    return key


class KeyedRandom:
    """A stream of random numbers that depends on its key alone (splitmix64 in counter mode).

    KeyedRandom(AUGMENTATION, seed, epoch, row).uniform()
    """

    def __init__(self, *words: int):
        self._state = keyed(*words)

    def uniform(self) -> float:
        """The next number, in [0, 1), a multiple of 2^-53."""
        self._state = (self._state + _GAMMA) & _MASK
        return (_finalise(self._state) >> 11) * 2.0**-53

    def below(self, bound: int) -> int:
        """The next integer in [0, bound); `bound` is at least 1."""
        return min(int(self.uniform() * bound), bound - 1)


def epoch_order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """The permutation of an epoch: int64 (rows,), the row at each place.

    The hash is one-to-one for a fixed (seed, epoch), so no two rows tie and any sort gives this order.
    """
    key = np.uint64((keyed(ORDER, seed, epoch) + _GAMMA) & _MASK)
    hashed = _finalise_array(np.arange(rows, dtype=np.uint64) ^ key)
    return np.argsort(hashed, kind="stable").astype(np.int64)


def balanced_order(seed: int, epoch: int, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of an epoch in which every class comes equally often: int64 rows, and the turn of each.

    Each class goes through its rows in turns, each turn in another order, and an epoch continues where the
    last one ended: a row of a large class waits for its turn, one of a small class comes several times. Rows
    with a `target`, int64 (rows,), of -1 never come.
    """
    labelled = np.flatnonzero(target >= 0)
    by_class = labelled[np.argsort(target[labelled], kind="stable")]
    _, first, sizes = np.unique(target[by_class], return_index=True, return_counts=True)
    draws = len(labelled) // len(sizes)  # of each class
    before = epoch * draws // sizes  # whole turns, of each class
    lengths = sizes * (((epoch + 1) * draws - 1) // sizes - before + 1)
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(sizes)), lengths)
    place = np.arange(len(owner)) - starts[owner]
    turns = before[owner] + place // sizes[owner]
    rows = by_class[first[owner] + place % sizes[owner]]
    key = np.uint64(keyed(BALANCE, seed))
    hashed = _finalise_array(rows.astype(np.uint64) ^ key) + turns.astype(np.uint64) * np.uint64(_GAMMA)
    sequence = np.lexsort((_finalise_array(hashed), turns, owner))
    taken = starts + epoch * draws - before * sizes
    chosen = sequence[(taken[:, None] + np.arange(draws)).ravel()]
    chosen = chosen[epoch_order(seed, epoch, len(chosen))]
    return rows[chosen].astype(np.int64), turns[chosen].astype(np.int64)


def places(target: np.ndarray, balanced: bool) -> int:
    """The number of samples in an epoch's order, before it is cut into batches."""
    labelled = target[target >= 0]
    classes = len(np.unique(labelled))
    return len(labelled) // max(1, classes) * classes if balanced else len(target)


def steps_per_epoch(rows: int, batch: int) -> int:
    """Whole global batches in an epoch; further clips are left out. Raises ValueError where there is none."""
    if batch < 1:
        raise ValueError(f"a batch of {batch} clips is none: give a batch size of at least 1")
    if rows < batch:
        raise ValueError(f"{rows} clips do not fill one batch of {batch}: take a smaller batch size")
    return rows // batch


def global_batch(order: np.ndarray, step: int, batch: int) -> np.ndarray:
    """The rows of one step over all ranks: int64 (batch,); `step` counts from the epoch's start."""
    return order[step * batch : (step + 1) * batch]


def share(indices: S, rank: int, world: int) -> S:
    """The contiguous slice of `indices` that a rank takes; sizes differ by at most one."""
    count = len(indices)
    return indices[rank * count // world : (rank + 1) * count // world]


def digest(keys: Sequence[str]) -> str:
    """16 hex digits of sha256 over newline-joined keys: how metrics.jsonl records a step's order."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


def _finalise(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _finalise_array(values: np.ndarray) -> np.ndarray:
    """`_finalise` over uint64 (n,); numpy's unsigned arithmetic wraps as the mask does."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
