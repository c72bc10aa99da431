"""The samples of a run: the indexes of published data sets as columns."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.dataset import Dataset, DatasetError
from pipeline.outcome import CallError, Failed, Misplaced
from trainer.data.batches import Input
from trainer.data.split_files import Listed

MEDIA = {"rgb": "mp4", "flow": "flow.mp4"}
"""Streams and the suffix of their members."""

_log = logging.getLogger(__name__)
_MOST_FRAMES, _LONGEST_SIDE = 100_000, 16_384


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
    short_side: int  # pixels, of every clip
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
    digests: dict[str, pa.StringArray] = field(default_factory=dict)  # stream -> sha256 in hex

    def __len__(self) -> int:
        return len(self.target)

    def size(self, row: int) -> tuple[int, int]:
        """(width, height) of a clip, pixels."""
        return int(self.width[row]), int(self.height[row])

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, over the generations and each row's key, class and size, in their order.

        The same wherever the data sets lie, and after a takedown, which keeps the rows.
        """
        digest = hashlib.sha256(json.dumps([self.split, self.classes, self.generations]).encode())
        digest.update("\n".join(self.keys.to_pylist()).encode())
        for column in (self.target, self.frames, self.width, self.height):
            digest.update(np.ascontiguousarray(column, "<i8").tobytes())
        return digest.hexdigest()


class RowsError(CallError, ValueError):
    """The data sets cannot feed this run; one sentence with the remedy."""


class DamagedError(RowsError):
    """Published files are missing, changed or unreachable: the call itself is right."""


def open_rows(
    roots: Sequence[str],
    split: str | Listed,
    streams: Sequence[str],
    generations: Sequence[Sequence[str]] | None = None,
) -> Rows:
    """Opens `split` of published data sets; or the clips of all splits whose videos are listed.

    Args:
        roots: folders or URLs of published data sets, all with the same classes, rate, short side and bound.
        streams: those that will be read, of "rgb" and "flow".
        generations: for each root those to read (of a checkpoint); None for all.

    Raises RowsError for no such split or generation, no flow, or data sets that do not go together;
    DamagedError for a shard or an index that is absent, cut short or of impossible numbers.
    """
    splits, name = (dataset.SPLITS, split.part) if isinstance(split, Listed) else ((split,), split)
    if generations is not None and len(generations) != len(roots):
        raise RowsError(f"the run has {len(generations)} data sets, not {len(roots)}: name those in --data")
    opened = _opened(roots, splits)
    pinned = tuple(map(tuple, [d.generations for d in opened] if generations is None else generations))
    tables = _tables(opened, splits, pinned)
    _check_alike(opened)
    where = " and ".join(roots)
    shards = [(n, path) for n, d in enumerate(opened) for path, s in d.shards.items() if s.split in splits]
    places = {shard: place for place, shard in enumerate(shards)}
    if isinstance(split, Listed):
        tables = _chosen(tables, split)
    table = pa.concat_tables(tables)
    if not len(table):
        raise RowsError(f"{where} has no {name} clips: choose another --split or --data")
    _check_columns(table, len(opened[0].classes), where)
    if "flow" in streams and table["flow_offset"].null_count:
        raise RowsError(f"{where} has clips without flow: prepare it with --flow tvl1, or use --stream rgb")
    return Rows(
        roots=tuple(roots),
        split=name,
        classes=tuple(opened[0].classes),
        generations=pinned,
        rate=opened[0].rate,
        short_side=opened[0].short_side,
        flow_bound=_flow_bound(opened[0]),
        shards=tuple(shards),
        keys=table["key"].combine_chunks(),
        target=table["class_index"].fill_null(-1).to_numpy().astype(np.int64),
        removed=table["removed"].to_numpy().astype(bool),
        shard=np.concatenate([_numbers(t, n, places) for n, t in enumerate(tables)]),
        frames=table["frames"].to_numpy(),
        width=table["width"].to_numpy(),
        height=table["height"].to_numpy(),
        offsets={s: table[f"{s}_offset"].to_numpy().astype(np.int64) for s in streams},
        sizes={s: table[f"{s}_size"].to_numpy().astype(np.int64) for s in streams},
        digests={s: table[f"{s}_sha256"].combine_chunks() for s in streams},
    )


def _opened(roots: Sequence[str], splits: Sequence[str]) -> list[Dataset]:
    """The data sets at `roots`, whose shards are checked. Raises RowsError, DamagedError."""
    try:
        opened = [dataset.open(root) for root in roots]
        for data in opened:
            _check_shards(data, splits)
        return opened
    except Failed as error:
        raise (RowsError if isinstance(error, Misplaced) else DamagedError)(error.reason) from None
    except DatasetError as error:
        raise RowsError(str(error)) from None


