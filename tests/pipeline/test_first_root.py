"""Promises on a data set of the first version: every later one opens, continues and keeps it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline import dataset
from pipeline.media import clip

PREPARE = ["prepare", "--manifest", "train.csv", "val.csv", "more.csv", "--output", "root"]
PREPARE += ["--source", "dir:videos", "--classes", "classes.txt", "--shard-size", "2"]
NEW_CLIPS = ("archery_bbb_000000_000002", "corrupt_aaa_000000_000002")


def run(folder: Path, *arguments: object, program: str = "pipeline") -> str:
    """Runs a command that must succeed in `folder`; returns its output."""
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", program, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_published_bytes_stand(folder: Path) -> None:
    subprocess.run(["sha256sum", "--check", "--quiet", "sums.txt"], cwd=folder, check=True)


def stage_files(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every encoded clip and flow in the work store."""
    found = [p for stage in ("encode", "flow") for p in (folder / "root/work" / stage).rglob("*.mp4")]
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found}


@pytest.fixture(scope="module")
def first(real_clips, tmp_path_factory) -> Path:
    """A copy of the folder in which the first version worked."""
    made = real_clips.parent / "roots" / "first"
    if not made.is_dir():
        pytest.skip(f"{made} is not there: no data set of the first version")
    copy = Path(shutil.copytree(made, tmp_path_factory.mktemp("first") / "first"))
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    return copy


@pytest.fixture(scope="module")
def continued(first, tmp_path_factory) -> Path:
    """The same with a third generation: a list more, and a damaged video that was replaced."""
    copy = Path(shutil.copytree(first, tmp_path_factory.mktemp("continued") / "first"))
    recipe = json.loads((copy / "root/dataset.json").read_text())["recipe"]
    if recipe["encode"]["encoder"] != clip.encoder_version(clip.ffmpeg_binary()):
        pytest.skip(f"the data set was made with {recipe['encode']['encoder']}")
    (copy / "more.csv").write_text(
        "label,youtube_id,time_start,time_end,split\narchery,archery_bbb,0,2,train\n"
    )
    shutil.copy(copy / "videos/archery_aaa.mp4", copy / "videos/archery_bbb.mp4")
    shutil.copy(copy / "videos/wrestle_aaa.mp4", copy / "videos/corrupt_aaa.mp4")
    before = stage_files(copy)
    run(copy, *PREPARE, "--retry", "all")
    after = stage_files(copy)
    assert {path: after.get(path) for path in before} == before, "a stage was done again"
    made = {Path(path).name.split(".")[0] for path in after.keys() - before.keys()}
    assert made == set(NEW_CLIPS)
    return copy


def test_it_opens_and_every_clip_is_read(first):
    opened = dataset.open(first / "root")
    assert opened.generations == ["00000", "00001"]
    assert Counter(opened.outcomes()["outcome"].to_pylist()) == {"ready": 5, "excluded": 2, "failed": 2}
    for split in opened.splits:
        for row in opened.index(split).to_pylist():
            if row["removed"]:
                continue
            sample = opened.read(row["key"])
            assert sample.rgb.shape == (50, row["height"], row["width"], 3)
            assert sample.flow.shape == (50, row["height"], row["width"], 2)


def test_it_verifies_and_is_reported(first, tmp_path):
    copy = Path(shutil.copytree(first, tmp_path / "first"))
    run(copy, "verify", "root")
    run(copy, "report", "root")
    assert (copy / "root/report/index.html").is_file()
    assert_published_bytes_stand(copy)


def test_a_third_generation_redoes_no_stage_and_leaves_published_bytes_as_they_were(continued):
    opened = dataset.open(continued / "root")
    assert opened.generations == ["00000", "00001", "00002"]
    assert set(opened.index("train", ["00002"])["key"].to_pylist()) == set(NEW_CLIPS)
    assert Counter(opened.outcomes()["outcome"].to_pylist()) == {"ready": 7, "excluded": 2, "failed": 1}
    assert_published_bytes_stand(continued)
    run(continued, "verify", "root")


def test_repeated_it_finds_nothing_to_do(continued):
    before = stage_files(continued), (continued / "root/dataset.json").read_bytes()
    assert "nothing to do" in run(continued, *PREPARE)
    assert (stage_files(continued), (continued / "root/dataset.json").read_bytes()) == before
    assert_published_bytes_stand(continued)


def test_it_compacts_to_one_generation_of_the_same_clips(continued):
    run(continued, *PREPARE, "--compact", "compacted")
    old, new = dataset.open(continued / "root"), dataset.open(continued / "compacted")
    assert new.generations == ["00000"]
    for split in old.splits:
        clips = {row["key"]: row for row in old.index(split).to_pylist() if not row["removed"]}
        same = {row["key"]: row for row in new.index(split).to_pylist()}
        assert {key: (r["rgb_sha256"], r["flow_sha256"]) for key, r in clips.items()} == {
            key: (r["rgb_sha256"], r["flow_sha256"]) for key, r in same.items()
        }
    assert_published_bytes_stand(continued)


def test_a_clip_is_removed_from_it(continued, tmp_path):
    copy = Path(shutil.copytree(continued, tmp_path / "first"))
    (copy / "ids").write_text("pancake_bbb\n")
    run(copy, "remove", "root", "--ids", "ids", "--reason", "asked for")
    opened = dataset.open(copy / "root")
    with pytest.raises(KeyError):
        opened.read("pancake_bbb_000000_000002")
    assert opened.read("pancake_aaa_000000_000002").rgb.shape[0] == 50
    run(copy, "verify", "root")


@pytest.mark.slow
def test_a_network_trains_on_it(continued, tmp_path):
    settings = "--network i3d --stream both --frames 16 --short-side 80 --crop 64 --batch-size 2 --steps 2"
    run(
        continued,
        *("train", "--data", "root", "--output", tmp_path / "run", "--workers", "0", *settings.split()),
        program="trainer",
    )
    steps = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert_published_bytes_stand(continued)
