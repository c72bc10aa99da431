"""Promises on the rehearsal: the whole job, none of its work, and nobody takes it for the real thing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import make_list, pipeline, published_bytes

from pipeline import dataset


@pytest.fixture(scope="module")
def list_file(tmp_path_factory) -> Path:
    rows = [f"class {n % 3},video-{n:04d},5,15,{'val' if n % 5 == 0 else 'train'},0" for n in range(100)]
    return make_list(tmp_path_factory.mktemp("list") / "list.csv", rows)


@pytest.fixture(scope="module")
def root(tmp_path_factory, list_file) -> Path:
    root = tmp_path_factory.mktemp("rehearsal") / "root"
    done = pipeline(
        "prepare",
        "--rehearse",
        "--manifest",
        list_file,
        "--output",
        root,
        "--shard-size",
        16,
        "--budget",
        1e6,
    )
    assert done.returncode == 0, done.stderr
    return root


def test_a_rehearsal_goes_through_every_step_and_publishes(root, list_file, tmp_path):
    data = dataset.open(root)
    assert data.meta["counts"] == {"train": {"ready": 80}, "val": {"ready": 20}}
    assert data.index("train").num_rows == 80
    assert sum(1 for _ in root.glob("work/flow/*/*/*.flow.mp4")) == 100
    again = pipeline(
        "prepare", "--rehearse", "--manifest", list_file, "--output", tmp_path, "--shard-size", 16
    )
    assert again.returncode == 0, again.stderr
    assert published_bytes(tmp_path) == published_bytes(root)


def test_beams_own_runner_on_this_machine_is_stopped_by_a_signal_at_once(list_file, tmp_path):
    given = ["--rehearse", "--manifest", list_file, "--output", tmp_path, "--budget", 60]
    command = [sys.executable, "-m", "pipeline", "prepare", *map(str, given), "--runner=DirectRunner"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob("work/clip/*/*/*.record.json")):  # the next is due in a minute
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode == 1
    assert "repeat the same command" in said


def test_a_rehearsed_data_set_says_so_and_is_never_mixed_with_clips(root, list_file):
    assert dataset.open(root).meta["recipe"]["encode"]["encoder"] == "rehearsal"
    done = pipeline("prepare", "--manifest", list_file, "--output", root, "--source", f"dir:{root}")
    assert done.returncode == 1
    assert "recipe" in done.stderr
    assert done.stderr.count("\n") == 1
