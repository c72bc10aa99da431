"""Lists the videos in a tar or tar.gz file by its headers, and the members that are refused, with the reason.

An archive is untrusted input: nothing is unpacked, no name becomes a path, and no header decides how much is
read into memory.
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa

from pipeline.outcome import FailureClass
from pipeline.sources.directory import VIDEO_SUFFIXES
from pipeline.storage import CHUNK, location
from pipeline.storage.object_store import BLOCK

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # the path inside, to be shown
        pa.field("stem", pa.string()),  # its last part without ending; null where that is no plain name
        pa.field("suffix", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # bytes, of the payload in the unpacked tar
        pa.field("size", pa.int64(), nullable=False),  # bytes
        pa.field("laid_out", pa.int64()),  # offset in the laid out file, null where it is not in there
        pa.field("failure_class", pa.string()),
        pa.field("refused", pa.string()),  # why; null where it may be read
    ]
)
"""One row for each video in an archive, and for each other member that was refused."""

_STEM = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,120}")  # times may have a point
_GZIP = b"\x1f\x8b"
_MAX_HEADER = 1 << 20  # bytes of one member's headers: long names, records, maps of holes; mostly kilobytes
_MAX_GLOBAL = 1 << 14  # characters of records for all later members: each member pays for them again
_MAX_MEMBERS = 1_000_000
_HEADERS = 1 << 16  # bytes a request to an object store, where a header is read here and there
_MAX_SIZE = 1 << 36  # bytes of one member: a packed archive of a few megabytes can promise petabytes
UNREADABLE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, RecursionError)
"""Errors of `tarfile` and `gzip`; RecursionError is raised for headers that announce each other."""
CUT_OFF = "is cut off: the archive ends before it does"


def read_index(
    path: str, target: IO[bytes] | None = None, wanted: Collection[str] = (), max_bytes: int = 0
) -> pa.Table:
    """Read an archive once: its videos, as a table of `SCHEMA`.

    Args:
        path: of a tar or tar.gz file, or its URL.
        target: gets the payload of the `wanted` members (by stem) that may be read and have at most
            `max_bytes`.

    Returns:
        Rows in the archive's order. Where the archive ends early or is not an archive, the metadata
        ``problem`` says so; the rows before that point stay.

    Raises:
        OSError: the file cannot be read, or the target not written.
    """
    rows: list[dict[str, Any]] = []
    problem, position = "", 0
    packed = is_packed(path)
    with location.open_file(path, BLOCK if packed else _HEADERS) as raw:
        file = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if packed else raw
        end = None if packed else raw.seek(0, os.SEEK_END)
        raw.seek(0)
        try:
            for member in _members(file):
                row = _row(member, end)
                if row is None:
                    continue
                rows.append(row)
                fits = row["refused"] is None and row["size"] <= max_bytes
                if target is not None and fits and row["stem"] in wanted:
                    file.seek(row["offset"])
                    copy_bytes(file, row["size"], target)
                    row["laid_out"], position = position, position + row["size"]
        except UNREADABLE as error:
            if rows and rows[-1]["refused"] is None and file.tell() < rows[-1]["offset"] + rows[-1]["size"]:
                rows[-1] |= {"failure_class": str(FailureClass.CORRUPT), "refused": CUT_OFF, "laid_out": None}
            problem = " ".join(str(error).split())[:200] or type(error).__name__
    return pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata({"problem": problem})


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    guarded = _Guarded(file)
    with tarfile.open(fileobj=cast("IO[bytes]", guarded), mode="r:", errors="surrogateescape") as tar:
        last = -1
        for _ in range(_MAX_MEMBERS):
            guarded.begin()
            member = tar.next()
            if sum(len(name) + len(value) for name, value in tar.pax_headers.items()) > _MAX_GLOBAL:
                raise tarfile.ReadError(f"global headers of more than {_MAX_GLOBAL} characters")
            if member is None:
                return
            if member.offset <= last or member.size < 0:
                raise tarfile.ReadError("a header points backwards")
            last = member.offset
            yield member
            if member.size > _MAX_SIZE:
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            tar.members.clear()  # type: ignore[attr-defined]  # it would remember them all
    raise tarfile.ReadError(f"more than {_MAX_MEMBERS} members")


class _Guarded:
    """A file that refuses reads of any size that a header claims: a packed header can claim anything."""

    def __init__(self, file: IO[bytes]):
        self._file, self._left = file, _MAX_HEADER
        self.seek, self.tell = file.seek, file.tell

    def begin(self) -> None:
        """Start counting for the headers of the next member."""
        self._left = _MAX_HEADER

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise tarfile.ReadError(f"headers of more than {_MAX_HEADER} bytes")
        self._left -= size
        return self._file.read(size)


def _row(member: tarfile.TarInfo, end: int | None) -> dict[str, Any] | None:
    """The row of a member; None for a folder, and for other files that are not refused."""
    if member.isdir():
        return None
    stem, suffix = os.path.splitext(PurePosixPath(member.name).name)
    is_video = suffix.lower() in VIDEO_SUFFIXES and _STEM.fullmatch(stem) is not None
    failure, why = _refusal(member, end)
    if not (is_video or why):
        return None
    return {
        "name": member.name[:300].encode("utf-8", "replace").decode(),
        "stem": stem if is_video else None,
        "suffix": suffix.lower() if is_video else "",
        "offset": member.offset_data,
        "size": min(member.size, 1 << 62),
        "laid_out": None,
        "failure_class": failure and str(failure),
        "refused": why,
    }


def _refusal(member: tarfile.TarInfo, end: int | None) -> tuple[FailureClass | None, str | None]:
    if member.issym() or member.islnk():
        return FailureClass.UNSAFE, "is a link"
    if not member.isreg():
        return FailureClass.UNSAFE, "is no plain file"
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        return FailureClass.UNSAFE, "has a path that leads out of the archive"
    if member.size > _MAX_SIZE:
        return FailureClass.TOO_LARGE, f"claims {member.size} bytes"
    if member.issparse():
        return FailureClass.UNSAFE, "has holes"
    if end is not None and member.offset_data + member.size > end:
        return FailureClass.CORRUPT, CUT_OFF
    return None, None


def copy_bytes(source: IO[bytes], size: int, target: IO[bytes]) -> None:
    """Copy the next `size` bytes. Raises EOFError where the source ends early."""
    while size:
        if not (chunk := source.read(min(size, CHUNK))):
            raise EOFError("the archive ends before it does")
        target.write(chunk)
        size -= len(chunk)


def is_packed(path: str) -> bool:
    """Whether a file is compressed by gzip."""
    with location.open_file(path, block=len(_GZIP)) as file:
        return file.read(2) == _GZIP
