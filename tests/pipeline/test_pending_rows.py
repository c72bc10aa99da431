"""Which rows are due: a list is known by its rows, however the call spells it or wherever it lies now."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import make_list
from test_remove_waves import rehearse

from pipeline import dataset
from pipeline.dataset.schema import OUTCOME_SCHEMA
from pipeline.job import PrepareError, pending_rows, run, runner
from pipeline.job.settings import Settings
from pipeline.lists import manifest, plan
from pipeline.storage import open_storage


def lists(folder: Path, **videos: list[str]) -> list[Path]:
    """A list of split NAME for each NAME=videos; a video called ! makes a malformed row."""
    folder.mkdir(exist_ok=True)
    return [
        make_list(folder / f"{name}.csv", [f"a,{v},0,10,{name.split('_')[0]},0" for v in names])
        for name, names in videos.items()
    ]


def planned(*paths: Path | str) -> pa.Table:
    return plan.make([manifest.read(path) for path in paths], plan.PlanOptions())


def published(table: pa.Table, rows: list[int], **names: str) -> pa.Table:
    """The outcomes of a plan's rows, ready where the plan says process."""
    chosen = table.take(pa.array(rows, pa.int64())).to_pylist()
    made = [
        {n: r.get(n) for n in OUTCOME_SCHEMA.names}
        | {"outcome": "ready" if r["decision"] == "process" else r["decision"], "attempts": 1}
        | {"generation": "00000", "manifest": names.get(Path(r["manifest"]).stem, r["manifest"])}
        for r in chosen
    ]
    return pa.Table.from_pylist(made, schema=OUTCOME_SCHEMA)


def named(table: pa.Table, outcomes: pa.Table) -> tuple[list[str], list[int]]:
    found, place = pending_rows.as_published(table, outcomes, open_storage("root"))
    return found["manifest"].to_pylist(), place.tolist()


def test_all_rows_of_a_list_that_moved_keep_the_name_it_was_published_under(tmp_path):
    (train,) = lists(tmp_path, train=["x", "y", "z"])
    table = planned(train)
    assert named(table, published(table, [1], train="../train.csv")) == (["../train.csv"] * 3, [1])


def test_lists_that_moved_are_known_by_their_rows_not_by_who_came_first(tmp_path):
    both = lists(tmp_path, train=["x", "y"], val=["z"])
    table = planned(*both)
    first_wave = published(table, [2], val="old/val.csv")  # nothing of train is decided yet
    assert named(table, first_wave) == ([str(both[0])] * 2 + ["old/val.csv"], [2])
    # The name of one may be another's now: what was val.csv there is here next to another of that name.
    swapped = published(table, [0, 2], train=str(both[1]), val=str(both[0]))
    assert named(table, swapped) == ([str(both[1])] * 2 + [str(both[0])], [0, 2])


def test_lists_that_agree_in_a_row_are_told_apart_by_the_others(tmp_path):
    both = lists(tmp_path, train=["!", "x"], train_more=["!", "y"])
    table = planned(*both)
    outcomes = published(table, [0, 2, 3], train="old/b.csv", train_more="old/a.csv")
    assert named(table, outcomes) == (["old/b.csv"] * 2 + ["old/a.csv"] * 2, [0, 2, 3])
    table = planned(*reversed(both))
    outcomes = published(table, [0, 1, 2], train="old/b.csv", train_more="old/a.csv")
    assert named(table, outcomes) == (["old/a.csv"] * 2 + ["old/b.csv"] * 2, [0, 1, 2])


def test_a_list_that_was_published_under_two_names_goes_on_under_the_first(tmp_path):
    (train,) = lists(tmp_path, train=["x", "y", "z", "w"])
    table = planned(train)
    two = [published(table, [2], train="train.csv"), published(table, [0], train="/data/train.csv")]
    outcomes = pa.concat_tables(two)
    names = ["/data/train.csv", "train.csv", "train.csv", "train.csv"]
    assert named(table, outcomes) == (names, [2, 0])


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["train"], "made from other lists"),  # val is missing
        (["train", "val_other"], "made from other lists"),
        (["train_less", "val"], "made from other lists"),
        (["train", "train_less", "val"], "has another list by the name .*train_less.csv; give this one by"),
    ],
)
def test_other_lists_are_refused(tmp_path, given, sentence):
    made = lists(tmp_path, train=["x", "y"], val=["z"], val_other=["w"], train_less=["v"])
    path = {p.stem: p for p in made}
    table = planned(path["train"], path["val"])
    outcomes = published(table, [1, 2], train=str(path["train_less"]))
    with pytest.raises(PrepareError, match=sentence):
        named(planned(*(path[name] for name in given)), outcomes)


def test_rows_to_exclude_that_were_passed_over_for_their_split_are_to_be_left_out(tmp_path):
    (train,) = lists(tmp_path, train=["x", "y"])
    withdrawn = tmp_path / "withdrawn.csv"
    withdrawn.write_text("youtube_id,time_start,time_end,split\nx,0,10,holdout\n")
    settings = Settings((str(train),), str(tmp_path / "root"), exclude=(str(withdrawn),))
    outcomes = published(planned(train), [0, 1])  # by a version that knew no split of that name
    with pytest.raises(PrepareError, match="without a known split; give the same ones and leave such"):
        named(run.make_plan(settings), outcomes)
    withdrawn.write_text("youtube_id,time_start,time_end,split\n")
    assert named(run.make_plan(settings), outcomes) == ([str(train)] * 2, [0, 1])


def test_one_list_is_not_taken_for_two(tmp_path):
    both = lists(tmp_path, train=["!"], train_more=["!"])
    outcomes = published(planned(*both), [0, 1])
    with pytest.raises(PrepareError, match="made from other lists"):
        named(planned(both[0]), outcomes)


@pytest.mark.slow
def test_a_run_goes_on_and_is_compacted_however_its_list_is_spelt(tmp_path, monkeypatch):
    root, rows = tmp_path / "root", [f"a,vid{n:08d},10,20,train,0" for n in range(3)]
    settings, _ = rehearse(root, None, rows)  # of the list by its whole path, one of three videos
    monkeypatch.chdir(tmp_path)
    (tmp_path / "copy").mkdir()
    shutil.copy("list.csv", "copy")
    here, copy = (replace(settings, manifests=(name,), wave=2) for name in ("list.csv", "copy/list.csv"))
    options = runner.beam_options(["--direct_num_workers=1"])
    assert run.run(here, options).counts == {"ready": 3}
    assert set(dataset.open(root).outcomes()["manifest"].to_pylist()) == {str(tmp_path / "list.csv")}
    for call in (settings, here, copy):
        assert run.run(call, options).generation is None
    assert run.compact(copy, str(tmp_path / "compact")).counts == {"ready": 3}
