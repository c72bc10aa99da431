"""Local disk and object stores through one set of functions; what is written appears whole or not at all.

Paths are relative to the store's root, with forward slashes. Local disk goes through `os` (that is where
atomicity has to be made) and is here; everything with a scheme is `pipeline.storage.object_store`'s. Knows
nothing of what is stored.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import functools
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, BinaryIO

from pipeline.outcome import Failed, FailureClass, Misplaced

if TYPE_CHECKING:
    from pipeline.storage.object_store import ObjectStore

CHUNK = 1 << 20
"""Bytes copied at a time."""

_REMEDIES = {
    errno.ENOSPC: "free some space and repeat the command",
    errno.EDQUOT: "free some of the quota and repeat the command",
    errno.EFBIG: "raise the limit on file size and repeat the command",
    errno.EROFS: "make it writable or choose another folder, and repeat the command",
    errno.EACCES: "change its permissions or choose another folder, and repeat the command",
    errno.EPERM: "change its permissions or choose another folder, and repeat the command",
}
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class AlreadyExists(Exception):
    """`Storage.create` found the name taken; what is there is left as it was."""


class Changed(Exception):
    """`Storage.replace` found another version than the one it was to replace; nothing was written."""


class Busy(Exception):
    """`Storage.lock` found the lock taken by another process: the lock, and in an object store its holder."""


class Sync(enum.IntEnum):
    """What a power cut may do to a file written to local disk. A process's death does nothing to any."""

    NOTHING = 0  # leave it damaged: for a record whose reader checks it, and does the work again
    CONTENT = 1  # take it away, but never leave less than all of it under its name
    NAME = 2  # nothing


