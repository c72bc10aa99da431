"""Which row keeps a video or a clip, and which rows yield to it: the rules of uniqueness and leakage.

Works on rows as numbers, all at once; `pipeline.lists.plan` turns tables into these and back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.lists.manifest import PRECEDENCE
from pipeline.outcome import DUPLICATE, LEAK, LISTED

_VAL, _TEST, _TRAIN = (PRECEDENCE.index(split) for split in ("val", "test", "train"))
REASONS = (  # (excluded_for, reason); the order is that of the codes in `exclusions`
    (LEAK, "The video is also in val, which keeps it."),
    (LEAK, "The video is also in test, which keeps it from train."),
    (LISTED, "The video is in a list given with --exclude."),
    (DUPLICATE, "The same clip is listed before."),
    (DUPLICATE, "Another clip of the same video is listed before (--unique video)."),
)
_LEAK_VAL, _LEAK_TEST, _LISTED, _SAME_CLIP, _SAME_VIDEO = range(len(REASONS))


@dataclass(frozen=True)
class Coded:
    """The rows as numbers, (n,) each; -1 where a malformed row has nothing."""

    valid: np.ndarray  # bool
    split: np.ndarray  # int32, place in PRECEDENCE
    video: np.ndarray  # int32
    key: np.ndarray  # int64, one for each (split, key)
    label: np.ndarray  # int32, -1 without label
    start: np.ndarray  # float64, seconds
    end: np.ndarray
    listed: np.ndarray  # (videos,) int64: first row of the exclude lists with the video, else -1


def encode(rows: pa.Table, listed: pa.Table) -> Coded:
    """Tables as `pipeline.lists.manifest.read` returns them, those of --exclude in ``listed``, to numbers."""
    valid = pc.is_null(column(rows, "error")).to_numpy(zero_copy_only=False)
    split = pc.index_in(column(rows, "split"), pa.array(PRECEDENCE)).fill_null(-1).to_numpy()
    video = _codes(pa.concat_arrays([column(rows, "youtube_id"), column(listed, "youtube_id")]))
    video, others = video[: len(valid)], video[len(valid) :]
    start, end = (column(rows, name).fill_null(0.0).to_numpy() for name in ("time_start", "time_end"))
    # A key is a video and two rounded times, numbers below 2**20: no string need be made.
    times = np.rint(start).astype(np.int64) << 22 | np.rint(end).astype(np.int64) << 2 | split
    key = np.full(len(valid), -1)
    found = np.flatnonzero(valid)
    order = found[np.lexsort((times[found], video[found]))]
    new = (times[order[1:]] != times[order[:-1]]) | (video[order[1:]] != video[order[:-1]])
    key[order[:1]] = 0
    key[order[1:]] = np.cumsum(new)
    count = int(max(video.max(initial=-1), others.max(initial=-1))) + 1
    label, first = _codes(column(rows, "label")), first_row(others, others >= 0, count)
    return Coded(valid, split, video, key, label, start, end, listed=first)


def collisions(coded: Coded) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a split that share a key but not every field, bool (n,), and the first row of each such key."""
    first = first_row(coded.key, coded.valid, len(coded.key))
    mine = np.where(coded.valid, first[coded.key], 0)
    differs = [values != values[mine] for values in (coded.start, coded.end, coded.label)]
    bad = np.zeros(len(coded.key), bool)
    bad[coded.key[coded.valid & np.any(differs, axis=0)]] = True
    collision = coded.valid & bad[coded.key]
    return collision, mine[collision]


def exclusions(coded: Coded, failed: np.ndarray, unique: str) -> tuple[np.ndarray, np.ndarray]:
    """For each row the code of its exclusion in `REASONS` and the row it yields to, -1 where none.

    A winner out of an exclude list has its place there plus the number of rows.
    """
    n, count = len(failed), len(coded.listed)
    code, winner = np.full(n, -1), np.full(n, -1)
    asked = ~failed

    def yields(which: np.ndarray, first: np.ndarray, group: np.ndarray, reason: int) -> None:
        found = np.flatnonzero(which & asked & (code < 0))
        to = first[group[found]]
        found, to = found[(to >= 0) & (to != found)], to[(to >= 0) & (to != found)]
        code[found], winner[found] = reason, to

    for split, losers, reason in ((_VAL, (_TEST, _TRAIN), _LEAK_VAL), (_TEST, (_TRAIN,), _LEAK_TEST)):
        inside = coded.valid & (coded.split == split)
        healthy = first_row(coded.video, inside & ~failed, count)
        first = np.where(healthy >= 0, healthy, first_row(coded.video, inside, count))
        yields(np.isin(coded.split, losers), first, coded.video, reason)
    train = coded.split == _TRAIN
    yields(train, np.where(coded.listed >= 0, coded.listed + n, -1), coded.video, _LISTED)
    yields(asked, first_row(coded.key, asked & (code < 0), n), coded.key, _SAME_CLIP)
    if unique == "video":
        # Group by video alone: what is left of a video after leakage is in one split.
        yields(asked, first_row(coded.video, asked & (code < 0), count), coded.video, _SAME_VIDEO)
        # A repeated clip whose first row yielded to another clip of its video names that other clip.
        same = np.flatnonzero(code == _SAME_CLIP)
        same = same[code[winner[same]] == _SAME_VIDEO]
        winner[same] = winner[winner[same]]
    return code, winner


def first_row(codes: np.ndarray, chosen: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64: the first chosen row with each code, -1 where there is none."""
    first = np.full(count, -1)
    backwards = np.flatnonzero(chosen)[::-1]
    first[codes[backwards]] = backwards  # of several values for one place numpy keeps the last
    return first


def column(table: pa.Table, name: str) -> pa.Array:
    """One column in one piece."""
    return table[name].combine_chunks()


def _codes(values: pa.Array) -> np.ndarray:
    """int32 (n,): equal strings have equal numbers, by first appearance; null is -1."""
    return values.dictionary_encode().indices.fill_null(-1).to_numpy()
