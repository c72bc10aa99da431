"""Promises of the cache: what comes out is what the index says, and the folder never outgrows its limit."""

from __future__ import annotations

import errno
import hashlib
import logging
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny_dataset

from pipeline.outcome import Failed, FailureClass
from pipeline.storage.object_store import ObjectStore
from trainer.data.batches import Input
from trainer.data.cache import GIB, Cache, CacheError
from trainer.data.reading import Reader, ReadError, SampleError
from trainer.data.rows import Rows, open_rows

STREAMS = ("rgb", "flow")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny_dataset.publish(tmp_path_factory.mktemp("data") / "set", {"train": 6}, frames=(12,))


@pytest.fixture
def remote(root) -> str:
    import fsspec

    store = fsspec.filesystem("memory")
    store.put(str(root), "/cache-test", recursive=True)
    yield "memory://cache-test"
    store.rm("/cache-test", recursive=True)


def kept(cache: Cache) -> dict[str, int]:
    return {p.name: p.stat().st_size for p in cache.folder.glob("??/*")}


def rows_of(root: str | Path, *streams: str) -> Rows:
    return open_rows([str(root)], "train", streams or STREAMS)


def member(number: int, size: int) -> tuple[str, bytes]:
    data = random.Random(number).randbytes(size)
    return hashlib.sha256(data).hexdigest(), data


def test_a_member_is_read_once_and_then_from_the_cache(root, remote, tmp_path):
    import fsspec

    cache, rows = Cache.open(tmp_path / "cache", 1), rows_of(remote)
    first = [Reader(rows, STREAMS, cache).read(row) for row in range(6)]
    assert first == [Reader(rows_of(root), STREAMS).read(row) for row in range(6)]
    assert set(kept(cache)) == {*rows.digests["rgb"].to_pylist(), *rows.digests["flow"].to_pylist()}
    for path in fsspec.filesystem("memory").find("/cache-test/shards"):
        fsspec.filesystem("memory").rm(path)
    assert [Reader(rows, STREAMS, cache).read(row) for row in range(6)] == first


def test_one_stream_more_reads_that_one_only(remote, tmp_path):
    cache, rows = Cache.open(tmp_path, 1), rows_of(remote)
    flow = Reader(rows, ("flow",), cache).read(0)
    assert list(kept(cache)) == [rows.digests["flow"][0].as_py()]
    both = Reader(rows, STREAMS, cache).read(0)
    assert both["flow"] == flow["flow"]
    assert both == Reader(rows, STREAMS).read(0)


def test_what_lies_on_this_machine_is_not_kept_twice(root, tmp_path):
    cache = Cache.open(tmp_path, 1)
    Reader(rows_of(root), STREAMS, cache).read(0)
    assert not kept(cache)


def test_a_damaged_member_is_read_again_and_one_that_is_not_the_indexs_never_kept(remote, tmp_path):
    cache, rows = Cache.open(tmp_path, 1), rows_of(remote, "rgb")
    reader = Reader(rows, ("rgb",), cache)
    whole = reader.read(0)
    path = next(cache.folder.glob("??/*"))
    path.write_bytes(path.read_bytes()[:-1])
    assert reader.read(0) == whole
    assert path.stat().st_size == len(whole["rgb"])
    rows.digests["rgb"] = rows.digests["rgb"][::-1]
    with pytest.raises(SampleError, match="not what the index says"):
        Reader(rows, ("rgb",), cache).read(1)
    assert len(kept(cache)) == 1


def test_what_was_taken_down_leaves_the_cache(remote, tmp_path):
    from trainer.data.loader import TrainBatches

    cache, rows = Cache.open(tmp_path, 1), rows_of(remote, "rgb")
    for row in range(6):
        Reader(rows, ("rgb",), cache).read(row)
    rows.removed.flags.writeable = True
    rows.removed[2] = True
    TrainBatches(rows, Input(frames=8, short_side=64, crop=48), batch_size=2, cache=cache)
    assert set(kept(cache)) == set(rows.digests["rgb"].to_pylist()) - {rows.digests["rgb"][2].as_py()}


