"""A folder of this machine, or one it has mounted, as a `Storage`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from pipeline.outcome import Failed, FailureClass, Misplaced
from pipeline.storage import beneath
from pipeline.storage.atomic import is_temporary, replacing_in, temporary_file
from pipeline.storage.base import Storage, Sync, checked
from pipeline.storage.errors import AlreadyExists, Busy, Changed
from pipeline.storage.locks import holding

_REMEDIES = {
    errno.ENOSPC: "free some space and repeat the command",
    errno.EDQUOT: "free some of the quota and repeat the command",
    errno.EFBIG: "raise the limit on file size and repeat the command",
    errno.EROFS: "make it writable or choose another folder, and repeat the command",
    errno.EACCES: "change its permissions or choose another folder, and repeat the command",
    errno.EPERM: "change its permissions or choose another folder, and repeat the command",
}
_FILE_THERE = "a file is in the place of its folder"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalStorage(Storage):
    """A folder; its `url` is the absolute path. Follows no link below it (`beneath`)."""

    is_local = True

    def local(self, path: str) -> Path:
        return Path(self.url, checked(path))

    def read_bytes(self, path: str, limit: int | None = None) -> bytes:
        with self.open(path) as file, self._as_failed("read", path):
            size = os.fstat(file.fileno()).st_size
            if limit is not None and size > limit:
                raise self._refuse(path, size, limit)
            return file.read() if limit is None else file.read(limit)

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0:
            raise ValueError(f"no range: offset {offset}, size {size}")
        with self.open(path) as file, self._as_failed("read", path):
            file.seek(offset)
            return file.read(size)

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        with self._as_failed("read", path), self._in(path) as (folder, name):
            return open(beneath.open_file(name, os.O_RDONLY, dir_fd=folder), "rb")

    def append(self, path: str) -> IO[bytes]:
        """A new file for a log, whose text appears at once. Not in the other storages."""
        with self._as_failed("written", path), self._in(path, make=True) as (folder, name):
            with contextlib.suppress(FileNotFoundError):  # it may be another name of somebody's file
                os.unlink(name, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            return open(beneath.open_file(name, flags, dir_fd=folder), "wb")

    def size(self, path: str) -> int:
        with self._as_failed("read", path), self._in(path) as (folder, name):
            return beneath.size(name, folder)

    def version(self, path: str) -> str | None:
        try:
            return hashlib.sha256(self.read_bytes(path)).hexdigest()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        with self._as_failed("read", folder):
            try:
                with beneath.folder(self.url, checked(folder)) as descriptor:
                    return sorted(os.listdir(descriptor))
            except FileNotFoundError:
                return []

    @contextlib.contextmanager
    def writer(self, path: str, sync: Sync = Sync.NAME) -> Iterator[IO[bytes]]:
        with (
            self._as_failed("written", path),
            self._in(path, make=True) as (folder, name),
            replacing_in(folder, name, sync) as file,
        ):
            with contextlib.suppress(FileNotFoundError):
                beneath.size(name, folder)  # raises for a link
            yield file

    def create(self, path: str, content: bytes) -> None:
        with self._as_failed("written", path), self._in(path, make=True) as (folder, name):
            with temporary_file(Path(name), folder) as (temporary, descriptor):
                with open(descriptor, "wb", closefd=False) as file:
                    file.write(content)
                os.fsync(descriptor)
                try:
                    os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
                except FileExistsError:
                    raise AlreadyExists(self.where(path)) from None
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    if not _claim_and_rename(temporary, name, folder):
                        raise AlreadyExists(self.where(path)) from None
            beneath.sync_folder(folder)

    def replace(self, path: str, content: bytes, if_match: str) -> None:
        with self.lock(f"{path}.lock", wait=True):  # all callers of this method take it
            if self.version(path) != if_match:
                raise Changed(self.where(path))
            self.write(path, content)

    def delete(self, path: str) -> None:
        with (
            self._as_failed("deleted", path),
            contextlib.suppress(FileNotFoundError),
            self._in(path) as (folder, name),
        ):
            os.unlink(name, dir_fd=folder)

    def delete_folder(self, folder: str) -> None:
        with (
            self._as_failed("deleted", folder),
            contextlib.suppress(FileNotFoundError),
            self._in(folder) as (outer, name),
            beneath.folder(self.url, folder),  # raises for a link
        ):
            shutil.rmtree(name, dir_fd=outer)

    def sweep(self, folder: str) -> None:
        for name in filter(is_temporary, self.names(folder)):
            self.delete(f"{folder}/{name}")

    @contextlib.contextmanager
    def lock(self, path: str, wait: bool = False) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with self._as_failed("locked", path):
                folder, name = stack.enter_context(self._in(path, make=True))
                try:
                    stack.enter_context(holding(Path(name), wait, folder))
                except Busy:
                    raise Busy(self.where(path)) from None
            yield

    @contextlib.contextmanager
    def _in(self, path: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that holds `path`, and its name there."""
        inner = PurePosixPath(checked(path))
        with beneath.folder(self.url, str(inner.parent), make) as folder:
            yield folder, inner.name

    @contextlib.contextmanager
    def _as_failed(self, done: str, path: str) -> Iterator[None]:
        where = self.where(path)
        try:
            yield
        except FileNotFoundError:
            raise
        except beneath.NotPlain as error:
            why = f"{error.strerror} is in its place or above it; remove that, or name another folder"
            raise Misplaced(f"{where} could not be {done}: {why}") from error
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
                there = "a folder is in its place" if error.errno == errno.EISDIR else _FILE_THERE
                why = f"{there}; name another folder"
                raise Misplaced(f"{where} could not be {done}: {why}") from error
            what = (error.strerror or str(error) or type(error).__name__).lower()
            remedy = _REMEDIES.get(error.errno or 0, "repeat the command when the storage answers again")
            raise Failed(FailureClass.STORAGE, f"{where} could not be {done}: {what}; {remedy}") from error


def _claim_and_rename(temporary: Path, name: str, folder: int) -> bool:
    """Whether the name was free. Without hard links: all creators of a file take its lock."""
    with holding(Path(f".{name}.lock"), wait=True, dir_fd=folder):
        try:
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            return False
        except FileNotFoundError:
            os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            return True
