"""An object store keeps a folder's promises, asked in few requests, none of them a listing."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, Store, serve
from published import ROWS, prepare

from pipeline import dataset
from pipeline.dataset.publish import PublishError
from pipeline.lists import manifest
from pipeline.maintenance.verify import verify
from pipeline.outcome import Failed
from pipeline.storage import AlreadyExists, Busy, Changed, Storage, location, open_storage
from pipeline.storage.object_store import PART, release_locks
from pipeline.storage.work_store import WorkStore

ATTEMPTS = 3
_WRITE = """
import sys
from pipeline.storage import open_storage
open_storage(sys.argv[1]).write(sys.argv[2], b"")
"""
_LOCK_AND_DIE = """
import os, sys
from pipeline.storage import open_storage
lock = open_storage(sys.argv[1]).lock(".lock")
lock.__enter__()
os.kill(os.getpid(), 9)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with serve() as store:
        yield store


@pytest.fixture
def store(server, monkeypatch) -> Store:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
    server.faults.clear()
    server.requests.clear()
    return server


@pytest.fixture
def storage(store, request) -> Storage:
    return open_storage(f"s3://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}")


def test_it_answers_like_a_folder_in_one_request_each(store, storage):
    asked = lambda: [store.requests.pop().method for _ in list(store.requests)]  # noqa: E731
    storage.write("a/b", b"0123456789")
    assert asked() == ["PUT"]
    assert storage.read_bytes("a/b") == storage.read_bytes("a/b", limit=10) == b"0123456789"
    assert asked() == ["GET", "GET"]
    with pytest.raises(Failed, match="has 10 bytes, more than the 5 allowed"):
        storage.read_bytes("a/b", limit=5)
    asked()
    assert storage.read_range("a/b", 8, 4) == b"89"
    assert storage.read_range("a/b", 18, 4) == b""
    assert asked() == ["GET", "GET"]
    assert (storage.size("a/b"), storage.exists("a/b"), storage.exists("a"), storage.exists("no")) == (
        10,
        True,
        False,
        False,
    )
    assert storage.version("no") is None
    assert asked() == ["HEAD"] * 5
    with storage.open("a/b") as file:
        file.seek(-3, os.SEEK_END)
        assert file.read() == b"789"
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("no")
    assert storage.names("a") == ["b"]
    assert storage.names("none") == []
    storage.delete("a/b")
    storage.delete("a/b")
    storage.write("a/c/d", b"")
    storage.delete_folder("a")
    assert not storage.exists("a/c/d")
    assert pickle.loads(pickle.dumps(storage)).url == storage.url


def test_a_condition_is_decided_by_the_store(store, storage):
    storage.create("meta", b"first")
    with pytest.raises(AlreadyExists):
        storage.create("meta", b"second")
    version = storage.version("meta")
    storage.replace("meta", b"third", version)
    with pytest.raises(Changed):
        storage.replace("meta", b"fourth", version)
    with pytest.raises(Changed):
        storage.replace("absent", b"fourth", version)
    assert storage.read_bytes("meta") == b"third"


@pytest.mark.parametrize("name", ["create", "replace"])
def test_a_condition_that_our_own_lost_answer_broke_is_no_failure(store, storage, name):
    version = None
    if name == "replace":
        storage.write("meta", b"old")
        version = storage.version("meta")
    write = functools.partial(storage.replace, if_match=version) if version else storage.create
    fault = store.fault("deaf", "PUT", "meta")
    write("meta", b"ours")
    assert fault.times == 0
    assert storage.read_bytes("meta") == b"ours"
    store.fault("deaf", "PUT", "meta")
    with pytest.raises((AlreadyExists, Changed)):
        write("meta", b"ours")


def _race(url: str, start, queue, create: bool) -> None:
    storage, content = open_storage(url), b"the same bytes of all"
    version = None if create else storage.version("meta")
    start.wait()
    try:
        storage.create("meta", content) if version is None else storage.replace("meta", content, version)
        queue.put("won")
    except (AlreadyExists, Changed):
        queue.put("lost")


