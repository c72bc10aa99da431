"""Every network on the demo's motions: ``python benchmarks/networks.py [--data ROOT] [--only NAME...]``.

The demo's eight motions cannot be told from any single frame (``make demo`` leaves its data set in
``.demo/seed-0/dataset``). Each network is trained from scratch by the trainer's own loop, on the same
clips in the same order and number, at a reduced input (`INPUTS`) and by one recipe (`RECIPE`) that is tuned
for none; then the statistics of its batch normalisation are taken anew over an epoch's training cuts, and it
is evaluated on the training clips, on held-out clips, and on these with one frame repeated. Networks that do
not learn their training clips so are trained a second time, `LONGER` times as long: rows of their own.

The expected physics, judged where the training accuracy reached `LEARNED`: what sees one frame at a time
stays at chance on held-out clips, what sees motion is well above it.

Each row is written to ``benchmarks/results/networks.json`` as it ends, the plot beside it; a second call goes
on with what is missing or was measured with other settings or data. The table goes to standard output.
`clips/s` are clips trained a second of processor time on one thread, with loading, decoding and a checkpoint
an epoch.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint, configuration, distributed, evaluate, networks, run_log, validation
from trainer.configuration import Configuration
from trainer.data.loader import EvaluationBatches, TrainBatches
from trainer.data.rows import open_rows
from trainer.optimisation import Optimisation
from trainer.stream_models import StreamModel, restore
from trainer.train import TrainOptions, train

RESULTS = Path(__file__).parent / "results"
DATA = Path(".demo/seed-0/dataset")

LEARNED = 0.95
"""Training accuracy from which on a row is judged."""

LONGER = 3
"""How many times as many clips a network sees in a second row, if it has not learned them in its first."""

SINGLE = {("tsn-bninception", "rgb"), ("f-r2d-18", "rgb")}
"""Rows whose network sees one frame at a time and averages what it sees."""


@dataclass(frozen=True)
class Reduced:
    """An input small enough for one core: `frames`, `stride` apart, of `side` pixels square.

    The square is as large as the picture's short side: smaller ones, at random places, would keep networks of
    single frames from learning the training clips by heart, which they must for their row to be judged.
    """

    frames: int = 8
    stride: int = 2
    side: int = 32
    segments: int = 0  # 0: frames of one window; else as `trainer.data.batches.Input` has them


# What halves space five times leaves a square of 32 one place, at which eight clips are too few to normalise.
_DEEP = Reduced(frames=16, stride=1, side=48)  # and time three or four
INPUTS = {
    "i3d": _DEEP,
    "s3d": _DEEP,
    "s3d-g": _DEEP,
    "i3d-bottom-heavy": _DEEP,
    "i3d-top-heavy": _DEEP,
    "convnet-lstm": Reduced(side=48),
    "two-stream": Reduced(frames=10, stride=1, side=48),  # one frame of RGB to ten of flow
    "fused-3d": Reduced(frames=20, stride=1, side=48),
    "c3d-bn": Reduced(frames=16, stride=1),  # which has four halvings of time
    "hara-r3d-18": _DEEP,
    "hara-r3d-34": _DEEP,
    "i3d-r50": Reduced(side=48),
    "i3d-r50-nl5": Reduced(side=48),
    "ir-csn-50": _DEEP,
    "ir-csn-101": _DEEP,
    "ir-csn-152": _DEEP,
    "ip-csn-152": _DEEP,
    "slowfast-4x16-r50": _DEEP,
    "slowfast-8x8-r50": _DEEP,
    "smallbig-r50": Reduced(side=48),
    "tsm-r50": Reduced(stride=1, side=48, segments=8),
    "tsn-bninception": Reduced(frames=15, stride=1, side=64, segments=3),  # three snippets of five
}
"""Rows that differ from the default of `Reduced`, and why."""

RECIPE: Mapping[str, Mapping[str, Any]] = {
    "network": {"dropout": 0.0, "bn_momentum": 0.1},
    "input": {
        "flip": False,
        "scales": [],
        "distortion": 0,
        "corners": False,
        "colour_jitter": [0, 0, 0, 0],
        "test_segments": 0,
    },
    "optimisation": {
        **asdict(Optimisation(lr=0.01, weight_decay=1e-4, schedule="one-cycle")),
        "milestones": [],
    },
    "run": {
        "batch_size": 8,
        "micro_batch": 0,
        "epochs": 14,
        "seed": 0,
        "precision": "auto",
        "workers": 0,
        "evaluate_every": 0,
    },
}
"""The same for all networks; of the optimiser every setting, that none of a network's own is left."""


