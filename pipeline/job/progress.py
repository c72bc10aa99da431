"""Counts clips by outcome in all workers, and shows the counts on one line while a job runs.

Each worker process writes its counts to one small file in the work store; the launching process adds them
up. Work that is repeated after a worker died is counted twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

from pipeline.outcome import READY, Failed
from pipeline.progress_line import ProgressLine
from pipeline.sources.rate_limit import paused_until
from pipeline.storage import Storage, Sync

LOCAL_SECONDS = 1.0  # between two writes of a worker's counts, and between two reads
REMOTE_SECONDS = 30.0  # from a cluster, or in an object store, where every request is paid for

FULL_DOWNLOADS = "full downloads"
"""Counted beside the clips: videos downloaded in full because range requests failed."""


class Tally:
    """Counts clips by outcome or failure class, for all threads of one worker process; see `tally`.

    Args:
        every: seconds between two writes. The first is at once: it shows that a worker has begun.
    """

    def __init__(self, storage: Storage, generation: str, every: float):
        self._storage, self._every = storage, every
        worker = f"{os.uname().nodename}-{os.getpid()}-{time.monotonic_ns()}"
        self._path = f"progress/{generation}/{worker}.json"
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._write()

    def count(self, name: str) -> None:
        """Count one clip, or one of `FULL_DOWNLOADS`; written every few seconds, and by `flush`."""
        with self._lock:
            self._counts[name] += 1
            if time.monotonic() - self._written >= self._every:
                self._write()

    def flush(self) -> None:
        """Write the counts now."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self._storage.write(self._path, json.dumps(self._counts).encode(), Sync.NOTHING)
        self._written = time.monotonic()


_tallies: dict[tuple[str, str], Tally] = {}
_opening = threading.Lock()


def tally(storage: Storage, generation: str, local: bool) -> Tally:
    """The tally of this process for a generation: one for all its threads."""
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
    """Add up the tallies of all workers."""
    total: Counter[str] = Counter()
    for name in storage.names(f"progress/{generation}"):
        if name.endswith(".json"):
            total.update(json.loads(storage.read_bytes(f"progress/{generation}/{name}")))
    return total


def clear(storage: Storage, generation: str) -> None:
    """Delete the tallies of an earlier run of this generation."""
    for name in storage.names(f"progress/{generation}"):
        storage.delete(f"progress/{generation}/{name}")


class Display:
    """A context manager that shows the sum of the tallies on one line while the job runs.

    Args:
        clips: how many there are to do.
        engine: asks a cluster for its state, shown until a worker has begun; None for a local job.
        stream: None for standard error.
    """

    def __init__(
        self,
        storage: Storage,
        generation: str,
        clips: int,
        engine: Callable[[], str] | None = None,
        stream: TextIO | None = None,
    ):
        self._storage, self._generation, self._clips, self._engine = storage, generation, clips, engine
        self._every = REMOTE_SECONDS if engine or not storage.is_local else LOCAL_SECONDS
        self._line = ProgressLine("prepare", clips, "clips", every=max(15.0, self._every), stream=stream)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Display:
        self._start = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        self._line.close()

    def _run(self) -> None:
        last = False
        while not last:
            last = self._done.wait(self._every)
            with contextlib.suppress(Failed, OSError):  # a store that does not answer now may do so next time
                self._show()

    def _show(self) -> None:
        total = counts(self._storage, self._generation)
        facts = describe(total, time.monotonic() - self._start)
        if self._engine and not total:
            facts.append(self._engine())
        pause = paused_until(self._storage)
        if pause and pause[0] > datetime.now(UTC):
            facts.append(f"all paused until {pause[0]:%H:%M} UTC ({pause[1]})")
        self._line.show(min(clips_in(total), self._clips), *facts)


def clips_in(total: Counter[str]) -> int:
    """The number of clips counted, whatever their outcome."""
    return total.total() - total[FULL_DOWNLOADS]


def describe(total: Counter[str], seconds: float) -> list[str]:
    """The counts and the rate in words, e.g. ``38 ready``, ``2 gone``, ``12.0 a minute``."""
    failures = [f"{n} {name}" for name, n in total.most_common() if name not in (READY, FULL_DOWNLOADS)]
    facts = [f"{total[READY]} ready", *failures]
    if (done := clips_in(total)) and seconds > 0:
        facts.append(f"{60 * done / seconds:.1f} a minute")
    if full := total[FULL_DOWNLOADS]:
        facts.append(f"{full} full downloads (range requests failed)")
    return facts
