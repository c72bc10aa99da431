"""Opening and reading a published data set. Imports no Beam, numba or torch.

A data set is untrusted input: `pipeline.dataset.schema` checks it before anything is read by it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.dataset import schema
from pipeline.dataset.schema import INDEX_SCHEMA, MEDIA, OUTCOME_SCHEMA, SPLITS, DatasetError, ShardInfo
from pipeline.outcome import CallError
from pipeline.storage import Storage, open_storage
from pipeline.storage.tables import TableError, read_table

if TYPE_CHECKING:
    import numpy as np


class NoDatasetError(DatasetError, CallError):
    """There is no data set at the place named."""


@dataclass(frozen=True)
class Sample:
    """One clip. `members` are the raw bytes by suffix: cls, flow.mp4, json, mp4."""

    key: str
    label: str | None
    class_index: int | None
    members: dict[str, bytes]

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """The content of ``<key>.json``."""
        return json.loads(self.members["json"])

    @functools.cached_property
    def rgb(self) -> np.ndarray:
        """Decoded frames, uint8 (T, H, W, 3)."""
        from pipeline.media import clip

        return clip.decode(self.members["mp4"])

    @functools.cached_property
    def flow(self) -> np.ndarray | None:
        """Decoded flow in pixels, float32 (T, H, W, 2), u first; None in a data set without flow."""
        data = self.members.get("flow.mp4")
        return None if data is None else decode_flow(data)


def decode_flow(data: bytes, frames: range | None = None) -> np.ndarray:
    """Flow stored as video -> float32 (T, H, W, 2) in pixels; `frames` selects some of them."""
    from pipeline.flow import coding

    return coding.decode(data, frames)


def open(root: str | os.PathLike[str] | Storage) -> Dataset:
    """Open the data set under a folder or URL.

    Raises:
        NoDatasetError: there is none.
        DatasetError: its dataset.json is not one of this format.
        Failed: the storage refuses.
    """
    storage = root if isinstance(root, Storage) else open_storage(root)
    meta = schema.read_meta(storage)
    if meta is None:
        absent = f"{storage.where(schema.META_FILE)} is absent: no data set is published there"
        raise NoDatasetError(f"{absent}; name the --output of a prepare")
    return Dataset(storage, meta)


class Dataset:
    """A published data set, as dataset.json was when it was opened.

    Attributes:
        storage: where it lies.
        meta: dataset.json.
        classes: names by class index.
        generations: names, oldest first.
        shards: `ShardInfo` by path.
        splits: those that have samples, in the order train, val, test.
        rate: frames a second of all clips.
        short_side: of all clips, in pixels.
    """

    def __init__(self, storage: Storage, meta: dict[str, Any]):
        self.storage = storage
        self.meta = meta
        self.classes: list[str] = meta["classes"]
        self.generations: list[str] = meta["generations"]
        names = ShardInfo.__dataclass_fields__  # dataset.json may have further ones
        self.shards = {s["path"]: ShardInfo(**{name: s[name] for name in names}) for s in meta["shards"]}
        self.rate = schema.rate(meta)
        self.short_side = schema.short_side(meta)
        present = {s.split for s in self.shards.values()}
        self.splits = [split for split in SPLITS if split in present]
        self._tables: dict[str, pa.Table] = {}

    def __repr__(self) -> str:
        return f"Dataset({self.storage.url!r}, splits={self.splits}, generations={self.generations})"

    def index(self, split: str, generations: Sequence[str] | None = None) -> pa.Table:
        """The samples of a split (`INDEX_SCHEMA`), removed ones included, by generation, shard, offset.

        Args:
            split: train, val or test; one without samples gives an empty table.
            generations: only these; all by default.

        Raises:
            DatasetError: an index file is absent, damaged, or points outside its shards.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}: train, val or test")
        wanted = self.generations if generations is None else list(generations)
        if unknown := set(wanted) - set(self.generations):
            raise ValueError(f"no generation {min(unknown)!r} in {self.storage.url}: {self.generations}")
        parts = [self._part(split, g) for g in self.generations if g in wanted]
        return pa.concat_tables([INDEX_SCHEMA.empty_table(), *(p for p in parts if p is not None)])

    def read(self, key: str) -> Sample:
        """One sample, by one ranged read.

        Raises:
            KeyError: no such key, or it was removed.
            DatasetError: the shard does not match the index.
        """
        split, number = self._rows[key]
        row = self.index(split).slice(number, 1).to_pylist()[0]
        if row["removed"]:
            raise KeyError(f"{key} was removed")
        return self.read_row(row)

    def read_row(self, row: dict[str, Any]) -> Sample:
        """One sample, by its row of `index`. Raises as `read`."""
        where = self.storage.where(row["shard"])
        data = self.storage.read_range(row["shard"], row["sample_offset"], row["sample_size"])
        if len(data) != row["sample_size"]:
            raise DatasetError(f"{where} at {row['sample_offset']}: the shard ends before the sample does")
        members = parse_sample(data, row["key"], f"{where} at {row['sample_offset']}")
        for name, suffix in MEDIA.items():
            member = members.get(suffix)
            digest = None if member is None else hashlib.sha256(member).hexdigest()
            if digest != row[f"{name}_sha256"]:
                raise DatasetError(f"{where}: {row['key']}.{suffix} is not what the index says")
        return Sample(row["key"], row["label"], row["class_index"], members)

    def outcomes(self) -> pa.Table:
        """The latest outcome of each manifest row (`OUTCOME_SCHEMA`)."""
        return latest([self.outcome_part(g) for g in self.generations])

    def outcome_part(self, generation: str) -> pa.Table:
        """The rows that one generation decided."""
        return self._table(schema.outcome_path(generation), OUTCOME_SCHEMA)

    def _table(self, path: str, columns: pa.Schema) -> pa.Table:
        try:
            return read_table(self.storage, path, columns)
        except TableError as error:
            raise DatasetError(str(error)) from None

    def _part(self, split: str, generation: str) -> pa.Table | None:
        shards = {p: s for p, s in self.shards.items() if (s.split, s.generation) == (split, generation)}
        if not shards:
            return None
        path = schema.index_path(split, generation)
        if path not in self._tables:
            table = self._table(path, INDEX_SCHEMA)
            schema.check_offsets(table, shards, split, self.storage.where(path))
            order = [("shard", "ascending"), ("sample_offset", "ascending")]
            self._tables[path] = table.sort_by(order)
        return self._tables[path]

    @functools.cached_property
    def _rows(self) -> dict[str, tuple[str, int]]:
        keys = {split: self.index(split)["key"].to_pylist() for split in self.splits}
        return {key: (split, number) for split in keys for number, key in enumerate(keys[split])}