def rows_to_measure() -> list[tuple[str, str]]:
    """(network, stream): RGB, or both where a network takes both at once; TSN on flow too."""
    rows = []
    for name in networks.names():
        streams = networks.entry(name).streams
        rows.append((name, "rgb" if "rgb" in streams else streams[0]))
    return [*rows, ("tsn-bninception", "flow")]


def settings(name: str, stream: str, times: int = 1) -> dict[str, dict[str, Any]]:
    """Settings of a row: the recipe, `times` as long, and the input."""
    chosen = {section: dict(values) for section, values in RECIPE.items()}
    chosen["run"]["epochs"] *= times
    chosen["network"]["name"] = name
    seen = INPUTS.get(name, Reduced())
    chosen["input"] |= {"stream": stream, "frames": seen.frames, "stride": seen.stride}
    chosen["input"] |= {"segments": seen.segments}
    chosen["input"] |= {"short_side": seen.side, "crop": seen.side}
    return chosen


def measure(name: str, stream: str, root: str, times: int = 1) -> dict[str, Any]:
    """One row: trains, re-estimates, evaluates. Accuracies are shares of 1."""
    chosen = configuration.resolve(None, settings(name, stream, times))
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        run = train(TrainOptions(chosen, (root,), Path(folder)))
        seconds = time.process_time() - begin
        trained = checkpoint.load(run)
        models = restore(trained, stream)
        clips = trained.steps * chosen.run.batch_size
    rows = open_rows((root,), "train", chosen.input.streams)
    batches = TrainBatches(rows, chosen.input, batch_size=chosen.run.batch_size, seed=chosen.run.seed + 1)
    epoch = itertools.islice(batches, batches.steps_per_epoch)
    models[stream].train()
    validation.reestimate(models, epoch, torch.device("cpu"))
    models[stream].eval()
    seen = {
        "training": accuracy(models, chosen, root, "train"),
        "validation": accuracy(models, chosen, root, "val"),
        "one frame repeated": accuracy(models, chosen, root, "val", repeat_frame=True),
    }
    published = next(row for row in networks.describe(name) if row.stream == stream)
    network = models[stream].network
    return {
        "network": name,
        "stream": stream,
        "data": digest(root),
        "settings": settings(name, stream, times),
        **{kind: top1 for kind, (top1, _) in seen.items()},
        "validation clips": seen["validation"][1],
        "chance": 1 / len(trained.classes),
        "parameters": published.parameters,
        "gmacs": networks.multiply_adds(network, *shapes(chosen)) / 1e9,
        "published input": list(published.input),
        "gmacs at the published input": published.gmacs,
        "clips seen": clips,
        "clips a second": clips / seconds,
    }


def digest(root: str) -> str:
    """sha256 of a data set's dataset.json, which names every byte of it."""
    return hashlib.sha256((Path(root) / "dataset.json").read_bytes()).hexdigest()


def shapes(chosen: Configuration) -> list[tuple[int, int, int, int]]:
    """(C, T, H, W) of each of the network's inputs, as the loader gives them."""
    seen = chosen.input
    return [(networks.CHANNELS[s], seen.frames, seen.crop, seen.crop) for s in seen.streams]


def accuracy(
    models: Mapping[str, StreamModel],
    chosen: Configuration,
    root: str,
    split: str,
    *,
    repeat_frame: bool = False,
) -> tuple[float, int]:
    """Top-1 on the middle of each clip, and how many clips there were."""
    rows = open_rows((root,), split, chosen.input.streams)
    batches = EvaluationBatches(rows, chosen.input, batch_size=8, frames=chosen.input.frames)
    with distributed.join() as group:
        scores = evaluate.score(
            evaluate.predict(models, batches, group, repeat_frame=repeat_frame), rows.classes
        )
    stream = next(iter(models))
    return scores["joint" if stream == "both" else stream]["top1"], scores["clips"]


