"""Runs the worker processes of a local job and speaks to them over pipes: the job opens no port.

python -m pipeline.job.local_workers DESCRIPTOR LAUNCHER_PID
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import IO, Any, Literal

from pipeline import plain_text
from pipeline.job.settings import Job
from pipeline.media import subprocesses
from pipeline.progress_line import ProgressLine

MOST_DEATHS = 3
"""Workers that may die at one video or shard before the job ends: once may be chance, such as full memory."""
_START = "the start"
_GRACE = 5.0  # seconds that processes have to end by themselves
_Call = tuple[Literal["process_all", "pack"], Any, str]  # a method of `Worker`, its argument, about what

_current: Workers | None = None


class WorkerError(RuntimeError):
    """The workers cannot go on: one sentence."""


@dataclass(eq=False)
class _Process:
    child: subprocess.Popen[bytes]
    pipe: Connection
    call: _Call | None = None
    at: str = _START  # for the user: the video or shard in work


class Workers:
    """Up to `count` processes that call methods of `pipeline.job.worker.Worker`, one call each at a time.

    A process that dies is named on standard error and replaced, and its call is made again. As a context
    manager, ends the processes.

    Args:
        log: takes their standard error.
    """

    def __init__(self, job: Job, count: int, log: IO[bytes]):
        self._job, self._count, self._log = job, count, log
        self._processes: list[_Process] = []
        self._deaths: Counter[str] = Counter()
        self.failure: str | None = None  # the sentence of the `WorkerError` that was raised

    def __enter__(self) -> Workers:
        global _current
        _current = self
        return self

    def __exit__(self, *exception: object) -> None:
        global _current
        _current = None
        for process in self._processes:
            process.pipe.close()  # an idle one writes its counts and ends
            if process.call:
                process.child.terminate()
        deadline = time.monotonic() + _GRACE
        for process in self._processes:
            _end(process, deadline)

    def put(self, *call: *_Call) -> list[Any]:
        """Make a call as soon as a process is free; returns results that came in the meantime.

        Args:
            call: the method, its argument, and what it works on, for the user.

        Raises:
            WorkerError: a call raised an exception, or `MOST_DEATHS` processes died at one thing.
        """
        results = []
        while len(self._processes) >= self._count and all(process.call for process in self._processes):
            results += self._receive()
        self._give(call)
        return results

    def drain(self) -> list[Any]:
        """Wait for all calls and return their results. Raises as `put` does."""
        results = []
        while any(process.call for process in self._processes):
            results += self._receive()
        return results

    def _give(self, call: _Call) -> None:
        idle = (process for process in self._processes if not process.call)
        process = next(idle, None) or self._start()
        process.call = call
        with contextlib.suppress(OSError):  # if it is dead, `_receive` finds out, after its last words
            process.pipe.send(call[:2])
            if process.at != _START:
                process.at = call[2]

    def _start(self) -> _Process:
        ours, its = Pipe()
        command, environment = subprocesses.python_module("pipeline.job.local_workers")
        command += [str(its.fileno()), str(os.getpid())]
        output: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log}
        with its:
            child = subprocess.Popen(command, pass_fds=[its.fileno()], env=environment, **output)
        with contextlib.suppress(OSError):  # as in `_give`
            ours.send(self._job)  # not an argument: it holds what no other user may read
        self._processes.append(process := _Process(child, ours))
        return process

    def _receive(self) -> list[Any]:
        """Wait for messages; returns the results among them."""
        results: list[Any] = []
        busy: dict[Any, _Process] = {process.pipe: process for process in self._processes if process.call}
        for process in map(busy.__getitem__, wait(list(busy))):
            try:
                kind, value = process.pipe.recv()
            except (EOFError, OSError):
                self._replace(process)
                continue
            if kind == "failed":
                self._fail(value)
            elif kind == "results":
                results += value
                process.call = None
            elif process.call:
                process.at = value or process.call[2]
        return results

    def _replace(self, process: _Process) -> None:
        self._processes.remove(process)
        process.pipe.close()
        code = _end(process, time.monotonic() + _GRACE)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (out of memory? --direct_num_workers starts fewer)"
        self._deaths[process.at] += 1
        if self._deaths[process.at] == MOST_DEATHS:
            self._fail(f"{MOST_DEATHS} workers died at {process.at}; the last {how}")
        with ProgressLine.external_write_mode():
            print(f"prepare: a worker {how} at {process.at}; another takes its place", file=sys.stderr)
        if process.call:
            self._give(process.call)

    def _fail(self, sentence: str) -> None:
        self.failure = sentence
        raise WorkerError(sentence)


def _end(process: _Process, deadline: float) -> int:
    """Wait for a process, kill it at the deadline (of the monotonic clock), and return its exit code."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.child.wait(timeout=max(0.0, deadline - time.monotonic()))
    process.child.kill()
    return process.child.wait()


def current() -> Workers:
    """The workers of this process's job; the graph cannot hold them, since Beam copies it."""
    assert _current is not None, "a local job runs within its Workers"
    return _current


def main() -> None:
    """Answer the calls of the launching process until it closes the pipe or ends."""
    descriptor, launcher = map(int, sys.argv[1:])
    subprocesses.die_with(launcher)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launching process's to answer
    signal.signal(signal.SIGTERM, _stop)
    with Connection(descriptor) as pipe, plain_text.shown():
        try:
            with contextlib.suppress(_Gone):
                _answer(_Pipe(pipe))
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk takes no log
                traceback.print_exc()
            said = f"{type(error).__name__}: {error}".strip().splitlines()[-1][:300]
            with contextlib.suppress(OSError):
                pipe.send(("failed", f"a worker failed unexpectedly ({said})"))


class _Gone(BaseException):
    """The launching process has closed the pipe. Not an Exception: work on a clip may raise EOFError."""


class _Pipe:
    """A pipe to the launching process that raises `_Gone` where that has closed it."""

    def __init__(self, pipe: Connection):
        self._pipe = pipe

    def recv(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            raise _Gone from None

    def send(self, *message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            raise _Gone from None


def _answer(pipe: _Pipe) -> None:
    job = pipe.recv()
    from pipeline.job.worker import Worker

    with contextlib.closing(Worker(job, begin=lambda name: pipe.send("at", name))) as worker:
        pipe.send("at", None)
        while True:
            method, argument = pipe.recv()
            pipe.send("results", getattr(worker, method)(argument))


def _stop(*_: object) -> None:
    subprocesses.kill_all()
    os._exit(1)


if __name__ == "__main__":
    main()