def parse_sample(data: bytes, key: str, where: str) -> dict[str, bytes]:
    """The bytes of one sample in a tar -> members by suffix. Raises DatasetError for anything else."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if member.name == schema.REMOVED_MEMBER:
                    raise DatasetError(f"{where}: {key} was removed since; open the data set again")
                stem, _, suffix = member.name.partition(".")
                if not member.isreg() or stem != key or suffix not in schema.MEMBERS or suffix in members:
                    raise DatasetError(f"{where}: {member.name[:100]!r} does not belong to {key}")
                file = tar.extractfile(member)
                members[suffix] = file.read() if file else b""
                if len(members[suffix]) != member.size:
                    raise DatasetError(f"{where}: {member.name} is cut off")
    except (tarfile.TarError, ValueError, OSError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{where}: not the members of a tar ({error})") from None
    if missing := {"json", "mp4"} - members.keys():
        raise DatasetError(f"{where}: {key} has no {' and no '.join(sorted(missing))}")
    return members


def latest(parts: Iterable[pa.Table]) -> pa.Table:
    """Outcome tables, oldest first -> each (manifest, row) once, as the last of them says, in first order."""
    table = pa.concat_tables([OUTCOME_SCHEMA.empty_table(), *parts]).combine_chunks()
    number = pa.array(range(table.num_rows), pa.int64())
    numbered = table.select(["manifest", "row"]).append_column("number", number)
    last = numbered.group_by(["manifest", "row"]).aggregate([("number", "min"), ("number", "max")])
    return table.take(last.sort_by("number_min")["number_max"])
