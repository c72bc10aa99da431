"""A written file appears whole or not at all, and a refusing disk gives one sentence."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from pipeline.outcome import Failed, FailureClass, Misplaced
from pipeline.sources.ytdlp.failures import FailedForNow
from pipeline.storage import AlreadyExists, Busy, Changed, Storage, open_storage, replacing


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path) -> Storage:
    return open_storage(tmp_path / "root" if request.param == "local" else f"memory://{tmp_path.name}")


def test_a_folder_and_an_object_store_answer_alike(storage):
    assert storage.version("a/b.bin") is None
    assert not storage.exists("a/b.bin")
    assert storage.names("a") == []
    storage.write("a/b.bin", b"0123456789")
    assert storage.read_bytes("a/b.bin") == b"0123456789"
    assert storage.read_range("a/b.bin", 3, 4) == b"3456"
    assert storage.read_range("a/b.bin", 8, 4) == b"89"
    assert storage.size("a/b.bin") == 10
    assert not storage.exists("a")
    assert storage.names("a") == ["b.bin"]
    with storage.open("a/b.bin") as file:
        file.seek(5)
        assert file.read() == b"56789"
    with pytest.raises(AlreadyExists):
        storage.create("a/b.bin", b"other")
    version = storage.version("a/b.bin")
    storage.replace("a/b.bin", b"new", version)
    with pytest.raises(Changed):
        storage.replace("a/b.bin", b"newer", version)
    assert storage.read_bytes("a/b.bin") == b"new"
    with pytest.raises(Failed, match="more than the 2 allowed"):
        storage.read_bytes("a/b.bin", limit=2)
    assert storage.names("a") == ["b.bin"]
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a/b.bin")
    storage.create("a/b.bin", b"again")
    assert pickle.loads(pickle.dumps(storage)).read_bytes("a/b.bin") == b"again"


def test_a_local_file_is_copied_in(storage, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 10_000)
    storage.write("copy", source)
    assert storage.read_bytes("copy") == source.read_bytes()


def test_a_write_that_fails_in_the_middle_leaves_what_was_there(tmp_path):
    storage = open_storage(tmp_path)  # (fsspec's memory store shows unfinished files; real ones do not)
    storage.write("a/file", b"old")

    def fail() -> None:
        with storage.writer("a/file") as file:
            file.write(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert storage.read_bytes("a/file") == b"old"
    assert storage.names("a") == ["file"]


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a\0b", "a\nb", "", "a\\..\\b"])
def test_no_path_leads_out_of_the_root(storage, path):
    for ask in (storage.read_bytes, storage.exists, storage.delete, storage.where):
        with pytest.raises(ValueError, match="not a path inside"):
            ask(path)


def test_a_lock_is_held_by_one_and_leaves_nothing(storage):
    with storage.lock(".lock"), pytest.raises(Busy), storage.lock(".lock"):
        pass
    with storage.lock(".lock"):
        pass
    assert not storage.exists(".lock")


def test_failures_come_back_from_another_process_as_they_are():
    for failure in (
        Failed(FailureClass.CORRUPT, "damaged"),
        Misplaced("no folder can be there"),
        FailedForNow(FailureClass.NETWORK, "a loop"),
    ):
        found = pickle.loads(pickle.dumps(failure))
        assert type(found) is type(failure)
        assert (found.failure_class, found.reason) == (failure.failure_class, failure.reason)


def _write_as_nobody(root: str, queue) -> None:
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    try:
        open_storage(root).write("new/file", b"x")
    except Failed as failure:
        queue.put((str(failure.failure_class), failure.reason))
    else:
        queue.put(("written", ""))


def test_a_read_only_folder_is_one_sentence():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        writer = context.Process(target=_write_as_nobody, args=(folder, queue))
        writer.start()
        failure_class, reason = queue.get(timeout=60)
        writer.join()
        assert failure_class == "storage"
        assert reason == (
            f"{folder}/new/file could not be written: permission denied; "
            "change its permissions or choose another folder, and repeat the command"
        )
        assert os.listdir(folder) == []


def test_a_file_where_a_folder_should_be_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Failed, match="could not be written: "):
        open_storage(tmp_path / "file").write("a/b", b"x")


def test_a_full_disk_leaves_no_part_and_no_temporary_file(tmp_path):
    open_storage(tmp_path).write("file", b"old")
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from pipeline.outcome import Failed
        from pipeline.storage import open_storage
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        storage, big = open_storage(sys.argv[1]), bytes(1 << 20)
        for write in (storage.write, storage.create):
            try:
                write("file" if write == storage.write else "new", big)
            except Failed as failure:
                print(failure.reason)
        try:
            storage.replace("file", big, storage.version("file"))
        except Failed as failure:
            print(failure.reason)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("file too large; raise the limit" in line for line in lines)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_file_system_without_hard_links_creates_as_safely(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    storage = open_storage(tmp_path)
    storage.create("dataset.json", b"first")
    with pytest.raises(AlreadyExists):
        storage.create("dataset.json", b"second")
    assert storage.read_bytes("dataset.json") == b"first"
    assert os.listdir(tmp_path) == ["dataset.json"]


def _create(root: str, start, queue) -> None:
    storage, name = open_storage(root), str(os.getpid()).encode()
    start.wait()
    try:
        storage.create("dataset.json", name * 10_000)
        queue.put(("created", name))
    except AlreadyExists:
        queue.put(("taken", name))


def _replace(root: str, start, queue) -> None:
    storage, name = open_storage(root), str(os.getpid()).encode()
    version = storage.version("dataset.json")
    start.wait()
    try:
        storage.replace("dataset.json", name * 10_000, version)
        queue.put(("created", name))
    except Changed:
        queue.put(("taken", name))


@pytest.mark.parametrize("race", [_create, _replace])
def test_of_several_who_race_for_a_name_one_wins(tmp_path, race):
    if race is _replace:
        open_storage(tmp_path).write("dataset.json", b"first")
    context = multiprocessing.get_context("fork")
    start, queue = context.Barrier(4), context.Queue()
    racers = [context.Process(target=race, args=(str(tmp_path), start, queue)) for _ in range(4)]
    for racer in racers:
        racer.start()
    results = [queue.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    winners = [name for what, name in results if what == "created"]
    assert len(winners) == 1
    assert Path(tmp_path / "dataset.json").read_bytes() == winners[0] * 10_000
    assert os.listdir(tmp_path) == ["dataset.json"]


def test_a_killed_writer_s_temporary_file_is_swept(tmp_path):
    program = textwrap.dedent("""
        import os, sys
        from pipeline.storage import open_storage
        with open_storage(sys.argv[1]).writer("shards/a.tar") as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), 9)
    """)
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    storage = open_storage(tmp_path)
    assert len(storage.names("shards")) == 1
    storage.sweep("shards")
    assert storage.names("shards") == []
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    storage.write("shards/a.tar", b"whole")
    assert storage.names("shards") == ["a.tar"], "the next writer of the name takes it over"
    assert storage.read_bytes("shards/a.tar") == b"whole"


def _write(root: str, start) -> None:
    storage, content = open_storage(root), str(os.getpid()).encode() * 100_000
    start.wait()
    for _ in range(20):
        storage.write("file", content)


def test_of_several_who_write_a_name_at_once_each_writes_it_whole(tmp_path):
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    writers = [context.Process(target=_write, args=(str(tmp_path), start)) for _ in range(4)]
    for writer in writers:
        writer.start()
    wholes = {str(writer.pid).encode() * 100_000 for writer in writers}
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / "file").exists():
            assert (tmp_path / "file").read_bytes() in wholes
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_writer_killed_while_creating_left_is_no_way_into_what_it_published(tmp_path):
    """Its temporary name and the published one were then two names of one file."""
    storage = open_storage(tmp_path)
    storage.create("dataset.json", b"published")
    os.link(tmp_path / "dataset.json", tmp_path / f".dataset.json.{os.uname().nodename}.tmp")
    with pytest.raises(AlreadyExists):
        storage.create("dataset.json", b"the loser's")
    assert storage.read_bytes("dataset.json") == b"published"
    assert os.listdir(tmp_path) == ["dataset.json"]


def test_a_file_system_without_locks_is_written_as_safely(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a"):
        raise KeyboardInterrupt
    with replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"whole"
