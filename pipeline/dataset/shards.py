"""Deterministic packing: the samples of a shard -> a tar whose bytes depend on their content only.

The headers are written here, so that offsets are known as the bytes go out. Members are streamed from
the work store and their hashes checked on the way; a shard is never in memory. Which samples belong to
a shard is the plan's affair, naming the shard in dataset.json is `pipeline.dataset.publish`'s.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa

from pipeline.dataset.schema import (
    INDEX_SCHEMA,
    MAX_SAMPLE,
    MEDIA,
    MEMBERS,
    SHARD,
    DatasetError,
    ShardInfo,
    read_meta,
    read_table,
    shard_path,
    write_table,
)
from pipeline.keys import KEY
from pipeline.outcome import Failed, FailureClass
from pipeline.storage import CHUNK, Storage
from pipeline.storage.work_store import Stored, canonical_json

__all__ = ["PackedSample", "ShardInfo", "order", "pack", "read_part", "shard_path", "write_part"]

_BLOCK = tarfile.BLOCKSIZE
_INFO = b"quovadis.shard"


@dataclass(frozen=True)
class PackedSample:
    """A ready clip, as paths and hashes; `time_start` and `time_end` in seconds.

    Attributes:
        meta: what stands in ``<key>.json``; of it ``frames``, ``width``, ``height`` and, with flow,
            ``flow.saturation`` also go into the index. No location, host or time may stand in it.
        members: suffix in the tar ("mp4", "flow.mp4") -> file in the work store.
    """

    key: str
    label: str | None
    class_index: int | None
    split: str
    youtube_id: str
    time_start: float
    time_end: float
    meta: Mapping[str, Any]
    members: Mapping[str, Stored]


def order(key: str) -> str:
    """What samples of a shard are sorted by: the key's sha256, which scatters classes and videos."""
    return hashlib.sha256(key.encode()).hexdigest()


def pack(
    samples: Sequence[PackedSample], work: Storage, storage: Storage, path: str
) -> tuple[ShardInfo, list[dict[str, Any]]]:
    """Write one shard and return how dataset.json and the index describe it.

    Args:
        samples: in any order; all of the split that `path` names.
        work: the work store's storage, where `PackedSample.members` lie.
        storage: ROOT.
        path: from `shard_path`. A file of this name that dataset.json does not name is replaced.

    Returns:
        the shard, and its rows of `INDEX_SCHEMA` in the order of their offsets.

    Raises:
        ValueError: two samples of one key, of another split, or with unfit members.
        Failed: class storage: disk trouble, a member that is not what its record says, or a published
            shard of this name with other bytes. Nothing is left at `path` that was not there before.
    """
    match = SHARD.fullmatch(path)
    if match is None:
        raise ValueError(f"not the path of a shard: {path!r}")
    split, generation = match.groups()
    ordered = sorted(samples, key=lambda s: order(s.key))
    if len({s.key for s in ordered}) != len(ordered):
        raise ValueError(f"{path}: two samples of one key")
    for sample in ordered:
        _check(sample, split)
    with storage.writer(path) as file:
        tar = _Tar(file)
        rows = [_add(tar, sample, work, path) for sample in ordered]
        tar.end()
        info = ShardInfo(path, split, generation, len(rows), tar.position, tar.digest.hexdigest())
        _refuse_to_change(storage, info)
    return info, rows


def write_part(storage: Storage, path: str, info: ShardInfo, rows: Sequence[Mapping[str, Any]]) -> None:
    """Keep a packed shard's description as one Parquet file, for `pipeline.dataset.publish`."""
    table = pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA)
    text = canonical_json(dataclasses.asdict(info))
    write_table(storage, path, table.replace_schema_metadata({_INFO: text}))


def read_part(storage: Storage, path: str) -> tuple[ShardInfo, pa.Table] | None:
    """What `write_part` kept; None where there is none or it is damaged. Whether the shard is still there
    whole is for the caller to ask (`Storage.size`)."""
    if not storage.exists(path):
        return None
    try:
        table = read_table(storage, path, INDEX_SCHEMA, keep_metadata=True)
        info = ShardInfo(**json.loads(table.schema.metadata[_INFO]))
    except (DatasetError, KeyError, TypeError, ValueError):
        return None
    return info, table.replace_schema_metadata(None)


