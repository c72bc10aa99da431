"""Locks: the kernel's on a local file, and the text of a lock object that names its holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pipeline.storage import beneath
from pipeline.storage.errors import Busy


def lock_file(path: Path, wait: bool, mode: int = 0o644, dir_fd: int | None = None) -> int:
    """Lock a local file, made with `mode` if absent, until the descriptor is closed or the process ends.

    To release it, unlink the file first, then close the descriptor (see `holding`). Raises Busy, and
    `beneath.NotPlain` for a link.
    """
    while True:
        descriptor = beneath.open_file(path, os.O_CREAT | os.O_RDWR, mode, dir_fd)
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise Busy(str(path)) from None
            # The former holder unlinks the file before it closes it: then this lock protects nothing.
            with contextlib.suppress(FileNotFoundError):
                now = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
                if now.st_ino == os.fstat(descriptor).st_ino:
                    otherwise.pop_all()
                    return descriptor


@contextlib.contextmanager
def holding(path: Path, wait: bool, dir_fd: int | None = None) -> Iterator[None]:
    """Hold the lock of a local file, deleted at the end. Raises Busy."""
    descriptor = lock_file(path, wait, dir_fd=dir_fd)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path, dir_fd=dir_fd)
        os.close(descriptor)


def holder() -> bytes:
    """The text of a lock object: this process, the time and a random token, as a line of JSON."""
    about = {
        "host": os.uname().nodename,
        "machine": _machine(),
        "pid": os.getpid(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "started": _started(os.getpid()),
        "token": secrets.token_hex(8),
    }
    return json.dumps(about, sort_keys=True).encode() + b"\n"


def describe(content: bytes) -> str:
    """For a person: ``held by process 42 on node-7 since 2026-11-21T10:00:00+00:00``."""
    try:
        about = json.loads(content)
        return f"held by process {about['pid']} on {about['host']} since {about['since']}"[:200]
    except (ValueError, KeyError, TypeError):
        return "held by something unknown"


def is_dead(content: bytes) -> bool:
    """Whether the holder ran on this machine, in this container, and has ended; False for one elsewhere."""
    try:
        about, machine = json.loads(content), _machine()
        here = machine is not None and (about["host"], about["machine"]) == (os.uname().nodename, machine)
        return here and _started(int(about["pid"])) != about["started"]
    except (ValueError, KeyError, TypeError):
        return False


def _machine() -> str | None:
    """An id of this boot of this machine and of its process namespace; None where unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """The start time of a process in the kernel's ticks; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
