"""A worker's files of the moment: where it was told, gone with it, swept after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from campaigns import make_list, make_videos, pipeline

from pipeline import scratch
from pipeline.outcome import Failed, FailureClass

_HOLD = """
import os, sys, time
from pipeline import scratch
scratch.use(sys.argv[1])
with scratch.folder() as folder:
    (folder / "video.mp4").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    scratch.use(str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def test_a_folder_lies_where_it_was_told_and_leaves_nothing(place):
    with scratch.folder() as first, scratch.folder() as second:
        assert first.parent == second.parent == place
        assert first != second
        (first / "file").write_bytes(b"x")
        assert first.stat().st_mode & 0o777 == 0o700
    assert os.listdir(place) == []
    with pytest.raises(RuntimeError), scratch.folder():
        raise RuntimeError
    assert os.listdir(place) == []


def test_what_a_killed_worker_left_is_swept_and_what_a_living_one_has_is_not(place):
    (place / "quovadis-notes").mkdir()
    (place / "quovadis-0123456789abcdef.lock.txt").touch()
    mine = {"quovadis-notes", "quovadis-0123456789abcdef.lock.txt"}
    worker = subprocess.Popen(
        [sys.executable, "-c", _HOLD, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    folder = Path(worker.stdout.readline().strip())
    scratch.sweep()
    assert (folder / "video.mp4").exists()
    worker.stdin.close()
    worker.wait(timeout=30)
    worker.stdout.close()
    assert (folder / "video.mp4").exists()
    scratch.sweep()
    assert set(os.listdir(place)) == mine


def test_a_place_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        Failed, match=r"file/x could not be written: not a directory; give another folder with --scratch"
    ):
        scratch.use(str(tmp_path / "file" / "x"))


def test_a_failure_that_says_its_own_remedy_keeps_it(place):
    told = Failed(FailureClass.STORAGE, "s3://b/x could not be written: no space left; free some")
    with pytest.raises(Failed) as caught, scratch.folder():
        raise told
    assert caught.value.reason == told.reason
    with (
        pytest.raises(
            Failed, match=rf"cannot be written: No space left on device; free some space in {place}"
        ),
        scratch.folder(),
    ):
        raise Failed(FailureClass.STORAGE, "the clip cannot be written: No space left on device")
    with pytest.raises(Failed, match="corrupt"), scratch.folder():
        raise Failed(FailureClass.CORRUPT, "no space left for doubt")


def test_a_full_scratch_is_one_sentence_and_the_limit_is_kept(tmp_path):
    disk, videos = tmp_path / "disk", make_videos(tmp_path / "videos", ["aaaaaaaaaa1"])
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    lists = make_list(tmp_path / "list.csv", ["walk,aaaaaaaaaa1,0,2,train,0"])
    call = ["prepare", "--manifest", lists, "--source", f"dir:{videos}", "--direct_num_workers", 1]
    try:
        done = pipeline(*call, "--output", tmp_path / "root", "--flow", "none", "--scratch", disk)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    said = [line for line in done.stderr.splitlines() if not line.startswith("prepare: ")]
    assert done.returncode == 1
    assert len(said) == 1, done.stderr
    assert "no space left" in said[0].lower()
    assert f"free some space in {disk}, or give another folder with --scratch" in said[0]
