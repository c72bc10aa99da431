"""Promises of a local job's worker processes: no port, and a death is noticed, named and mended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ports import listening
from small_runs import make_list, make_videos, pipeline, published_bytes, wait_for_workers, workers_of

from pipeline.job.local_workers import WorkerError, Workers

IDS = [f"video-{n}" for n in range(6)]


@pytest.fixture(scope="module")
def call(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("local")
    videos = make_videos(folder / "videos", IDS)
    rows = [f"walk,{name},0,2,{'val' if n > 3 else 'train'},0" for n, name in enumerate(IDS)]
    list_file = make_list(folder / "list.csv", rows)
    call = ["prepare", "--manifest", list_file, "--source", f"dir:{videos}", "--shard-size", "2"]
    return [*map(str, call), "--direct_num_workers", "2"]


@pytest.fixture(scope="module")
def undisturbed(call, tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    done = pipeline(*call, "--output", root)
    assert done.returncode == 0, done.stderr
    return published_bytes(root)


def watched(call: list[str], root: Path, look: Callable[[list[int]], None]) -> tuple[int, list[str]]:
    """Run `call` and `look` at its worker processes all the time; returns its exit code and its sentences."""
    root.parent.mkdir(exist_ok=True)
    log = root.with_suffix(".stderr")
    with log.open("w") as stderr:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *call, "--output", str(root)],
            env={**os.environ, "QUOVADIS_TEST_ROOT": str(root)},
            stderr=stderr,
        )
    deadline = time.monotonic() + 120
    while launcher.poll() is None:
        assert time.monotonic() < deadline
        look([int(pid) for pid in workers_of(root) if b"pipeline.job.local_workers" in words(pid)])
        time.sleep(0.02)
    lines = [line for line in log.read_text().splitlines() if not re.match(r"prepare: \d+/", line)]
    return launcher.returncode, lines


def words(pid: object) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def test_no_process_of_a_local_job_listens_on_a_port(call, undisturbed, tmp_path):
    root, seen, ports = tmp_path / "root", set(), []

    def look(workers: list[int]) -> None:
        seen.update(workers)
        ports.extend(listening(workers_of(root)))

    assert watched(call, root, look) == (0, [])
    assert len(seen) >= 2  # with those about to become an ffmpeg
    assert ports == []
    assert published_bytes(root) == undisturbed


def test_a_failure_that_the_log_cannot_take_is_told_all_the_same():
    with open("/dev/full", "wb", buffering=0) as log, Workers("no job", 1, log) as workers:
        workers.put("pack", None, "a shard")
        with pytest.raises(WorkerError, match=r"a worker failed unexpectedly \(AttributeError"):
            workers.drain()


def test_work_that_ends_like_a_closed_pipe_is_a_failure_of_its_own(tmp_path, monkeypatch):
    """PyAV's end of file is Python's EOFError too."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pipeline.job.worker\n"
        "class Worker:\n"
        "    def __init__(self, *_, **__): raise EOFError('in a video')\n"
        "pipeline.job.worker.Worker = Worker\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (tmp_path / "log").open("wb") as log, Workers("no job", 1, log) as workers:
        workers.put("pack", None, "a shard")
        with pytest.raises(WorkerError, match=r"\(EOFError: in a video\)"):
            workers.drain()
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_port_would_be_seen():
    listener = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", listener], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert len(listening([str(process.pid)])) == 1
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_is_killed_is_named_and_replaced(call, undisturbed, tmp_path, number):
    root, killed = tmp_path / "root", []

    def look(workers: list[int]) -> None:
        if workers and not killed and list(root.glob("work/encode/*/*/*.mp4")):
            killed.append(min(workers))  # the oldest: the others may be about to become its ffmpeg
            os.kill(killed[0], number)

    code, said = watched(call, root, look)
    assert code == 0, said
    assert len(said) == 1, said
    assert f"a worker was killed by {number.name}" in said[0]
    assert re.search(
        r"at (the video video-\d|the shard \d of \w+|the start); another takes its place", said[0]
    )
    assert published_bytes(root) == undisturbed


def test_workers_that_always_die_end_the_job_with_the_name_of_the_video(call, tmp_path):
    root = tmp_path / "root"
    one = [*call[:-1], "1"]

    def look(workers: list[int]) -> None:
        if list(root.glob("work/source/*")) or list(root.glob("work/progress/*/*")):
            for pid in workers:
                os.kill(pid, signal.SIGKILL)

    code, said = watched(one, root, look)
    assert code == 1
    assert re.search(
        r"3 workers died at (the video video-\d|the start); the last was killed by SIGKILL", said[-1]
    )
    assert not (root / "dataset.json").exists()
    wait_for_workers(root, 30)
    assert pipeline(*call, "--output", root).returncode == 0


def test_workers_that_die_before_they_begin_end_the_job_at_once(call, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'pipeline.job.local_workers' in sys.orig_argv: os._exit(3)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = pipeline(*call, "--output", tmp_path / "root", env={**os.environ, "PYTHONPATH": path}, timeout=60)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "3 workers died at the start; the last ended with exit code 3" in last


def test_a_job_stopped_by_ctrl_c_or_killed_leaves_no_process(call, tmp_path):
    for number in (signal.SIGINT, signal.SIGKILL):
        root = tmp_path / number.name
        launcher = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *call, "--output", str(root)],
            env={**os.environ, "QUOVADIS_TEST_ROOT": str(root)},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not list(root.glob("work/encode/*/*/*")) and launcher.poll() is None:
            time.sleep(0.02)
        if number == signal.SIGINT:
            os.killpg(launcher.pid, number)  # as a terminal does
        else:
            launcher.kill()
        assert launcher.wait(30) != 0
        wait_for_workers(root, 30)
