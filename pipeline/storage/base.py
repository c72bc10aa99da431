"""The interface of a storage, the same for a local folder and for an object store."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from pipeline.outcome import Failed, FailureClass

CHUNK = 1 << 20
"""Bytes copied at a time."""


class Sync(enum.IntEnum):
    """The harm that a power cut may do to a file on local disk. The death of a process does none."""

    NOTHING = 0  # damage it: for records whose reader checks them and repeats the work
    CONTENT = 1  # remove it, but never leave a part of it under its name
    NAME = 2  # nothing


class Storage(ABC):
    """One root folder, bucket or prefix. Cheap to make, picklable, safe to use after a fork.

    Paths are relative to the root, with forward slashes. A file appears whole or not at all.

    Every method raises `Failed` with class storage and one sentence when the disk or store refuses
    (full, read-only, unreachable), as `Misplaced` where the root cannot be a folder, FileNotFoundError when
    a path that is read is absent, and ValueError for a path that would leave the root.

    Attributes:
        url: the root: an absolute path, or a URL.
        is_local: whether the root is a folder of this machine (or one it has mounted).
    """

    is_local = False

    def __init__(self, url: str):
        self.url = url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return type(self), (self.url,)

    def local(self, path: str) -> Path | None:
        """The path as a local file, or None for an object store."""
        checked(path)
        return None

    def where(self, path: str) -> str:
        """The path for a message: absolute, or with the store's URL."""
        return f"{self.url}/{checked(path)}"

    # Reading

    @abstractmethod
    def read_bytes(self, path: str, limit: int | None = None) -> bytes:
        """The whole file; one of more than `limit` bytes is refused unread."""

    @abstractmethod
    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, in one request; fewer only where the file ends."""

    @abstractmethod
    def open(self, path: str, size: int | None = None) -> BinaryIO:
        """A seekable binary file for reading.

        An object store does not look up a `size` that is given; an absent object is then noticed at the
        first read.
        """

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes in the file; FileNotFoundError where there is none."""

    def exists(self, path: str) -> bool:
        """Whether there is a file (not a folder) at the path."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    @abstractmethod
    def version(self, path: str) -> str | None:
        """A token for `replace` that changes with the content; None without a file."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """Names in one folder, sorted, hidden ones too; empty where there is none. For small folders only."""

    # Writing

    @abstractmethod
    def writer(self, path: str, sync: Sync = Sync.NAME) -> AbstractContextManager[IO[bytes]]:
        """A file to write to, which takes its name only when the block ends without an exception.

        Local disk syncs as `sync` asks: each fsync may take as long as the rest of the work for a clip.
        """

    def write(self, path: str, content: bytes | Path, sync: Sync = Sync.NAME) -> None:
        """Write bytes, or a copy of a local file; replaces an existing file in one step."""
        with self.writer(path, sync) as file:
            if isinstance(content, bytes):
                file.write(content)
                return
            with open(content, "rb") as source:
                while chunk := source.read(CHUNK):
                    file.write(chunk)

    @abstractmethod
    def create(self, path: str, content: bytes) -> None:
        """Write bytes unless the name is taken, in one step: of several creators exactly one succeeds.

        Raises:
            AlreadyExists: the name was taken.
        """

    @abstractmethod
    def replace(self, path: str, content: bytes, if_match: str) -> None:
        """Replace a file that still has the version `if_match` (see `version`), in one step.

        Raises:
            Changed: it has another version, or is gone.
        """

    @abstractmethod
    def delete(self, path: str) -> None:
        """Delete a file; an absent one is no error."""

    @abstractmethod
    def delete_folder(self, folder: str) -> None:
        """Delete a folder with its contents; an absent one is no error."""

    @abstractmethod
    def sweep(self, folder: str) -> None:
        """Delete temporary files that killed writers left in a folder. Only while nobody writes there."""

    @abstractmethod
    def lock(self, path: str, wait: bool = False) -> AbstractContextManager[None]:
        """Hold a lock named by a path; its file is deleted afterwards.

        Locally the kernel frees it when its holder dies, and `wait` waits for it. In an object store it is
        an object that names its holder, and `wait` has no effect.

        Raises:
            Busy: another process holds it.
        """

    def _refuse(self, path: str, size: int, limit: int) -> Failed:
        reason = f"{self.where(path)} has {size} bytes, more than the {limit} allowed"
        return Failed(FailureClass.STORAGE, reason)


def checked(path: str) -> str:
    """The path itself; ValueError unless it stays inside the root."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or any(c in path for c in "\0\n\r\\"):
        raise ValueError(f"not a path inside the store: {path!r}")
    return path