class Storage:
    """One root folder, bucket or prefix. Cheap to make, picklable, safe to use after a fork.

    Every method raises `Failed` with class storage and one sentence when the disk or store refuses
    (full, read-only, unreachable), as `Misplaced` where the root cannot be a folder, FileNotFoundError when
    a path that is read is absent, and ValueError for a path that would leave the root.

    Args:
        url: a folder, ``file://`` or any fsspec URL (``s3://bucket/prefix``, ``gs://...``, ``memory://...``);
            ValueError where it names no bucket.
    """

    def __init__(self, url: str | os.PathLike[str]):
        text = os.fspath(url)
        if text.startswith("file://"):
            text = text[len("file://") :]
        self._folder = None if "://" in text else Path(os.path.abspath(os.path.expanduser(text)))
        self.url = text.rstrip("/") if self._folder is None else str(self._folder)
        if "://" in text and not self.url.partition("://")[2]:
            raise ValueError(f"{text} names no bucket; give {text}BUCKET/FOLDER")

    def __repr__(self) -> str:
        return f"Storage({self.url!r})"

    def __reduce__(self) -> tuple:
        return Storage, (self.url,)

    @property
    def is_local(self) -> bool:
        """Whether the root is a folder of this machine (or one it has mounted)."""
        return self._folder is not None

    def local(self, path: str) -> Path | None:
        """The path as a local file, or None for an object store."""
        checked = _checked(path)
        return None if self._folder is None else self._folder / checked

    def where(self, path: str) -> str:
        """The path for a message: absolute, or with the store's URL."""
        return f"{self.url}/{_checked(path)}"

    # Reading

    def read_bytes(self, path: str, limit: int | None = None) -> bytes:
        """The whole file; a file of more than `limit` bytes is refused unread."""
        if self._remote:
            return self._remote.read(_checked(path), limit)
        if limit is not None and (size := self.size(path)) > limit:
            raise Failed(
                FailureClass.STORAGE, f"{self.where(path)} has {size} bytes, more than the {limit} allowed"
            )
        with self.open(path) as file, _as_failed("read", self.where(path)):
            return file.read() if limit is None else file.read(limit)

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, in one request; fewer only where the file ends."""
        if offset < 0 or size < 0:
            raise ValueError(f"no range: offset {offset}, size {size}")
        if self._remote:
            return self._remote.read_range(_checked(path), offset, size)
        with _as_failed("read", self.where(path)), open(self._at(path), "rb", buffering=0) as file:
            return _pread(file.fileno(), offset, size)

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """A seekable binary file for reading. A `size` known saves an object store's being asked for it; an
        object that is absent is then noticed at the first read."""
        if self._remote:
            return self._remote.open(_checked(path), size)
        with _as_failed("read", self.where(path)):
            return open(self._at(path), "rb")

    def exists(self, path: str) -> bool:
        """Whether there is a file (not a folder) at the path."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Bytes in the file; FileNotFoundError where there is none."""
        if self._remote:
            return self._remote.size(_checked(path))
        local = self._at(path)
        with _as_failed("read", self.where(path)):
            if local.is_dir():
                raise FileNotFoundError(errno.ENOENT, "a folder, not a file", str(local))
            return local.stat().st_size

    def version(self, path: str) -> str | None:
        """What `replace` wants to be shown: a token that changes with the content; None without a file."""
        if self._remote:
            return self._remote.version(_checked(path))
        try:
            return hashlib.sha256(self.read_bytes(path)).hexdigest()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        """Names in one folder, sorted, hidden ones too; empty where there is none. For small folders only."""
        if self._remote:
            return self._remote.names(_checked(folder))
        with _as_failed("read", self.where(folder)):
            try:
                return sorted(os.listdir(self._at(folder)))
            except (FileNotFoundError, NotADirectoryError):
                return []

    # Writing

    @contextlib.contextmanager
    def writer(self, path: str, sync: Sync = Sync.NAME) -> Iterator[IO[bytes]]:
        """A file to write to, which takes its name only when the block ends without an exception.

        Locally: a temporary name in the same folder, fsync, atomic rename, fsync of the folder; the two
        fsyncs as `sync` asks, for each may take as long as all else about a clip.
        Elsewhere: one upload that is completed at the end or discarded.
        """
        if self._remote:
            with self._remote.writer(_checked(path)) as upload:
                yield upload
            return
        local = self._at(path)
        with _as_failed("written", self.where(path)):
            with _temporary(local) as temporary:
                with open(temporary, "wb") as file:
                    yield file
                    file.flush()
                    if sync >= Sync.CONTENT:
                        os.fsync(file.fileno())
                os.replace(temporary, local)
            if sync >= Sync.NAME:
                _sync_folder(local.parent)

    def write(self, path: str, content: bytes | Path, sync: Sync = Sync.NAME) -> None:
        """Write bytes, or a copy of a local file, replacing what is there in one step; `sync` as there."""
        if self._remote and isinstance(content, bytes):
            self._remote.write(_checked(path), content)
            return
        with self.writer(path, sync) as file:
            if isinstance(content, bytes):
                file.write(content)
                return
            with open(content, "rb") as source:
                while chunk := source.read(CHUNK):
                    file.write(chunk)

    def create(self, path: str, content: bytes) -> None:
        """Write bytes unless the name is taken, in one step: of several creators exactly one succeeds.

        Raises:
            AlreadyExists: the name was taken.
        """
        if self._remote:
            self._remote.create(_checked(path), content)
            return
        local = self._at(path)
        with _as_failed("written", self.where(path)):
            with _temporary(local) as temporary:
                _write_synced(temporary, content)
                try:
                    os.link(temporary, local)
                except FileExistsError:
                    raise AlreadyExists(self.where(path)) from None
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    _claim_and_rename(temporary, local)
            _sync_folder(local.parent)

    def replace(self, path: str, content: bytes, if_match: str) -> None:
        """Replace a file that still has the version `if_match` (see `version`).

        Locally comparison and rename are under a lock that all callers of this method take; in an object
        store they are one conditional request.

        Raises:
            Changed: it has another version, or is gone.
        """
        if self._remote:
            self._remote.replace(_checked(path), content, if_match)
            return
        with self.lock(f"{path}.lock", wait=True):
            if self.version(path) != if_match:
                raise Changed(self.where(path))
            self.write(path, content)

    def delete(self, path: str) -> None:
        """Delete a file; one that is absent is no error."""
        if self._remote:
            self._remote.delete(_checked(path))
            return
        with _as_failed("deleted", self.where(path)), contextlib.suppress(FileNotFoundError):
            self._at(path).unlink()

    def delete_folder(self, folder: str) -> None:
        """Delete a folder and all in it; one that is absent is no error."""
        if self._remote:
            self._remote.delete_folder(_checked(folder))
            return
        with _as_failed("deleted", self.where(folder)), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._at(folder))

    def sweep(self, folder: str) -> None:
        """Delete the temporary files that killed writers left in a folder. Only while nobody writes there."""
        if self.is_local:
            for name in self.names(folder):
                if _is_temporary(name):
                    self.delete(f"{folder}/{name}")

    @contextlib.contextmanager
    def lock(self, path: str, wait: bool = False) -> Iterator[None]:
        """Hold a lock named by a path; the file is gone afterwards.

        Locally the kernel frees it when its holder dies. In an object store it is an object, see
        `pipeline.storage.object_store`; `wait` does not wait there.

        Raises:
            Busy: somebody else has it.
        """
        if self._remote:
            with self._remote.lock(_checked(path)):
                yield
            return
        local = self._at(path)
        with _as_failed("locked", self.where(path)):
            _make_folder(local.parent)
            descriptor = lock_file(local, wait)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                local.unlink()
            os.close(descriptor)

    @functools.cached_property
    def _remote(self) -> ObjectStore | None:
        if self._folder is not None:
            return None
        from pipeline.storage.object_store import ObjectStore

        return ObjectStore(self.url)

    def _at(self, path: str) -> Path:
        assert self._folder is not None
        return self._folder / _checked(path)


