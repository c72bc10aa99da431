"""The work store is asked by key, and believes no record whose file is not there whole."""

from __future__ import annotations

import pytest

from pipeline.storage import open_storage
from pipeline.storage.work_store import Stored, WorkStore, canonical_json


@pytest.fixture
def work(tmp_path) -> WorkStore:
    return WorkStore(tmp_path / "work")


def test_a_path_follows_from_stage_recipe_and_key(work):
    path = work.path("encode", "0123456789abcdef", "-abc_000001_000011", ".flow.mp4")
    assert path == "encode/0123456789abcdef/7b/-abc_000001_000011.flow.mp4"


@pytest.mark.parametrize("key", ["", "..", "a/b", "a.b", "a\n", "a\0", "ü", "x" * 91, "a b"])
def test_only_plain_names_become_paths(work, key):
    with pytest.raises(ValueError, match="not a plain name"):
        work.path("encode", "0", key, ".mp4")


def test_a_record_is_there_only_with_its_files(work, tmp_path):
    source = tmp_path / "source.mp4"
    source.write_bytes(b"x" * 3_000_000)
    assert work.read_record("encode", "0", "k") is None
    stored = work.put_file("encode", "0", "k", ".mp4", source)
    assert (stored.size, work.has(stored)) == (3_000_000, True)
    work.write_record("encode", "0", "k", {"outcome": "ready", "files": {"mp4": stored.as_dict()}})
    record = work.read_record("encode", "0", "k")
    assert record is not None
    assert Stored(**record["files"]["mp4"]) == stored
    assert work.local_copy(stored, tmp_path).read_bytes() == source.read_bytes()

    work.storage.write(stored.path, b"shorter")
    assert work.read_record("encode", "0", "k") is None
    work.storage.delete(stored.path)
    assert work.read_record("encode", "0", "k") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"files": 1}', b'{"files": {"a": {}}}', b"\xff"])
def test_a_damaged_record_counts_as_none(work, damage):
    work.write_record("encode", "0", "k", {"outcome": "failed"})
    path = work.path("encode", "0", "k", ".record.json")
    assert work.storage.exists(path)
    work.storage.write(path, damage)
    assert work.read_record("encode", "0", "k") is None


def test_a_file_comes_back_from_an_object_store_as_a_local_copy(tmp_path):
    work = WorkStore(open_storage(f"memory://{tmp_path.name}"))
    (tmp_path / "in").write_bytes(b"content")
    stored = work.put_file("flow", "0", "k", ".flow.mp4", tmp_path / "in")
    assert work.local_copy(stored, tmp_path).read_bytes() == b"content"
    work.storage.write(stored.path, b"cOntent")
    assert work.local_copy(stored, tmp_path) is None
    work.storage.delete(stored.path)
    assert work.local_copy(stored, tmp_path) is None


def test_json_bytes_depend_on_the_value_only():
    assert canonical_json({"b": [1.5, "ü"], "a": None}) == b'{"a":null,"b":[1.5,"\\u00fc"]}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_cleaning_leaves_what_is_not_the_work_store_s(work, tmp_path):
    (tmp_path / "in").write_bytes(b"content")
    work.put_file("encode", "0", "k", ".mp4", tmp_path / "in")
    work.storage.write("notes/mine.txt", b"kept")
    work.clean()
    assert work.storage.names("encode") == []
    assert work.storage.read_bytes("notes/mine.txt") == b"kept"
