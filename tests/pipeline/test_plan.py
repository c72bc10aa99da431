"""Each video once, no evaluation video in train, every row accounted for: promises of the plan."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.lists import cost, manifest, plan
from pipeline.storage import open_storage

ROOT = Path(__file__).parents[2]


def lists(folder: Path, **contents: str) -> list[pa.Table]:
    """One table for each name=rows, rows as 'id start end label' separated by commas; '!' is a broken row."""
    tables = []
    for name, rows in contents.items():
        path = folder / f"{name}.csv"
        lines = ["youtube_id,time_start,time_end,label,split"]
        for row in rows.split(","):
            lines.append(",".join([*row.split(), name.split("_")[0]]) if row.strip() != "!" else "!")
        path.write_text("\n".join(lines) + "\n")
        tables.append(manifest.read(path))
    return tables


def decisions(table: pa.Table) -> list[tuple]:
    return [(r["youtube_id"], r["decision"], r["excluded_for"], r["yielded_to"]) for r in table.to_pylist()]


def test_an_evaluation_video_never_lands_in_train_whatever_the_order(tmp_path):
    train, test, val = lists(
        tmp_path, train="a 0 10 x,b 0 10 x,c 0 10 x", test="a 50 60 x,b 9 19 x", val="a 0 10 y"
    )
    for unique in ("video", "clip"):
        table = plan.make([train, test, val], plan.PlanOptions(unique=unique))
        assert decisions(table) == [
            ("a", "excluded", "leak", f"{tmp_path}/val.csv:2 a_000000_000010"),
            ("b", "excluded", "leak", f"{tmp_path}/test.csv:3 b_000009_000019"),
            ("c", "process", None, None),
            ("a", "excluded", "leak", f"{tmp_path}/val.csv:2 a_000000_000010"),
            ("b", "process", None, None),
            ("a", "process", None, None),
        ]


def test_other_lists_keep_their_videos_out_of_train_only(tmp_path):
    train, val, other = lists(
        tmp_path, train="a 0 10 x,b 0 10 x", val="c 0 10 x", train_other="!,c 0 5 x,a 7 9 x"
    )
    table = plan.make([train, val], plan.PlanOptions(), [other])
    assert decisions(table) == [
        ("a", "excluded", "listed", f"{tmp_path}/train_other.csv:4 a_000007_000009"),
        ("b", "process", None, None),
        ("c", "process", None, None),
    ]


def test_a_video_gives_one_clip_or_with_unique_clip_all_its_clips(tmp_path):
    (train,) = lists(tmp_path, train="a 0 10 x,a 20 30 x,a 20 30 x")
    first, second = (f"{tmp_path}/train.csv:{r}" for r in ("2 a_000000_000010", "3 a_000020_000030"))
    assert decisions(plan.make([train], plan.PlanOptions())) == [
        ("a", "process", None, None),
        ("a", "excluded", "duplicate", first),
        ("a", "excluded", "duplicate", first),
    ]
    assert decisions(plan.make([train], plan.PlanOptions(unique="clip"))) == [
        ("a", "process", None, None),
        ("a", "process", None, None),
        ("a", "excluded", "duplicate", second),
    ]


def test_different_rows_with_one_key_all_fail(tmp_path):
    (train,) = lists(tmp_path, train="a 0 10 x,b 0 10 x,a 0 10 y,b 0.4 10 x,c 0 10 x")
    table = plan.make([train], plan.PlanOptions())
    assert table["decision"].to_pylist() == ["failed"] * 4 + ["process"]
    assert table["reason"][3].as_py() == (
        f"{tmp_path}/train.csv:5: rows that differ share the key b_000000_000010, "
        f"the first of them at {tmp_path}/train.csv:3."
    )


def test_classes_are_those_of_all_valid_rows_and_a_label_map_fixes_others(tmp_path):
    train, val = lists(tmp_path, train="a 0 10 z,a 5 9 跳,!,b 0 10 é", val="c 0 10 a")
    table = plan.make([train, val], plan.PlanOptions(limit=1))
    assert plan.classes(table) == ["a", "z", "é", "跳"]
    assert table["class_index"].to_pylist() == [1]

    table = plan.make([train, val], plan.PlanOptions(classes=("z", "a"), unique="clip"))
    assert table["class_index"].to_pylist() == [0, None, None, None, 1]
    assert table["decision"].to_pylist() == ["process", "failed", "failed", "failed", "process"]
    assert table["reason"][1].as_py() == (
        f"{tmp_path}/train.csv:3: the label '跳' is not among the classes given with --classes."
    )


def test_a_limit_keeps_the_first_valid_rows_and_judges_leakage_on_all(tmp_path):
    train, val = lists(tmp_path, train="!,a 0 10 x,b 0 10 x,!,c 0 10 x", val="a 0 10 x")
    table = plan.make([train, val], plan.PlanOptions(limit=2))
    assert [(r["row"], r["decision"]) for r in table.to_pylist()] == [
        (2, "failed"), (3, "excluded"), (4, "process"),
    ]  # fmt: skip
    assert plan.make([train, val], plan.PlanOptions(limit=0)).num_rows == 0
    assert plan.make([train, val], plan.PlanOptions(limit=99)).num_rows == 6


def test_a_malformed_row_keeps_its_place_and_its_sentence(tmp_path):
    (train,) = lists(tmp_path, train="a 0 10 x,!")
    row = plan.make([train], plan.PlanOptions()).to_pylist()[1]
    assert (row["row"], row["split"], row["decision"], row["failure_class"]) == (
        3,
        "unknown",
        "failed",
        "manifest",
    )
    assert row["reason"] == f"{tmp_path}/train.csv:3: the row has 1 fields where the header has 5."
    assert row["key"] is row["youtube_id"] is row["video"] is row["shard"] is None


def test_a_list_given_twice_and_a_wrong_choice_are_refused(tmp_path):
    (train,) = lists(tmp_path, train="a 0 10 x")
    with pytest.raises(manifest.ManifestError, match="twice"):
        plan.make([train, train], plan.PlanOptions())
    for wrong in ({"unique": "label"}, {"limit": -1}, {"shard_size": 0}, {"classes": ("a", "a")}):
        with pytest.raises(ValueError, match="--"):
            plan.PlanOptions(**wrong)


def test_no_rows_make_an_empty_plan():
    table = plan.make([], plan.PlanOptions())
    assert table.num_rows == 0
    assert plan.classes(table) == []
    assert len(plan.digest(table)) == 64
    assert [part.num_rows for part in plan.parts(table, 2)] == [0, 0]


def test_a_plan_survives_its_file_and_the_lists_may_lie_anywhere(tmp_path):
    rows = {"train": "a 0 10 x,!,b 0 10 y,b 1 11 x", "val": "a 0 10 x"}
    digests = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        table = plan.make(lists(tmp_path / name, **rows), plan.PlanOptions())
        plan.write(table, open_storage(tmp_path), f"plan/{name}.parquet")
        back = plan.read(open_storage(tmp_path), f"plan/{name}.parquet")
        assert back.equals(table)
        assert plan.classes(back) == plan.classes(table)
        digests += [plan.digest(table), plan.digest(back)]
    assert len(set(digests)) == 1
    other = plan.make(lists(tmp_path, train="a 0 10 x"), plan.PlanOptions())
    assert plan.digest(other) not in digests
    assert sorted(p.name for p in (tmp_path / "plan").iterdir()) == ["here.parquet", "there.parquet"]


def test_the_clips_of_a_video_lie_side_by_side_in_one_part_in_every_process(tmp_path):
    rows = ",".join(f"v{i % 50} {i} {i + 10} x" for i in range(200))
    (train,) = lists(tmp_path, train=rows)
    table = plan.make([train], plan.PlanOptions(unique="clip"))
    parts = plan.parts(table, 7)
    assert len(parts) == 7
    assert sum(part.num_rows for part in parts) == 200
    for part in parts:
        videos = part["video"].to_pylist()
        runs = [v for i, v in enumerate(videos) if i == 0 or videos[i - 1] != v]
        assert len(runs) == len(set(runs))
    plan.write(table, open_storage(tmp_path), "plan.parquet")
    code = "from pipeline import storage; from pipeline.lists import plan;"
    code += f"t = plan.read(storage.open_storage({str(tmp_path)!r}), 'plan.parquet');"
    code += "print([p['video'].to_pylist() for p in plan.parts(t, 7)], plan.digest(t))"
    environment = {"PYTHONHASHSEED": "123", "PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == f"{[p['video'].to_pylist() for p in parts]} {plan.digest(table)}"


def test_shards_are_even_and_no_larger_than_asked(tmp_path):
    (train,) = lists(tmp_path, train=",".join(f"v{i} 0 10 x" for i in range(100)))
    shards = plan.make([train], plan.PlanOptions(shard_size=33))["shard"].to_pylist()
    assert sorted(shards.count(n) for n in set(shards)) == [25, 25, 25, 25]
    assert set(shards) == {0, 1, 2, 3}


def test_a_later_generation_takes_chosen_rows_into_shards_of_its_own(tmp_path):
    (train,) = lists(tmp_path, train="!,a 0 10 x,b 0 10 x,a 2 12 x,c 0 10 x,d 0 10 x")
    table = plan.make([train], plan.PlanOptions(shard_size=1))
    later = plan.only(table, np.array([True, False, True, True, True, False]), 1, "why")
    assert [(r["row"], r["decision"]) for r in later.to_pylist()] == [
        (2, "failed"), (4, "process"), (5, "excluded"), (6, "process"),
    ]  # fmt: skip
    assert sorted(n for n in later["shard"].to_pylist() if n is not None) == [0, 1]
    assert plan.classes(later) == plan.classes(table)


def test_an_estimate_counts_and_says_it(tmp_path):
    train, val = lists(tmp_path, train="a 0 10 x,!,b 0 10 y,b 1 11 x,c 0 10 x", val="c 0 10 x")
    table = plan.make([train, val], plan.PlanOptions())
    costs = cost.estimate(table, budget=2)
    assert (costs["clips"], costs["videos"], costs["requests"], costs["hours"]) == (3, 3, 3, 1.5)
    assert costs["excluded"] == {"duplicate": 1, "leak": 1}
    assert costs["failed"] == 1
    assert costs["by_split"] == {"train": 2, "val": 1}
    assert costs["disk_bytes"] == 2 * costs["data_set_bytes"] + costs["source_bytes"]
    text = cost.describe(costs)
    assert "3 clips to prepare (train 2, val 1)" in text
    assert "1.5 hours" in text
    offline = cost.estimate(table, network=False, flow=False)
    assert (
        offline["requests"] == offline["hours"] == offline["flow_core_hours"] == offline["source_bytes"] == 0
    )
    assert "videos an hour" not in cost.describe(offline)


def test_kinetics_400_is_about_half_a_terabyte():
    table = manifest.read(ROOT / "manifests" / "kinetics-400_val.csv")
    costs = cost.estimate(plan.make([table], plan.PlanOptions()))
    assert costs["clips"] == 19_906
    assert costs["data_set_bytes"] * 306_245 / 19_906 == pytest.approx(0.45e12, rel=0.02)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_650_000_rows_are_read_and_planned_within_20_s_and_512_mib():
    specification = importlib.util.spec_from_file_location("plan_benchmark", ROOT / "benchmarks" / "plan.py")
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    result = benchmark.run()
    print(result)
    assert result["rows"] == 650_000
    assert result["excluded"]["duplicate"] > 30_000
    assert result["excluded"]["leak"] > 1_000
    assert result["core_seconds"] <= 20  # not wall time: other tests may hold the cores
    assert result["peak_mib"] <= 512
