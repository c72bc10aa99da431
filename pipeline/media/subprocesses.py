"""Runs a child process, with all that it starts, within limits of time and output.

Owns process groups, pipes and limits; knows nothing of what the child does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_STDERR_LIMIT = 256 * 1024
_GRACE = 2.0  # s for the last output of a killed group to be read
_running: set[int] = set()


class ChildTimeout(Exception):
    """The child ran past its time limit; its process group is dead."""


class ChildOutputTooLarge(Exception):
    """The child wrote more to its standard output than the caller allowed; its group is dead."""


@dataclass(frozen=True)
class Finished:
    """A child that ended by itself: exit status, standard output, the last 256 KiB of standard error."""

    returncode: int
    stdout: bytes
    stderr: str


def run(
    argv: list[str], *, timeout: float, stdin: Iterable[bytes] = (), max_stdout: int = 1 << 30
) -> Finished:
    """Run `argv` (never a shell) in a process group of its own and wait for it.

    Args:
        timeout: seconds from start to end; the whole group is killed then.
        stdin: chunks for its standard input, produced as it reads them. An exception raised by the
            iterable kills the group and goes on to the caller.
        max_stdout: bytes of standard output that are accepted.

    Raises:
        ChildTimeout, ChildOutputTooLarge: as named; the child is dead when they are raised.
    """
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    _running.add(process.pid)
    started = time.monotonic()
    stdout, stderr = bytearray(), bytearray()
    stopped: list[tuple[type[Exception], str]] = []  # why we killed the group

    def stop(kind: type[Exception], why: str) -> None:
        stopped.append((kind, f"{argv[0]} {why}"))
        kill_group(process.pid)

    def read_stdout() -> None:
        while chunk := process.stdout.read1(1 << 20):  # type: ignore[union-attr]
            if len(stdout) + len(chunk) > max_stdout:
                stop(ChildOutputTooLarge, f"wrote more than {max_stdout} bytes")
                return
            stdout.extend(chunk)

    def read_stderr() -> None:
        while chunk := process.stderr.read1(1 << 16):  # type: ignore[union-attr]
            stderr.extend(chunk)
            del stderr[:-_STDERR_LIMIT]

    timer = threading.Timer(timeout, stop, [ChildTimeout, f"ran past {timeout:g} s"])
    readers = [threading.Thread(target=read_stdout), threading.Thread(target=read_stderr)]
    for thread in (timer, *readers):
        thread.daemon = True
        thread.start()
    try:
        with contextlib.suppress(BrokenPipeError):  # a child that wants no more input says so this way
            for chunk in stdin:
                process.stdin.write(chunk)  # type: ignore[union-attr]
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # type: ignore[union-attr]
        for thread in readers:  # past the limit the group is dead; who left the group may still hold a pipe
            thread.join(max(0.0, started + timeout - time.monotonic()) + _GRACE)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: its number stays ours
    finally:
        timer.cancel()
        kill_group(process.pid)
        returncode = process.wait()
        _running.discard(process.pid)
    if stopped:
        kind, why = stopped[0]
        raise kind(why)
    return Finished(returncode, bytes(stdout), stderr.decode("utf-8", "replace"))


def python_module(name: str) -> tuple[list[str], dict[str, str]]:
    """The command and environment that run a module of ours and import nothing from the current folder."""
    packages = str(Path(__file__).resolve().parents[2])
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([packages, *filter(os.path.isabs, named)])  # an empty part is the current folder
    return [sys.executable, "-P", "-m", name], {**os.environ, "PYTHONPATH": path}


def kill_group(pid: int) -> None:
    """SIGKILL the process group that `pid` leads; a group that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_all() -> None:
    """Kill every child group now running: the last act of a worker whose parent died."""
    for pid in list(_running):
        kill_group(pid)


def die_with(pid: int, every: float = 1.0) -> None:
    """End this process and all its children soon after process `pid` of this machine is gone.

    For workers: their launcher may be killed in a way that tells them nothing. `every` is in seconds.
    """
    born = _birth(pid)

    def watch() -> None:
        while born is not None and _birth(pid) == born:
            time.sleep(every)
        kill_all()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="die-with-launcher").start()


def _birth(pid: int) -> str | None:
    """A token that tells a process from a later one with the same number; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, *fields = file.read().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]  # clock ticks at its start
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return None
    try:
        os.kill(pid, 0)  # no /proc here: all that can be known is whether the number is taken
    except ProcessLookupError:
        return None
    return str(pid)
