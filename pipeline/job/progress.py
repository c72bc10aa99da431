"""What a person sees while a job runs: clips by outcome, rate, time left, on one line.

Each worker process counts for itself and leaves its counts in the work store, one small file each; the
launching process adds them up. What a worker did before it died counts again where it is repeated.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

from pipeline.outcome import READY, Failed
from pipeline.sources.rate_limit import paused_until
from pipeline.storage import Storage, Sync

LOCAL_SECONDS = 1.0  # between two writings of a worker's counts
REMOTE_SECONDS = 30.0  # from a cluster, or to an object store, where every write and every look is paid for

WHOLE_FILES = "whole files"
"""Counted beside the clips: fetches that gave up ranges."""


class Tally:
    """One worker process's counts by outcome or failure class, for all its threads; see `tally`.

    Args:
        every: seconds between two writings. The first is at once: it says that a worker has begun.
    """

    def __init__(self, storage: Storage, generation: str, every: float):
        self._storage, self._every = storage, every
        worker = f"{os.uname().nodename}-{os.getpid()}-{time.monotonic_ns()}"
        self._path = f"progress/{generation}/{worker}.json"
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._write()

    def count(self, name: str) -> None:
        """Count one clip, or one of `WHOLE_FILES`; written now and then, the rest by `flush`."""
        with self._lock:
            self._counts[name] += 1
            if time.monotonic() - self._written >= self._every:
                self._write()

    def flush(self) -> None:
        """Write the counts as they stand."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self._storage.write(self._path, json.dumps(self._counts).encode(), Sync.NOTHING)
        self._written = time.monotonic()


_tallies: dict[tuple[str, str], Tally] = {}
_opening = threading.Lock()


def tally(storage: Storage, generation: str, local: bool) -> Tally:
    """This process's tally of a generation; the same one for all who ask."""
    with _opening:
        name = (storage.url, generation)
        if name not in _tallies:
            near = local and storage.is_local
            _tallies[name] = Tally(storage, generation, LOCAL_SECONDS if near else REMOTE_SECONDS)
        return _tallies[name]


def begun(storage: Storage, generation: str) -> bool:
    """Whether any worker of this run has begun."""
    return any(name.endswith(".json") for name in storage.names(f"progress/{generation}"))


def counts(storage: Storage, generation: str) -> Counter[str]:
    """The sum over all workers' tallies."""
    total: Counter[str] = Counter()
    for name in storage.names(f"progress/{generation}"):
        if name.endswith(".json"):
            total.update(json.loads(storage.read_bytes(f"progress/{generation}/{name}")))
    return total


def clear(storage: Storage, generation: str) -> None:
    """Forget the tallies of an earlier run of this generation."""
    for name in storage.names(f"progress/{generation}"):
        storage.delete(f"progress/{generation}/{name}")


class Display:
    """A context manager that shows the tallies: a live line on a terminal, else a line now and then.

    Args:
        clips: how many there are to do.
        engine: what a cluster says of itself, shown until a worker has begun; None for a local job.
        stream: where to; None: standard error.
    """

    def __init__(
        self,
        storage: Storage,
        generation: str,
        clips: int,
        engine: Callable[[], str] | None = None,
        stream: TextIO | None = None,
    ):
        self._storage, self._generation, self._clips = storage, generation, clips
        self._engine, self._stream = engine, stream
        self._live = (stream or sys.stderr).isatty()
        near = 1.0 if self._live else 15.0
        self._every = REMOTE_SECONDS if engine or not storage.is_local else near
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Display:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            last = self._done.wait(self._every)
            with contextlib.suppress(
                Failed, OSError
            ):  # a store that does not answer now may at the next turn
                self._show(last)

    def _show(self, last: bool) -> None:
        total = counts(self._storage, self._generation)
        text = line(total, self._clips, time.monotonic() - self._start)
        if self._engine and not total:
            text += f", {self._engine()}"
        pause = paused_until(self._storage)
        if pause and pause[0] > datetime.now(UTC):
            text += f", all paused until {pause[0]:%H:%M} UTC ({pause[1]})"
        if self._live:
            text = f"\r\x1b[K{text}"
        stream = self._stream or sys.stderr  # asked for at each use: it may be redirected meanwhile
        stream.write(text + ("\n" if last or not self._live else ""))
        stream.flush()


def line(total: Counter[str], clips: int, seconds: float) -> str:
    """One line of progress, e.g. ``prepare: 40/128 clips, 38 ready, 2 gone, 12.0 a minute, 7 min left``."""
    whole = total[WHOLE_FILES]
    done = min(total.total() - whole, clips)
    failures = [f"{n} {name}" for name, n in total.most_common() if name not in (READY, WHOLE_FILES)]
    parts = [f"prepare: {done}/{clips} clips", f"{total[READY]} ready", *failures]
    if done and seconds > 0:
        parts.append(f"{60 * done / seconds:.1f} a minute")
        if done < clips:
            parts.append(f"{duration((clips - done) * seconds / done)} left")
    if whole:
        parts.append(f"{whole} whole files for want of ranges")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``40 s``, ``7 min``, ``2 h 40 min``, ``3 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
