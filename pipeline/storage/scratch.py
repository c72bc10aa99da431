"""A worker's room for the files of the moment: where it is, and who clears away what a killed worker left.

A folder belongs to a living process, which holds the lock file beside it. A lock that is free means that
its process is dead, so the folder is swept by the next worker that starts there.
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
from pipeline.storage.locks import lock_file

_LOCK = re.compile(r"quovadis-[0-9a-f]{16}\.lock")
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_NO_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP)
_FULL = re.compile(r"no space left|quota exceeded|file too large|read-only file system", re.IGNORECASE)


def use(place: str | None) -> None:
    """Let this process and its children have their temporary files in `place`; None for the machine's own
    folder for them. Sweeps there. Raises as `check`."""
    if place is not None:
        check(place)
        tempfile.tempdir = os.environ["TMPDIR"] = place
    sweep()


def check(place: str) -> None:
    """Make the folder `place`, and prove that it takes a file.

    Raises:
        Failed: class storage, with the place and the remedy; Misplaced where no folder can be.
    """
    with _as_failed(place, made=True):
        os.makedirs(place, exist_ok=True)
        lock, descriptor = _claim(Path(place))
        lock.unlink()
        os.close(descriptor)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder for one video, deleted at the end, or when its process was killed, by `sweep`.

    Raises:
        Failed: class storage, where nothing can be written, with the place and the remedy.
    """
    base = tempfile.gettempdir()
    with _as_failed(base, made=True):
        lock, descriptor = _claim(Path(base))
    path = lock.with_suffix("")
    with _as_failed(base):
        try:
            path.mkdir(mode=0o700)
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)


def sweep() -> None:
    """Delete the folders of processes that are no more: our own ones, and this user's only."""
    base = Path(tempfile.gettempdir())
    with contextlib.suppress(OSError):
        for name in filter(_LOCK.fullmatch, os.listdir(base)):
            with contextlib.suppress(OSError, Busy):
                if (base / name).lstat().st_uid == os.getuid():
                    _sweep(base / name)


def _sweep(lock: Path) -> None:
    descriptor = lock_file(lock, wait=False)
    try:
        shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
        lock.unlink()
    finally:
        os.close(descriptor)


def _claim(base: Path) -> tuple[Path, int]:
    while True:
        lock = base / f"quovadis-{secrets.token_hex(8)}.lock"
        with contextlib.suppress(Busy):  # somebody sweeps it already
            return lock, lock_file(lock, wait=False)


def is_full(failure: Failed) -> bool:
    """Whether a failure says that a disk took no more."""
    return failure.failure_class is FailureClass.STORAGE and bool(_FULL.search(failure.reason))


@contextlib.contextmanager
def _as_failed(place: str, made: bool = False) -> Iterator[None]:
    """OSErrors that `place` is the cause of as sentences: all of them where it is only `made`."""
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
        if not is_full(failure) or "; " in failure.reason:  # the work store says its own remedy
            raise
        raise Failed(FailureClass.STORAGE, f"{failure.reason.rstrip('.')}; {free}") from failure
