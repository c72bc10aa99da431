"""A whole job killed at any of its moments, packing and publishing among them, ends in the bytes of one that
was left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from small_runs import make_list, pipeline, published_bytes, start, wait_for_workers

from pipeline import dataset

pytestmark = pytest.mark.slow

CLIPS, WAVE = 200, 50


def command(list_file: Path, root: Path, workers: int = 2) -> list[str]:
    given = ["--rehearse", "--manifest", list_file, "--output", root, "--shard-size", 8, "--wave", WAVE]
    return ["prepare", *map(str, given), "--budget", "1e9", f"--direct_num_workers={workers}"]


def there(root: Path, folder: str) -> set[str]:
    """Lists a folder, half-written files included."""
    return {str(path) for path in (root / folder).glob("*/*" if folder == "work/packed" else "*")}


def kill_when_new(argv: list[str], root: Path, folder: str | None, delay: float) -> None:
    """Run the command; SIGKILL it with all its workers `delay` seconds after a new file is in `folder`."""
    before, deadline = there(root, folder) if folder else set(), time.monotonic() + 120
    process = start(argv, root)
    try:
        while folder and there(root, folder) <= before:
            assert process.poll() is None, "ended before it could be killed"
            assert time.monotonic() < deadline
        time.sleep(delay)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wait_for_workers(root, 120)


def stage(root: Path, since: float) -> str:
    """How far the generation in hand had come since then."""
    made = len(dataset.open(root).generations) if (root / "dataset.json").exists() else 0

    def written(*folders: str) -> bool:
        found = [path for folder in folders for path in root.glob(f"{folder}/*{made:05d}*")]
        return any(path.stat().st_mtime > since for path in found)

    if written("index", "outcomes"):
        return "publishing"
    return "packing" if written("shards") else "fetching"


def test_a_job_killed_in_every_stage_resumes_to_identical_bytes(tmp_path):
    chance, stages, root = random.Random(0), [], tmp_path / "root"
    rows = [f"class {n % 3},video-{n:04d},5,15,{'val' if n % 5 == 0 else 'train'},0" for n in range(CLIPS)]
    list_file = make_list(tmp_path / "list.csv", rows)
    for folder in (None, "shards", "index", "work/packed", None, "outcomes"):
        start = time.time()
        delay = chance.uniform(0, 0.01) if folder else chance.uniform(1, 4)
        kill_when_new(command(list_file, root), root, folder, delay)
        stages.append(stage(root, start))
    assert {"publishing", "packing"} <= set(stages), stages
    for call in (command(list_file, root), command(list_file, tmp_path / "whole", workers=1)):
        done = pipeline(*call)
        assert done.returncode == 0, done.stderr
    assert len(dataset.open(root).generations) == CLIPS // WAVE
    assert published_bytes(root) == published_bytes(tmp_path / "whole")