def verdict(row: Mapping[str, Any]) -> str:
    """Judges a row by the expected physics.

    At chance: within what 99 of 100 guessers reach (a normal approximation); well above: three times chance.
    """
    if row["training"] < LEARNED:
        return "not judged"
    chance, clips = row["chance"], row["validation clips"]
    lucky = chance + 2.33 * math.sqrt(chance * (1 - chance) / clips)
    if (row["network"], row["stream"]) in SINGLE:
        return "as expected: at chance" if row["validation"] <= lucky else "NOT at chance"
    return "as expected" if row["validation"] >= 3 * chance else "NOT above chance"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| network | stream | input | clips seen | GMACs | clips/s | train | held out | frame repeated "
        "| physics | M parameters | GMACs at the published input |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seen = row["settings"]["input"]
        cells = [
            row["network"],
            row["stream"],
            f"{seen['frames']}/{seen['stride']} x {seen['crop']}",
            f"{row['clips seen']:,}",
            f"{row['gmacs']:.2f}",
            f"{row['clips a second']:.1f}",
            *(f"{row[kind]:.1%}" for kind in ("training", "validation", "one frame repeated")),
            verdict(row),
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['gmacs at the published input']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Held-out accuracy over GMACs at the benchmark's input, of each network's longest row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 8))
    place = 0.0  # of a name: where its row's point is, or right of the name before it
    base = min(row["clips seen"] for row in rows)
    longest = {
        (row["network"], row["stream"]): row for row in sorted(rows, key=lambda row: row["clips seen"])
    }
    for row in sorted(longest.values(), key=lambda row: row["gmacs"]):
        colour = _colour(row)
        full = colour if row["training"] >= LEARNED else "white"
        cost, share = row["gmacs"], 100 * row["validation"]
        axes.scatter(cost, share, s=40, facecolors=full, edgecolors=colour, zorder=2)
        place = max(cost, 1.06 * place)
        name = row["network"] + ("" if row["stream"] == "rgb" else f" ({row['stream']})")
        if row["clips seen"] > base:
            name += f", x{LONGER}"
        axes.plot([cost, place], [share, 104], color=colour, linewidth=0.4, zorder=1)
        axes.text(place, 105, name, rotation=90, ha="center", va="bottom", fontsize=8)
    for label, colour, full in (
        ("RGB", "tab:blue", "tab:blue"),
        ("RGB, one frame at a time", "tab:red", "tab:red"),
        ("with flow", "tab:green", "tab:green"),
        (f"not judged: below {LEARNED:.0%} in training", "gray", "white"),
    ):
        axes.scatter([], [], facecolors=full, edgecolors=colour, label=label)
    axes.axhline(100 * rows[0]["chance"], color="gray", linestyle="--", label="chance")
    axes.set(xscale="log", xlabel="GMACs a clip at the benchmark's input", ylim=(0, 135))
    axes.set_xticks([0.2, 0.5, 1, 2, 5], ["0.2", "0.5", "1", "2", "5"], minor=False)
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("accuracy on held-out clips, %")
    axes.set_title(
        f"Eight motions, {base:,} clips seen by each network, {LONGER} times as many where x{LONGER}"
    )
    axes.legend(fontsize=8, loc="center left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _colour(row: Mapping[str, Any]) -> str:
    if (row["network"], row["stream"]) in SINGLE:
        return "tab:red"
    return "tab:blue" if row["stream"] == "rgb" else "tab:green"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help=f"default {DATA}, which make demo leaves")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=networks.names(), help="these, in this order"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "networks.json", help="default benchmarks/results"
    )
    options = parser.parse_args()
    if not (options.data / "dataset.json").is_file():
        parser.error(f"{options.data} is no data set: run make demo first, or name one with --data")
    torch.set_num_threads(1)
    done = json.loads(options.output.read_text()) if options.output.exists() else {}
    every = rows_to_measure()
    wanted = [row for name in options.only for row in every if row[0] == name] if options.only else every
    root = str(options.data)
    for times in (1, LONGER):
        for name, stream in wanted:
            if times > 1 and done[key_of(name, stream)]["training"] >= LEARNED:
                continue
            key, chosen = key_of(name, stream, times), settings(name, stream, times)
            known = done.get(key, {})
            if (known.get("settings"), known.get("data")) != (chosen, digest(root)):
                print(f"\n{key}", file=sys.stderr, flush=True)
                done[key] = measure(name, stream, root, times)
                options.output.parent.mkdir(parents=True, exist_ok=True)
                run_log.write_json(options.output, done)
    keys = [key_of(name, stream, times) for times in (1, LONGER) for name, stream in every]
    rows = [done[key] for key in keys if key in done]
    print(table(rows))
    plot(rows, options.output.with_suffix(".png"))
    return 0


def key_of(name: str, stream: str, times: int = 1) -> str:
    """Name of a row in the results."""
    return f"{name} {stream}" + (f", {times} times as long" if times > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
