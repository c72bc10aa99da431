"""Opens what lies below a folder without following a link: somebody else may have made the folder.

The folder itself may be a link, which its user made. Beside links, refuses pipes and devices, which could
hang a reader.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER = _ROOT | os.O_NOFOLLOW
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFREG: "a file",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


class NotPlain(OSError):
    """A link or the like is at a path where a file or folder should be; `strerror` says which."""


@contextlib.contextmanager
def folder(root: str, path: str, make: bool = False) -> Iterator[int]:
    """A descriptor of the folder `path` below `root` ("" or ".": of `root` itself).

    Args:
        make: make the folders that are absent, `root` and its parents too.

    Raises:
        NotPlain: a link or the like is in the place of a folder.
        OSError: as the system refuses; NotADirectoryError for a file in the place of a folder.
    """
    try:
        descriptor = os.open(root, _ROOT)
    except FileNotFoundError:
        if not make:
            raise
        _make(Path(root))
        descriptor = os.open(root, _ROOT)
    try:
        for part in PurePosixPath(path).parts:
            inner = _enter(descriptor, part, make)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(outer: int, name: str, make: bool) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=outer)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        raise _not_plain(error, name, outer) from None
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=outer)
    sync_folder(outer)
    return _enter(outer, name, make=False)


def _make(folder: Path) -> None:
    """Make a folder and its missing parents, and sync each new name to disk."""
    if folder.is_dir():
        return
    _make(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path | int) -> None:
    """Sync the names in a folder, given by path or descriptor, to disk."""
    descriptor = os.dup(folder) if isinstance(folder, int) else os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some network file systems refuse to sync a folder, and need no sync
        os.fsync(descriptor)
    os.close(descriptor)


def open_file(path: str | os.PathLike[str], flags: int, mode: int = 0o666, dir_fd: int | None = None) -> int:
    """`os.open` of a file. Raises NotPlain for a link, pipe or device, OSError as the system refuses."""
    try:
        descriptor = os.open(path, flags | _FILE, mode, dir_fd=dir_fd)
    except OSError as error:
        raise _not_plain(error, path, dir_fd) from None
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return descriptor
    os.close(descriptor)
    raise NotPlain(errno.EINVAL, _kind(status))


def size(name: str, dir_fd: int) -> int:
    """Bytes in a file. Raises FileNotFoundError for a folder too, and NotPlain for a link, pipe or device."""
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if stat.S_ISDIR(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "a folder, not a file", name)
    if not stat.S_ISREG(status.st_mode):
        raise NotPlain(errno.EINVAL, _kind(status))
    return status.st_size


def _not_plain(error: OSError, path: str | os.PathLike[str], dir_fd: int | None) -> OSError:
    """The error itself, or NotPlain where a link or the like caused it."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EOPNOTSUPP):
        with contextlib.suppress(OSError):
            status = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):  # a file in the place of a folder is plain enough
                return NotPlain(error.errno, _kind(status))
    return error


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