def _checked(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or any(c in path for c in "\0\n\r\\"):
        raise ValueError(f"not a path inside the store: {path!r}")
    return path


@contextlib.contextmanager
def _as_failed(done: str, where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            why = "a file is in the place of its folder; name another folder"
            raise Misplaced(f"{where} could not be {done}: {why}") from error
        what = (error.strerror or str(error) or type(error).__name__).lower()
        remedy = _REMEDIES.get(error.errno or 0, "repeat the command when the storage answers again")
        raise Failed(FailureClass.STORAGE, f"{where} could not be {done}: {what}; {remedy}") from error


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A file beside the target, locked: the next writer of the target on this machine takes over what a
    killed one left there. Where somebody is writing the target now, another name."""
    _make_folder(target.parent)
    path = target.with_name(f".{target.name}.{os.uname().nodename}.tmp")
    try:
        descriptor = lock_file(path, wait=False)
        if os.fstat(descriptor).st_nlink > 1:  # killed between `create`'s link and here: it is the target too
            path.unlink()
            os.close(descriptor)
            descriptor = lock_file(path, wait=False)
    except Busy:
        path = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        descriptor = lock_file(path, wait=False)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # else it has the target's name already
                path.unlink()
        os.close(descriptor)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _claim_and_rename(temporary: Path, target: Path) -> None:
    # File systems without hard links: all our creators go through this lock.
    lock = target.with_name(f".{target.name}.lock")
    descriptor = lock_file(lock, wait=True)
    try:
        if target.exists():
            raise AlreadyExists(str(target))
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(descriptor)


def lock_file(path: Path, wait: bool) -> int:
    """A descriptor that holds the lock of a local file, made if absent; the kernel frees it with the process.

    Whoever is done with the lock unlinks the file first and closes the descriptor then. Raises Busy.
    """
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The former holder unlinks the file before it lets go: then this is a lock on nothing.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise Busy(str(path)) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it, and need it not
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    pieces, left = [], size
    while left and (piece := os.pread(descriptor, left, offset)):
        pieces.append(piece)
        offset += len(piece)
        left -= len(piece)
    return b"".join(pieces)
