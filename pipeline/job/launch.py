"""Runs the graph to its end in the launching process: shows progress, passes on why workers stopped, and
gives up a cluster's job that nobody has begun.

What is done to a video is `pipeline.job.stages`; which rows are due is `pipeline.job.run`.
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

from pipeline.job import progress, stages
from pipeline.job.settings import Job, Settings
from pipeline.sources.rate_limit import forget_turns
from pipeline.storage.work_store import WorkStore

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineResult

_LOOK_SECONDS = 2.0
_PYTHONS = re.compile(r"(?!java|org\.|scala)[\w.]+(Error|Exception|Failed): ")
_ANSWER_SECONDS = 15.0  # that an engine has to answer who wants to stop
_CANCEL_SECONDS = 30.0
_STOPPED = "stopped; nothing is lost, repeat the same command to go on."


class LaunchError(Exception):
    """The job could not be run to its end: one sentence with the remedy."""


class _NoAnswer(BaseException):
    """The engine has not answered in time; no Exception, after which Beam would try again."""


def run(
    job: Job,
    parts: Sequence[str],
    clips: int,
    options: PipelineOptions,
    store: WorkStore,
    start_timeout: float = Settings.start_timeout,
) -> None:
    """Run the graph, whatever the runner.

    Args:
        job, parts: as for `pipeline.job.graph.build`.
        clips: how many the parts hold, for the display.
        options: Beam's.
        store: the work store.
        start_timeout: seconds; a cluster's job is given up when no worker has begun by then.

    Raises:
        LaunchError: with the sentence that a worker left, if one did.
    """
    from pipeline.job import graph

    stages.clear_stop(store, job.generation)
    progress.clear(store.storage, job.generation)
    forget_turns(store.storage, job.rate_limit)
    if graph.is_local(options):
        _run_here(job, parts, clips, options, store)
    else:
        _run_elsewhere(job, parts, clips, options, store, start_timeout)


def _run_here(job: Job, parts: Sequence[str], clips: int, options: PipelineOptions, store: WorkStore) -> None:
    from pipeline.job import graph

    log = f"log/{job.generation}.txt"
    with progress.Display(store.storage, job.generation, clips), _stderr_to(store.storage.local(log)):
        try:
            graph.run(job, parts, options)
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
    from pipeline.job import graph

    name = graph.runner_name(options)

    def state() -> str:
        return f"no worker has begun, {name} says {_state(result)}"

    stopped = threading.Event()
    with _signals(stopped) if graph.is_cluster(options) else contextlib.nullcontext():
        try:
            result = _submit(job, parts, options, stopped)
            with _signals(stopped), progress.Display(store.storage, job.generation, clips, state):
                ended = _Ended(result)
                try:
                    _watch(ended, stopped, job, store, f"{name}'s", start_timeout)
                except BaseException:  # whatever the reason: nobody is left to watch the job
                    _cancel(result)
                    raise
        finally:
            graph.stop_job_servers()
    if ended.error is not None:
        unexpected = f"{name} ended the job: {_telling_line(ended.error)}; its own logs say more."
        raise LaunchError(stages.stop_reason(store, job.generation) or unexpected) from ended.error


def _submit(
    job: Job, parts: Sequence[str], options: PipelineOptions, stopped: threading.Event
) -> PipelineResult:
    """Hand the job to its engine.

    A signal that comes meanwhile waits for the engine's answer, though not for ever: a job that a cluster has
    taken goes on by itself until it is told to end. Beam's runners on this machine do the work in here, and
    are ended by signals at once.
    """
    from pipeline.job import graph

    name = graph.runner_name(options)
    try:
        with _signals(stopped, _ANSWER_SECONDS) if graph.is_cluster(options) else contextlib.nullcontext():
            return graph.run(job, parts, options)
    except _NoAnswer:
        raise LaunchError(f"stopped while {name} gave no answer; see whether it has taken the job.") from None
    except Exception as error:
        why = _STOPPED if stopped.is_set() else f"{name} did not take the job: {_telling_line(error)}"
        raise LaunchError(why) from error


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
            raise LaunchError(_STOPPED)
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
def _signals(stopped: threading.Event, seconds: float = 0.0) -> Iterator[None]:
    """SIGTERM and Ctrl-C set `stopped` while the block lasts: a job elsewhere must be told to end. If so many
    `seconds` after the first one it lasts still, `_NoAnswer` is raised in it; never, where they are 0."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        if seconds and not stopped.is_set():
            signal.setitimer(signal.ITIMER_REAL, seconds)
        stopped.set()

    def give_up(*_: object) -> None:
        raise _NoAnswer

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop} | ({signal.SIGALRM: give_up} if seconds else {})
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        if seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
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
