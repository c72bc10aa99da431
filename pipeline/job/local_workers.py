"""Worker processes of a local job. They are spoken to over pipes, so the job opens no port.

python -m pipeline.job.local_workers DESCRIPTOR LAUNCHER_PID
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import IO, Any, Literal

from pipeline.job.settings import Job
from pipeline.media import subprocesses

MOST_DEATHS = 3
"""Workers that may die at one video or shard before the job ends: once may be chance, such as full memory."""
_START = "the start"
_Call = tuple[Literal["process_all", "pack"], Any, str]  # a method of `Worker`, its argument, about what

_open: list[Workers] = []


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

    A process that dies is named on standard error and replaced, and its call is made again. A context
    manager, which ends the processes.

    Args:
        log: takes their standard error.
    """

    def __init__(self, job: Job, count: int, log: IO[bytes]):
        self._job, self._count, self._log = job, count, log
        self._processes: list[_Process] = []
        self._deaths: Counter[str] = Counter()
        self.failure: str | None = None  # the sentence of the `WorkerError` that was raised

    def __enter__(self) -> Workers:
        _open.append(self)
        return self

    def __exit__(self, *exception: object) -> None:
        _open.remove(self)
        for process in self._processes:
            process.pipe.close()  # an idle one writes its counts and ends
            if process.call:
                process.child.terminate()
        for process in self._processes:
            _end(process)

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
        if process.at != _START:
            process.at = call[2]
        try:
            process.pipe.send(call[:2])
        except OSError:
            self._replace(process)

    def _start(self) -> _Process:
        ours, its = Pipe()
        command, environment = subprocesses.python_module("pipeline.job.local_workers")
        command += [str(its.fileno()), str(os.getpid())]
        output: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log}
        with its:
            child = subprocess.Popen(command, pass_fds=[its.fileno()], env=environment, **output)
        with contextlib.suppress(OSError):  # if it is dead already, the next message finds out
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
        code = _end(process)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (out of memory? --direct_num_workers starts fewer)"
        self._deaths[process.at] += 1
        if self._deaths[process.at] == MOST_DEATHS:
            self._fail(f"{MOST_DEATHS} workers died at {process.at}; the last {how}")
        print(f"prepare: a worker {how} at {process.at}; another takes its place", file=sys.stderr)
        if process.call:
            self._give(process.call)

    def _fail(self, sentence: str) -> None:
        self.failure = sentence
        raise WorkerError(sentence)


def _end(process: _Process) -> int:
    """The exit code of a process that is about to end, which is seen to."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.child.wait(timeout=5)
    process.child.kill()
    return process.child.wait()


def current() -> Workers:
    """The workers of this process's job; the graph cannot hold them, since Beam copies it."""
    return _open[-1]


def main() -> None:
    """Answer the calls of the launching process until it closes the pipe or ends."""
    descriptor, launcher = map(int, sys.argv[1:])
    subprocesses.die_with(launcher)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launching process's to answer
    signal.signal(signal.SIGTERM, _stop)
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError, OSError):
        job = pipe.recv()
        try:
            from pipeline.job.worker import Worker

            worker = Worker(job, begin=lambda name: pipe.send(("at", name)))
            pipe.send(("at", None))
            with contextlib.closing(worker):
                while True:
                    method, argument = pipe.recv()
                    pipe.send(("results", getattr(worker, method)(argument)))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk takes no log
                traceback.print_exc()
            said = f"{type(error).__name__}: {error}".strip().splitlines()[-1][:300]
            pipe.send(("failed", f"a worker failed unexpectedly ({said})"))


def _stop(*_: object) -> None:
    subprocesses.kill_all()
    os._exit(1)


if __name__ == "__main__":
    main()
