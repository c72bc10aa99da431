"""The main job from end to end on a data set made on the spot, by public commands only.

    python -m demo [--seed N] [--folder .demo]

Draws videos, serves them on loopback, prepares, verifies, reports, trains I3D on RGB and on flow, evaluates
both and the control (one repeated frame: no motion, so near chance). Reuses what an earlier call finished.
Ends with 0 when the job does what it should, 1 when a command failed or too little was learned.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOM = Path(__file__).resolve().parent
MANIFESTS = ROOM.parent / "manifests"
LISTS = (MANIFESTS / "demo-train.csv", MANIFESTS / "demo-validate.csv")
EPOCHS = 12
LEARNED = 0.90  # joint accuracy below which the demo fails
NOT_MOTION = 2.0  # times chance: what a repeated frame may come to before the demo fails


class CommandFailed(Exception):
    """A command ended with another status than 0: one sentence."""


@dataclass(frozen=True)
class Places:
    """Where everything of one seed lies."""

    folder: Path

    @property
    def videos(self) -> Path:
        return self.folder / "videos"

    @property
    def root(self) -> Path:
        return self.folder / "dataset"

    def run(self, stream: str) -> Path:
        """The training run of a stream."""
        return self.folder / "runs" / stream

    def scores(self, kind: str) -> Path:
        """File of an evaluation: of ``val``, or of ``repeated-frame``."""
        return self.folder / f"{kind}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="The main job from end to end.")
    parser.add_argument(
        "--seed", type=int, default=0, help="of textures, speeds, weights and order (default 0)"
    )
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where it works (default .demo)")
    options = parser.parse_args(arguments)
    places = Places((options.folder / f"seed-{options.seed}").resolve())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # takes the command that runs down with it
    start = time.monotonic()
    try:
        prepare(places, options.seed)
        train_and_evaluate(places, options.seed)
    except (CommandFailed, RuntimeError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped; nothing is lost, the same command goes on from here", file=sys.stderr)
        return 1
    print(f"\nAll of it took {time.monotonic() - start:.0f} s.")
    return conclude(places)


def prepare(places: Places, seed: int) -> None:
    """From nothing to a verified data set and its report."""
    from demo import synthesis
    from demo.site import Behaviour, Site

    with _step("Draw the videos"):
        print(f"{synthesis.write(list(LISTS), places.videos, seed)} written to {places.videos}")
    files = {path.stem: path.name for path in places.videos.iterdir()}
    pages = {f"/{name}": Behaviour(file=file) for name, file in files.items()}
    with Site(places.videos, pages) as site:
        lists = [path.relative_to(ROOM.parent) for path in LISTS]
        _pipeline(
            "prepare", "--manifest", *lists, "--source", f"{site.url}/{{youtube_id}}",
            "--output", places.root, "--shard-size", "32",
        )  # fmt: skip
    _pipeline("verify", places.root)
    _pipeline("report", places.root)


def train_and_evaluate(places: Places, seed: int) -> None:
    """A run a stream, both evaluated together on the held-out clips, and the control."""
    for stream in ("rgb", "flow"):
        _trainer(
            "train", "--data", places.root, "--network", "i3d", "--stream", stream, "--seed", str(seed),
            "--config", "quick", "--epochs", EPOCHS, "--output", places.run(stream),
        )  # fmt: skip
    both = ("--data", places.root, "--split", "val", "--rgb", places.run("rgb"), "--flow", places.run("flow"))
    _trainer("evaluate", *both, "--output", places.scores("val"))
    _trainer("evaluate", *both, "--repeat-frame", "--output", places.scores("repeated-frame"))


def conclude(places: Places) -> int:
    """Print the tables and where the report is; 1 when too little was learned, or not from motion."""
    from pipeline import dataset

    scores = json.loads(places.scores("val").read_text())
    control = json.loads(places.scores("repeated-frame").read_text())
    print("\n" + accuracy_table(scores, control))
    print("\n" + outcome_table(dataset.open(places.root).outcomes().to_pylist()))
    print(f"\nThe data set: {places.root}\nIts report:   {(places.root / 'report' / 'index.html').as_uri()}")
    return verdict(scores, control)


def verdict(scores: dict[str, Any], control: dict[str, Any]) -> int:
    """The exit status that the scores deserve; says why on standard error where it is not 0."""
    if scores["joint"]["top1"] < LEARNED:
        print(f"demo: joint accuracy is below {LEARNED:.0%}: too little was learned", file=sys.stderr)
        return 1
    if control["rgb"]["top1"] > NOT_MOTION * scores["chance"]:
        print("demo: a repeated frame is recognised: it is not motion that was learned", file=sys.stderr)
        return 1
    return 0


def accuracy_table(scores: dict[str, Any], control: dict[str, Any]) -> str:
    """Top-1 accuracy on held-out clips, of clips as they are and of one of their frames repeated."""
    lines = [f"{'Accuracy (top-1)':<20} {scores['clips']:>5} clips   one frame repeated"]
    for stream in ("rgb", "flow", "joint"):
        name = {"rgb": "RGB", "flow": "flow", "joint": "RGB and flow"}[stream]
        lines.append(f"{name:<20} {scores[stream]['top1']:>11.1%}   {control[stream]['top1']:>18.1%}")
    lines.append(f"{'chance':<20} {scores['chance']:>11.1%}   {control['chance']:>18.1%}")
    return "\n".join(lines)


def outcome_table(rows: list[dict[str, Any]]) -> str:
    """How many manifest rows came to what, with one example each of those that are not ready."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        cause = row["excluded_for"] or row["failure_class"] or ""
        found.setdefault((row["outcome"], cause), []).append(row)
    lines = [f"{'Outcome':<20} {'rows':>5}   for example"]
    for (outcome, cause), of_it in sorted(found.items(), key=lambda item: (item[0][0] != "ready", item[0])):
        reason = "" if outcome == "ready" else f"{of_it[0]['youtube_id'] or 'row ' + str(of_it[0]['row'])}: "
        reason += of_it[0]["reason"] or ""
        lines.append(f"{outcome + (' (' + cause + ')' if cause else ''):<20} {len(of_it):>5}   {reason[:90]}")
    lines.append(f"{'all':<20} {len(rows):>5}")
    return "\n".join(line.rstrip() for line in lines)


def _pipeline(*arguments: object) -> None:
    _run("pipeline", *arguments)


def _trainer(*arguments: object) -> None:
    _run("trainer", *arguments)


def _run(module: str, *arguments: object) -> None:
    """Run a public command, its output going where ours goes. Raises CommandFailed."""
    words = ["-m", module, *map(str, arguments)]
    with _step(f"python {shlex.join(words)}"):
        status = subprocess.run([sys.executable, *words], cwd=ROOM.parent).returncode
    if status:
        raise CommandFailed(f"python -m {module} {arguments[0]} ended with status {status}; see above")


@contextmanager
def _step(title: str) -> Iterator[None]:
    print(f"\n\u2500\u2500 {title}", flush=True)
    start = time.monotonic()
    yield
    print(f"   {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
