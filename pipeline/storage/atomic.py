"""Atomic writing of local files: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.storage import beneath
from pipeline.storage.base import Sync
from pipeline.storage.errors import Busy
from pipeline.storage.locks import lock_file

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # network file systems without flock


@contextlib.contextmanager
def replacing(target: Path, sync: Sync = Sync.NOTHING) -> Iterator[Path]:
    """A temporary file to write, renamed to `target` when the block ends without an exception.

    The folder must exist. An exception deletes the temporary file and leaves `target` as it was.

        with replacing(path) as temporary:
            temporary.write_text(text)
    """
    with _replacing(target, sync) as (temporary, _):
        yield temporary


@contextlib.contextmanager
def replacing_in(folder: int, name: str, sync: Sync) -> Iterator[IO[bytes]]:
    """As `replacing`, for a name in the folder of a descriptor; yields the file."""
    with (
        _replacing(Path(name), sync, folder) as (_, descriptor),
        open(descriptor, "wb", closefd=False) as file,  # flushed before the rename
    ):
        yield file


@contextlib.contextmanager
def _replacing(target: Path, sync: Sync, dir_fd: int | None = None) -> Iterator[tuple[Path, int]]:
    with temporary_file(target, dir_fd) as (temporary, descriptor):
        yield temporary, descriptor
        if sync >= Sync.CONTENT:
            os.fsync(descriptor)
        os.replace(temporary, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    if sync >= Sync.NAME:
        beneath.sync_folder(target.parent if dir_fd is None else dir_fd)


@contextlib.contextmanager
def temporary_file(target: Path, dir_fd: int | None = None) -> Iterator[tuple[Path, int]]:
    """An empty file beside the target and its descriptor; deleted at the end unless it was renamed.

    The next writer of the target on this machine reuses the file of a killed writer. While another
    process writes the target, the name is another one.
    """
    path = target.with_name(f".{target.name}.{os.uname().nodename}.tmp")
    descriptor = _reuse(path, dir_fd)
    if descriptor is None:
        path = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(8)}.tmp")
        descriptor = beneath.open_file(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, dir_fd=dir_fd)
    try:
        os.ftruncate(descriptor, 0)
        yield path, descriptor
    finally:
        with contextlib.suppress(OSError):
            now = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
            if now.st_ino == os.fstat(descriptor).st_ino:  # else another process has the name now
                os.unlink(path, dir_fd=dir_fd)
        os.close(descriptor)


def _reuse(path: Path, dir_fd: int | None) -> int | None:
    """Lock the file at `path`, made if absent; None where another process or user has it, or it is a link."""
    try:
        descriptor = lock_file(path, wait=False, mode=0o666, dir_fd=dir_fd)
    except (Busy, beneath.NotPlain, PermissionError):
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=dir_fd)
        return None
    status = os.fstat(descriptor)
    if status.st_nlink == 1 and status.st_uid == os.geteuid():
        return descriptor
    with contextlib.suppress(OSError):  # another user's, or another name of what a killed writer published
        os.unlink(path, dir_fd=dir_fd)
    os.close(descriptor)
    return None


def is_temporary(name: str) -> bool:
    """Whether a file name is one of `temporary_file`."""
    return name.startswith(".") and name.endswith(".tmp")
