"""Object stores (s3://, gs:// and all others of fsspec) as a `Storage`.

Objects are asked for by name: only `names`, `glob` and `delete_folder` list. Conditions on a write are the
store's own. Only the store's client repeats requests, so their number is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, TypeVar, cast

from pipeline.storage import locks
from pipeline.storage.base import Storage, Sync
from pipeline.storage.clients import answer, dialect, explain, filesystem
from pipeline.storage.errors import AlreadyExists, Busy, Changed

PART = 1 << 24
"""Bytes that a writer holds in memory; S3 takes 10,000 parts, so an object may have 160 GB."""

BLOCK = 1 << 22
"""Bytes asked for at a time where an object is read from one end to the other."""

_BODIES = 3  # answers whose body may break off before a read has failed
_BROKEN = ("ClientPayloadError", "ResponseStreamingError", "IncompleteReadError", "IncompleteRead")
_CONFLICTS = 5  # times that a conditional write is repeated while another is under way
_RELEASE_SECONDS = 5.0
_held: dict[tuple[str, str], tuple[ObjectStore, bytes]] = {}

T = TypeVar("T")


class ObjectStore(Storage):
    """One bucket or prefix. The client behind it belongs to the process that uses it.

    Each method is one request, `write` of more than `PART` bytes and `delete_folder` excepted.
    """

    def read_bytes(self, path: str, limit: int | None = None) -> bytes:
        if limit is None:
            return self._read(path, lambda fs, at: cast(bytes, fs.cat_file(at)))
        data = self.read_range(path, 0, limit + 1)
        if len(data) > limit:
            raise self._refuse(path, self.size(path), limit)
        return data

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0:
            raise ValueError(f"no range: offset {offset}, size {size}")

        def read(fs: Any, at: str) -> bytes:
            try:
                return cast(bytes, fs.cat_file(at, start=offset, end=offset + size))
            except Exception as error:
                if answer(error)[0] == 416:  # the object ends before the range begins
                    return b""
                raise

        return self._read(path, read) if size else b""

    def open(self, path: str, size: int | None = None, block: int = BLOCK) -> BinaryIO:
        """A seekable file, read `block` bytes a request; its size is asked for unless it is known."""
        raw = _Object(self, path, self.size(path) if size is None else size)
        return cast(BinaryIO, io.BufferedReader(raw, block))

    def size(self, path: str) -> int:
        return self._ask("read", path, lambda fs, at: dialect(fs).size(fs, at))

    def version(self, path: str) -> str | None:
        """The store's own name for the content as it is now (S3: ETag); None without an object."""
        try:
            return self._ask("read", path, lambda fs, at: dialect(fs).version(fs, at))
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        def names(fs: Any, at: str) -> list[str]:
            paths = {str(path).rstrip("/") for path in fs.ls(at, detail=False)} - {at}
            return sorted(path.rsplit("/", 1)[1] for path in paths)

        try:
            return self._ask("listed", folder, names)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def glob(self, pattern: str) -> list[str]:
        """The URLs of the objects that a pattern matches, sorted; lists the folders that it names."""
        found = self._ask("listed", pattern, lambda fs, at: [fs.unstrip_protocol(p) for p in fs.glob(at)])
        return sorted(found)

    @contextlib.contextmanager
    def writer(self, path: str, sync: Sync = Sync.NAME) -> Iterator[IO[bytes]]:
        """One request for up to `PART` bytes, else a multi-part upload that is completed at the end."""
        upload = _Upload(self, path)
        try:
            yield cast("IO[bytes]", upload)
            upload.complete()
        except BaseException:
            upload.discard()
            raise

    def create(self, path: str, content: bytes) -> None:
        if not self._put_if(path, content, None):
            raise AlreadyExists(self.where(path))

    def replace(self, path: str, content: bytes, if_match: str) -> None:
        if not self._put_if(path, content, if_match):
            raise Changed(self.where(path))

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask("deleted", path, lambda fs, at: fs.rm_file(at))

    def delete_folder(self, folder: str) -> None:
        """Delete all objects below a folder: listed and deleted, a thousand a request."""
        with contextlib.suppress(FileNotFoundError):
            self._ask("deleted", folder, lambda fs, at: fs.rm(at, recursive=True))

    def sweep(self, folder: str) -> None:
        """Do nothing: an upload that was not completed is no object."""

    @contextlib.contextmanager
    def lock(self, path: str, wait: bool = False) -> Iterator[None]:
        """An object that names its holder; `wait` has no effect.

        The lock of a holder that died on this machine is taken over. One that a killed holder left elsewhere
        a person must delete: `Busy` says who held it and since when.
        """
        mine = locks.holder()
        self._take(path, mine)
        _held[self.url, path] = (self, mine)
        try:
            yield
        finally:
            _held.pop((self.url, path), None)
            self._release(path, mine)

    def _take(self, path: str, mine: bytes) -> None:
        for _ in range(_CONFLICTS):
            try:
                return self.create(path, mine)
            except AlreadyExists:
                version, there = self.version(path), self._there(path)
            if version is None or there is None:
                continue  # released meanwhile
            if not locks.is_dead(there):
                raise Busy(f"{self.where(path)} ({locks.describe(there)})")
            with contextlib.suppress(Changed):
                return self.replace(path, mine, version)
        raise Busy(self.where(path))

    def _release(self, path: str, mine: bytes) -> None:
        if self._there(path) == mine:  # else a person deleted it, and another process holds it now
            self.delete(path)

    def _there(self, path: str) -> bytes | None:
        try:
            return self.read_bytes(path)
        except FileNotFoundError:
            return None

    def _put_if(self, path: str, content: bytes, version: str | None) -> bool:
        """Write if the object has this version, or is absent (None); returns whether it was written."""

        def put(fs: Any, at: str) -> bool:
            for turn in range(_CONFLICTS + 1):
                try:
                    dialect(fs).put_if(fs, at, content, version)
                    return True
                except FileExistsError:
                    return False
                except Exception as error:
                    if answer(error)[0] != 409 or turn == _CONFLICTS:
                        raise
                    time.sleep(0.1 * 2**turn)  # another conditional write is under way
            return False

        try:
            return self._ask("written", path, put)
        except FileNotFoundError:
            return False

    def _read(self, path: str, request: Callable[[Any, str], T]) -> T:
        """`_ask`, repeated where an answer breaks off, which the client does not repeat."""

        def read(fs: Any, at: str) -> T:
            for turn in range(1, _BODIES):
                try:
                    return request(fs, at)
                except Exception as error:
                    if type(error).__name__ not in _BROKEN:
                        raise
                    time.sleep(0.2 * 2**turn)
            return request(fs, at)

        return self._ask("read", path, read)

    def _ask(self, done: str, path: str, request: Callable[[Any, str], T]) -> T:
        """Send a request, with the file system's name for the path; errors become sentences."""
        where = self.where(path)
        fs, root = filesystem(self.url)
        try:
            return request(fs, f"{root}/{path}")
        except (FileNotFoundError, NotADirectoryError) as error:
            if answer(error)[1] == "NoSuchBucket":
                raise explain(error, done, where) from error
            raise
        except Exception as error:
            explained = explain(error, done, where)
            if explained is error:
                raise
            raise explained from error