@pytest.mark.parametrize("create", [True, False])
def test_of_several_processes_one_wins_and_each_has_a_client_of_its_own(store, storage, create, capfd):
    storage.write("other" if create else "meta", b"first")  # the parent has a client, which no child may use
    context = multiprocessing.get_context("fork")
    start, queue = context.Barrier(4), context.Queue()
    racers = [context.Process(target=_race, args=(storage.url, start, queue, create)) for _ in range(4)]
    for racer in racers:
        racer.start()
    results = sorted(queue.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join()
    assert results == ["lost", "lost", "lost", "won"]
    before = time.monotonic()
    assert storage.read_bytes("meta") == b"the same bytes of all"
    assert time.monotonic() - before < 10, "a child has touched its parent's connections"
    assert capfd.readouterr().err == ""


def test_what_is_larger_than_a_part_is_seen_whole_or_not_at_all(store, storage, tmp_path):
    large = tmp_path / "large"
    large.write_bytes(os.urandom(PART + 1_000_000))
    store.fault("status", "PUT", "large", status=500)
    storage.write("large", large)
    with storage.open("large") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    assert digest.hexdigest() == hashlib.sha256(large.read_bytes()).hexdigest()

    def fail() -> None:
        with storage.writer("broken") as file:
            file.write(large.read_bytes())
            assert not storage.exists("broken")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not storage.exists("broken")
    assert [r.method for r in store.requests if r.key.endswith("broken")][-2] == "DELETE"  # of the upload


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("status", {"status": 503, "times": 2}),
        ("status", {"status": 500}),
        ("drop", {"times": 2}),
        ("deaf", {}),
        ("reset", {"times": 2}),
        ("slow", {"seconds": 0.3}),
        ("trickle", {}),
    ],
)
def test_a_fault_that_passes_is_not_noticed(store, storage, kind, more):
    content = os.urandom(300_000)
    if kind not in ("reset", "trickle"):
        store.fault(kind, "PUT", **more)
    storage.write("clip", content)
    store.fault(kind, "GET", **more)
    assert storage.read_bytes("clip") == content
    store.fault(kind, "GET", **more)
    assert storage.read_range("clip", 1000, 200_000) == content[1000:201_000]


@pytest.mark.parametrize(
    ("kind", "status", "bound"),
    [("status", 503, ATTEMPTS), ("status", 500, ATTEMPTS), ("drop", 0, 2 * ATTEMPTS), ("reset", 0, 3)],
)
def test_a_fault_that_stays_is_one_sentence_after_a_bounded_number_of_requests(
    store, storage, kind, status, bound
):
    storage.write("clip", bytes(100_000))
    store.requests.clear()
    store.fault(kind, times=1000, status=status)
    with pytest.raises(Failed, match=r"/clip could not be read: .*; repeat the command when the storage"):
        storage.read_bytes("clip")
    assert len(store.requests) <= bound
    if kind != "reset":
        with pytest.raises(Failed, match="could not be written"):
            storage.write("clip", b"")
        assert len(store.requests) <= 2 * bound


def test_a_listing_is_never_an_old_one(store, storage):
    other = open_storage(storage.url)
    for number in range(2):
        storage.write(f"shards/{number}", b"")
        subprocess.run(  # another process, whose writes no cache here hears of
            [sys.executable, "-c", _WRITE, storage.url, f"shards/x{number}"], check=True
        )
        assert len(other.names("shards")) == 2 * (number + 1)
        assert other.exists(f"shards/x{number}")


def test_a_lock_names_its_holder_and_a_dead_one_s_is_taken_over(store, storage):
    with storage.lock(".lock"):
        told = rf"\.lock \(held by process {os.getpid()} on {os.uname().nodename} since 20"
        with pytest.raises(Busy, match=told), storage.lock(".lock"):
            pass
    assert not storage.exists(".lock")
    subprocess.run([sys.executable, "-c", _LOCK_AND_DIE, storage.url], check=False)
    there = json.loads(storage.read_bytes(".lock"))
    with storage.lock(".lock"):
        assert json.loads(storage.read_bytes(".lock"))["pid"] == os.getpid()
    storage.write(".lock", json.dumps({**there, "host": "another"}).encode())
    with pytest.raises(Busy, match="on another since"), storage.lock(".lock"):
        pass
    storage.write(".lock", b"what is this")
    with pytest.raises(Busy, match="held by something unknown"), storage.lock(".lock"):
        pass


def test_locks_are_let_go_by_a_process_that_is_told_to_end(store, storage):
    with storage.lock(".lock"):
        release_locks()
        assert not storage.exists(".lock")


