"""`verify` passes what was published well and finds every kind of breach."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import tarfile
from pathlib import Path

import imageio_ffmpeg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from published import ROWS, Row, key, prepare, sample, video

from pipeline import dataset
from pipeline.dataset import shards
from pipeline.dataset.schema import INDEX_SCHEMA, OUTCOME_SCHEMA
from pipeline.maintenance.verify import verify
from pipeline.maintenance.verify_media import Promised, flow_breaches, inspect, rgb_breaches
from pipeline.storage.work_store import WorkStore


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("published")
    prepare(root).publish()
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def root(published, tmp_path) -> Path:
    for name, data in published.items():
        if not name.startswith("work/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
    return tmp_path


def _breaches(root: Path, sample: float = 1.0) -> str:
    report = verify(root, sample=sample, workers=1)
    assert report.ok == (not report.breaches)
    return "\n".join(report.breaches)


def test_a_published_data_set_passes_and_says_what_was_checked(root):
    report = verify(root)
    assert report.breaches == []
    assert report.notes == []
    assert report.checked == {"outcomes": 8, "index rows": 5, "shards hashed": 4, "clips decoded": 5}
    assert report.lines() == [
        "checked 8 outcomes, 5 index rows, 4 shards hashed, 5 clips decoded: every promise holds"
    ]


def test_a_sample_decodes_fewer_clips_and_hashes_everything(root):
    report = verify(root, sample=0, workers=1)
    assert report.ok
    assert report.checked["clips decoded"] == 0
    assert report.checked["shards hashed"] == 4
    assert 0 < verify(root, sample=0.6, workers=1).checked["clips decoded"] < 5
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share between 0 and 1"):
            verify(root, sample=share)


def test_a_byte_flipped_anywhere_in_a_shard_is_found(root):
    path = root / "shards" / "train-00000-00000.tar"
    data = path.read_bytes()
    places = [0, 100, 156, len(data) - 1, *random.Random(0).sample(range(len(data)), 40)]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        assert "another sha256" in _breaches(root, sample=0), place


def test_a_flipped_byte_is_also_found_by_who_reads_the_clip(root):
    path = root / "shards" / "val-00000-00000.tar"
    data = bytearray(path.read_bytes())
    row = pq.read_table(root / "index" / "val-00000.parquet").to_pylist()[0]
    data[row["flow_offset"] + row["flow_size"] // 2] ^= 4
    path.write_bytes(data)
    assert "dddddddddd4_000001_000003.flow.mp4 is not what the index says" in _breaches(root)


def _edit_table(path: Path, schema: pa.Schema, change) -> None:
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(change(rows), schema=schema), path)


def _with(**changes):
    return lambda rows: [rows[0] | changes, *rows[1:]]


@pytest.mark.parametrize(
    "change",
    [
        _with(key="zzzzzzzzzz9_000001_000003"),
        _with(label="jump", class_index=0),
        _with(class_index=None),
        _with(youtube_id="zzzzzzzzzz9"),
        _with(time_start=0.5),
        _with(time_end=4.0),
        _with(shard="shards/train-00000-00001.tar"),
        _with(sample_offset=512),
        _with(sample_size=1024),
        _with(rgb_offset=0),
        _with(rgb_size=1),
        _with(rgb_sha256="0" * 64),
        _with(flow_offset=None),
        _with(flow_size=1),
        _with(flow_sha256="0" * 64),
        _with(frames=49),
        _with(width=322),
        _with(height=258),
        _with(flow_saturation=0.5),
        _with(flow_saturation=None),
        _with(removed=True),
        lambda rows: rows[1:],
        lambda rows: [*rows, rows[0]],
        lambda rows: [],
    ],
)
def test_an_edited_index_is_found(root, change):
    def walk_first(rows):
        return change(sorted(rows, key=lambda r: r["label"] != "walk"))

    _edit_table(root / "index" / "train-00000.parquet", INDEX_SCHEMA, walk_first)
    assert _breaches(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        lambda rows: [r for r in rows if r["outcome"] != "excluded"],
        lambda rows: [*rows, rows[-1]],
        lambda rows: [*rows, rows[-1] | {"row": 99}],
        _with(outcome="failed", failure_class="gone", reason="x"),
        _with(label="jump"),
        _with(split="val"),
        _with(key=None),
        _with(generation="00001"),
        _with(generation=None),
        _with(reason="", outcome="excluded", excluded_for="leak"),
        lambda rows: [r | {"reason": None} for r in rows],
        lambda rows: [r | {"failure_class": "gone"} for r in rows],
        lambda rows: [*rows[:-1], rows[-1] | {"failure_class": None}],
        lambda rows: [*rows[:-1], rows[-1] | {"failure_class": "whim"}],
    ],
)
def test_edited_outcomes_are_found(root, change):
    _edit_table(root / "outcomes" / "00000.parquet", OUTCOME_SCHEMA, change)
    assert _breaches(root, sample=0)


def _edit_meta(root: Path, change) -> None:
    meta = json.loads((root / "dataset.json").read_text())
    change(meta)
    (root / "dataset.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["counts"]["train"].update(ready=4),
        lambda m: m["counts"].pop("unknown"),
        lambda m: m["classes"].append("zebra") or m["classes"].reverse(),
        lambda m: m["shards"].pop(),
        lambda m: m["shards"][0].update(samples=3),
        lambda m: m["shards"][0].update(size=512),
        lambda m: m["shards"][0].update(sha256="0" * 64),
        lambda m: m["recipe"].update(flow=None),
        lambda m: m["generations"].append("00001"),
        lambda m: m.update(format="other"),
    ],
)
def test_an_edited_dataset_json_is_found(root, change):
    _edit_meta(root, change)
    assert _breaches(root, sample=0)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "index/val-00000.parquet",
        "outcomes/00000.parquet",
        "shards/val-00000-00000.tar",
    ],
)
def test_a_file_that_is_gone_or_renamed_is_found(root, name):
    (root / name).rename(root / f"{name}.old")
    assert "is absent" in _breaches(root)


def test_a_folder_without_dataset_json_is_no_data_set_to_check(root):
    (root / "dataset.json").unlink()
    with pytest.raises(dataset.NoDatasetError, match="no data set is published there"):
        verify(root)


def test_two_shards_that_changed_places_are_found(root):
    one, two = (root / "shards" / f"train-00000-0000{n}.tar" for n in (0, 1))
    first = one.read_bytes()
    two.rename(one)
    two.write_bytes(first)
    assert _breaches(root, sample=0).count("dataset.json says") == 2


def test_what_an_unfinished_run_left_is_a_note_and_no_breach(root):
    (root / "shards" / "train-00001-00000.tar").write_bytes(b"unfinished")
    report = verify(root, sample=0, workers=1)
    assert report.ok
    assert report.notes == [
        "shards/train-00001-00000.tar is not part of the data set: of an unfinished run, or left by one"
    ]


def test_a_removed_sample_must_be_zeroed(root):
    index = root / "index" / "val-00000.parquet"
    row = pq.read_table(index).to_pylist()[0]
    _edit_table(index, INDEX_SCHEMA, _with(removed=True))
    found = _breaches(root)
    assert f"{row['key']}.mp4 is there though" in found
    assert f"{row['key']}.mp4 is not zeroed" in found


# Samples as a faulty stage would make them, packed and published with right hashes.


def _publish_with(root: Path, monkeypatch, **changes) -> str:
    def faulty(work: WorkStore, row, number: int, with_flow: bool = True) -> shards.PackedSample:
        good = sample(work, row, number, with_flow)
        members, meta = dict(good.members), {**good.meta, **changes.get("meta", {})}
        for suffix, path in changes.get("members", {}).items():
            members[suffix] = work.put_file("faulty", "0", key(row.name), f".{suffix}", path)
        return shards.PackedSample(**{**vars(good), "members": members, "meta": meta})

    monkeypatch.setattr("published.sample", faulty)
    prepare(root, ROWS[:1]).publish()
    return _breaches(root)


@pytest.mark.parametrize(
    ("suffix", "options", "message"),
    [
        ("mp4", ("-g", "50", "-sc_threshold", "0"), "50 frames between keyframes, more than 16"),
        ("mp4", ("-r", "30"), "frames, the index says 50"),
        ("mp4", ("-vf", "setpts=PTS+gt(N\\,20)*40/TB/1000", "-fps_mode", "vfr"), "not constant 25"),
        ("mp4", ("-frames:v", "49"), "mp4 has 49 frames, the index says 50"),
        ("mp4", ("-pix_fmt", "yuv444p"), "is yuv444p, not yuv420p"),
        ("mp4", ("-pix_fmt", "yuvj420p", "-color_range", "pc"), "full range"),
        ("mp4", ("-vf", "scale=320:240"), "short side of 240, not 256"),
        ("mp4", ("-vf", "setsar=4/3"), "not square"),
        ("mp4", ("-c:v", "mpeg4"), "mp4 is mpeg4, not h264"),
        ("flow.mp4", ("-frames:v", "49"), "flow.mp4 has 49 frames"),
        ("flow.mp4", ("-pix_fmt", "yuv420p", "-color_range", "tv"), "flow.mp4 is limited range"),
        ("flow.mp4", ("-g", "40", "-sc_threshold", "0"), "flow.mp4 has 40 frames between keyframes"),
        ("flow.mp4", ("-vf", "scale=320:256"), "flow.mp4 has 320x256 pixels, not 320x512"),
    ],
)
def test_a_video_that_breaks_a_promise_is_found(tmp_path, monkeypatch, suffix, options, message):
    faulty = video(0, flow=suffix == "flow.mp4", options=options)
    assert message in _publish_with(tmp_path, monkeypatch, members={suffix: faulty})


def test_audio_is_found(tmp_path, monkeypatch):
    loud = tmp_path / "loud.mp4"
    tone = ["-f", "lavfi", "-t", "2", "-i", "sine"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video(0)), *tone, "-c:v", "copy"]
    subprocess.run([*command, str(loud)], check=True)
    assert "mp4 has audio" in _publish_with(tmp_path / "root", monkeypatch, members={"mp4": loud})


def test_a_member_that_is_no_video_is_found(tmp_path, monkeypatch):
    text = tmp_path / "text"
    text.write_bytes(b"#EXTM3U\n/etc/passwd\n" * 100)
    assert "mp4 cannot be decoded" in _publish_with(tmp_path / "root", monkeypatch, members={"mp4": text})


def test_colour_in_a_flow_video_is_found(tmp_path, monkeypatch):
    coloured = video(0, options=("-pix_fmt", "yuvj420p", "-color_range", "pc"), size="320x512")
    assert "chroma other than 128" in _publish_with(tmp_path, monkeypatch, members={"flow.mp4": coloured})


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"key": "other"}, "json says key 'other'"),
        ({"source": {}}, "json has no source.codec"),
        ({"flow": {"bound": 10.0, "saturation": 0.25, "tvl1": {}}}, "flow bound 10.0"),
        ({"flow": {"bound": 20.0, "saturation": 0.25}}, "not as promised: KeyError 'tvl1'"),
        ({"frames": 40}, "mp4 has 50 frames, the index says 40"),
    ],
)
def test_a_json_that_breaks_a_promise_is_found(tmp_path, monkeypatch, meta, message):
    assert message in _publish_with(tmp_path, monkeypatch, meta=meta)


def test_a_shorter_clip_must_say_why(tmp_path, monkeypatch):
    short = {
        suffix: video(0, flow=suffix == "flow.mp4", options=("-frames:v", "30"))
        for suffix in ("mp4", "flow.mp4")
    }
    silent = _publish_with(tmp_path / "1", monkeypatch, members=short, meta={"frames": 30})
    assert "30 frames instead of 50, and the json does not say why" in silent
    told = {"frames": 30, "note": "the source ends 0.8 s before the clip does"}
    assert _publish_with(tmp_path / "2", monkeypatch, members=short, meta=told) == ""


def test_what_is_promised_of_a_video_is_seen_in_one(published):
    row = {"frames": 50, "width": 320, "height": 256}
    assert rgb_breaches(inspect(video(0).read_bytes(), 25), row, Promised(25, 256, flow=True)) == []
    assert flow_breaches(inspect(video(0, True).read_bytes(), 25), row, Promised(25, 256, flow=True)) == []


def _take_down(root: Path, split: str, number: int) -> str:
    """Bytes after a takedown: members of the same size named __removed__, zeroed; offsets as they were."""
    index = root / "index" / f"{split}-00000.parquet"
    row = pq.read_table(index).to_pylist()[number]
    path = root / row["shard"]
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        members = [m for m in tar.getmembers() if m.name.startswith(row["key"])]
    for member in members:
        member.name = "__removed__"
        data[member.offset : member.offset_data] = member.tobuf(tarfile.USTAR_FORMAT)
        data[member.offset_data : member.offset_data + member.size] = bytes(member.size)
    path.write_bytes(data)

    def remove(rows):
        return [r | {"removed": True} if r["key"] == row["key"] else r for r in rows]

    def exclude(rows):
        gone = {"outcome": "excluded", "excluded_for": "removed", "reason": "its owner withdrew it"}
        return [r | gone if r["key"] == row["key"] and r["outcome"] == "ready" else r for r in rows]

    _edit_table(index, INDEX_SCHEMA, remove)
    _edit_table(root / "outcomes" / "00000.parquet", OUTCOME_SCHEMA, exclude)

    def say_so(meta):
        (shard,) = (s for s in meta["shards"] if s["path"] == row["shard"])
        shard["sha256"] = hashlib.sha256(data).hexdigest()
        counts = meta["counts"][split]
        counts["ready"] -= 1
        counts["excluded"] = counts.get("excluded", 0) + 1

    _edit_meta(root, say_so)
    return row["key"]


def test_a_takedown_that_keeps_offsets_passes_and_its_key_is_gone(root):
    removed = _take_down(root, "train", 0)
    assert _breaches(root) == ""
    opened = dataset.open(root)
    assert opened.index("train").num_rows == 3
    with pytest.raises(KeyError):
        opened.read(removed)
    read = webdataset.WebDataset(sorted(map(str, root.glob("shards/train-*"))), shardshuffle=False)
    assert len([s["__key__"] for s in read]) == 2


@pytest.mark.slow
def test_a_thousand_clips_are_verified_in_parallel_and_the_one_damaged_shard_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("published.video", lambda number, flow=False: video(number % 3, flow))
    prepare(tmp_path, tuple(Row(f"video-{number:05d}") for number in range(1000))).publish()
    report = verify(tmp_path, workers=2)
    assert report.breaches == []
    assert report.checked["clips decoded"] == 1000
    row = dataset.open(tmp_path).index("train").to_pylist()[777]
    with open(tmp_path / row["shard"], "r+b") as file:
        file.seek(row["rgb_offset"] + row["rgb_size"] // 2)
        file.write(b"damaged!")
    breaches = verify(tmp_path, workers=2, sample=0.02).breaches
    assert breaches == [f"{row['shard']} has another sha256 than dataset.json says"]