def _tables(
    opened: Sequence[Dataset], splits: Sequence[str], generations: Sequence[Sequence[str]]
) -> list[pa.Table]:
    """The index of each data set. Raises RowsError, DamagedError."""
    each = zip(opened, generations, strict=True)
    try:
        return [pa.concat_tables([data.index(s, names) for s in splits]) for data, names in each]
    except Failed as error:
        raise DamagedError(error.reason) from None
    except ValueError as error:  # another than DatasetError: no such generation
        raise (DamagedError if isinstance(error, DatasetError) else RowsError)(str(error)) from None


def input_for(rows: Rows, input: Input) -> Input:
    """`input` counted in frames of the rows. Raises RowsError where they do not hold what it is to be fed."""
    if missing := set(input.streams) - rows.offsets.keys():
        raise RowsError(f"the rows were opened without {min(missing)}: open them with the input's streams")
    # Flow is from one frame to the next: that of another rate cannot be had by leaving out frames.
    stride, rest = divmod(input.stride * rows.rate, input.rate)
    if rest or (rows.rate != input.rate and "flow" in input.streams):
        raise RowsError(
            f"the data set has {rows.rate} frames a second and the network wants {input.rate}: prepare one "
            f"with --rate {input.rate}, or train a network for this one with rate = {rows.rate} in --config"
        )
    if "flow" in input.streams and rows.flow_bound != input.flow_bound:
        raise RowsError(
            f"the data set stores flow up to {rows.flow_bound} pixels and the network was made for "
            f"{input.flow_bound:g}: set flow_bound to the data set's, or use a checkpoint trained with it"
        )
    return replace(input, rate=rows.rate, stride=stride)


def _check_alike(opened: Sequence[Dataset]) -> None:
    facts = [
        {"classes": d.classes, "rate": d.rate, "short side": d.short_side, "flow bound": _flow_bound(d)}
        for d in opened
    ]
    for data, other in zip(opened, facts, strict=True):
        if differing := [name for name in other if other[name] != facts[0][name]]:
            differ = f"{opened[0].storage.url} and {data.storage.url} differ in their {differing[0]}"
            raise RowsError(f"{differ}: prepare them with the same recipe and --classes")


def _check_columns(table: pa.Table, classes: int, where: str) -> None:
    """Raises DamagedError for impossible numbers: memory is allocated, and a loss indexed, by them."""
    limits = {"frames": (1, _MOST_FRAMES), "width": (1, _LONGEST_SIDE), "height": (1, _LONGEST_SIDE)}
    for name, (low, high) in {**limits, "class_index": (0, classes - 1)}.items():
        found = pc.min_max(table[name]).as_py()
        if found["min"] is not None and not low <= found["min"] <= found["max"] <= high:
            wrong = f"the index of {where} has a {name} outside {low} to {high}"
            raise DamagedError(f"{wrong}: copy it again from where it was published")


def _chosen(tables: Sequence[pa.Table], listed: Listed) -> list[pa.Table]:
    """The rows of listed videos; logs how many listed videos are absent."""
    wanted = pa.array(sorted(listed.ids), pa.string())
    chosen = [table.filter(pc.is_in(table["youtube_id"], wanted)) for table in tables]
    found = set().union(*(table["youtube_id"].to_pylist() for table in chosen))
    if absent := sorted(listed.ids - found):
        some = f"{len(absent)} of {len(listed.ids)} listed videos"
        _log.warning("%s are not in the data set, %s for one", some, absent[0])
    return chosen


def _check_shards(data: Dataset, splits: Sequence[str]) -> None:
    """Raises DamagedError for an absent or short shard; looks on local disks only, where it costs nothing."""
    if not data.storage.is_local:
        return
    for path, shard in data.shards.items():
        if shard.split not in splits:
            continue
        size = data.storage.size(path) if data.storage.exists(path) else None
        if size != shard.size:
            found = "is missing" if size is None else f"has {size} bytes instead of {shard.size}"
            where = data.storage.where(path)
            raise DamagedError(f"{where} {found}: copy it again from where it was published")


def _numbers(table: pa.Table, root: int, places: dict[tuple[int, str], int]) -> np.ndarray:
    """int32 (rows,): each row's shard as a number."""
    column = table["shard"].combine_chunks().dictionary_encode()
    names = np.array([places[root, path] for path in column.dictionary.to_pylist()], np.int32)
    return names[column.indices.to_numpy()] if len(table) else np.empty(0, np.int32)


def _flow_bound(data: Dataset) -> float | None:
    """Pixels; what a luma value of 127 above zero stands for."""
    flow = data.meta["recipe"].get("flow")
    return None if flow is None else float(flow.get("coding", {}).get("bound", dataset.FLOW_BOUND))
