"""A takedown takes a clip out everywhere, keeps offsets and order, and can be killed at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import webdataset
from published import ROWS, Row, key, prepare, video
from small_runs import pipeline

from pipeline import dataset, report
from pipeline.dataset import DatasetError, publish, removal_log
from pipeline.dataset.publish import PublishError
from pipeline.job import pending_rows, run
from pipeline.job.settings import Settings
from pipeline.lists.plan import PlanOptions
from pipeline.maintenance import remove
from pipeline.maintenance.remove import IdsError, RemoveError
from pipeline.maintenance.verify import verify
from pipeline.storage import open_storage
from pipeline.storage.work_store import WorkStore

GONE = ROWS[1]  # a clip of train
SOURCE = "source"


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A published data set with its work store as a run leaves it, kept sources and a report."""
    root = tmp_path_factory.mktemp("published") / "root"
    prepare(root).publish()
    store = WorkStore(root / "work")
    for row in ROWS[:5]:
        name = key(row.name)
        kept = store.put_file(SOURCE, "0a", row.name, ".webm", video(0))
        pieces = {name: {"file": row.name, "start": 1.0, "end": 3.0, "kind": "url", "trimmed": False}}
        record = {"files": {row.name: kept.as_dict()}, "pieces": pieces}
        store.write_record(SOURCE, "0a", row.name, record)
        store.put_file("encode", "another", name, ".mp4", video(0))
        store.write_record("clip", "0b", name, {"outcome": "ready", "files": {}})
    left = store.storage.local(store.path("encode", "0", key(GONE.name), ".mp4"))
    (left.parent / f".{left.name}.123-abcd.tmp").write_bytes(b"half a clip")
    report.write(root)
    return root


@pytest.fixture
def root(original, tmp_path) -> Path:
    return shutil.copytree(original, tmp_path / "root")


def row_of(root: Path, name: str) -> dict:
    index = dataset.open(root).index("train").to_pylist()
    return next(row for row in index if row["youtube_id"] == name)


def files_with(root: Path, name: str) -> list[str]:
    found = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return sorted(path for path in found if name in path)


def shard_bytes(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "shards").iterdir())}


