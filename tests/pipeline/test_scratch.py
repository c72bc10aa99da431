"""A worker's files of the moment: where it was told, gone with it, swept after a kill."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from small_runs import make_list, make_videos, pipeline

from pipeline.job.settings import Job
from pipeline.job.stages import stop_reason
from pipeline.job.worker import Worker
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import CallError, Failed, FailureClass
from pipeline.recipe import Recipe
from pipeline.sources import FetchOptions
from pipeline.sources.recipe import FetchRecipe
from pipeline.storage import scratch
from pipeline.storage.work_store import WorkStore

_HOLD = """
import os, sys, time
from pipeline.storage import scratch
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


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("{here}/file/x", "not a directory"),
        ("{here}/file", "file exists"),
        ("{here}/" + "x" * 300, "file name too long"),
        ("{here}/loop/x", "too many levels of symbolic links"),
        ("/proc/nope", "no such file or directory"),
    ],
)
def test_a_place_that_cannot_be_is_one_sentence(tmp_path, place, why):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    place = place.format(here=tmp_path)
    sentence = f"^{place} could not be written: {why}; give another folder with --scratch$"
    with pytest.raises(CallError) as caught:
        scratch.use(place)
    assert re.match(sentence, str(getattr(caught.value, "reason", "")))


def test_a_folder_that_takes_no_file_is_found_before_anything_is_done(place):
    with pytest.raises(
        CallError, match=r"storage: /proc/quovadis-\w+.lock could not be written: .*--scratch$"
    ):
        scratch.use("/proc")
    assert tempfile.gettempdir() == str(place)
    assert os.listdir(place) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EMFILE, "raise the limit on open files (ulimit -n), and repeat the command"),
        (errno.EIO, "repeat the command when it answers again, or give another folder with --scratch"),
        (errno.EACCES, "give another folder with --scratch"),
    ],
)
def test_a_place_that_takes_no_file_now_is_no_wrong_call(place, monkeypatch, number, remedy):
    def holding(path, wait):
        raise OSError(number, os.strerror(number), str(place))

    monkeypatch.setattr(scratch, "holding", holding)
    for need in (lambda: scratch.check(str(place)), lambda: scratch.folder().__enter__()):
        with pytest.raises(Failed) as caught:
            need()
        assert not isinstance(caught.value, CallError)
        why = f"{place} could not be written: {os.strerror(number).lower()}"
        assert caught.value.failure_class is FailureClass.STORAGE
        assert caught.value.reason == f"{why}; {remedy}"


def test_a_scratch_that_a_worker_cannot_have_stops_the_job_with_its_sentence(tmp_path):
    store = WorkStore(tmp_path)
    recipe = Recipe(FetchRecipe(), EncodeRecipe(encoder="test"), None)
    job = Job("root", str(tmp_path), ("dir:x",), recipe, FetchOptions(), None, "0", False, scratch="/proc/x")
    with pytest.raises(Failed):
        Worker(job)
    assert "give another folder with --scratch" in (stop_reason(store, "0") or "")


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
