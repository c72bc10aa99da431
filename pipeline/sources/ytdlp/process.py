"""Sends requests to processes that run yt-dlp (`pipeline.sources.ytdlp.client`) and reads their answers.

Starts the processes, reuses idle ones, and kills one with all its children at the time limit.
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from typing import Any

from pipeline.media import subprocesses
from pipeline.outcome import Failed, FailureClass
from pipeline.sources.ytdlp.options import FetchRequest

START_TIMEOUT = 120.0
"""Seconds for a new process to say that it is ready; importing yt-dlp takes about one."""

_ANSWER_LIMIT = 16 << 20
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


class Worker:
    """One process that runs yt-dlp; `asked` counts its requests."""

    def __init__(self) -> None:
        command, environment = subprocesses.python_module("pipeline.sources.ytdlp.client")
        tools = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            env=environment | {"PATH": tools},
        )
        self._held = b""
        self.asked = 0
        try:
            self._read(START_TIMEOUT, "no answer")  # it says that it is ready
        except Failed as error:
            self.kill()
            raise Failed(
                FailureClass.ENVIRONMENT,
                f"yt-dlp does not start ({self._last_words() or error.reason}): pip install -U yt-dlp.",
            ) from error

    def ask(self, request: FetchRequest, timeout: float) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            Failed: corrupt where the process crashed; network where something ended it, or after `timeout`
                seconds, when the process and all it started have been killed.
        """
        self.asked += 1
        try:
            self._process.stdin.write(json.dumps(asdict(request)).encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
            return self._read(timeout, "The video did not come in time")
        except BrokenPipeError:
            raise self._died() from None
        except BaseException:
            self.kill()
            raise

    @property
    def alive(self) -> bool:
        if self._process.returncode is not None:
            return False
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT  # not reaped: `kill` needs the number to stay ours
        return os.waitid(os.P_PID, self._process.pid, options) is None

    def kill(self) -> None:
        """End the process and everything it started."""
        if self._process.returncode is None:  # else its number may belong to another process by now
            subprocesses.kill_group(self._process.pid)
            self._process.wait()

    def _read(self, timeout: float, late: str) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._held:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise Failed(FailureClass.NETWORK, f"{late}: {timeout:.3g} s were left for it.")
                chunk = os.read(stdout.fileno(), 1 << 16)
                if not chunk or len(self._held) > _ANSWER_LIMIT:
                    raise self._died()
                self._held += chunk
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)

    def _died(self) -> Failed:
        self.kill()
        status = self._process.returncode
        if -status in _CRASHES:
            name = signal.Signals(-status).name
            return Failed(FailureClass.CORRUPT, f"The fetched data made their reader crash ({name}).")
        reason = f"The fetching process was ended ({status}). {self._last_words()}"
        return Failed(FailureClass.NETWORK, reason)

    def _last_words(self) -> str:
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


_idle: list[Worker] = []
_lock = threading.Lock()
os.register_at_fork(after_in_child=_idle.clear)  # the processes belong to the parent


def ask(request: FetchRequest, timeout: float) -> dict[str, Any]:
    """Send a request to a free process, or to a new one, and return its answer.

    Starting a process does not count against `timeout`. Raises as `Worker.ask` does.
    """
    worker = _take() or Worker()
    answer = worker.ask(request, timeout)
    with _lock:
        _idle.append(worker)
    return answer


def _take() -> Worker | None:
    with _lock:
        while _idle:
            worker = _idle.pop()
            if worker.alive:
                return worker
            worker.kill()
    return None


@atexit.register
def close() -> None:
    """End every idle process."""
    with _lock:
        while _idle:
            _idle.pop().kill()