def test_the_least_recently_used_go_when_the_limit_is_reached(tmp_path):
    cache = Cache(tmp_path, 10_000)
    members = [member(i, 1000) for i in range(12)]
    for number, (digest, data) in enumerate(members[:10]):
        cache.put(digest, data)
        os.utime(tmp_path / digest[:2] / digest, ns=(number, number))
    assert cache.get(members[0][0]) == members[0][1]  # used now
    for digest, data in members[10:]:
        cache.put(digest, data)
    assert sum(kept(cache).values()) <= 10_000
    assert cache.get(members[0][0])
    assert cache.get(members[1][0]) is None
    assert cache.get(members[11][0]) == members[11][1]
    cache.put(*member(99, 10_001))  # would never fit
    assert cache.get(members[11][0])


def fill(folder: Path, seed: int) -> None:
    cache, chance = Cache(folder, 50_000), random.Random(seed)
    while True:
        digest, data = member(chance.randrange(200), 1000)
        found = cache.get(digest)
        if found is None:
            cache.put(digest, data)
        elif found != data:
            os._exit(3)


def test_processes_that_share_a_cache_keep_its_limit_and_one_may_be_killed(tmp_path):
    cache = Cache.open(tmp_path, 1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(tmp_path, seed), daemon=True) for seed in range(3)]
    for process in processes:
        process.start()
    most, end = 0, time.monotonic() + 1.5
    while time.monotonic() < end or (most <= 40_000 and time.monotonic() < end + 30):
        with cache._locked():  # else what goes and what comes meanwhile would both be counted
            most = max(most, sum(kept(cache).values()))
        if processes[0].is_alive() and most > 40_000:
            os.kill(processes[0].pid, signal.SIGKILL)
            processes[0].join()
        time.sleep(0.01)
    for process in processes[1:]:
        assert process.is_alive()
        process.kill()
        process.join()
    assert 40_000 < most <= 50_000
    assert int((tmp_path / "bytes").read_text()) >= sum(kept(cache).values())


def test_a_store_that_does_not_answer_is_asked_once_for_its_client_has_asked_again(remote, monkeypatch):
    asked = []

    def refuse(self, path, offset, size):
        asked.append(path)
        raise Failed(FailureClass.STORAGE, "the store does not answer: look at it")

    reader = Reader(rows_of(remote, "rgb"), ("rgb",))
    monkeypatch.setattr(ObjectStore, "read_range", refuse)
    with pytest.raises(ReadError, match="the store does not answer: look at it"):
        reader.read(0)
    assert len(asked) == 1


def test_a_disk_that_refuses_is_said_once_and_reading_goes_on(remote, tmp_path, monkeypatch, caplog):
    cache, rows = Cache.open(tmp_path, 1), rows_of(remote, "rgb")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        for row in range(3):
            assert Reader(rows, ("rgb",), cache).read(row)
    assert caplog.text.count("No space left") == 1


@pytest.mark.parametrize("link", ["incoming", "shelf", "bytes", "member"])
def test_a_link_that_a_neighbour_put_into_a_shared_cache_leads_nowhere(link, tmp_path):
    diary = tmp_path / "user" / "diary"
    diary.parent.mkdir()
    diary.write_text("a file of the user's")
    cache = Cache.open(tmp_path / "cache", 1)
    digest, data = member(1, 1000)
    if link == "shelf":
        (cache.folder / digest[:2]).symlink_to(diary.parent)
    elif link == "member":
        (cache.folder / digest[:2]).mkdir()
        (cache.folder / digest[:2] / digest).symlink_to(diary)
    else:
        (cache.folder / link).unlink(missing_ok=True)
        (cache.folder / link).symlink_to(diary)
    cache.put(digest, data)
    assert cache.get(digest) == (data if link in ("incoming", "member") else None)
    assert diary.read_text() == "a file of the user's"
    assert [path.name for path in diary.parent.iterdir()] == ["diary"]
    if link == "bytes":
        with pytest.raises(CacheError, match="a symbolic link is there"):
            Cache.open(cache.folder, 1)


def test_a_cache_that_cannot_be_had_is_refused_in_a_sentence(tmp_path):
    assert Cache.open(tmp_path / "new", 0.5).limit == GIB // 2
    with pytest.raises(CacheError, match="above 0"):
        Cache.open(tmp_path, 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be written"):
        Cache.open(tmp_path / "file", 1)
