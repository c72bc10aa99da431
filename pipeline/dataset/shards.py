"""Packs the samples of a shard into a tar whose bytes depend on their content only.

Members are checked against their hashes on the way; one member at a time is in memory. The plan decides
which samples belong to a shard; `pipeline.dataset.publish` names the shard in dataset.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.dataset.schema import INDEX_SCHEMA, MAX_SAMPLE, MEDIA, SHARD, ShardInfo, read_meta
from pipeline.keys import KEY
from pipeline.outcome import Failed, FailureClass
from pipeline.storage import Storage
from pipeline.storage.tables import read_table, write_table
from pipeline.storage.work_store import Stored, canonical_json

if TYPE_CHECKING:
    from webdataset import TarWriter

_INFO = b"quovadis.shard"


@dataclass(frozen=True)
class PackedSample:
    """A ready clip, as paths and hashes; `time_start` and `time_end` in seconds.

    Attributes:
        meta: the content of ``<key>.json``; of it ``frames``, ``width``, ``height`` and, with flow,
            ``flow.saturation`` also go into the index. It must not hold a location, host or time.
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
    """The sort key of a shard's samples: the sha256 of the key, which scatters classes and videos."""
    return hashlib.sha256(key.encode()).hexdigest()


def pack(
    samples: Sequence[PackedSample], work: Storage, storage: Storage, path: str
) -> tuple[ShardInfo, list[dict[str, Any]]]:
    """Write one shard; returns it and its rows of `INDEX_SCHEMA`, in the order of their offsets.

    Args:
        samples: in any order; all of the split that `path` names.
        work: the work store's storage, where `PackedSample.members` lie.
        storage: ROOT.
        path: from `shard_path`. A file of this name that dataset.json does not name is replaced.

    Raises:
        ValueError: two samples of one key, of another split, or with unfit members.
        Failed: class storage: disk trouble, a member that is not what its record says, or a published
            shard of this name with other bytes. Nothing is left at `path` that was not there before.
    """
    from webdataset import TarWriter  # imports torch where that is installed

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
        out = _Hashed(file)
        with TarWriter(out, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
            rows = [_add(tar, sample, work, path) for sample in ordered]
        info = ShardInfo(path, split, generation, len(rows), out.size, out.digest.hexdigest())
        _refuse_to_change(storage, info)
    return info, rows


def write_part(storage: Storage, path: str, info: ShardInfo, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store a packed shard's description as one Parquet file, for `pipeline.dataset.publish`."""
    table = pa.Table.from_pylist(list(rows), schema=INDEX_SCHEMA)
    text = canonical_json(dataclasses.asdict(info))
    write_table(storage, path, table.replace_schema_metadata({_INFO: text}))


def read_part(storage: Storage, path: str) -> tuple[ShardInfo, pa.Table] | None:
    """Read a description by `write_part`; None where it is absent or damaged. The shard is not looked at."""
    if not storage.exists(path):
        return None
    try:
        table = read_table(storage, path, INDEX_SCHEMA, keep_metadata=True)
        info = ShardInfo(**json.loads(table.schema.metadata[_INFO]))
    except (KeyError, TypeError, ValueError):
        return None
    return info, table.replace_schema_metadata(None)


class _Hashed:
    """A file going out: its sha256 and size so far."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


def _add(tar: TarWriter, sample: PackedSample, work: Storage, path: str) -> dict[str, Any]:
    contents = {"json": canonical_json(dict(sample.meta))}
    if sample.class_index is not None:
        contents["cls"] = str(sample.class_index).encode()
    start, offsets = tar.tarstream.offset, {}
    for suffix in sorted([*contents, *sample.members]):
        content = contents[suffix] if suffix in contents else _read(work, sample.members[suffix])
        offsets[suffix] = tar.tarstream.offset + tarfile.BLOCKSIZE
        tar.write({"__key__": sample.key, suffix: content})
    flow = sample.meta.get("flow")
    row = {name: value for name, value in vars(sample).items() if name not in ("meta", "members")}
    row |= {name: sample.meta[name] for name in ("frames", "width", "height")}
    row |= {"shard": path, "sample_offset": start, "sample_size": tar.tarstream.offset - start}
    row |= {"flow_saturation": flow["saturation"] if flow else None, "removed": False}
    for name, suffix in MEDIA.items():
        stored = sample.members.get(suffix)
        row[f"{name}_offset"] = offsets.get(suffix)
        row[f"{name}_size"] = stored.size if stored else None
        row[f"{name}_sha256"] = stored.sha256 if stored else None
    return row


def _read(work: Storage, stored: Stored) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        data = work.read_range(stored.path, 0, stored.size + 1)
        if (len(data), hashlib.sha256(data).hexdigest()) == (stored.size, stored.sha256):
            return data
    reason = f"{work.where(stored.path)} is not what its record says; delete it and repeat the command"
    raise Failed(FailureClass.STORAGE, reason)


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
