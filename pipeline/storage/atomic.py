"""Atomic writing of local files: a temporary name in the same folder, then a rename."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

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
    with temporary_file(target) as temporary:
        yield temporary
        if sync >= Sync.CONTENT:
            sync_path(temporary)
        os.replace(temporary, target)
    if sync >= Sync.NAME:
        sync_path(target.parent)


@contextlib.contextmanager
def temporary_file(target: Path) -> Iterator[Path]:
    """A locked, empty file beside the target, deleted at the end unless it was renamed.

    The next writer of the target on this machine reuses the file of a killed writer. While another
    process writes the target, the name is another one.
    """
    path = target.with_name(f".{target.name}.{os.uname().nodename}.tmp")
    other = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        descriptor = lock_file(path, wait=False, mode=0o666)
        if os.fstat(descriptor).st_nlink > 1:  # killed after it was linked to the target, before the unlink
            path.unlink()
            os.close(descriptor)
            descriptor = lock_file(path, wait=False, mode=0o666)
    except Busy:
        path = other
        descriptor = lock_file(path, wait=False, mode=0o666)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        path.unlink(missing_ok=True)
        path = other
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        os.ftruncate(descriptor, 0)
        yield path
    finally:
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:  # else another process has the name now
                path.unlink()
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Whether a file name is one of `temporary_file`."""
    return name.startswith(".") and name.endswith(".tmp")


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and sync each new name to disk."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_path(folder.parent)


def sync_path(path: Path) -> None:
    """Sync a file's content, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems refuse to sync a folder, and need no sync
            raise
    finally:
        os.close(descriptor)
