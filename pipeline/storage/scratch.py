"""Scratch folders of workers: temporary, and swept after a worker was killed.

A living process holds the lock file beside its folder. A free lock means that its process is dead: the next
worker that starts there deletes the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.outcome import Failed, FailureClass, Misplaced
from pipeline.storage.errors import Busy
from pipeline.storage.locks import holding

_LOCK = re.compile(r"quovadis-[0-9a-f]{16}\.lock")
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP)
_FULL = re.compile(r"no space left|quota exceeded|file too large|read-only file system", re.IGNORECASE)


def use(place: str | None) -> None:
    """Put the temporary files of this process and its children into `place`, and sweep it.

    None: into the machine's own temporary folder. Raises as `check`.
    """
    if place is not None:
        check(place)
        tempfile.tempdir = os.environ["TMPDIR"] = place
    sweep()


def check(place: str) -> None:
    """Make the folder `place`, and check that it takes a file.

    Raises:
        Failed: class storage, with the place and the remedy; Misplaced where no folder can be.
    """
    with _as_failed(place, made=True), contextlib.ExitStack() as stack:
        os.makedirs(place, exist_ok=True)
        _claim(Path(place), stack)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder for one video, deleted at the end; `sweep` deletes it if the process is killed.

    Raises:
        Failed: class storage, where nothing can be written, with the place and the remedy.
    """
    base = tempfile.gettempdir()
    with contextlib.ExitStack() as stack:
        with _as_failed(base, made=True):
            path = _claim(Path(base), stack)
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        with _as_failed(base):
            path.mkdir(mode=0o700)
            yield path


def sweep() -> None:
    """Delete the scratch folders of dead processes of this user."""
    base = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        for name in filter(_LOCK.fullmatch, os.listdir(base)):
            lock = base / name
            with contextlib.suppress(OSError, Busy):
                if lock.lstat().st_uid == os.getuid():
                    with holding(lock, wait=False):
                        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)


def _claim(base: Path, stack: contextlib.ExitStack) -> Path:
    """The name of a new folder, whose lock is held until `stack` is closed."""
    while True:
        lock = base / f"quovadis-{secrets.token_hex(8)}.lock"
        with contextlib.suppress(Busy):  # another process sweeps it already
            stack.enter_context(holding(lock, wait=False))
            return lock.with_suffix("")


def is_full(failure: Failed) -> bool:
    """Whether a failure says that a disk is full or read-only."""
    return failure.failure_class is FailureClass.STORAGE and bool(_FULL.search(failure.reason))


@contextlib.contextmanager
def _as_failed(place: str, made: bool = False) -> Iterator[None]:
    """OSErrors caused by `place` as sentences; all OSErrors while the folder is `made`."""
    remedy = "give another folder with --scratch"
    free = f"free some space in {place}, or {remedy}"
    try:
        yield
    except OSError as error:
        if not made and error.errno not in _REFUSED:
            raise
        why = f"{error.filename or place} could not be written: {os.strerror(error.errno or 0).lower()}"
        if error.errno in _NO_FOLDER:
            raise Misplaced(f"{why}; {remedy}") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            said = free
        elif error.errno in (errno.EMFILE, errno.ENFILE):
            said = "raise the limit on open files (ulimit -n), and repeat the command"
        elif error.errno in _REFUSED:
            said = remedy
        else:
            said = f"repeat the command when it answers again, or {remedy}"
        raise Failed(FailureClass.STORAGE, f"{why}; {said}") from error
    except Failed as failure:
        if not is_full(failure) or "; " in failure.reason:  # it has a remedy already
            raise
        raise Failed(FailureClass.STORAGE, f"{failure.reason.rstrip('.')}; {free}") from failure
