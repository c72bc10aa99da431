"""What a person sees while a local job runs: clips by outcome, rate, time left, on one line.

Each worker counts for itself and leaves its counts in the work store; the launching process adds them up.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TextIO

from pipeline.outcome import READY
from pipeline.pressure import paused_until
from pipeline.storage import Storage

_FLUSH_SECONDS = 1.0
_REMOTE_SECONDS = 15.0  # in an object store, where every look and every write is paid for


class Tally:
    """One worker's counts by outcome or failure class."""

    def __init__(self, storage: Storage, generation: str):
        self._storage = storage
        self._path = f"progress/{generation}/{os.getpid()}-{time.monotonic_ns()}.json"
        self._counts: Counter[str] = Counter()
        self._flushed = 0.0

    def count(self, name: str) -> None:
        """Count one clip; written now and then, the rest by `flush`."""
        self._counts[name] += 1
        if time.monotonic() - self._flushed >= (
            _FLUSH_SECONDS if self._storage.is_local else _REMOTE_SECONDS
        ):
            self.flush()

    def flush(self) -> None:
        """Write the counts as they stand."""
        self._storage.write(self._path, json.dumps(self._counts).encode())
        self._flushed = time.monotonic()


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
    """A context manager that shows the tallies: a live line on a terminal, else a line now and then."""

    def __init__(self, storage: Storage, generation: str, clips: int, stream: TextIO | None = None):
        self._storage, self._generation, self._clips = storage, generation, clips
        self._stream = stream
        self._live = (stream or sys.stderr).isatty()
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
        while not self._done.wait(1.0 if self._live and self._storage.is_local else _REMOTE_SECONDS):
            self._show(last=False)
        self._show(last=True)

    def _show(self, last: bool) -> None:
        total = counts(self._storage, self._generation)
        text = line(total, self._clips, time.monotonic() - self._start)
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
    done = sum(total.values())
    failures = [f"{n} {name}" for name, n in total.most_common() if name != READY]
    parts = [f"prepare: {done}/{clips} clips", f"{total[READY]} ready", *failures]
    if done and seconds > 0:
        parts.append(f"{60 * done / seconds:.1f} a minute")
        if done < clips:
            parts.append(f"{duration((clips - done) * seconds / done)} left")
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