class _Object(io.RawIOBase):
    """An object as a raw file of ranged reads."""

    def __init__(self, store: ObjectStore, path: str, size: int):
        self._store, self._path, self._size, self._position = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        return self._next(self._size)

    def _next(self, size: int) -> bytes:
        left = max(0, self._size - self._position)
        data = self._store.read_range(self._path, self._position, min(size, left))
        self._position += len(data)
        return data


class _Upload:
    """A file being written: up to `PART` bytes in memory, more in a multi-part upload."""

    def __init__(self, store: ObjectStore, path: str):
        self._store, self._path = store, path
        self._small = bytearray()
        self._large: Any = None

    def write(self, data: bytes) -> int:
        if self._large is None and len(self._small) + len(data) <= PART:
            self._small += data
        elif self._large is None:
            self._large = self._ask(lambda fs, at: fs.open(at, "wb", block_size=PART, autocommit=False))
            first = bytes(self._small)
            self._small.clear()
            self._ask(lambda fs, at: (self._large.write(first), self._large.write(data)))
        else:
            self._ask(lambda fs, at: self._large.write(data))
        return len(data)

    def complete(self) -> None:
        if self._large is None:
            self._ask(lambda fs, at: dialect(fs).put(fs, at, bytes(self._small)))
            return
        try:
            self._ask(lambda fs, at: (self._large.close(), self._large.commit()))
        except FileNotFoundError as error:  # the upload is unknown: completed by a try whose answer was lost
            raise explain(error, "written", self._store.where(self._path)) from error

    def discard(self) -> None:
        self._small.clear()
        if self._large is not None:
            with contextlib.suppress(Exception):
                self._large.discard()
            self._large.closed = True  # else it is completed when it is collected

    def _ask(self, request: Callable[[Any, str], T]) -> T:
        return self._store._ask("written", self._path, request)


def release_locks() -> None:
    """Release all locks of this process: for a signal handler that ends it at once."""

    def release() -> None:
        for (_, path), (store, mine) in list(_held.items()):
            with contextlib.suppress(Exception):
                store._release(path, mine)

    if _held:
        thread = threading.Thread(target=release, daemon=True)
        thread.start()
        thread.join(_RELEASE_SECONDS)
