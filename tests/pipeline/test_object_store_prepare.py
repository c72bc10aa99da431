"""The whole job with lists, archives, work store and ROOT in an object store: a folder's bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, Store, serve
from small_runs import make_list, make_videos, pipeline, published_bytes

from pipeline.storage import open_storage

pytestmark = pytest.mark.slow
IDS = [f"aaaaaaaaa{number:02d}" for number in range(8)]


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with serve() as store:
        yield store


@pytest.fixture
def store(server, monkeypatch) -> Store:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.empty()
    return server


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), IDS)


@pytest.fixture(scope="module")
def list_file(tmp_path_factory) -> Path:
    rows = [f"class {i % 2},{name},0,1.2,{'val' if i > 5 else 'train'},0" for i, name in enumerate(IDS)]
    return make_list(tmp_path_factory.mktemp("list") / "list.csv", rows)


@pytest.fixture(scope="module")
def local(tmp_path_factory, videos, list_file) -> dict[str, str]:
    root = tmp_path_factory.mktemp("local")
    done = pipeline(
        "prepare", "--manifest", list_file, "--output", root, "--source", f"archive:{_archive(videos, root)}"
    )
    assert done.returncode == 0, done.stderr
    return published_bytes(root)


def _archive(videos: Path, folder: Path) -> Path:
    """Half of the videos in a tar, half in a tar.gz."""
    for name, mode, ids in (("a.tar", "w", IDS[:4]), ("b.tar.gz", "w:gz", IDS[4:])):
        with tarfile.open(folder / name, mode) as tar:
            for youtube_id in ids:
                tar.add(videos / f"{youtube_id}.mp4", f"train/{youtube_id}.mp4")
    return folder / "*.tar*"


def _upload(store: Store, videos: Path, list_file: Path, folder: Path) -> list[str]:
    """Lists and archives into the bucket; the call that prepares from there into it."""
    bucket = open_storage(f"s3://{BUCKET}")
    bucket.write("lists/list.csv", list_file)
    _archive(videos, folder)
    for name in ("a.tar", "b.tar.gz"):
        bucket.write(f"archives/{name}", folder / name)
    store.requests.clear()
    call = ["prepare", "--manifest", f"s3://{BUCKET}/lists/*.csv", "--output", f"s3://{BUCKET}/root"]
    return [*call, "--source", f"archive:s3://{BUCKET}/archives/*", "--direct_num_workers", "2"]


def _published(store: Store, folder: Path) -> dict[str, str]:
    return published_bytes(store.download("root", folder / "copy"))


def test_a_data_set_in_an_object_store_that_stumbles_equals_the_local_one(
    store, videos, list_file, local, tmp_path
):
    call = _upload(store, videos, list_file, tmp_path)
    for kind, method, key, more in (
        ("status", "PUT", "/encode/", {"times": 2}),
        ("status", "GET", "/clip/", {"times": 2, "status": 500}),
        ("reset", "GET", "archives/", {"times": 2}),
        ("drop", "PUT", "/flow/", {"times": 2}),
        ("deaf", "PUT", ".tar", {}),
        ("deaf", "PUT", "dataset.json", {}),
        ("slow", "GET", "/encode/", {"times": 2}),
    ):
        store.fault(kind, method, key, **more)
    done = pipeline(*call)
    assert done.returncode == 0, done.stderr
    assert not any(fault.times for fault in store.faults)
    assert _published(store, tmp_path) == local
    root, new = f"s3://{BUCKET}/root", f"s3://{BUCKET}/new"
    (tmp_path / "ids").write_text(f"{IDS[0]}\n")
    assert pipeline("report", root).stdout.strip() == f"{root}/report/index.html"
    assert "report/index.html" in {key.removeprefix("root/") for key in store.names("root/report")}
    removed = pipeline("remove", root, "--ids", tmp_path / "ids", "--reason", "asked")
    assert removed.returncode == 0, removed.stderr
    assert not [key for key in store.names("root/work") if IDS[0] in key]
    assert pipeline(*call, "--compact", new).returncode == 0
    for place in (root, new):
        verified = pipeline("verify", place, "--json")
        assert verified.returncode == 0, verified.stdout
        assert json.loads(verified.stdout)["checked"]["clips decoded"] == len(IDS) - 1
    assert not [key for key in store.names() if key.endswith(".lock")]


def test_the_number_of_listings_does_not_grow_with_the_clips(store, videos, tmp_path):
    listed, asked = [], []
    for count in (2, len(IDS)):
        rows = [f"walk,{name},0,1.2,train,0" for name in IDS[:count]]
        lists = make_list(tmp_path / "list.csv", rows)
        store.requests.clear()
        done = pipeline(
            "prepare", "--manifest", lists, "--output", f"s3://{BUCKET}/{count}", "--source", f"dir:{videos}",
            "--flow", "none", "--direct_num_workers", 2,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        work = [r for r in store.requests if "progress" not in str(r.query) + r.key]  # those go by the clock
        listed.append(sum(r.lists for r in work))
        asked.append(len(work))
    assert listed[0] == listed[1] <= 3
    assert (asked[1] - asked[0]) / (len(IDS) - 2) <= 10, "requests a clip"


def test_a_killed_run_is_taken_up_and_a_stopped_one_leaves_no_lock(store, videos, list_file, local, tmp_path):
    call = _upload(store, videos, list_file, tmp_path)
    for how in (signal.SIGKILL, signal.SIGTERM):
        encoded = len(store.names("root/work/flow"))
        running = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *call], stderr=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while len(store.names("root/work/flow")) < encoded + 2:
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.2)
        os.kill(running.pid, how)
        running.wait(timeout=30)
        left = [key for key in store.names() if key.endswith(".lock")]
        assert bool(left) == (how == signal.SIGKILL)
    done = pipeline(*call)
    assert done.returncode == 0, done.stderr
    assert _published(store, tmp_path) == local


def test_two_runs_on_one_root_are_refused_with_the_holder_and_the_remedy(store, videos, list_file, tmp_path):
    call = _upload(store, videos, list_file, tmp_path)
    with open_storage(f"s3://{BUCKET}/root").lock(".prepare.lock"):
        done = pipeline(*call)
    assert done.returncode == 1
    assert f"delete s3://{BUCKET}/root/.prepare.lock (held by process {os.getpid()} on" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_work_in_a_folder_and_root_in_the_store_may_be_mixed(store, videos, list_file, local, tmp_path):
    call = _upload(store, videos, list_file, tmp_path)
    done = pipeline(*call, "--work", tmp_path / "work", "--clean-work")
    assert done.returncode == 0, done.stderr
    assert _published(store, tmp_path) == local
    assert not list((tmp_path / "work").glob("encode/*/*/*"))
