"""Original, Fixed, Full-FT: ``python benchmarks/transfer.py [--data ROOT] [--splits N] [--folder FOLDER]``.

J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, section 5, compare three ways to a
small data set: trained on it alone (Original), its last layer alone trained on the features of a network
that learned a large one (Fixed), and all of that network trained on (Full-FT). The claim is their order,
Full-FT best and Original last, on both UCF-101 and HMDB-51.

Here the large data set is the demo's eight motions (``make demo`` leaves it in ``.demo/seed-0/dataset``), and
the small ones are drawn in the layouts in which UCF-101 and HMDB-51 are published, class folders of avi files
and three splits of lists: `UCF`, with ten clips a class to train on, and `HMDB`, with five. Their motions
are combinations that the large one has not. The network is R3D-18 on RGB, 8 frames of 32x32, which learns
the large set in minutes on one core (`CONFIGURATION`); each way takes the same steps, and only public
commands are called, so that what a killed call finished is not done again. The scores go to
``benchmarks/results/transfer.json``, one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the demo is no installed package

from demo import synthesis  # noqa: E402
from demo.synthesis import Motion  # noqa: E402
from trainer import run_log  # noqa: E402

RESULTS = HERE / "results" / "transfer.json"
DATA = Path(".demo/seed-0/dataset")
VIDEOS = 15  # of a class; each split tests on five others
SECONDS = 1.6

UCF = {  # the motions of each class, to be multiplied by a speed
    "DriftDownLeft": Motion(right=-1, down=1),
    "DriftDownRight": Motion(right=1, down=1),
    "DriftUpLeft": Motion(right=-1, down=-1),
    "DriftUpRight": Motion(right=1, down=-1),
    "SpiralIn": Motion(zoom=2 / math.log(2), turn=2),
    "SpiralOut": Motion(zoom=-2 / math.log(2), turn=-2),
}
HMDB = {
    "roll_down": Motion(turn=2, down=1),
    "roll_left": Motion(turn=2, right=-1),
    "unroll_down": Motion(turn=-2, down=1),
    "unroll_left": Motion(turn=-2, right=-1),
    "shrink_up": Motion(zoom=-2 / math.log(2), down=-1),
    "swell_up": Motion(zoom=2 / math.log(2), down=-1),
}

CONFIGURATION = """
[network]
name = "r3d-18"

[input]
frames = 8
stride = 2
short_side = 32
crop = 32
flip = false

[optimisation]
lr = 0.01
schedule = "one-cycle"
milestones = []

[run]
batch_size = 8
precision = "auto"
"""
SETTINGS, LARGE = "transfer.toml", "runs/large"  # in the folder
PRETRAINING = ["--steps", 168]
STEPS = ["--steps", 96]  # with twice as many all three are right on every clip of UCF's first split
WAYS: Mapping[str, list[object]] = {
    "Original": [],
    "Fixed": ["--freeze", "--lr", 0.1],  # a linear layer on its own takes more than the .01 of all
    "Full-FT": [],
}


def draw(classes: Mapping[str, Motion], folder: Path, name: str) -> None:
    """Writes what is not there of CLASS/VIDEO.avi, `VIDEOS` a class, called `name` with label and video."""
    for number, (label, moves) in enumerate(classes.items()):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for video in range(1, VIDEOS + 1):
            path = folder / label / f"{name.format(label=label, video=video)}.avi"
            if not path.exists():
                random = np.random.default_rng([len(name), number, video])
                write_video(path, synthesis.texture(random), moves, random.uniform(*synthesis.SPEEDS))


def write_video(path: Path, texture: synthesis.Texture, moves: Motion, speed: float) -> None:
    """A video of MPEG-4 in avi, 320x240 at 25 frames a second, as both data sets have theirs (nearly)."""
    scaled = Motion(*(speed * part for part in (moves.right, moves.down, moves.zoom, moves.turn)))
    partial = path.with_suffix(".part")
    with av.open(str(partial), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", 25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 320, 240, "yuv420p", 1_500_000
        for i in range(round(25 * SECONDS)):
            picture = synthesis.draw(texture, scaled, i / 25, 160, 120)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(320, 240, "yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    partial.rename(path)


def tests(video: int, split: int) -> bool:
    """Whether video (1 to `VIDEOS`) of a class is tested on in `split` (1 to 3)."""
    return (video - 1) // 5 == split - 1


def ucf(folder: Path) -> tuple[Path, dict[int, list[Path]]]:
    """UCF-101's layout: its videos' folder and each split's lists."""
    videos, lists = folder / "UCF-101", folder / "ucfTrainTestlist"
    draw(UCF, videos, "v_{label}_g{video:02}_c01")
    lists.mkdir(exist_ok=True)
    files = {}
    for split in (1, 2, 3):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for number, label in enumerate(UCF, 1):
            for video in range(1, VIDEOS + 1):
                name = f"{label}/v_{label}_g{video:02}_c01.avi"
                part = "test" if tests(video, split) else "train"
                lines[part].append(name if part == "test" else f"{name} {number}")
        files[split] = [lists / f"{part}list{split:02}.txt" for part in lines]
        for file, rows in zip(files[split], lines.values(), strict=True):
            file.write_text("\n".join(rows) + "\n")
    return videos, files