@pytest.mark.parametrize(
    ("url", "environment", "sentence"),
    [
        ("s3://absent/root", {}, "there is no such bucket; create s3://absent, or correct its name"),
        ("s3://clips/x", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "set AWS_ACCESS_KEY_ID and"),
        ("foo://clips/x", {}, "is in no storage known here; give a folder, s3://BUCKET/FOLDER or gs://"),
        ("s3://clips/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "repeat the command when the storage"),
    ],
)
def test_a_store_that_cannot_be_used_is_one_sentence(store, url, environment, sentence):
    program = """
import sys
from pipeline.outcome import Failed
from pipeline.storage import open_storage
for ask in (lambda s: s.write("a", b""), lambda s: s.create("a", b""), lambda s: s.lock("a").__enter__()):
    try:
        ask(open_storage(sys.argv[1]))
    except Failed as failure:
        print(failure.reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, url],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout + done.stderr
    assert all(sentence in line and url.split("/x")[0] in line for line in lines), lines


@pytest.mark.parametrize(
    ("package", "url", "extra"), [("s3fs", "s3://b/x", "s3"), ("gcsfs", "gs://b/x", "gcp")]
)
def test_a_package_that_is_missing_is_named(package, url, extra):
    call = [sys.executable, "-c", f"import sys; sys.modules[{package!r}] = None\n{_WRITE}", url, "a"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert f"{url} needs a package that is not installed; " in done.stderr
    assert f"pip install '.[{extra}]'" in done.stderr


def test_a_store_that_refuses_says_so(store, storage):
    store.fault("status", status=403)
    with pytest.raises(
        Failed, match=r"refuses it \(Refused\); give credentials that may read, write, delete"
    ):
        storage.write("a", b"")
    store.fault("status", "PUT", status=501)
    with pytest.raises(Failed, match="use one that supports conditional writes"):
        storage.create("a", b"")
    with pytest.raises(ValueError, match="s3:// names no bucket; give s3://BUCKET/FOLDER"):
        open_storage("s3://")


def test_lists_and_label_maps_are_read_by_url(store, storage, tmp_path):
    text = "label,youtube_id,time_start,time_end,split\nwalk,aaaaaaaaaa1,1,3,train\n"
    storage.write("lists/b.csv", text.encode())
    storage.write("lists/a.csv", text.encode())
    storage.write("classes.txt", b"walk\njump\n")
    both = [f"{storage.url}/lists/a.csv", f"{storage.url}/lists/b.csv"]
    assert manifest.expand([f"{storage.url}/lists/*.csv", both[1]]) == both
    assert manifest.read(both[0]).to_pylist()[0] | {"manifest": ""} == manifest.read(both[1]).to_pylist()[
        0
    ] | {"manifest": ""}
    assert manifest.read_classes(f"{storage.url}/classes.txt") == ("walk", "jump")
    with pytest.raises(manifest.ManifestError, match="no such file"):
        manifest.expand([f"{storage.url}/lists/c.csv"])
    with pytest.raises(manifest.ManifestError, match="cannot be read"):
        manifest.read(f"{storage.url}/lists/c.csv")
    assert location.identity(both[0]) != location.identity(both[1])


def test_of_two_publishers_one_fails_with_a_sentence(store, storage):
    first, second = prepare(storage.url, ROWS[:3]), prepare(storage.url, ROWS[:3])
    held = second.storage.version("dataset.json")
    first.publish()
    assert held is None
    with pytest.raises(PublishError, match="another run has published to s3://"):
        second.publish()
    with (
        storage.lock(".publish.lock"),
        pytest.raises(
            PublishError,
            match=r"another run is publishing .* delete s3:.* \(held by process \d+ on .* since 20",
        ),
    ):
        prepare(storage.url, ROWS[3:5], "00001", first_row=5).publish()
    report = verify(storage.url, workers=1)
    assert report.breaches == []


def test_a_data_set_that_is_published_while_another_holds_no_lock_is_kept(store, storage, monkeypatch):
    """The lock is a courtesy: dataset.json's own condition decides."""
    prepare(storage.url, ROWS[:3]).publish()
    late = prepare(storage.url, ROWS[3:5], "00001", first_row=5)
    meta = storage.read_bytes("dataset.json")
    real = type(storage).replace

    def replace(self: Storage, path: str, content: bytes, if_match: str) -> None:
        open_storage(storage.url).write(path, meta + b"\n")  # somebody was faster by a breath
        real(self, path, content, if_match)

    monkeypatch.setattr(type(storage), "replace", replace)
    with pytest.raises(PublishError, match="another run has published"):
        late.publish()
    assert storage.read_bytes("dataset.json") == meta + b"\n"
    assert dataset.open(storage).generations == ["00000"]


def test_the_work_store_asks_by_key(store, storage, tmp_path):
    work = WorkStore(storage)
    (tmp_path / "clip").write_bytes(os.urandom(100_000))
    assert work.read_record("encode", "0", "k") is None
    stored = work.put_file("encode", "0", "k", ".mp4", tmp_path / "clip")
    work.write_record("encode", "0", "k", {"files": {"mp4": stored.as_dict()}, "meta": {}})
    assert work.read_record("encode", "0", "k") is not None
    target = tmp_path / "copy"
    target.mkdir()
    assert work.local_copy(stored, target).read_bytes() == (tmp_path / "clip").read_bytes()
    assert [r.method for r in store.requests] == ["GET", "PUT", "PUT", "GET", "HEAD", "GET"]
    assert not any(r.lists for r in store.requests)
    work.clean()
    assert store.names(Path(storage.url).name + "/") == []
