"""Runs the Beam job from the launching process: shows its progress, reports why workers stopped, and cancels
a cluster's job that no worker has begun.

`pipeline.job.run` chooses the rows, `pipeline.job.stages` does the work on a video.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import IO, TYPE_CHECKING

from pipeline.job import PrepareError, progress, stages
from pipeline.job.local_workers import Workers
from pipeline.job.settings import Job
from pipeline.outcome import Failed, Misplaced
from pipeline.sources.rate_limit import forget_turns
from pipeline.storage import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.work_store import WorkStore

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineResult

_LOOK_SECONDS = 2.0  # between two looks at a job that runs elsewhere
_ANSWER_SECONDS = 15.0  # for an engine to answer after the user has asked to stop
_CANCEL_SECONDS = 30.0  # for an engine to answer a request to cancel
_PYTHON_ERROR = re.compile(r"(?!java|org\.|scala)[\w.]+(Error|Exception|Failed): ")
_STOPPED = "stopped; nothing is lost, repeat the same command to go on."


class _NoAnswer(BaseException):
    """The engine has not answered in time. Not an Exception, after which Beam would try again."""


def run(job: Job, parts: Sequence[str], clips: int, options: PipelineOptions, start_timeout: float) -> None:
    """Run the graph to its end on the runner that `options` name.

    Args:
        job, parts: as for `pipeline.job.graph.build`.
        clips: how many the parts hold, for the progress line.
        start_timeout: seconds; a cluster's job is cancelled if no worker has begun by then.

    Raises:
        PrepareError: with the sentence that a worker left, if one did.
    """
    from pipeline.job import runner

    store = WorkStore(job.work)
    stages.clear_stop(store, job.generation)
    progress.clear(store.storage, job.generation)
    forget_turns(store.storage, job.rate_limit)
    if runner.is_local(options):
        _run_here(job, parts, clips, options)
    else:
        _run_elsewhere(job, parts, clips, options, start_timeout)


def _run_here(job: Job, parts: Sequence[str], clips: int, options: PipelineOptions) -> None:
    from pipeline.job import graph, runner

    store = WorkStore(job.work)
    path = f"log/{job.generation}.txt"
    with (
        _log(store.storage, path) as log,
        progress.Display(store.storage, job.generation, clips),
        Workers(job, runner.workers(options), log) as workers,
    ):
        try:
            graph.run(job, parts, options)
        except Exception as error:
            what = workers.failure or f"the job failed unexpectedly ({_lines(error)[-1][:300]})"
            logged = workers.failure and store.storage.is_local
            more = f"see {store.storage.where(path)}" if logged else "repeat it with --debug"
            raise PrepareError(stages.stop_reason(store, job.generation) or f"{what}; {more}.") from error


def _run_elsewhere(
    job: Job, parts: Sequence[str], clips: int, options: PipelineOptions, start_timeout: float
) -> None:
    from pipeline.job import runner

    store, name = WorkStore(job.work), runner.name(options)

    def state() -> str:
        return f"no worker has begun, {name} says {_state(result)}"

    stopped = threading.Event()
    with _signals(stopped) if runner.is_cluster(options) else contextlib.nullcontext():
        try:
            result = _submit(job, parts, options, stopped)
            with _signals(stopped), progress.Display(store.storage, job.generation, clips, state):
                ended = _in_background(result.wait_until_finish)
                try:
                    _watch(ended, stopped, job, store, name, start_timeout)
                except BaseException:  # for any reason: nobody is left to watch the job
                    futures.wait([_in_background(result.cancel)], _CANCEL_SECONDS)
                    raise
        finally:
            runner.stop_job_servers()
    if error := ended.exception():
        unexpected = f"{name} ended the job: {_telling_line(error)}; its own logs say more."
        raise PrepareError(stages.stop_reason(store, job.generation) or unexpected) from error


def _submit(
    job: Job, parts: Sequence[str], options: PipelineOptions, stopped: threading.Event
) -> PipelineResult:
    """Submit the job to its engine.

    A signal meanwhile waits some seconds for the engine's answer: a job that a cluster has accepted runs on
    until it is cancelled. Beam's runners on this machine do all the work in here; signals end them at once.
    """
    from pipeline.job import graph, runner

    name = runner.name(options)
    try:
        with _signals(stopped, _ANSWER_SECONDS) if runner.is_cluster(options) else contextlib.nullcontext():
            return graph.run(job, parts, options)
    except _NoAnswer:
        raise PrepareError(
            f"stopped while {name} gave no answer; see whether it has taken the job."
        ) from None
    except Exception as error:
        why = _STOPPED if stopped.is_set() else f"{name} did not take the job: {_telling_line(error)}"
        raise PrepareError(why) from error


def _watch(
    ended: futures.Future[object],
    stopped: threading.Event,
    job: Job,
    store: WorkStore,
    name: str,
    start_timeout: float,
) -> None:
    """Wait for the end of the job; raises PrepareError when there is a reason to stop waiting."""
    deadline, begun = time.monotonic() + start_timeout, False
    while not futures.wait([ended], _LOOK_SECONDS).done:
        if stopped.is_set():
            raise PrepareError(_STOPPED)
        if reason := stages.stop_reason(store, job.generation):
            raise PrepareError(reason)
        begun = begun or progress.begun(store.storage, job.generation)
        if not begun and time.monotonic() > deadline:
            raise PrepareError(
                f"none of {name}'s workers has begun within {start_timeout:g} s; see whether each worker "
                "host can start Python with this project's packages (its worker pool, container or PATH) and "
                f"can write to {store.storage.url}; --start-timeout waits longer."
            )


def _in_background(function: Callable[[], object]) -> futures.Future[object]:
    """Call `function` in a daemon thread, since an engine may never answer and this process must end."""
    future: futures.Future[object] = futures.Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True, name="wait-for-the-engine").start()
    return future


def _state(result: PipelineResult) -> str:
    try:
        return str(result.state)
    except Exception:
        return "nothing"


@contextlib.contextmanager
def _signals(stopped: threading.Event, seconds: float = 0.0) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C set `stopped` in the block, since a job elsewhere must be cancelled.

    Raises `_NoAnswer` in the block if it still runs `seconds` after the first signal (0: never).
    """
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


def _log(storage: Storage, path: str) -> IO[bytes]:
    """The file for what workers print; dropped with an object store, or where the disk refuses it."""
    if isinstance(storage, LocalStorage):
        try:
            return storage.append(path)
        except Misplaced:
            raise
        except Failed:
            pass
    return open(os.devnull, "wb")


def _lines(error: BaseException) -> list[str]:
    """The lines of an error's message, without empty ones; at least one."""
    lines = [line.strip() for line in str(error).splitlines()]
    return [line for line in lines if line] or [type(error).__name__]


def _telling_line(error: BaseException) -> str:
    """The most telling line of an engine's message: the end of a Python traceback in it, else the first."""
    lines = _lines(error)
    python = [line for line in lines if _PYTHON_ERROR.match(line)]
    return (python or lines[:1])[-1][:300]
