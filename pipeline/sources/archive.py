"""Videos inside tar and tar.gz files, read by offset and never unpacked whole.

A plain tar is read at the member's offset. A tar.gz cannot be: before a job, `lay_out` reads it once and
copies the members that the plan wants into one file of the work store, deleted when the generation is
published. Without that file, a member is reached by unpacking all that stands before it. A member's path is
shown but never used: members are found by the last part of their names.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.lists.manifest import Clip
from pipeline.outcome import PROCESS, CallError, Failed, FailureClass
from pipeline.sources.archive_index import SCHEMA, UNREADABLE, copy_bytes, is_packed, read_index
from pipeline.sources.base import Fetched, FetchOptions, Video, all_failed
from pipeline.sources.directory import gather, names
from pipeline.sources.registry import parse
from pipeline.storage import location, open_storage
from pipeline.storage.tables import TableError, read_table, write_table
from pipeline.storage.work_store import WorkStore


@dataclass(frozen=True)
class Member:
    """A video in an archive; sizes and offsets in bytes, as in `SCHEMA`."""

    archive: str
    name: str
    suffix: str
    offset: int
    size: int
    laid_out: int | None
    failure_class: str | None
    refused: str | None


class Members:
    """The videos of several archives by name without ending; a name that occurs twice is refused."""

    def __init__(self, tables: dict[str, pa.Table]):
        self.tables = tables
        archives = [pa.array([path] * table.num_rows, pa.string()) for path, table in tables.items()]
        table = pa.concat_tables([SCHEMA.empty_table(), *tables.values()])
        self._table = table.append_column("archive", pa.chunked_array(archives, pa.string()))
        self._rows: dict[str, int] = {}
        self._twice: dict[str, int] = {}
        for number, stem in enumerate(table["stem"].to_pylist()):
            if stem is not None and self._rows.setdefault(stem, number) != number:
                self._twice[stem] = number

    def __contains__(self, stem: object) -> bool:
        return stem in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, stem: str) -> Member:
        """The member of that name, which may be a refused one. Raises KeyError."""
        first = self._member(self._rows[stem])
        if stem not in self._twice:
            return first
        other = self._member(self._twice[stem])
        where = "" if other.archive == first.archive else f" and {other.archive}"
        why = "stands there twice; name the archive that is to win as a source of its own, before the others"
        missing = str(FailureClass.MISSING)
        return replace(first, archive=first.archive + where, failure_class=missing, refused=why)

    def refused(self) -> list[Member]:
        """All members that may not be read, each with its reason."""
        found = pc.indices_nonzero(pc.is_valid(self._table["refused"])).to_pylist()
        members = [self._member(number) for number in found]
        return members + [self[stem] for stem in self._twice]

    def _member(self, number: int) -> Member:
        row = self._table.slice(number, 1).to_pylist()[0]
        return Member(**{name: row[name] for name in Member.__dataclass_fields__})


@dataclass(frozen=True)
class ArchiveSource:
    """``archive:GLOB``: videos in the tar and tar.gz files that a glob matches.

    A clip is looked for by the names that `pipeline.sources.directory` knows, trimmed ones first. Refused
    are links, devices, files with holes, paths that lead out of the archive, what the archive's end cuts off,
    more than `FetchOptions.max_bytes`, and names that stand there twice.
    """

    pattern: str
    kind: str = "archive"
    network: bool = False

    @classmethod
    def of(cls, spec: str) -> ArchiveSource:
        """The source for ``archive:GLOB``; `CallError` where the glob matches no file."""
        pattern = spec.removeprefix("archive:")
        if pattern and not location.is_url(pattern):
            pattern = os.path.abspath(os.path.expanduser(pattern))
        if not archives(pattern):
            raise CallError(
                f"archive:{pattern} matches no file: write archive:FILE or archive:'FOLDER/*.tar.gz'."
            )
        return cls(pattern)

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """The pieces of `video`'s clips, each member that they need copied into `folder` once."""
        try:
            members = index(self.pattern, options.work)
        except OSError as error:
            reason = f"{self.pattern} cannot be read: {error.strerror}."
            return all_failed(video, Failed(FailureClass.STORAGE, reason))
        copy = functools.cache(lambda stem: _copy(members[stem], folder / stem, options))
        return gather(video, self.kind, self.pattern, members, copy)


def archives(pattern: str) -> list[str]:
    """The files that a pattern names, sorted."""
    places = location.expand(pattern)
    return [place for place in places if location.is_url(place) or os.path.isfile(place)]


@functools.lru_cache(maxsize=8)
def index(pattern: str, work: str | None) -> Members:
    """The members of the archives, as `lay_out` left them in the work store, else read here; cached.

    Raises OSError for an archive that cannot be read.
    """
    store = WorkStore(work) if work else None
    tables = {path: _known(store, path) if store else None for path in archives(pattern)}
    return Members({path: read_index(path) if t is None else t for path, t in tables.items()})


