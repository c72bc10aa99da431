"""A published data set opens fast, reads by key, and is not believed when it lies."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published import CLASSES, ROWS, Row, key, prepare, video

from pipeline import dataset
from pipeline.dataset import DatasetError
from pipeline.dataset.schema import INDEX_SCHEMA, OUTCOME_SCHEMA, outcome_path
from pipeline.storage import open_storage


@pytest.fixture
def root(tmp_path):
    prepare(tmp_path).publish()
    return tmp_path


def test_what_was_published_is_what_opens(root):
    opened = dataset.open(root)
    assert opened.splits == ["train", "val", "test"]
    assert opened.classes == CLASSES
    assert opened.generations == ["00000"]
    assert opened.index("train").schema == INDEX_SCHEMA
    assert sorted(opened.index("train")["key"].to_pylist()) == sorted(key(r.name) for r in ROWS[:3])
    assert opened.index("train", generations=[]).num_rows == 0
    order = opened.index("train").select(["shard", "sample_offset"]).to_pylist()
    assert order == sorted(order, key=lambda r: (r["shard"], r["sample_offset"]))
    outcomes = opened.outcomes()
    assert outcomes.schema == OUTCOME_SCHEMA
    assert [(r["row"], r["outcome"]) for r in outcomes.to_pylist()] == [
        (number, row.outcome) for number, row in enumerate(ROWS, start=2)
    ]
    with pytest.raises(ValueError, match="no split"):
        opened.index("../train")
    with pytest.raises(ValueError, match="no generation"):
        opened.index("train", ["00009"])


def test_a_sample_is_read_by_its_key(root):
    sample = dataset.open(root).read(key("bbbbbbbbbb2"))
    assert (sample.label, sample.class_index) == ("jump", 0)
    assert sample.members["mp4"] == video(1).read_bytes()
    assert sample.members["flow.mp4"] == video(1, True).read_bytes()
    assert sample.members["cls"] == b"0"
    assert sample.meta["frames"] == 50
    with pytest.raises(KeyError):
        dataset.open(root).read("no_such_key")


def test_a_sample_decodes_to_frames_and_flow(root):
    sample = dataset.open(root).read(key("eeeeeeeeee5"))
    assert sample.class_index is None
    assert (sample.rgb.shape, sample.rgb.dtype) == ((50, 256, 320, 3), np.uint8)
    assert sample.flow is not None
    assert (sample.flow.shape, sample.flow.dtype) == ((50, 256, 320, 2), np.float32)
    assert sample.rgb is sample.rgb  # decoded once


def test_without_flow_flow_is_none(tmp_path):
    prepare(tmp_path, ROWS[:1], with_flow=False).publish()
    sample = dataset.open(tmp_path).read(key("aaaaaaaaaa1"))
    assert sample.flow is None
    assert set(sample.members) == {"cls", "json", "mp4"}


def test_a_data_set_in_an_object_store_reads_the_same(root, tmp_path):
    far = open_storage(f"memory://{tmp_path.name}")
    for path in root.rglob("*"):
        if path.is_file():
            far.write(str(path.relative_to(root)), path)
    near, opened = dataset.open(root), dataset.open(far)
    assert opened.index("train").equals(near.index("train"))
    assert opened.read(key("aaaaaaaaaa1")).members == near.read(key("aaaaaaaaaa1")).members


def test_opening_imports_neither_beam_nor_numba_nor_torch():
    program = "import pipeline.dataset, sys; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"apache_beam", "numba", "torch", "av", "cv2", "yt_dlp", "fsspec"} & set(done.stdout.split())


def _shard(**changes):
    return lambda meta: meta["shards"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _shard(path="../../etc/passwd"),
        _shard(path="/etc/passwd"),
        _shard(path="shards/train-00000-00000.tar/../../../x"),
        _shard(path="shards/train-00000-00001.tar\n"),
        _shard(path="shards/val-00000-00000.tar"),
        _shard(split="secret"),
        _shard(generation="00007"),
        _shard(samples=-1),
        _shard(size=1 << 70),
        _shard(size=True),
        _shard(sha256="0" * 63),
        lambda meta: meta["shards"].append(meta["shards"][0]),
        lambda meta: meta["shards"].append([]),
        lambda meta: meta.update(shards={}),
        lambda meta: meta.update(format="quovadis/2"),
        lambda meta: meta.update(classes=["a", "a"]),
        lambda meta: meta.update(classes=[1]),
        lambda meta: meta.update(recipe=[]),
        lambda meta: meta.update(counts={"train": {"ready": -1}}),
        lambda meta: meta.update(counts={"../x": {}}),
        lambda meta: meta.update(generations=["../../x"]),
        lambda meta: meta.update(generations=["00001", "00000"]),
        lambda meta: meta.pop("generations"),
        lambda meta: meta.pop("shards"),
    ],
)
def test_a_dataset_json_that_is_not_ours_is_refused_with_a_sentence(root, change):
    meta = json.loads((root / "dataset.json").read_text())
    change(meta)
    (root / "dataset.json").write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        dataset.open(root)


@pytest.mark.parametrize("text", ["", "[]", "null", "1", "{", "[" * 100_000, '{"format": {}}'])
def test_anything_but_our_json_is_refused_with_a_sentence(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        dataset.open(tmp_path)


def test_a_newer_format_asks_to_upgrade(root):
    text = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(text.replace("quovadis/1", "quovadis/2"))
    with pytest.raises(DatasetError, match="a newer version made it: upgrade quovadis"):
        dataset.open(root)


def test_where_nothing_is_published_is_a_sentence(tmp_path):
    with pytest.raises(DatasetError, match="no data set is published there"):
        dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("shard", "../dataset.json", "names a shard"),
        ("shard", "shards/val-00000-00000.tar", "names a shard"),
        ("split", "val", "another split"),
        ("key", "../x", "no plain name"),
        ("key", "a\n", "no plain name"),
        ("sample_offset", -512, "outside"),
        ("sample_offset", (1 << 63) - 1, "outside"),
        ("sample_size", -1, "outside"),
        ("sample_size", 1 << 40, "outside"),
        ("rgb_offset", 1 << 40, "outside"),
        ("flow_size", (1 << 63) - 1, "outside"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(root, column, value, message):
    path = root / "index" / "train-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), path)
    with pytest.raises(DatasetError, match=message):
        dataset.open(root).index("train")


def test_a_damaged_or_foreign_table_is_refused(root):
    path = root / "index" / "train-00000.parquet"
    data = path.read_bytes()
    for content, message in (
        (b"", "not readable"),
        (data[: len(data) // 2], "not readable"),
        (data[:40] + b"\xff" * 200 + data[240:], "train-00000"),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=message):
            dataset.open(root).index("train")
    pq.write_table(pa.table({"key": ["a"]}), path)
    with pytest.raises(DatasetError, match="no column split"):
        dataset.open(root).index("train")
    path.unlink()
    with pytest.raises(DatasetError, match="is absent"):
        dataset.open(root).index("train")


def test_a_sample_that_is_not_what_the_index_says_is_refused(root):
    opened = dataset.open(root)
    row = opened.index("val").to_pylist()[0]
    path = root / row["shard"]
    data = bytearray(path.read_bytes())
    for place, message in (
        (row["rgb_offset"] + 100, "not what the index says"),
        (row["sample_offset"], "not the members of a tar"),
    ):
        damaged = data.copy()
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DatasetError, match=message):
            opened.read(row["key"])
    path.write_bytes(data[: row["sample_offset"] + 600])
    with pytest.raises(DatasetError, match="ends before"):
        opened.read(row["key"])


def test_a_removed_key_is_a_key_error_and_keeps_its_place(root):
    path = root / "index" / "val-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["removed"] = True
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), path)
    opened = dataset.open(root)
    assert opened.index("val").num_rows == 1
    with pytest.raises(KeyError, match="removed"):
        opened.read(rows[0]["key"])


def test_the_latest_generation_decides_a_row(root):
    later = prepare(root, (Row("ffffffffff6"),), generation="00001", first_row=8)
    later.publish()
    opened = dataset.open(root)
    assert opened.outcome_part("00001").num_rows == 1
    decided = [r for r in opened.outcomes().to_pylist() if r["youtube_id"] == "ffffffffff6"]
    assert [(r["outcome"], r["generation"]) for r in decided] == [("ready", "00001")]
    assert opened.outcomes().num_rows == len(ROWS)
    assert opened.index("train", ["00001"])["key"].to_pylist() == [key("ffffffffff6")]
    assert opened.index("train")["key"].to_pylist()[-1] == key("ffffffffff6")
    assert (root / outcome_path("00000")).exists()