class _Tar:
    """A ustar file going out: fixed mtime, owner and mode; position and sha256 of what went so far."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.position = 0
        self.digest = hashlib.sha256()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.position += len(data)

    def header(self, name: str, size: int) -> None:
        member = tarfile.TarInfo(name)
        member.size = size
        member.mode = 0o644
        self._put(member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))

    def pad(self) -> None:
        self._put(bytes(-self.position % _BLOCK))

    def bytes(self, name: str, data: bytes) -> None:
        self.header(name, len(data))
        self._put(data)
        self.pad()

    def stored(self, name: str, stored: Stored, work: Storage) -> int:
        """Copy a file in, checking it; returns the payload's offset."""
        self.header(name, stored.size)
        offset, digest = self.position, hashlib.sha256()
        try:
            with work.open(stored.path, stored.size) as source:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    self._put(chunk)
        except FileNotFoundError:
            raise _not_whole(work, stored) from None
        if (self.position - offset, digest.hexdigest()) != (stored.size, stored.sha256):
            raise _not_whole(work, stored)
        self.pad()
        return offset

    def end(self) -> None:
        self._put(bytes(2 * _BLOCK))
        self._put(bytes(-self.position % tarfile.RECORDSIZE))


def _add(tar: _Tar, sample: PackedSample, work: Storage, path: str) -> dict[str, Any]:
    start, offsets = tar.position, {}
    for suffix in MEMBERS:
        name = f"{sample.key}.{suffix}"
        if suffix == "cls" and sample.class_index is not None:
            tar.bytes(name, str(sample.class_index).encode())
        elif suffix == "json":
            tar.bytes(name, canonical_json(dict(sample.meta)))
        elif suffix in sample.members:
            offsets[suffix] = tar.stored(name, sample.members[suffix], work)
    flow = sample.meta.get("flow")
    row = {
        "key": sample.key,
        "split": sample.split,
        "label": sample.label,
        "class_index": sample.class_index,
        "youtube_id": sample.youtube_id,
        "time_start": sample.time_start,
        "time_end": sample.time_end,
        "shard": path,
        "sample_offset": start,
        "sample_size": tar.position - start,
        "frames": sample.meta["frames"],
        "width": sample.meta["width"],
        "height": sample.meta["height"],
        "flow_saturation": flow["saturation"] if flow else None,
        "removed": False,
    }
    for name, suffix in MEDIA.items():
        stored = sample.members.get(suffix)
        row[f"{name}_offset"] = offsets.get(suffix)
        row[f"{name}_size"] = stored.size if stored else None
        row[f"{name}_sha256"] = stored.sha256 if stored else None
    return row


def _check(sample: PackedSample, split: str) -> None:
    if not KEY.fullmatch(sample.key):
        raise ValueError(f"not a plain name: {sample.key[:100]!r}")
    if sample.split != split:
        raise ValueError(f"{sample.key} is of split {sample.split}, not {split}")
    if sample.members.keys() - set(MEDIA.values()) or "mp4" not in sample.members:
        raise ValueError(f"{sample.key} has the members {sorted(sample.members)}")
    if ("flow.mp4" in sample.members) != bool(sample.meta.get("flow")):
        raise ValueError(f"{sample.key}: its json and its members disagree on flow")
    if sum(s.size for s in sample.members.values()) > MAX_SAMPLE // 2:
        raise ValueError(f"{sample.key} is larger than a reader accepts")


def _refuse_to_change(storage: Storage, info: ShardInfo) -> None:
    meta = read_meta(storage)
    for shard in meta["shards"] if meta else ():
        if shard["path"] == info.path and shard["sha256"] != info.sha256:
            raise Failed(
                FailureClass.STORAGE,
                f"{storage.where(info.path)} is published with other bytes and stays as it is; "
                "if another run published it, repeat the command",
            )


def _not_whole(work: Storage, stored: Stored) -> Failed:
    return Failed(
        FailureClass.STORAGE,
        f"{work.where(stored.path)} is not what its record says; delete it and repeat the command",
    )
