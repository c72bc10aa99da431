"""A generation is published whole, last and once; rows are neither lost nor made up."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from published import CLASSES, RECIPE, ROWS, Row, key, prepare

from pipeline import dataset
from pipeline.dataset import publish
from pipeline.dataset.publish import PublishError
from pipeline.dataset.schema import OUTCOME_SCHEMA
from pipeline.maintenance.verify import verify
from pipeline.outcome import Failed
from pipeline.storage import open_storage


def _published(root: Path) -> dict[str, str]:
    """sha256 of every file outside the work store."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "work" not in path.relative_to(root).parts
    }


def _nothing_is_published(root: Path) -> bool:
    """Only shards may lie there: without dataset.json they are invisible."""
    return all(path.startswith("shards/") for path in _published(root))


def test_dataset_json_says_what_the_format_promises(tmp_path):
    meta = prepare(tmp_path).publish()
    assert json.loads((tmp_path / "dataset.json").read_text()) == meta
    assert sorted(meta) == ["classes", "counts", "format", "generations", "pyarrow", "recipe", "shards"]
    assert meta["classes"] == CLASSES
    assert meta["recipe"]["encode"]["crf"] == 18
    assert meta["counts"] == {
        "test": {"ready": 1},
        "train": {"excluded": 1, "failed": 1, "ready": 3},
        "unknown": {"failed": 1},
        "val": {"ready": 1},
    }
    assert [(s["path"], s["samples"]) for s in meta["shards"]] == [
        ("shards/test-00000-00000.tar", 1),
        ("shards/train-00000-00000.tar", 2),
        ("shards/train-00000-00001.tar", 1),
        ("shards/val-00000-00000.tar", 1),
    ]
    for shard in meta["shards"]:
        data = (tmp_path / shard["path"]).read_bytes()
        assert (shard["size"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert set(_published(tmp_path)) == {
        *(s["path"] for s in meta["shards"]),
        "README.md",
        "dataset.json",
        "index/test-00000.parquet",
        "index/train-00000.parquet",
        "index/val-00000.parquet",
        "outcomes/00000.parquet",
    }


def test_the_card_tells_recipe_counts_and_attrition(tmp_path):
    prepare(tmp_path).publish()
    card = (tmp_path / "README.md").read_text()
    for line in (
        "| train | 3 | 1 | 1 |",
        "| failed | network | train | 1 |",
        "| walk | 4 | 2 | 1 | 1 |",
        '"crf": 18',
        "## Terms",
    ):
        assert line in card


def test_the_same_generation_gives_the_same_bytes_anywhere(tmp_path):
    for name in ("one", "two"):
        prepare(tmp_path / name).publish()
    assert _published(tmp_path / "one") == _published(tmp_path / "two")


def test_no_clip_ready_still_publishes_what_became_of_them(tmp_path):
    meta = prepare(tmp_path, ROWS[5:]).publish()
    assert meta["shards"] == []
    opened = dataset.open(tmp_path)
    assert opened.splits == []
    assert opened.index("train").num_rows == 0
    assert opened.outcomes()["outcome"].to_pylist() == ["excluded", "failed", "failed"]
    assert verify(tmp_path, workers=1).ok


def test_a_later_generation_appends_and_changes_no_published_byte(tmp_path):
    first = prepare(tmp_path)
    first.publish()
    before = _published(tmp_path)
    assert publish.next_generation(first.storage) == "00001"
    meta = prepare(tmp_path, (Row("ffffffffff6"),), generation="00001", first_row=8).publish()
    after = _published(tmp_path)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {"dataset.json", "README.md"}
    assert set(after) - set(before) == {
        "shards/train-00001-00000.tar",
        "index/train-00001.parquet",
        "outcomes/00001.parquet",
    }
    assert meta["generations"] == ["00000", "00001"]
    assert meta["counts"]["train"] == {"excluded": 1, "ready": 4}
    assert verify(tmp_path, workers=1).ok


def _drop_outcome(g):
    g.outcomes[0] = g.outcomes[0].slice(1)


def _double_outcome(g):
    g.outcomes.append(g.outcomes[0].slice(0, 1))


def _foreign_outcome(g):
    row = g.outcomes[0].slice(0, 1).to_pylist()[0] | {"row": 999}
    g.outcomes.append(pa.Table.from_pylist([row], schema=g.outcomes[0].schema))


def _edit_outcome(**changes):
    def change(g):
        rows = g.outcomes[0].to_pylist()
        rows[0].update(changes)
        g.outcomes[0] = pa.Table.from_pylist(rows, schema=g.outcomes[0].schema)

    return change


def _edit_index(**changes):
    def change(g):
        info, table = g.packed[0]
        rows = table.to_pylist()
        rows[0].update(changes)
        g.packed[0] = (info, pa.Table.from_pylist(rows, schema=table.schema))

    return change


def _double_plan(g):
    g.plan = pa.concat_tables([g.plan, g.plan.slice(0, 1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_outcome, r"list.csv:2 aaaaaaaaaa1\S+ has no outcome: rows would be lost"),
        (_double_outcome, "stands in the outcomes twice"),
        (_foreign_outcome, "list.csv:999 .*nobody asked for it"),
        (_double_plan, "stands in the plan twice"),
        (_edit_outcome(outcome="failed", failure_class="gone", reason="x"), "is in a shard but not ready"),
        (_edit_outcome(outcome="lost", reason="x"), "an outcome that is none"),
        (_edit_outcome(failure_class="gone"), "does not go with its outcome"),
        (_edit_outcome(outcome="failed", failure_class="gone"), "no reason"),
        (_edit_outcome(outcome="failed", failure_class="bad luck", reason="x"), "unknown failure class"),
        (_edit_outcome(label="jump"), "label 'walk' in the plan and 'jump' in the outcomes"),
        (_edit_outcome(key="other"), "has key"),
        (lambda g: g.packed.pop(), "is ready but in no shard"),
        (lambda g: g.packed.append(g.packed[0]), "twice"),
        (_edit_index(time_end=99.0), "has time_end"),
        (_edit_index(class_index=None), "class index None"),
        (_edit_index(class_index=5), "class index 5"),
        (_edit_index(sample_size=1 << 30), "outside its shards"),
        (
            lambda g: g.packed.__setitem__(0, (replace(g.packed[0][0], samples=9), g.packed[0][1])),
            "9 samples",
        ),
        (lambda g: g.storage.delete(g.packed[0][0].path), "is not there whole"),
        (lambda g: g.storage.write(g.packed[0][0].path, b"x"), "is not there whole"),
        (lambda g: setattr(g, "generation", "00004"), "is not of generation 00004"),
        (lambda g: setattr(g, "classes", ["jump"]), "class index 1"),
    ],
)
def test_what_does_not_add_up_is_not_published(tmp_path, change, message):
    generation = prepare(tmp_path)
    change(generation)
    with pytest.raises(PublishError, match=message):
        generation.publish()
    assert _nothing_is_published(tmp_path)


def test_another_recipe_or_other_classes_are_refused_and_named(tmp_path):
    prepare(tmp_path).publish()
    before = _published(tmp_path)
    storage = open_storage(tmp_path)
    other = json.loads(json.dumps(RECIPE))
    other["encode"]["crf"] = 23
    assert publish.admit(storage, RECIPE, CLASSES) is not None
    for recipe, classes, message in (
        (other, CLASSES, r"made with other recipe \(encode.crf 18, now 23\); give the same again"),
        (RECIPE | {"flow": None}, CLASSES, r"other recipe \(flow "),
        (RECIPE, ["jump"], "made with other classes"),
    ):
        with pytest.raises(PublishError, match=message):
            publish.admit(storage, recipe, classes)
        later = prepare(tmp_path, (Row("ffffffffff6"),), generation="00001", first_row=8)
        later.recipe, later.classes = recipe, classes
        with pytest.raises(PublishError, match=message):
            later.publish()
    assert {p: h for p, h in _published(tmp_path).items() if "train-00001" not in p} == before


def test_a_published_row_is_not_decided_again(tmp_path):
    prepare(tmp_path).publish()
    for rows, first_row, message in (
        ((Row("aaaaaaaaaa1"),), 2, "is published already"),
        ((Row("aaaaaaaaaa1", outcome="failed", why="gone"),), 2, "was ready and is decided again"),
        ((Row("ffffffffff6", label="jump"),), 8, "label 'walk' in the published outcomes"),
        ((Row("aaaaaaaaaa1"),), 90, "twice"),
    ):
        later = prepare(tmp_path, rows, generation="00001", first_row=first_row)
        with pytest.raises(PublishError, match=message):
            later.publish()
    assert dataset.open(tmp_path).generations == ["00000"]
    assert not (tmp_path / "index" / "train-00001.parquet").exists()


def test_a_published_shard_is_never_overwritten(tmp_path):
    prepare(tmp_path).publish()
    before = _published(tmp_path)
    with pytest.raises(Failed, match="is published with other bytes and stays as it is"):
        prepare(tmp_path, (Row("zzzzzzzzzz9"),))
    assert _published(tmp_path) == before


def _race(root: str, start, queue) -> None:
    generation = prepare(Path(root))
    attempts = OUTCOME_SCHEMA.names.index("attempts")
    generation.outcomes = [
        part.set_column(attempts, "attempts", pa.array([os.getpid()] * len(part), pa.int32()))
        for part in generation.outcomes
    ]
    start.wait()
    try:
        generation.publish()
        queue.put((os.getpid(), None))
    except PublishError as error:
        queue.put((os.getpid(), str(error)))


def test_of_two_publishers_one_wins_and_one_gets_a_sentence(tmp_path):
    prepare(tmp_path / "warm")  # the videos are made once, before the fork
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        root = tmp_path / str(attempt)
        start, queue = context.Barrier(2), context.Queue()
        racers = [context.Process(target=_race, args=(str(root), start, queue)) for _ in range(2)]
        for racer in racers:
            racer.start()
        results = [queue.get(timeout=60) for _ in racers]
        for racer in racers:
            racer.join()
        sentences = [text for _, text in results if text]
        (winner,) = (pid for pid, text in results if text is None)
        assert len(sentences) == 1
        assert "another run" in sentences[0]
        assert "repeat the command" in sentences[0]
        processed = dataset.open(root).outcomes()
        tried = set(processed.filter(pc.greater(processed["attempts"], 0))["attempts"].to_pylist())
        assert tried == {winner}
        assert verify(root, sample=0, workers=1).ok
        assert not (root / ".publish.lock").exists()


def test_an_object_store_s_lock_that_was_left_behind_is_named(tmp_path):
    generation = prepare(tmp_path)
    far = open_storage(f"memory://{tmp_path.name}")
    for info, _ in generation.packed:
        far.write(info.path, tmp_path / info.path)
    generation.storage = far
    far.create(".publish.lock", b"somebody")
    with pytest.raises(PublishError, match=r"if none is, delete memory://\S+/\.publish\.lock"):
        generation.publish()
    far.delete(".publish.lock")
    assert generation.publish()["generations"] == ["00000"]
    assert dataset.open(far).read(key("aaaaaaaaaa1")).label == "walk"


@pytest.mark.parametrize("limit", [200, 2_000, 9_000, 12_500])
def test_a_disk_that_fills_up_while_publishing_leaves_nothing_half_published(tmp_path, limit):
    prepare(tmp_path)
    program = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from published import prepare
        from pipeline.outcome import Failed
        generation = prepare(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
        try:
            generation.publish()
        except Failed as failure:
            print(failure.reason)
    """)
    folders = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": folders},
    )
    if done.stdout:
        assert "file too large; raise the limit on file size and repeat the command" in done.stdout
        assert _nothing_is_published(tmp_path)
        prepare(tmp_path).publish()
    assert verify(tmp_path, sample=0, workers=1).ok


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_without_space_leaves_nothing_half_packed(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=False)
    if mount.returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        with pytest.raises(Failed, match="no space left on device; free some space and repeat the command"):
            prepare(small)
        assert not (small / "shards").exists() or os.listdir(small / "shards") == []
        assert not list(small.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_somebody_s_readme_is_not_overwritten(tmp_path):
    generation = prepare(tmp_path)
    (tmp_path / "README.md").write_text("# My own project\n")
    with pytest.raises(
        PublishError, match=r"README\.md is not ours and would be lost; choose an empty folder"
    ):
        generation.publish()
    assert (tmp_path / "README.md").read_text() == "# My own project\n"
    assert not (tmp_path / "dataset.json").exists()


def test_a_killed_publisher_s_leftovers_are_replaced_by_the_next(tmp_path):
    generation = prepare(tmp_path)
    generation.storage.write("index/train-00000.parquet", b"left behind")
    generation.storage.write("outcomes/00000.parquet", b"left behind")
    (tmp_path / "shards" / ".train-00000-00000.tar.123-abc.tmp").write_bytes(b"half")
    generation.publish()
    report = verify(tmp_path, sample=0, workers=1)
    assert report.ok
    assert report.notes == []