def state(root: Path) -> dict[str, str]:
    """Every file's hash; the log's times and, in ROOT itself, what a killed writer leaves aside."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not (path.parent == root and path.suffix in (".tmp", ".lock")):
            data = path.read_bytes()
            if path.name == "removed.jsonl":
                lines = map(json.loads, data.splitlines())
                data = repr([{**line, "time": None} for line in lines]).encode()
            found[str(path.relative_to(root))] = hashlib.sha256(data).hexdigest()
    return found


def test_what_is_removed_is_zero_in_place_and_everything_else_stays(root):
    before, row, names = shard_bytes(root), row_of(root, GONE.name), [r.name for r in ROWS[:3]]
    order = dataset.open(root).index("train")["key"].to_pylist()
    done = remove.remove(root, [GONE.name], "its owner  withdrew it")
    assert done.removed == [key(GONE.name)]
    assert done.shards == [row["shard"]]
    after = shard_bytes(root)
    name, begin, end = (
        Path(row["shard"]).name,
        row["sample_offset"],
        row["sample_offset"] + row["sample_size"],
    )
    assert {n for n in before if before[n] != after[n]} == {name}
    assert len(before[name]) == len(after[name])
    assert before[name][:begin] + before[name][end:] == after[name][:begin] + after[name][end:]
    with tarfile.open(root / row["shard"]) as tar:
        gone = [m for m in tar if begin <= m.offset < end]
        assert [m.name for m in gone] == ["__removed__"] * 4
        assert all(not tar.extractfile(m).read().strip(b"\0") for m in gone)
    opened = dataset.open(root)
    assert opened.index("train")["key"].to_pylist() == order
    with pytest.raises(KeyError, match="was removed"):
        opened.read(key(GONE.name))
    for other in names:
        if other != GONE.name:
            assert opened.read(key(other)).members["json"]
    assert verify(root, workers=1).lines()[-1].endswith("every promise holds")


def test_outcomes_counts_card_and_log_say_what_went_and_why(root):
    remove.remove(root, [GONE.name, "ffffffffff6"], "its owner\nwithdrew it")
    outcomes = {(o["row"]): o for o in dataset.open(root).outcomes().to_pylist()}
    for number in (3, 8):  # one was ready, one had failed
        assert outcomes[number]["outcome"] == "excluded"
        assert outcomes[number]["excluded_for"] == "removed"
        assert outcomes[number]["reason"] == "its owner withdrew it"
        assert outcomes[number]["failure_class"] is outcomes[number]["retry_after"] is None
    meta = json.loads((root / "dataset.json").read_text())
    assert meta["counts"]["train"] == {"excluded": 3, "ready": 2}
    assert "| excluded | removed | train | 2 |" in (root / "README.md").read_text()
    assert "4 clips in 4 shards" in (root / "README.md").read_text()
    lines = [json.loads(line) for line in (root / "removed.jsonl").read_text().splitlines()]
    assert [(e["given"], e["key"], e["reason"]) for e in lines] == [
        (name, key(name), "its owner withdrew it") for name in (GONE.name, "ffffffffff6")
    ]
    assert all(e["time"].endswith("+00:00") for e in lines)
    assert verify(root, sample=0, workers=1).ok


def test_every_stage_kept_source_leftover_and_picture_is_deleted_and_nothing_of_others(root):
    kept = {r.name: files_with(root / "work", r.name) for r in ROWS[:5] if r is not GONE}
    assert len(files_with(root, GONE.name)) >= 10
    done = remove.remove(root, [key(GONE.name)], "reason")
    assert files_with(root, GONE.name) == []
    assert list(root.glob("report/media/*")) == []
    assert {name: files_with(root / "work", name) for name in kept} == kept
    assert any("/source/0a/" in path and path.endswith(".webm") for path in done.files)
    report.write(root)
    assert files_with(root, GONE.name) == []


def test_a_dry_run_lists_all_that_would_go_and_changes_nothing(root):
    before = state(root)
    would = remove.remove(root, [GONE.name, "unknown_id1"], "reason", dry_run=True)
    assert state(root) == before
    done = remove.remove(root, [GONE.name, "unknown_id1"], "reason")
    for name in ("removed", "unknown", "shards", "warnings"):
        assert getattr(would, name) == getattr(done, name)
    assert sorted(would.files) == sorted(done.files)
    assert f"would be removed: {key(GONE.name)}" in would.lines()
    assert any("exports, copies" in line for line in would.lines())


def test_a_repeated_takedown_changes_nothing(root):
    remove.remove(root, [GONE.name, "unknown_id1"], "reason")
    before = state(root)
    done = remove.remove(root, [key(GONE.name), GONE.name, "unknown_id1"], "another reason")
    assert (done.removed, done.already, done.shards, done.files) == ([], [key(GONE.name)], [], [])
    assert state(root) == before


def test_all_clips_of_a_video_go_by_its_id_and_a_whole_shard_may_be_empty(tmp_path):
    rows = (Row("aaaaaaaaaa1"), Row("bbbbbbbbbb2"), Row("cccccccccc3", split="val"))
    prepare(tmp_path, rows).publish()
    remove.remove(tmp_path, [r.name for r in rows[:2]], "reason")
    assert verify(tmp_path, workers=1).ok
    assert dataset.open(tmp_path).meta["counts"] == {"train": {"excluded": 2}, "val": {"ready": 1}}
    shards = sorted(map(str, tmp_path.glob("shards/*.tar")))
    read = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    assert [sample["__key__"] for sample in read] == [key("cccccccccc3")]


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pipeline.maintenance import remove
    left = int(sys.argv[2])
    def count(event, arguments):
        global left
        if event in ("os.rename", "os.remove", "os.unlink"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)  # right before each moment at which a file appears, changes or goes
    remove.remove(sys.argv[1], sys.argv[3:], "reason")
""")