def hmdb(folder: Path) -> tuple[Path, dict[int, list[Path]]]:
    """HMDB-51's layout, likewise; of what does not test, every second video trains."""
    videos, lists = folder / "hmdb51_org", folder / "testTrainMulti_7030_splits"
    draw(HMDB, videos, "{label}_{video:02}_u_nm_np1_fr_med_0")
    lists.mkdir(exist_ok=True)
    files: dict[int, list[Path]] = {}
    for split in (1, 2, 3):
        for label in HMDB:
            lines = []
            for video in range(1, VIDEOS + 1):
                place = video if video <= 5 * (split - 1) else video - 5  # among those that do not test
                code = 2 if tests(video, split) else place % 2
                lines.append(f"{label}_{video:02}_u_nm_np1_fr_med_0.avi {code} ")
            files.setdefault(split, []).append(lists / f"{label}_test_split{split}.txt")
            files[split][-1].write_text("\n".join(lines) + "\n")
    return videos, files


def call(module: str, *words: object) -> None:
    """Runs a public command; its failure ends the benchmark."""
    command = [sys.executable, "-m", module, *map(str, words)]
    if subprocess.run(command, cwd=HERE.parent).returncode:
        sys.exit(f"transfer: {module} {words[0]} failed; see above")


def prepare(videos: Path, root: Path) -> None:
    """From class folders to a published data set, without flow."""
    if not (root / "dataset.json").exists():
        listed = root.with_suffix(".csv")
        call("pipeline", "list", videos, "--output", listed)
        source = ["--source", f"dir:{videos}", "--flow", "none", "--output", root]
        call("pipeline", "prepare", "--manifest", listed, *source)


def rows(name: str, folder: Path, files: Mapping[int, list[Path]]) -> Iterator[dict[str, Any]]:
    """The scores of each way and split, shares of 1."""
    for split, published in files.items():
        lists = ["--data", folder / name, "--split-file", *published]
        common = ["--config", folder / SETTINGS, "--workers", 0, *STEPS]
        for way, options in WAYS.items():
            run = folder / "runs" / f"{name}-{split}-{way}"
            init = [] if way == "Original" else ["--init", folder / LARGE]
            call("trainer", "train", *lists, *common, *init, *options, "--output", run)
            output = run / "evaluate-test.json"
            call("trainer", "evaluate", *lists, "--rgb", run, "--output", output)
            found = json.loads(output.read_text())
            steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            last = [step["top1_rgb"] for step in steps][-sum(step["epoch"] == 0 for step in steps) :]
            yield {
                "data set": name,
                "split": split,
                "way": way,
                "training": sum(last) / len(last),  # over the last steps, as many as an epoch has
                "test": found["rgb"]["top1"],
                "test clips": found["clips"],
                "chance": found["chance"],
            }


def table(scores: list[dict[str, Any]]) -> Iterator[str]:
    """Test accuracy in per cent by way and data set in Markdown, the mean of the splits and each; training
    accuracy beside it."""
    sets = list(dict.fromkeys(row["data set"] for row in scores))
    yield f"| | {' | '.join(f'{name} | (training)' for name in sets)} |"
    yield f"|---|{'---|---|' * len(sets)}"
    for way in WAYS:
        cells = []
        for name in sets:
            mine = [row for row in scores if (row["data set"], row["way"]) == (name, way)]
            for part in ("test", "training"):
                found = [100 * row[part] for row in mine]
                cells.append(f"{sum(found) / len(found):.1f} ({', '.join(f'{x:.0f}' for x in found)})")
        yield f"| {way} | {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help=f"default {DATA}, which make demo leaves")
    parser.add_argument("--splits", type=int, choices=(1, 2, 3), default=3, help="how many of the three")
    parser.add_argument("--folder", type=Path, default=Path(".demo/transfer"), help="where it works")
    parser.add_argument("--output", type=Path, default=RESULTS, help=f"the scores (default {RESULTS.name})")
    options = parser.parse_args()
    if not (options.data / "dataset.json").is_file():
        parser.error(f"{options.data} is no data set: run make demo first, or name one with --data")
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(CONFIGURATION)
    common = ["--config", folder / SETTINGS, "--workers", 0, *PRETRAINING]
    call("trainer", "train", "--data", options.data.resolve(), *common, "--output", folder / LARGE)
    scores: list[dict[str, Any]] = []
    for name, layout in (("UCF", ucf), ("HMDB", hmdb)):
        videos, files = layout(folder)
        prepare(videos, folder / name)
        for row in rows(name, folder, {split: files[split] for split in range(1, options.splits + 1)}):
            scores.append(row)
            run_log.write_json(options.output, scores)
    print("\n".join(table(scores)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
