"""Promises of the main job: one command from a list to a published data set, the same bytes every time."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import make_list, make_videos, pipeline, published_bytes, wait_for_workers

from pipeline import dataset

IDS = ["aaaaaaaaaa1", "-bbbbbbbbb2", "cccc_cccc_3", "ddddddddd-4", "eeeeeeeeee5", "ffffffffff6"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), IDS)


@pytest.fixture(scope="module")
def list_file(tmp_path_factory) -> Path:
    rows = [
        f"class {i % 2},{name},0,{1.6 if i else 1.2},{'val' if i > 3 else 'train'},0"
        for i, name in enumerate(IDS)
    ]
    return make_list(tmp_path_factory.mktemp("list") / "list.csv", rows)


def prepare(list_file: Path, videos: Path, root: Path, *more: object, **options):
    return pipeline(
        "prepare", "--manifest", list_file, "--output", root, "--source", f"dir:{videos}", *more, **options
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory, videos, list_file) -> Path:
    root = tmp_path_factory.mktemp("data") / "root"
    done = prepare(list_file, videos, root, "--direct_num_workers", 2)
    assert done.returncode == 0, done.stderr
    return root


def test_one_command_publishes_what_verify_accepts(root):
    done = pipeline("verify", root)
    assert done.returncode == 0, done.stdout + done.stderr
    data = dataset.open(root)
    assert data.classes == ["class 0", "class 1"]
    sample = data.read("-bbbbbbbbb2_000000_000002")
    assert sample.rgb.shape[0] == 40
    assert sample.flow.shape[:3] == sample.rgb.shape[:3]


def test_one_worker_and_two_give_the_same_bytes(root, videos, list_file, tmp_path):
    done = prepare(list_file, videos, tmp_path / "root", "--direct_num_workers", 1)
    assert done.returncode == 0, done.stderr
    assert published_bytes(tmp_path / "root") == published_bytes(root)


def kill_when(process: subprocess.Popen, ready) -> None:
    """SIGKILL the launching process alone as soon as `ready()`; its workers must end by themselves."""
    deadline = time.monotonic() + 120
    while not ready() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_run_resumes_to_identical_bytes(root, videos, list_file, tmp_path):
    target = tmp_path / "root"
    command = [sys.executable, "-m", "pipeline", "prepare", "--manifest", list_file, "--output", target]
    process = subprocess.Popen(
        [*map(str, command), "--source", f"dir:{videos}"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "QUOVADIS_TEST_ROOT": str(target)},
    )
    kill_when(process, lambda: list(target.glob("work/clip/*/*/*.record.json")))
    wait_for_workers(target, 20)
    assert not (target / "dataset.json").exists()
    done = prepare(list_file, videos, target)
    assert done.returncode == 0, done.stderr
    assert published_bytes(target) == published_bytes(root)


def test_what_was_made_is_not_made_again(root, videos, list_file):
    before = published_bytes(root)
    done = prepare(list_file, videos, root)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stdout
    assert published_bytes(root) == before


def test_another_recipe_or_list_on_a_published_root_is_refused(root, videos, list_file, tmp_path):
    before = published_bytes(root)
    other = prepare(list_file, videos, root, "--flow", "none")
    assert other.returncode == 1
    assert "recipe" in other.stderr
    shorter = make_list(
        tmp_path / "list.csv", ["class 0,aaaaaaaaaa1,0,1.2,train,0", "class 1,-bbbbbbbbb2,0,1.6,train,0"]
    )
    other = prepare(shorter, videos, root)
    assert other.returncode == 1
    assert "other lists" in other.stderr
    assert published_bytes(root) == before


def test_every_row_ends_as_one_outcome(real_clips, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    shutil.copy(real_clips / "corrupted.mp4", tmp_path / "videos" / "corrupted00.mp4")
    (tmp_path / "videos" / "htmlhtmlht1.mp4").write_text("<html>no video</html>")
    rows = [
        "a,aaaaaaaaaa1,0,1.2,train,0",
        "a,corrupted00,0,10,train,0",
        "a,missing0000,0,10,train,0",
        "a,htmlhtmlht1,0,10,train,0",
        "a,-bbbbbbbbb2,40,50,train,0",
        "a,cccc_cccc_3,2,1,train,0",
        'b,"broken',
    ]
    done = prepare(
        make_list(tmp_path / "list.csv", rows), tmp_path / "videos", tmp_path / "root", "--flow", "none"
    )
    assert done.returncode == 0, done.stderr
    outcomes = dataset.open(tmp_path / "root").outcomes().to_pylist()
    assert [
        (o["row"], o["outcome"], o["failure_class"]) for o in sorted(outcomes, key=lambda o: o["row"])
    ] == [
        (2, "ready", None),
        (3, "failed", "corrupt"),
        (4, "failed", "missing"),
        (5, "failed", "format"),
        (6, "failed", "short"),
        (7, "failed", "manifest"),
        (8, "failed", "manifest"),
    ]
    assert all(o["reason"] for o in outcomes if o["outcome"] != "ready")
    assert pipeline("verify", tmp_path / "root").returncode == 0
    strict = prepare(
        tmp_path / "list.csv", tmp_path / "videos", tmp_path / "root", "--flow", "none", "--strict"
    )
    assert strict.returncode == 1


def test_a_later_run_takes_up_what_failed_and_changes_no_published_byte(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    late = tmp_path / "videos" / f"{IDS[1]}.mp4"
    late.rename(tmp_path / "late.mp4")
    list_file = make_list(
        tmp_path / "list.csv",
        [f"a,{IDS[0]},0,1.2,train,0", f"a,{IDS[1]},0,1.2,train,0", "a,missing0000,0,9,val,0"],
    )
    root = tmp_path / "root"
    assert prepare(list_file, tmp_path / "videos", root, "--flow", "none").returncode == 0
    before = published_bytes(root)
    (tmp_path / "late.mp4").rename(late)
    moved = list_file.rename(tmp_path / "moved.csv")
    done = prepare(moved, tmp_path / "videos", root, "--flow", "none", "--retry", "all")
    assert done.returncode == 0, done.stderr
    data = dataset.open(root)
    assert data.generations == ["00000", "00001"]
    assert data.index("train")["key"].to_pylist() == [f"{name}_000000_000001" for name in IDS[:2]]
    assert data.meta["counts"] == {"train": {"ready": 2}, "val": {"failed": 1}}
    after = published_bytes(root)
    assert all(after[name] == digest for name, digest in before.items() if name != "dataset.json")
    assert pipeline("verify", root).returncode == 0


def test_no_clip_ready_is_published_as_such_and_exits_1(tmp_path):
    list_file = make_list(tmp_path / "list.csv", ["a,missing0000,0,10,train,0"])
    (tmp_path / "videos").mkdir()
    done = prepare(list_file, tmp_path / "videos", tmp_path / "root")
    assert done.returncode == 1
    assert "missing0000" in done.stderr
    meta = json.loads((tmp_path / "root" / "dataset.json").read_text())
    assert meta["shards"] == []
    assert dataset.open(tmp_path / "root").outcomes()["failure_class"].to_pylist() == ["missing"]


def test_where_every_row_is_excluded_the_cause_is_said(videos, list_file, tmp_path):
    listed = make_list(tmp_path / "train.csv", [f"a,{IDS[0]},0,1.2,train,0"])
    other = shutil.copy(listed, tmp_path / "other_train.csv")
    done = prepare(listed, videos, tmp_path / "root", "--exclude", other)
    assert done.returncode == 1
    assert "--exclude" in done.stderr


def test_lists_without_a_row_are_refused_with_a_sentence(videos, tmp_path):
    done = prepare(make_list(tmp_path / "train.csv", []), videos, tmp_path / "root")
    assert done.returncode == 1
    assert [line for line in sentences(done) if "no row" in line] == done.stderr.splitlines()


def test_an_option_said_twice_names_further_lists(videos, list_file, tmp_path):
    more = make_list(tmp_path / "more_train.csv", [f"class 9,{IDS[0]}x,0,1.2,train,0"])
    done = prepare(list_file, videos, tmp_path / "root", "--manifest", more, "--plan", "--json")
    assert done.returncode == 0, done.stderr
    cost = json.loads(done.stdout)
    assert (cost["rows"], cost["requests"], cost["source_bytes"]) == (len(IDS) + 1, 0, 0)


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("prepare: ")]


def test_a_limit_on_file_size_gives_one_sentence_and_nothing_half_published(videos, list_file, tmp_path):
    done = prepare(list_file, videos, tmp_path / "root", preexec_fn=limit_file_size)
    assert done.returncode == 1
    assert len(sentences(done)) == 1, done.stderr
    assert "SIGXFSZ" in done.stderr or "too large" in done.stderr
    assert not (tmp_path / "root" / "dataset.json").exists()
    assert not list(tmp_path.glob("root/shards/*.tar"))


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_gives_one_sentence_and_nothing_half_published(videos, list_file, small_disk):
    done = prepare(list_file, videos, small_disk / "root")
    assert done.returncode == 1
    assert len(sentences(done)) == 1, done.stderr
    assert "no space left" in done.stderr
    assert not (small_disk / "root" / "dataset.json").exists()
    assert not list(small_disk.glob("root/shards/*.tar"))


def test_an_output_that_cannot_be_written_gives_one_sentence(videos, list_file, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = prepare(list_file, videos, tmp_path / "file" / "root")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--manifest", "nowhere.csv"], "nowhere.csv"),
        (["--no-such-option", "1"], "no-such-option"),
        (["--no-such-option", "1", "--plan"], "no-such-option"),
        (["--source", "dir:/nowhere/at/all"], "/nowhere/at/all"),
        (["--limit", "0"], "limit"),
        (["--yt-dlp", "ratelimit"], "KEY=VALUE"),
        (["--yt-dlp", "rate_limit=1"], "did you mean 'ratelimit'"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_exit_2(arguments, said, list_file, videos, tmp_path):
    done = prepare(list_file, videos, tmp_path / "root", *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("module", ["pipeline", "trainer"])
def test_help_answers_within_a_second(module):
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", module, "--help"], check=True, capture_output=True, timeout=30)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 1
