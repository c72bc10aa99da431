"""Shows progress on one line of standard error; both the pipeline and the trainer use it."""

from __future__ import annotations

import sys
import threading
from typing import Any, TextIO

from tqdm import tqdm

from pipeline import plain_text

LIVE_SECONDS = 0.2  # between two drawings on a terminal


class ProgressLine(tqdm):
    """A line such as ``prepare: 40/128 clips, 38 ready, 2 gone, 12.0 a minute, 7 min left``.

    A terminal shows one line that is redrawn, cut to its width; elsewhere each drawing is a line of its own.

    Args:
        title, total, unit: as in ``prepare: 0/128 clips``.
        done: how many were done before.
        every: seconds between two drawings where there is no terminal.
        smoothing: of the rate that the time left is computed from: 0 for the average since the start, up to 1
            for the latest step alone.
        stream: None for standard error.
    """

    monitor_interval = 0  # starts no thread: loaders fork

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        every: float = 10.0,
        smoothing: float = 0.0,
        stream: TextIO | None = None,
    ):
        out = _Output(stream)
        line = f"{title}: {{n}}/{{total}} {unit}{{postfix}}{{left}}"
        super().__init__(
            initial=done,
            total=total,
            file=out,
            position=0,
            smoothing=smoothing,
            mininterval=LIVE_SECONDS if out.live else every,
            miniters=0,
            dynamic_ncols=True,
            bar_format=f"{line} {{bar}}" if out.live else line,
        )

    def show(self, done: int, *facts: str) -> None:
        """Set the number done and the `facts` beside it; draw the line if it is time."""
        self.set_postfix_str(plain_text.one_line(", ".join(facts)), refresh=False)
        self.update(done - self.n)

    @property
    def format_dict(self) -> dict[str, Any]:
        known = dict(super().format_dict)
        done, seconds, todo = known["n"] - known["initial"], known["elapsed"], known["total"] - known["n"]
        rate = known["rate"] or (done / seconds if seconds else 0.0)
        known["left"] = f", {duration(todo / rate)} left" if rate and todo > 0 else ""
        if known["ncols"] is not None and known["ncols"] < 1:  # a terminal that does not know its size
            known["ncols"] = None
        return known


ProgressLine.set_lock(threading.RLock())  # tqdm's own lock is for processes too, and may start one


class _Output:
    """Writes to a stream; where it is no terminal, each drawing becomes a line of its own.

    Standard error is looked up at each use, since it may be redirected meanwhile.
    """

    def __init__(self, stream: TextIO | None):
        self.stream = stream
        self.live = self.isatty()

    def write(self, text: str) -> None:
        stream = self.stream or plain_text.unfiltered(sys.stderr)
        if self.live:
            stream.write(text)
        elif text.strip():
            stream.write(f"{text.strip()}\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream or sys.stderr, name)


def duration(seconds: float) -> str:
    """Seconds in words: ``40 s``, ``7 min``, ``2 h 40 min``, ``3 d 4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