def killed(root: Path, steps: int, *given: str) -> bool:
    """Run a takedown that is killed before its step number `steps`; whether it came to that."""
    command = [sys.executable, "-c", KILLED, str(root), str(steps), *given]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


def check_readable(root: Path) -> None:
    """Whoever opens the data set now reads every clip that the index has, whole, and plain tars."""
    opened = dataset.open(root)
    for split in opened.splits:
        for row in opened.index(split).to_pylist():
            if not row["removed"]:
                opened.read_row(row)
    for path in root.glob("shards/*.tar"):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
            assert hashlib.sha256(sample["mp4"]).hexdigest() == sample_hash(opened, sample["__key__"])


def sample_hash(opened: dataset.Dataset, name: str) -> str:
    rows = (row for split in opened.splits for row in opened.index(split).to_pylist())
    return next(row["rgb_sha256"] for row in rows if row["key"] == name)


def lighten(root: Path) -> None:
    """Leave of each kind of file one or two, so that there are few moments to be killed at."""
    for path in root.glob("report/media/*"):
        if not path.name.startswith("class-"):
            path.unlink()
    shutil.rmtree(root / "work" / "encode" / "another")


def test_a_takedown_killed_at_any_step_leaves_a_readable_data_set_and_is_completed(root, tmp_path):
    lighten(root)
    given = [GONE.name, "dddddddddd4"]  # in two shards and two splits
    whole = shutil.copytree(root, tmp_path / "whole")
    remove.remove(whole, given, "reason")
    step = 0
    while True:
        broken = tmp_path / f"broken-{step}"
        shutil.copytree(root, broken)
        if not killed(broken, step, *given):
            break
        check_readable(broken)
        if (broken / "removing.jsonl").exists():
            assert any("takedown" in b for b in verify(broken, sample=0, workers=1).breaches)
            with pytest.raises(PublishError, match=r"repeat its python -m pipeline remove"):
                publish.admit(open_storage(broken), {}, [])
        again = remove.remove(broken, given, "reason")
        assert state(broken) == state(whole), (step, again)
        assert verify(broken, sample=0, workers=1).ok
        shutil.rmtree(broken)
        step += 1
    assert step > 20


def test_another_takedown_completes_one_that_was_killed(root):
    assert killed(root, 3, GONE.name)
    done = remove.remove(root, ["-cccccccc_3"], "another reason")
    assert (done.completed, done.removed) == ([key(GONE.name)], [key("-cccccccc_3")])
    reasons = {o["key"]: o["reason"] for o in dataset.open(root).outcomes().to_pylist()}
    assert reasons[key("-cccccccc_3")] == "another reason"
    log = removal_log.read(open_storage(root))
    assert [(e.key, e.reason) for e in log] == [
        (key(GONE.name), "reason"),
        (key("-cccccccc_3"), "another reason"),
    ]
    assert verify(root, sample=0, workers=1).ok


