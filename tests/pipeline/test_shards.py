"""A shard's bytes depend on its samples only, and anybody's tar reader finds what the index says."""

from __future__ import annotations

import hashlib
import json
import tarfile
from dataclasses import replace

import pytest
from published import Row, key, sample, video

from pipeline.dataset import shards
from pipeline.dataset.schema import shard_path
from pipeline.outcome import Failed
from pipeline.storage import open_storage
from pipeline.storage.work_store import WorkStore

PATH = shard_path("train", "00000", 0)
NAMES = ("aaaaaaaaaa1", "bbbbbbbbbb2", "-cccccccc_3")


@pytest.fixture
def work(tmp_path) -> WorkStore:
    return WorkStore(tmp_path / "work")


@pytest.fixture
def samples(work) -> list[shards.PackedSample]:
    return [sample(work, Row(name), number) for number, name in enumerate(NAMES)]


def test_the_order_of_arrival_and_the_kind_of_store_change_no_byte(samples, work, tmp_path):
    one, two, far = (
        open_storage(tmp_path / "1"),
        open_storage(tmp_path / "2"),
        open_storage(f"memory://{tmp_path.name}"),
    )
    first = shards.pack(samples, work.storage, one, PATH)
    assert shards.pack(samples[::-1], work.storage, two, PATH) == first
    assert shards.pack(samples, work.storage, far, PATH) == first
    assert one.read_bytes(PATH) == two.read_bytes(PATH) == far.read_bytes(PATH)
    assert shards.pack(samples, work.storage, one, PATH) == first  # once more over itself


def test_a_plain_tar_reader_finds_every_member_where_the_index_says(samples, work, tmp_path):
    info, rows = shards.pack(samples, work.storage, open_storage(tmp_path), PATH)
    data = (tmp_path / PATH).read_bytes()
    assert (info.size, info.sha256, info.samples) == (len(data), hashlib.sha256(data).hexdigest(), 3)
    with tarfile.open(tmp_path / PATH) as tar:
        members = tar.getmembers()
    assert [r["key"] for r in rows] == sorted(map(key, NAMES), key=shards.order)
    suffixes = ("cls", "flow.mp4", "json", "mp4")
    assert [m.name for m in members] == [f"{row['key']}.{suffix}" for row in rows for suffix in suffixes]
    assert {(m.mtime, m.uid, m.gid, m.mode, m.uname, m.gname, m.isreg()) for m in members} == {
        (0, 0, 0, 0o644, "", "", True)
    }
    for row, first in zip(rows, members[::4], strict=True):
        assert row["sample_offset"] == first.offset
        number = NAMES.index(row["youtube_id"])
        for name, path in (("rgb", video(number)), ("flow", video(number, True))):
            begin = row[f"{name}_offset"]
            payload = data[begin : begin + row[f"{name}_size"]]
            assert payload == path.read_bytes()
            assert row[f"{name}_sha256"] == hashlib.sha256(payload).hexdigest()
    ends = [row["sample_offset"] + row["sample_size"] for row in rows]
    assert [0, *ends[:-1]] == [row["sample_offset"] for row in rows]
    assert not any(data[ends[-1] :])
    assert len(data) % tarfile.RECORDSIZE == 0


def test_json_and_class_are_text_that_anybody_reads(samples, work, tmp_path):
    shards.pack(samples[:1], work.storage, open_storage(tmp_path), PATH)
    with tarfile.open(tmp_path / PATH) as tar:
        assert tar.extractfile(f"{key(NAMES[0])}.cls").read() == b"1"
        text = tar.extractfile(f"{key(NAMES[0])}.json").read()
    assert json.loads(text) == samples[0].meta
    assert text.startswith(b'{"flow":{"bound":20.0,')


def test_without_label_and_flow_there_is_no_member_for_them(work, tmp_path):
    plain = sample(work, Row("aaaaaaaaaa1", label=None), 0, with_flow=False)
    _, (row,) = shards.pack([plain], work.storage, open_storage(tmp_path), PATH)
    with tarfile.open(tmp_path / PATH) as tar:
        assert [n.partition(".")[2] for n in tar.getnames()] == ["json", "mp4"]
    assert [
        row[n] for n in ("class_index", "flow_offset", "flow_size", "flow_sha256", "flow_saturation")
    ] == [None] * 5


@pytest.mark.parametrize("damage", ["other bytes", "shorter", "longer", "absent"])
def test_a_member_that_is_not_what_its_record_says_is_never_packed(samples, work, tmp_path, damage):
    stored = samples[1].members["mp4"]
    data = work.storage.read_bytes(stored.path)
    if damage == "absent":
        work.storage.delete(stored.path)
    else:
        changed = {"other bytes": b"?" + data[1:], "shorter": data[:-1], "longer": data + b"?"}[damage]
        work.storage.write(stored.path, changed)
    root = open_storage(tmp_path / "root")
    with pytest.raises(Failed, match=r"bbbbbbbbbb2.*is not what its record says"):
        shards.pack(samples, work.storage, root, PATH)
    assert root.names("shards") == []


def test_samples_that_do_not_belong_together_are_refused(samples, work, tmp_path):
    root = open_storage(tmp_path / "root")
    for wrong, message in (
        ([samples[0], samples[0]], "two samples of one key"),
        ([replace(samples[0], split="val")], "is of split val"),
        ([replace(samples[0], key="a.b")], "not a plain name"),
        ([replace(samples[0], members={})], "has the members"),
        ([replace(samples[0], meta={**samples[0].meta, "flow": None})], "disagree on flow"),
    ):
        with pytest.raises(ValueError, match=message):
            shards.pack(wrong, work.storage, root, PATH)
    with pytest.raises(ValueError, match="not the path of a shard"):
        shards.pack(samples, work.storage, root, "shards/../x.tar")
    assert root.names("shards") == []


def test_a_shard_s_description_survives_as_one_file(samples, work, tmp_path):
    info, rows = shards.pack(samples, work.storage, open_storage(tmp_path), PATH)
    assert shards.read_part(work.storage, "packed/0.parquet") is None
    shards.write_part(work.storage, "packed/0.parquet", info, rows)
    again = shards.read_part(work.storage, "packed/0.parquet")
    assert again is not None
    assert (again[0], again[1].to_pylist()) == (info, [dict(sorted_like(row, again[1])) for row in rows])
    work.storage.write("packed/0.parquet", b"PAR1 damaged")
    assert shards.read_part(work.storage, "packed/0.parquet") is None


def sorted_like(row, table):
    return ((name, row[name]) for name in table.column_names)
