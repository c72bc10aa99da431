"""A folder of this machine, or one it has mounted, as a `Storage`."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from pipeline.outcome import Failed, FailureClass, Misplaced
from pipeline.storage.atomic import is_temporary, make_folder, replacing, sync_path, temporary_file
from pipeline.storage.base import Storage, Sync, checked
from pipeline.storage.errors import AlreadyExists, Changed
from pipeline.storage.locks import holding

_REMEDIES = {
    errno.ENOSPC: "free some space and repeat the command",
    errno.EDQUOT: "free some of the quota and repeat the command",
    errno.EFBIG: "raise the limit on file size and repeat the command",
    errno.EROFS: "make it writable or choose another folder, and repeat the command",
    errno.EACCES: "change its permissions or choose another folder, and repeat the command",
    errno.EPERM: "change its permissions or choose another folder, and repeat the command",
}
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalStorage(Storage):
    """A folder; its `url` is the absolute path."""

    is_local = True

    def local(self, path: str) -> Path:
        return Path(self.url, checked(path))

    def read_bytes(self, path: str, limit: int | None = None) -> bytes:
        if limit is not None and (size := self.size(path)) > limit:
            raise self._refuse(path, size, limit)
        with self.open(path) as file, self._as_failed("read", path):
            return file.read() if limit is None else file.read(limit)

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0:
            raise ValueError(f"no range: offset {offset}, size {size}")
        with self._as_failed("read", path), open(self.local(path), "rb") as file:
            file.seek(offset)
            return file.read(size)

    def open(self, path: str, size: int | None = None) -> BinaryIO:
        with self._as_failed("read", path):
            return open(self.local(path), "rb")

    def size(self, path: str) -> int:
        local = self.local(path)
        with self._as_failed("read", path):
            if local.is_dir():
                raise FileNotFoundError(errno.ENOENT, "a folder, not a file", str(local))
            return local.stat().st_size

    def version(self, path: str) -> str | None:
        try:
            return hashlib.sha256(self.read_bytes(path)).hexdigest()
        except FileNotFoundError:
            return None

    def names(self, folder: str) -> list[str]:
        with self._as_failed("read", folder):
            try:
                return sorted(os.listdir(self.local(folder)))
            except (FileNotFoundError, NotADirectoryError):
                return []

    @contextlib.contextmanager
    def writer(self, path: str, sync: Sync = Sync.NAME) -> Iterator[IO[bytes]]:
        local = self.local(path)
        with self._as_failed("written", path):
            make_folder(local.parent)
            with replacing(local, sync) as temporary, open(temporary, "wb") as file:
                yield file

    def create(self, path: str, content: bytes) -> None:
        local = self.local(path)
        with self._as_failed("written", path):
            make_folder(local.parent)
            with temporary_file(local) as temporary:
                temporary.write_bytes(content)
                sync_path(temporary)
                try:
                    os.link(temporary, local)
                except FileExistsError:
                    raise AlreadyExists(self.where(path)) from None
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    _claim_and_rename(temporary, local)
            sync_path(local.parent)

    def replace(self, path: str, content: bytes, if_match: str) -> None:
        with self.lock(f"{path}.lock", wait=True):  # all callers of this method take it
            if self.version(path) != if_match:
                raise Changed(self.where(path))
            self.write(path, content)

    def delete(self, path: str) -> None:
        with self._as_failed("deleted", path):
            self.local(path).unlink(missing_ok=True)

    def delete_folder(self, folder: str) -> None:
        with self._as_failed("deleted", folder), contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.local(folder))

    def sweep(self, folder: str) -> None:
        for name in filter(is_temporary, self.names(folder)):
            self.delete(f"{folder}/{name}")

    @contextlib.contextmanager
    def lock(self, path: str, wait: bool = False) -> Iterator[None]:
        local = self.local(path)
        with contextlib.ExitStack() as stack:
            with self._as_failed("locked", path):
                make_folder(local.parent)
                stack.enter_context(holding(local, wait))
            yield

    @contextlib.contextmanager
    def _as_failed(self, done: str, path: str) -> Iterator[None]:
        where = self.where(path)
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


def _claim_and_rename(temporary: Path, target: Path) -> None:
    # File systems without hard links: all creators of a file go through this lock.
    with holding(target.with_name(f".{target.name}.lock"), wait=True):
        if target.exists():
            raise AlreadyExists(str(target))
        os.replace(temporary, target)
