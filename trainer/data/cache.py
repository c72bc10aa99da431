"""A local cache of members of remote data sets, up to a size; any number of processes may share one.

A member is stored under its sha256 and checked against it when read: a file that a kill, a full disk or
another process left incomplete is never trained on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.outcome import CallError
from pipeline.storage import beneath
from pipeline.storage.beneath import NotPlain

GIB = 1 << 30
_ROOM = 0.1  # share of the limit that is freed at a time, so that the folder is seldom scanned
_NAME = re.compile(r"[0-9a-f]{64}")
_INCOMING = "incoming"  # written by the one process that holds the lock
_log = logging.getLogger(__name__)


class CacheError(CallError, ValueError):
    """The cache cannot be there, or is too small; one sentence with the remedy."""


@dataclass(frozen=True)
class Cache:
    """Members by their sha256 in hex; the least recently used are dropped when `limit` bytes are full."""

    folder: Path
    limit: int

    @classmethod
    def open(cls, folder: str | os.PathLike[str], gib: float) -> Cache:
        """Makes or opens the cache in `folder`. Raises CacheError where it cannot be written."""
        if not gib > 0:
            raise CacheError(f"a cache of {gib:g} GiB holds nothing: give --cache-gib a number above 0")
        cache = cls(Path(folder).absolute(), int(gib * GIB))
        try:
            with cache._locked():
                pass
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            if isinstance(error, NotPlain):
                why += " is there"
            remedy = "name a folder of this machine that can"
            raise CacheError(f"--cache {folder} cannot be written ({why}): {remedy}") from None
        return cache

    def get(self, digest: str) -> bytes | None:
        """The member; None where it is absent or damaged."""
        try:
            with self._shelf(digest) as shelf:
                with open(beneath.open_file(digest, os.O_RDONLY, dir_fd=shelf), "rb") as file:
                    data = file.read()
                    if hashlib.sha256(data).hexdigest() == digest:
                        os.utime(file.fileno())  # used now
                        return data
                os.unlink(digest, dir_fd=shelf)
        except OSError:
            pass
        return None

    def put(self, digest: str, data: bytes) -> None:
        """Stores a member whose sha256 the caller has checked. A disk error is logged once, not raised."""
        if len(data) > self.limit or self._has(digest):
            return
        try:
            with self._locked() as (folder, account):
                total = self._total(account)
                if total + len(data) > self.limit:
                    total = self._make_room(int(self.limit * (1 - _ROOM)) - len(data))
                count = str(total + len(data)).encode()  # first, so that a kill leaves one that is too high
                os.pwrite(account, count, 0)
                os.ftruncate(account, len(count))
                with contextlib.suppress(FileNotFoundError):  # of a process that was killed here
                    os.unlink(_INCOMING, dir_fd=folder)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
                with open(beneath.open_file(_INCOMING, flags, dir_fd=folder), "wb") as file:
                    file.write(data)
                with self._shelf(digest, make=True) as shelf:
                    os.replace(_INCOMING, digest, src_dir_fd=folder, dst_dir_fd=shelf)
        except OSError as error:
            why = f"{self.folder} cannot be written ({error.strerror})"
            _say_once(f"{why}: reading goes on without the cache")

    def forget(self, digests: Iterable[str]) -> None:
        """Drops members, as after a takedown."""
        for digest in digests:
            with contextlib.suppress(OSError), self._shelf(digest) as shelf:
                os.unlink(digest, dir_fd=shelf)

    def _has(self, digest: str) -> bool:
        with contextlib.suppress(OSError), self._shelf(digest) as shelf:
            return beneath.size(digest, shelf) >= 0
        return False

    def _shelf(self, digest: str, make: bool = False) -> contextlib.AbstractContextManager[int]:
        """A descriptor of the folder of a member."""
        if not _NAME.fullmatch(digest):
            raise ValueError(f"no sha256: {digest!r}")
        return beneath.folder(str(self.folder), digest[:2], make)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[tuple[int, int]]:
        """Locks the file that holds the number of stored bytes; descriptors of the folder and the file."""
        with beneath.folder(str(self.folder), "", make=True) as folder:
            account = beneath.open_file("bytes", os.O_RDWR | os.O_CREAT, 0o644, folder)
            try:
                if os.fstat(account).st_nlink != 1:  # another name of somebody's file
                    raise NotPlain(errno.EMLINK, "a hard link")
                fcntl.flock(account, fcntl.LOCK_EX)
                yield folder, account
            finally:
                os.close(account)

    def _total(self, account: int) -> int:
        text = os.pread(account, 32, 0).decode("ascii", "replace")
        return int(text) if text.isdigit() else sum(size for _, size, _ in self._kept())

    def _make_room(self, wanted: int) -> int:
        """Drops the least recently used members until at most `wanted` bytes are left; returns how many."""
        kept = sorted(self._kept())
        total = sum(size for _, size, _ in kept)
        for _, size, digest in kept:
            if total <= wanted:
                break
            with contextlib.suppress(FileNotFoundError), self._shelf(digest) as shelf:
                os.unlink(digest, dir_fd=shelf)
            total -= size
        return total

    def _kept(self) -> Iterator[tuple[int, int, str]]:
        """(time of last use, bytes, sha256) of every member; ignores all other files in the folder."""
        for number in range(256):
            shelf_name = f"{number:02x}"
            with (
                contextlib.suppress(FileNotFoundError, NotPlain),
                beneath.folder(str(self.folder), shelf_name) as shelf,
            ):
                for name in filter(_NAME.fullmatch, os.listdir(shelf)):
                    with contextlib.suppress(FileNotFoundError):
                        status = os.stat(name, dir_fd=shelf, follow_symlinks=False)
                        yield status.st_mtime_ns, status.st_size, name


@functools.cache
def _say_once(sentence: str) -> None:
    _log.warning("%s", sentence)
