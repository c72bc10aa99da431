"""Checks a shard file against dataset.json and the index: its size, its hash, and the layout of its tar."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from pipeline.dataset.schema import MEDIA, MEMBERS, REMOVED_MEMBER, ShardInfo
from pipeline.outcome import Failed
from pipeline.storage import CHUNK, Storage


def shard_breaches(storage: Storage, info: ShardInfo, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Check a shard against its rows of the index, in one pass; returns a sentence for each breach."""
    try:
        size = storage.size(info.path)
        if size != info.size:
            return [f"{info.path} has {size} bytes, dataset.json says {info.size}"]
        with storage.open(info.path) as file:
            hashing = _Hashing(file)
            found = list(_layout_breaches(hashing, info, rows))
            while hashing.read(CHUNK):
                pass
    except FileNotFoundError:
        return [f"{info.path} is absent"]
    except Failed as failure:
        return [failure.reason]
    except OSError as error:
        return [f"{info.path} cannot be read: {error.strerror or error}"]
    if hashing.digest.hexdigest() != info.sha256:
        found.insert(0, f"{info.path} has another sha256 than dataset.json says")
    return found


class _Hashing:
    """Reads a file forwards and computes the sha256 of all bytes read."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _layout_breaches(file: _Hashing, info: ShardInfo, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    expected = sorted(rows, key=lambda r: r["sample_offset"])
    ends = [0, *(r["sample_offset"] + r["sample_size"] for r in expected)]
    for each, end in zip(expected, ends, strict=False):
        if each["sample_offset"] != end:
            yield f"{info.path}: {each['key']} does not begin where the sample before it ends ({end})"
    places = iter(expected)
    row: dict[str, Any] | None = None
    names: list[str] = []
    try:
        with tarfile.open(fileobj=file, mode="r|", bufsize=CHUNK) as tar:  # type: ignore[call-overload]
            for member in tar:
                if row is None or member.offset >= row["sample_offset"] + row["sample_size"]:
                    yield from _complete(info, row, names)
                    row, names = next(places, None), []
                    if row is None:
                        yield f"{info.path}: {member.name[:100]!r} is in no row of the index"
                        return
                    if member.offset != row["sample_offset"]:
                        yield f"{info.path}: {row['key']} does not begin at {row['sample_offset']}"
                names.append(member.name)
                yield from _member_breaches(tar, member, info, row)
    except (tarfile.TarError, ValueError, EOFError) as error:
        yield f"{info.path} is not readable as tar: {error}"
        return
    yield from _complete(info, row, names)
    if (left := next(places, None)) is not None:
        yield f"{info.path}: {left['key']} and what follows it is not in the tar"


def _complete(info: ShardInfo, row: dict[str, Any] | None, names: list[str]) -> Iterator[str]:
    if row is None or row["removed"]:
        return
    held = {"cls": row["class_index"], "flow.mp4": row["flow_offset"], "json": True, "mp4": True}
    wanted = [f"{row['key']}.{suffix}" for suffix in MEMBERS if held[suffix] is not None]
    if names != wanted:
        yield f"{info.path}: {row['key']} has the members {names}, not {wanted}"


def _member_breaches(
    tar: tarfile.TarFile, member: tarfile.TarInfo, info: ShardInfo, row: dict[str, Any]
) -> Iterator[str]:
    where = f"{info.path}: {member.name[:100]}"
    if not member.isreg() or (member.mtime, member.uid, member.gid, member.mode) != (0, 0, 0, 0o644):
        yield f"{where} has another header than this format writes"
    if row["removed"]:
        file = tar.extractfile(member)
        while file and (chunk := file.read(CHUNK)):
            if chunk.count(0) != len(chunk):
                yield f"{where} is not zeroed though {row['key']} was removed"
                break
        if member.name != REMOVED_MEMBER:
            yield f"{where} is there though {row['key']} was removed"
        return
    for name, suffix in MEDIA.items():
        place = row[f"{name}_offset"], row[f"{name}_size"]
        if member.name == f"{row['key']}.{suffix}" and (member.offset_data, member.size) != place:
            yield f"{where} lies at {member.offset_data} with {member.size} bytes, the index says otherwise"
