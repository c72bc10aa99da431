"""Single files and globs that a user names by path or by URL: lists, label maps, archives.

Data sets and work stores use `pipeline.storage.Storage`.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
from typing import BinaryIO

from pipeline.storage.base import checked
from pipeline.storage.object_store import BLOCK, ObjectStore


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is in an object store, and not a path on this machine."""
    return "://" in os.fspath(place)


def open_file(place: str | os.PathLike[str], block: int = BLOCK) -> BinaryIO:
    """A seekable binary file for reading; from an object store `block` bytes a request.

    Raises:
        OSError: a local file that cannot be opened; FileNotFoundError for an absent object too.
        Failed: class storage, as an object store refuses.
    """
    if not is_url(place):
        return open(place, "rb")
    store, name = _split(os.fspath(place))
    return store.open(name, block=block)


def expand(pattern: str) -> list[str]:
    """The files that a path, URL or glob names, sorted; an existing file's name is no glob.

    Raises:
        Failed: class storage, as an object store refuses.
    """
    if not is_url(pattern):
        return [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    with contextlib.suppress(FileNotFoundError):
        store, name = _split(pattern)
        if glob.has_magic(pattern):
            return store.glob(name)
        store.size(name)
        return [pattern]
    return []


def identity(place: str) -> str:
    """A text that names a file and changes with its content. Raises as `open_file` does."""
    if is_url(place):
        store, name = _split(place)
        return f"{place}\0{store.size(name)}\0{store.version(name)}"
    real = os.path.realpath(place)
    status = os.stat(real)
    return f"{real}\0{status.st_size}\0{status.st_mtime_ns}"


def _split(url: str) -> tuple[ObjectStore, str]:
    """The bucket, and the name in it; FileNotFoundError for a URL that cannot name an object."""
    scheme, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    try:
        checked(name)
    except ValueError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from None
    return ObjectStore(f"{scheme}://{bucket}"), name