def test_damage_from_before_is_not_covered_up(root):
    row, other = row_of(root, GONE.name), row_of(root, "-cccccccc_3")
    assert row["shard"] == other["shard"] or len(dataset.open(root).index("train")) == 3
    shard = root / row["shard"]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    data[row["sample_offset"]] ^= 1  # and the first header of what goes is no header any more
    shard.write_bytes(data)
    done = remove.remove(root, [GONE.name], "reason")
    assert any("was damaged" in text for text in done.warnings)
    assert any("another sha256" in breach for breach in verify(root, sample=0, workers=1).breaches)
    begin, end = row["sample_offset"], row["sample_offset"] + row["sample_size"]
    with tarfile.open(shard) as tar:
        gone = [m for m in tar if begin <= m.offset < end]
    assert {m.name for m in gone} == {"__removed__"}
    assert sum(512 + -(-m.size // 512) * 512 for m in gone) == row["sample_size"]


def test_a_shard_that_is_lost_does_not_stop_a_takedown(root):
    (root / row_of(root, GONE.name)["shard"]).unlink()
    done = remove.remove(root, [GONE.name], "reason")
    assert done.removed == [key(GONE.name)]
    assert any("lost" in text for text in done.warnings)
    assert files_with(root, GONE.name) == []


def test_an_object_store_s_data_set_is_taken_down_the_same_way(root, tmp_path):
    far = open_storage(f"memory://{tmp_path.name}")
    for path in root.rglob("*"):
        if path.is_file():
            far.write(str(path.relative_to(root)), path)
    done = remove.remove(far, [GONE.name], "reason")
    remove.remove(root, [GONE.name], "reason")
    assert any("versioning" in text for text in done.warnings)
    for path in (*root.glob("shards/*"), *root.glob("index/*"), root / "dataset.json", root / "README.md"):
        assert far.read_bytes(str(path.relative_to(root))) == path.read_bytes()
    assert verify(far, sample=0, workers=1).ok
    left = far.names("work/source/0a")
    assert not [n for hh in left for n in far.names(f"work/source/0a/{hh}") if GONE.name in n]


def test_a_removed_clip_is_not_taken_up_by_a_later_run(root, tmp_path):
    remove.remove(root, ["ffffffffff6", GONE.name], "reason")
    outcomes = dataset.open(root).outcomes()
    for retry in ("transient", "all"):
        assert outcomes.filter(pending_rows.to_retry(outcomes, retry))["row"].to_pylist() == []
    later = prepare(root, (Row("ffffffffff6"),), generation="00001", first_row=8)
    with pytest.raises(PublishError, match="was removed and is decided again"):
        later.publish()


def test_a_generation_that_was_begun_goes_on_without_what_was_removed_meanwhile(root):
    left = root / "shards" / "train-00001-00000.tar"
    shutil.copy(root / "shards" / "train-00000-00000.tar", left)  # as a killed run leaves it
    done = remove.remove(root, ["ffffffffff6"], "reason")
    assert str(left) in done.files
    assert not left.exists()
    withheld = Row("ffffffffff6", decision="excluded", outcome="excluded", why="removed")
    meta = prepare(root, (withheld,), generation="00001", first_row=8).publish()
    assert meta["counts"]["train"] == {"excluded": 2, "ready": 3}
    assert verify(root, sample=0, workers=1).ok


def test_what_the_log_names_is_left_out_of_every_later_plan(root, tmp_path):
    remove.remove(root, ["a_new_video", GONE.name], "its owner withdrew it")
    csv = tmp_path / "list.csv"
    csv.write_text(
        "youtube_id,time_start,time_end,label,split\n"
        f"a_new_video,0,10,walk,train\n{GONE.name},1,3,jump,train\nzzzzzzzzzz9,0,10,walk,train\n"
    )
    settings = Settings(manifests=(str(csv),), output=str(root), plan=PlanOptions())
    planned = run.make_plan(settings)
    plan = removal_log.withhold(planned, open_storage(root))
    assert plan.schema.equals(planned.schema, check_metadata=True)
    assert [(p["decision"], p["excluded_for"], p["reason"]) for p in plan.to_pylist()] == [
        ("excluded", "removed", "its owner withdrew it"),
        ("excluded", "removed", "its owner withdrew it"),
        ("process", None, None),
    ]
    assert plan["shard"].null_count == 2


def test_every_name_that_was_asked_for_is_on_record(root):
    remove.remove(root, [key(GONE.name), GONE.name], "reason")  # the video may have another clip to come
    assert {entry.given for entry in removal_log.read(open_storage(root))} == {key(GONE.name), GONE.name}


def test_verify_names_a_clip_that_is_there_though_it_is_on_record(root):
    log = root / "removed.jsonl"
    log.write_text(json.dumps({"given": GONE.name, "reason": "its owner withdrew it"}) + "\n")
    (breach,) = verify(root, sample=0, workers=1).breaches
    assert breach.startswith(f"{key(GONE.name)} is there, but removed.jsonl says that it was removed; repeat")
    remove.remove(root, [GONE.name], "its owner withdrew it")
    assert verify(root, sample=0, workers=1).ok
    log.write_text("{")
    assert "is damaged: bring it back from a copy" in verify(root, sample=0, workers=1).breaches[-1]


def test_a_lock_that_a_killed_run_left_in_a_far_work_store_is_named(root):
    work = open_storage("memory://takedown/work")
    work.create("campaign.lock", b"of a machine that is gone")
    try:
        with pytest.raises(RemoveError, match=r"if none is, delete memory://takedown/work/campaign\.lock"):
            remove.remove(root, [GONE.name], "reason", work=work.url)
    finally:
        work.delete("campaign.lock")


def test_while_a_run_is_at_work_nothing_is_removed(root):
    before = state(root)
    with (
        run._exclusively(open_storage(root), open_storage(root / "work")),
        pytest.raises(RemoveError, match=r"stop it \(nothing is lost\)"),
    ):
        remove.remove(root, [GONE.name], "reason")
    with open_storage(root).lock(publish.PUBLISH_LOCK), pytest.raises(RemoveError, match="is at work"):
        remove.remove(root, [GONE.name], "reason")
    assert state(root) == before


def test_the_work_store_may_lie_elsewhere(root, tmp_path):
    elsewhere = (root / "work").rename(tmp_path / "store")
    done = remove.remove(root, [GONE.name], "reason")
    assert any("--work DIR" in text for text in done.warnings)
    assert files_with(elsewhere, GONE.name)
    done = remove.remove(root, [GONE.name], "reason", work=str(elsewhere))
    assert done.already == [key(GONE.name)]
    assert files_with(elsewhere, GONE.name) == []
    assert not (root / "work").exists()


def test_the_command_says_what_it_did(root, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text(f"\ufeff# two clips\r\n\r\n{GONE.name}\r\n-cccccccc_3\r\nunknown_id1\r\n")
    command = ("remove", root, "--ids", ids, "--reason", "court order 7")
    would = pipeline(*command, "--dry-run")
    assert would.returncode == 0, would.stderr
    assert f"would be removed: {key(GONE.name)}" in would.stdout
    assert not (root / "removed.jsonl").exists()
    done = pipeline(*command, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["removed"] == [key(GONE.name), key("-cccccccc_3")]
    assert said["unknown"] == ["unknown_id1"]
    table = pq.read_table(root / "index" / "train-00000.parquet")
    assert sorted(table.filter(table["removed"])["youtube_id"].to_pylist()) == ["-cccccccc_3", GONE.name]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no id"),
        ("# nothing\n\n", "names no id"),
        ("good\n../../etc/passwd\n", r"ids.txt:2: '../../etc/passwd' is no id or key; nothing was removed"),
        ("a\0b\n", "no id or key"),
        ("x" * 1_000_000, "no id or key"),
    ],
)
def test_a_file_that_names_no_ids_is_refused_with_a_sentence(tmp_path, text, says):
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(IdsError, match=says) as caught:
        remove.read_ids(tmp_path / "ids.txt")
    assert len(str(caught.value)) < 400


def test_calls_that_make_no_sense_are_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "latin.txt", tmp_path / "absent.txt"):
        with pytest.raises(IdsError, match="cannot be read"):
            remove.read_ids(path)
    with pytest.raises(IdsError, match="--reason wants a sentence"):
        remove.remove(tmp_path, ["a"], " \n")
    with pytest.raises(DatasetError, match="no data set is published there"):
        remove.remove(tmp_path, ["a"], "reason")
    assert pipeline("remove", tmp_path, "--ids", tmp_path / "absent.txt", "--reason", "x").returncode == 2