def lay_out(specs: Sequence[str], plan: pa.Table, store: WorkStore, options: FetchOptions) -> None:
    """Read all archives once for all workers, and copy the wanted members of packed ones to the work store.

    Archives that an earlier, killed run has read are not read again.

    Args:
        specs: sources as written on the command line; only archives are looked at.
        plan: rows of `pipeline.lists.plan.SCHEMA`; the videos of rows to be processed are wanted.
        options: limits the size of a member.

    Raises:
        Failed: class storage.
    """
    paths = _paths(specs)
    if not paths:
        return
    rows = plan.filter(pc.equal(plan["decision"], PROCESS)).select(list(Clip.__dataclass_fields__))
    wanted = {name for row in rows.to_pylist() for name in names(Clip(**row))}
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # unpacking and hashing leave the interpreter free
            list(pool.map(lambda path: _lay_out(path, wanted, store, options.max_bytes), paths))
    except OSError as error:
        raise Failed(FailureClass.STORAGE, f"{error.filename} cannot be read: {error.strerror}") from error
    index.cache_clear()


def clear(specs: Sequence[str], store: WorkStore) -> None:
    """Delete the copies that `lay_out` made; the lists of members stay."""
    for path in _paths(specs):
        store.storage.delete(_place(path, "videos"))


def _paths(specs: Sequence[str]) -> list[str]:
    chosen = [source for source in map(parse, specs) if isinstance(source, ArchiveSource)]
    return [path for source in chosen for path in archives(source.pattern)]


def _lay_out(path: str, wanted: Collection[str], store: WorkStore, max_bytes: int) -> None:
    table = _known(store, path)
    if table is None and not is_packed(path):
        write_table(store.storage, _place(path, "parquet"), read_index(path))
    elif is_packed(path) and (table is None or _lacks(table, path, wanted, store, max_bytes)):
        with store.storage.writer(_place(path, "videos")) as file:
            table = read_index(path, file, wanted, max_bytes)
        write_table(store.storage, _place(path, "parquet"), table)


def _lacks(table: pa.Table, path: str, wanted: Collection[str], store: WorkStore, max_bytes: int) -> bool:
    """Whether a wanted member has not been copied; the copies made before are then no use either."""
    rows = table.filter(pc.and_(pc.is_null(table["refused"]), pc.less_equal(table["size"], max_bytes)))
    stems, places = rows["stem"].to_pylist(), rows["laid_out"].to_pylist()
    found = [place for stem, place in zip(stems, places, strict=True) if stem in wanted]
    return None in found or (bool(found) and not store.storage.exists(_place(path, "videos")))


def _copy(member: Member, target: Path, options: FetchOptions) -> Path:
    """Copy a member to the local file `target`, its ending added. Raises Failed."""
    where = f"{member.name} in {member.archive}"
    if member.refused:
        failure = FailureClass(member.failure_class or FailureClass.UNSAFE)
        raise Failed(failure, f"{where} {member.refused}.")
    if member.size > options.max_bytes:
        raise Failed(FailureClass.TOO_LARGE, f"{where} has {member.size} bytes.")
    target = target.with_name(target.name + member.suffix)
    try:
        with contextlib.ExitStack() as stack:
            source: IO[bytes] | None = None
            if member.laid_out is not None and options.work:
                with contextlib.suppress(FileNotFoundError):
                    copies = _place(member.archive, "videos")
                    source = stack.enter_context(open_storage(options.work).open(copies))
                    source.seek(member.laid_out)
            if source is None:
                source = stack.enter_context(location.open_file(member.archive))
                if is_packed(member.archive):
                    source = cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=source)))
                source.seek(member.offset)
            copy_bytes(source, member.size, stack.enter_context(open(target, "wb")))
            return target
    except UNREADABLE as error:
        raise Failed(FailureClass.CORRUPT, f"{where} is cut off or damaged: {error}") from None
    except OSError as error:
        reason = f"{member.name} of {member.archive} could not be copied: {error.strerror or error}"
        raise Failed(FailureClass.STORAGE, reason) from error


def _known(store: WorkStore, path: str) -> pa.Table | None:
    try:
        return read_table(store.storage, _place(path, "parquet"), SCHEMA, keep_metadata=True)
    except TableError:
        return None


def _place(path: str, ending: str) -> str:
    """The work store's path of an archive's table (parquet) or copies (videos), until the archive changes."""
    identity = hashlib.sha256(os.fsencode(location.identity(path))).hexdigest()[:16]
    return f"archive/{identity}.{ending}"
