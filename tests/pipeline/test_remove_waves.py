"""A takedown between the waves of a run, or while one packs, is in force for all that comes after."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import make_list

from pipeline import dataset
from pipeline.dataset.publish import PublishError
from pipeline.job import run, runner
from pipeline.job.settings import Settings
from pipeline.maintenance import remove
from pipeline.maintenance.verify import verify


def rehearse(root: Path, work: Path | None, rows: list[str]) -> tuple[Settings, list[str]]:
    """Settings of a run in waves of one video, of which the first is published; the ids left."""
    path = make_list(root.parent / "list.csv", rows)
    where = {"work": work and str(work), "sources": ("rehearsal",)}
    settings = Settings((str(path),), str(root), flow="none", wave=1, **where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "remaining", broken_off)
        with pytest.raises(KeyboardInterrupt):
            run.run(settings, runner.beam_options(["--direct_num_workers=1"]))
    ids = {row.split(",")[1] for row in rows}
    ready = {o["youtube_id"] for o in dataset.open(root).outcomes().to_pylist() if o["outcome"] == "ready"}
    assert len(ready) == 1
    return settings, sorted(ids - ready)


def broken_off(*_: object, **__: object) -> str:
    raise KeyboardInterrupt


def kinds(root: Path, name: str) -> set[tuple[str, str | None]]:
    rows = dataset.open(root).outcomes().to_pylist()
    return {(o["outcome"], o["excluded_for"]) for o in rows if name in (o["youtube_id"], o["key"])}


def test_what_is_removed_between_waves_is_in_none_of_the_later_ones(tmp_path):
    rows = [f"a,vid{n:08d},{start},{start + 10},train,0" for n in range(3) for start in (10, 30)]
    root = tmp_path / "root"
    settings, (by_id, by_key) = rehearse(root, None, rows)  # of each the second clip is excluded already
    done = remove.remove(root, [by_id, f"{by_key}_000010_000020"], "its owner withdrew it")
    assert done.unknown == [by_id, f"{by_key}_000010_000020"]
    assert f"not in the data set, on record: {by_id}" in done.lines()
    run.run(settings, runner.beam_options(["--direct_num_workers=1"]))
    for name in (by_id, by_key):
        assert kinds(root, name) == {("excluded", "duplicate"), ("excluded", "removed")}
    assert verify(root, sample=0, workers=1).breaches == []


def test_what_is_removed_while_another_run_packs_it_is_not_published(tmp_path, monkeypatch):
    root, launch = tmp_path / "root", run.launch.run
    rows = [f"a,vid{n:08d},10,20,train,0" for n in range(3)]
    settings, (victim, other) = rehearse(root, tmp_path / "elsewhere", rows)

    def run_and_remove(job, *arguments):
        launch(job, *arguments)
        for name in (victim, other):
            done = remove.remove(root, [name], "its owner withdrew it")
            assert done.unknown == [name]

    with monkeypatch.context() as patch:
        patch.setattr(run.launch, "run", run_and_remove)
        with pytest.raises(PublishError, match=r"was removed meanwhile; repeat the command"):
            run.run(settings, runner.beam_options(["--direct_num_workers=1"]))
    assert kinds(root, victim) == set()
    done = remove.remove(root, [victim, other], "again", work=str(tmp_path / "elsewhere"))
    assert any("/encode/" in path for path in done.files)  # of the generation that was begun
    run.run(settings, runner.beam_options(["--direct_num_workers=1"]))
    assert kinds(root, victim) == kinds(root, other) == {("excluded", "removed")}
    assert verify(root, sample=0, workers=1).breaches == []


def test_what_a_killed_wave_had_packed_goes_with_a_clip_that_only_it_knew(tmp_path, monkeypatch):
    root = tmp_path / "root"
    rows = [f"a,vid{n:08d},10,20,train,0" for n in range(2)]
    settings, (victim,) = rehearse(root, None, rows)
    with monkeypatch.context() as patch:
        patch.setattr(run.publish, "publish", broken_off)
        with pytest.raises(KeyboardInterrupt):
            run.run(settings, runner.beam_options(["--direct_num_workers=1"]))
    left = root / "shards/train-00001-00000.tar"
    assert victim.encode() in left.read_bytes()
    assert str(left) in remove.remove(root, [victim], "its owner withdrew it", dry_run=True).files
    done = remove.remove(root, [victim], "its owner withdrew it")
    assert done.unknown == [victim]
    assert str(left) in done.files
    assert not left.exists()
