"""Runs the graph to its end in the launching process: shows progress, passes on why workers stopped, and
gives up a cluster's job that nobody has begun.

What is done to a video is `pipeline.stages`; which rows are due is `pipeline.campaign`.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import progress, stages
from pipeline.pressure import forget_turns
from pipeline.stages import Job
from pipeline.work import WorkStore

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineResult

START_TIMEOUT = 900.0  # seconds until a cluster's first worker must have begun
_LOOK_SECONDS = 2.0
_PYTHONS = re.compile(r"(?!java|org\.|scala)[\w.]+(Error|Exception|Failed): ")
_CANCEL_SECONDS = 30.0


class LaunchError(Exception):
    """The job could not be run to its end: one sentence with the remedy."""


def run(
    job: Job,
    parts: Sequence[str],
    clips: int,
    options: PipelineOptions,
    store: WorkStore,
    start_timeout: float = START_TIMEOUT,
) -> None:
    """Run the graph, whatever the runner.

    Args:
        job, parts: as for `pipeline.prepare.build`.
        clips: how many the parts hold, for the display.
        options: Beam's.
        store: the work store.
        start_timeout: seconds; a cluster's job is given up when no worker has begun by then.

    Raises:
        LaunchError: with the sentence that a worker left, if one did.
    """
    from pipeline import prepare

    stages.clear_stop(store, job.generation)
    progress.clear(store.storage, job.generation)
    forget_turns(store.storage, job.pressure)
    if prepare.is_local(options):
        _run_here(job, parts, clips, options, store)
    else:
        _run_elsewhere(job, parts, clips, options, store, start_timeout)


def _run_here(job: Job, parts: Sequence[str], clips: int, options: PipelineOptions, store: WorkStore) -> None:
    from pipeline import prepare

    log = f"log/{job.generation}.txt"
    with progress.Display(store.storage, job.generation, clips), _stderr_to(store.storage.local(log)):
        try:
            prepare.run(job, parts, options)
        except Exception as error:
            more = f"see {store.storage.where(log)}" if store.storage.is_local else "repeat it with --debug"
            unexpected = f"a worker failed unexpectedly ({_last_line(error)}); {more}."
            raise LaunchError(stages.stop_reason(store, job.generation) or unexpected) from error


def _run_elsewhere(
    job: Job,
    parts: Sequence[str],
    clips: int,
    options: PipelineOptions,
    store: WorkStore,
    start_timeout: float,
) -> None:
    from pipeline import prepare

    name = prepare.runner_name(options)

    def state() -> str:
        return f"no worker has begun, {name} says {_state(result)}"

    try:
        result = prepare.run(job, parts, options)  # here, where nothing is to cancel yet, signals just end us
    except Exception as error:
        raise LaunchError(f"{name} did not take the job: {_telling_line(error)}") from error
    with _signals() as stopped, progress.Display(store.storage, job.generation, clips, state):
        ended = _Ended(result)
        try:
            _watch(ended, stopped, job, store, f"{name}'s", start_timeout)
        except BaseException:  # whatever the reason: nobody is left to watch the job
            _cancel(result)
            raise
    if ended.error is not None:
        unexpected = f"{name} ended the job: {_telling_line(ended.error)}; its own logs say more."
        raise LaunchError(stages.stop_reason(store, job.generation) or unexpected) from ended.error


def _watch(
    ended: _Ended,
    stopped: threading.Event,
    job: Job,
    store: WorkStore,
    whose: str,
    start_timeout: float,
) -> None:
    """Wait for the end; LaunchError when there is a reason not to wait for it."""
    deadline, begun = time.monotonic() + start_timeout, False
    while not ended.wait(_LOOK_SECONDS):
        if stopped.is_set():
            raise LaunchError("stopped; nothing is lost, repeat the same command to go on.")
        if reason := stages.stop_reason(store, job.generation):
            raise LaunchError(reason)
        begun = begun or progress.begun(store.storage, job.generation)
        if not begun and time.monotonic() > deadline:
            raise LaunchError(
                f"none of {whose} workers has begun within {start_timeout:g} s; see whether each worker host "
                "can start Python with this project's packages (its worker pool, container or PATH) and can "
                f"write to {store.storage.url}; --start-timeout waits longer."
            )


class _Ended:
    """Waits for a job in a thread of its own, which nobody waits for: an engine may never answer."""

    def __init__(self, result: PipelineResult):
        self.error: Exception | None = None
        self._result, self._done = result, threading.Event()
        threading.Thread(target=self._wait, daemon=True, name="wait-for-the-engine").start()

    def wait(self, seconds: float) -> bool:
        """Whether the job has ended, after waiting so long at most."""
        return self._done.wait(seconds)

    def _wait(self) -> None:
        try:
            self._result.wait_until_finish()
        except Exception as error:
            self.error = error
        finally:
            self._done.set()


def _cancel(result: PipelineResult) -> None:
    """Ask the engine to end the job, and wait a little for its answer."""

    def ask() -> None:
        with contextlib.suppress(Exception):
            result.cancel()

    asking = threading.Thread(target=ask, daemon=True, name="cancel")
    asking.start()
    asking.join(_CANCEL_SECONDS)


def _state(result: PipelineResult) -> str:
    try:
        return str(result.state)
    except Exception:
        return "nothing"


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set while the block lasts: a job elsewhere must be told to end."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stopped.set()) for number in numbers]
    try:
        yield stopped
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _stderr_to(path: Path | None) -> Iterator[None]:
    """Send what Beam, its threads and its workers say to a file; what this process says through
    `sys.stderr` stays."""
    log = os.open(os.devnull, os.O_WRONLY)  # kept where the work store is no folder, or takes no file
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, log)
            os.close(file)
    terminal, before, hook = os.dup(2), sys.stderr, threading.excepthook
    sys.stderr = os.fdopen(terminal, "w", buffering=1, closefd=False)
    os.dup2(log, 2)
    os.close(log)
    threading.excepthook = lambda died: os.write(2, f"{died.thread}: {died.exc_value}\n".encode())
    try:
        yield
    finally:
        threading.excepthook = hook
        os.dup2(terminal, 2)
        sys.stderr = before
        os.close(terminal)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _telling_line(error: Exception) -> str:
    """The line of an engine's message that says most: the end of Python's traceback in it, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    python = [line for line in lines if _PYTHONS.match(line)]
    return (python or lines[:1] or [type(error).__name__])[-1][:300]
