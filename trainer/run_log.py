"""A run's records: metrics.jsonl, TensorBoard events, evaluations.jsonl, the progress line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.progress_line import ProgressLine
from pipeline.storage import replacing

CONFIGURATION = "configuration.json"
LAUNCH = "launch.json"  # the launch that started the run over; see `trainer.launch`


class Recorder:
    """Writes the records of a run in RUN, from the step after `done` on; lines of later steps are cut away.

    Only the first rank has one.
    """

    def __init__(self, run: Path, done: int, steps: int):
        from torch.utils.tensorboard import SummaryWriter

        for name in ("metrics.jsonl", "evaluations.jsonl"):
            _cut(run / name, done)
        self.run = run
        self.metrics = (run / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)
        self.progress = ProgressLine("train", steps, "steps", done=done, smoothing=0.1)

    def step(self, record: Mapping[str, Any]) -> None:
        """One line a step, written as the step ends."""
        self.metrics.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if isinstance(value, float):
                self.board.add_scalar(f"train/{name}", value, record["step"])
        self.progress.show(
            record["step"],
            f"epoch {record['epoch']}",
            f"loss {record['loss']:.4f}",
            f"lr {record['lr']:.3g}",
            f"{record['clips_per_second']:.1f} clips/s",
        )

    def evaluations(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes one line an evaluation to evaluations.jsonl; the last one is new."""
        _write_lines(self.run / "evaluations.jsonl", (json.dumps(scores) + "\n" for scores in history))
        for stream_name in ("rgb", "flow", "joint"):
            for name, value in history[-1].get(stream_name, {}).items():
                self.board.add_scalar(f"evaluation/{stream_name}/{name}", value, history[-1]["step"])
        self.board.add_scalar("evaluation/loss", history[-1]["loss"], history[-1]["step"])

    def close(self) -> None:
        self.progress.close()
        self.metrics.close()
        self.board.close()


class Interrupt:
    """Notes SIGTERM and Ctrl-C, so that the current step is finished and saved; a second one ends at once."""

    def __init__(self) -> None:
        self.requested = False
        self.process = os.getpid()

    def __enter__(self) -> Interrupt:
        self.before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.process:  # a loader's process, which inherited this handler
            if number == signal.SIGTERM:
                os._exit(1)
            return
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self.process, number)
        self.requested = True


def clear(run: Path) -> None:
    """Removes the records of an earlier run."""
    for name in ("metrics.jsonl", "evaluations.jsonl", CONFIGURATION, LAUNCH):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "tensorboard", ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `path` whole or not at all."""
    _write_lines(path, [json.dumps(value, indent=2) + "\n"])


def _cut(path: Path, done: int) -> None:
    """Drops the lines of steps after `done`, and one that a kill left half written."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError, KeyError):
            if json.loads(line)["step"] <= done:
                kept.append(line + "\n")
    _write_lines(path, kept)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
