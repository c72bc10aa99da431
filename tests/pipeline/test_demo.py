"""The demo's videos: each class moves as its name says, and nothing but motion tells the classes apart."""

from __future__ import annotations

import collections
import csv
import hashlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from demo import synthesis
from demo.__main__ import LISTS, accuracy_table, outcome_table, verdict
from demo.synthesis import CLASSES, RATES, draw, motion, texture
from pipeline.flow import tvl1
from pipeline.lists import manifest, plan

SIDE = 96


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def planned() -> list[dict]:
    return plan.make([manifest.read(path) for path in LISTS], plan.PlanOptions()).to_pylist()


def test_every_class_has_the_same_number_of_clips_in_each_split():
    counted = collections.Counter(
        (row["split"], row["label"])
        for row in planned()
        if row["decision"] == "process" and row["youtube_id"].startswith(("train-", "val-"))
    )
    assert counted == {("train", c): 12 for c in CLASSES} | {("val", c): 6 for c in CLASSES}


def test_the_lists_have_every_kind_of_row_that_does_not_become_a_clip():
    rows = planned()
    assert [r["excluded_for"] for r in rows if r["decision"] == "excluded"] == ["duplicate", "leak"]
    assert [r["failure_class"] for r in rows if r["decision"] == "failed"] == ["manifest"]
    ids = {r["youtube_id"] for r in rows if r["decision"] == "process"}
    assert {"missing-001", "truncated-001", "pastend-001", "cutoff-001"} <= ids


@pytest.mark.parametrize("label", CLASSES)
def test_a_class_moves_as_its_name_says(label: str):
    seen = texture(random(1))
    first, second = (draw(seen, motion(label, 0.6), 0.5 + t, SIDE, SIDE) for t in (0, 0.04))
    flow = tvl1(first, second)
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE - 0.5
    step = 0.6 * 0.04 * SIDE  # pixels a frame
    expected = {
        "moving down": (0 * x, 0 * x + 1),
        "moving left": (0 * x - 1, 0 * x),
        "moving right": (0 * x + 1, 0 * x),
        "moving up": (0 * x, 0 * x - 1),
        "turning clockwise": (-2 * y, 2 * x),
        "turning counterclockwise": (2 * y, -2 * x),
        "zooming in": (2 * x, 2 * y),
        "zooming out": (-2 * x, -2 * y),
    }[label]
    error = np.hypot(flow[..., 0] - step * expected[0], flow[..., 1] - step * expected[1])
    assert np.median(error[12:-12, 12:-12]) < 0.35


def test_no_frame_statistic_depends_on_what_moved():
    """Brightness, contrast and sharpness of late frames, over textures: the same for every class."""
    textures = [texture(random(seed)) for seed in range(100)]
    found = {}
    for label in CLASSES:
        frames = [draw(t, motion(label, 0.6), 2.0, 48, 48).mean(axis=-1) for t in textures]
        sharpness = [np.abs(np.diff(f, axis=1)).mean() for f in frames]
        found[label] = np.array([[f.mean(), f.std(), s] for f, s in zip(frames, sharpness, strict=True)])
    everything = np.concatenate(list(found.values()))
    for label, values in found.items():
        distance = np.abs(values.mean(0) - everything.mean(0)) / (everything.std(0) / np.sqrt(len(values)))
        assert (distance < 4).all(), label


def test_an_endless_zoom_comes_back_to_the_same_kind_of_picture():
    sharpness = [
        np.abs(np.diff(draw(texture(random(s)), motion("zooming in", 0.6), t, 48, 48).mean(-1))).mean()
        for t in (0.0, 30.0)
        for s in range(40)
    ]
    assert np.mean(sharpness[:40]) == pytest.approx(np.mean(sharpness[40:]), rel=0.1)


def few(folder: Path, ids: list[str]) -> Path:
    """The demo's rows of some ids as a list of their own."""
    path = folder / "few.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
        for row in synthesis.rows(LISTS[0]):
            if row.youtube_id in ids:
                writer.writerow([row.label, row.youtube_id, row.start, row.end, "train"])
    return path


def test_videos_are_the_same_for_a_seed_and_differ_in_rate_size_and_container(tmp_path: Path):
    ids = [f"train-{number:03d}" for number in range(1, 11)]
    wanted = few(tmp_path, [*ids, "missing-001", "truncated-001"])
    assert synthesis.write([wanted], tmp_path / "a", seed=3) == 11
    assert synthesis.write([wanted], tmp_path / "a", seed=3) == 0
    synthesis.write([wanted], tmp_path / "b", seed=3, workers=1)

    def hashes(folder: Path) -> dict[str, str]:
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.glob("*.mp4")}

    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    files = sorted(f for f in (tmp_path / "a").iterdir() if f.stem in ids)
    assert len(files) == 10
    assert len({f.suffix for f in files}) >= 3
    ends = {row.youtube_id: row.end for row in synthesis.rows(wanted)}
    rates, shapes = set(), set()
    for file in files:
        with av.open(str(file)) as video:
            stream = video.streams.video[0]
            frames = sum(1 for _ in video.decode(stream))
            rates.add(Fraction(stream.average_rate))
            shapes.add((stream.width, stream.height))
            assert min(stream.width, stream.height) >= 256
            assert frames / float(stream.average_rate) > ends[file.stem]
    assert rates <= {Fraction(rate) for rate in RATES}
    assert len(rates) >= 3
    assert len(shapes) >= 3
    assert not (tmp_path / "a" / "missing-001.mp4").exists()
    with pytest.raises(av.error.FFmpegError), av.open(str(tmp_path / "a" / "truncated-001.mp4")) as video:
        next(video.decode(video=0))


def _scores(joint: float, still: float) -> tuple[dict, dict]:
    def of(value: float) -> dict:
        named = {stream: {"top1": value, "top5": 1.0} for stream in ("rgb", "flow", "joint")}
        return {"clips": 64, "chance": 0.125} | named

    return of(joint), of(still)


def test_the_demo_fails_where_too_little_is_learned_or_not_from_motion(capsys):
    assert verdict(*_scores(0.95, 0.14)) == 0
    assert verdict(*_scores(0.89, 0.14)) == 1
    assert verdict(*_scores(0.99, 0.60)) == 1
    assert capsys.readouterr().err.count("demo: ") == 2


def test_the_tables_say_what_happened():
    table = accuracy_table(*_scores(0.953, 0.125))
    assert table.count("95.3%") == 3
    assert table.count("12.5%") == 5
    ready = dict.fromkeys(("excluded_for", "failure_class", "reason", "youtube_id"), None)
    rows = [{**ready, "outcome": "ready", "row": n} for n in range(3)]
    rows.append({**ready, "outcome": "failed", "failure_class": "gone", "reason": "404", "row": 9})
    lines = outcome_table(rows).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["ready", "3"], ["failed", "(gone)"], ["all", "4"]]
    assert lines[2].endswith("row 9: 404")
