"""The vectorised plan against the rules written out row by row, on random small manifests."""

from __future__ import annotations

import hashlib

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.lists import cost, manifest, plan

RANK = {"val": 0, "test": 1, "train": 2}


def specification(rows: list[dict], options: plan.PlanOptions, exclude: list[dict]) -> list[dict]:
    """Decides each row by the rules, slow and plain: decision, excluded_for, yielded_to, class and shard."""
    for row in [*rows, *exclude]:
        if row["error"] is None:
            row["key"] = manifest.key_of(row["youtube_id"], row["time_start"], row["time_end"])
            row["place"] = f"{row['manifest']}:{row['row']} {row['key']}"
    valid = [row for row in rows if row["error"] is None]
    labels = options.classes or sorted({row["label"] for row in valid if row["label"] is not None})

    def fields(row: dict) -> tuple:
        return row["time_start"], row["time_end"], row["label"]

    for row in rows:
        twins = [
            o for o in valid if row["error"] is None and (o["key"], o["split"]) == (row["key"], row["split"])
        ]
        row["failed"] = (
            row["error"] is not None
            or (row["label"] is not None and row["label"] not in labels)
            or any(fields(twin) != fields(row) for twin in twins)
        )

    admitted: list[dict] = []
    for row in rows:
        row |= {"excluded_for": None, "yielded_to": None}
        row["decision"] = "failed" if row["failed"] else "process"
        if row["failed"]:
            continue
        same = [other for other in valid if other["youtube_id"] == row["youtube_id"]]
        above = [other for other in same if RANK[other["split"]] < RANK[row["split"]]]
        listed = [
            other for other in exclude if other.get("place") and other["youtube_id"] == row["youtube_id"]
        ]
        before = [
            other
            for other in admitted
            if (other["youtube_id"], other["split"]) == (row["youtube_id"], row["split"])
            and (options.unique == "video" or other["key"] == row["key"])
        ]
        if above:
            best = min(RANK[other["split"]] for other in above)
            holders = [other for other in above if RANK[other["split"]] == best]
            winner, why = next((o for o in holders if not o["failed"]), holders[0]), "leak"
        elif listed and row["split"] == "train":
            winner, why = listed[0], "listed"
        elif before:
            winner, why = before[0], "duplicate"
        else:
            admitted.append(row)
            continue
        row |= {"decision": "excluded", "excluded_for": why, "yielded_to": winner["place"]}

    kept, healthy = [], 0
    for row in rows:
        if options.limit is not None and healthy >= options.limit:
            break
        kept.append(row)
        healthy += not row["failed"]
    shards = {}
    for split in RANK:
        planned = [row["key"] for row in kept if row["decision"] == "process" and row["split"] == split]
        planned.sort(key=lambda key: hashlib.sha256(key.encode()).hexdigest())
        runs = -(-len(planned) // options.shard_size)
        shards |= {(split, key): i * runs // len(planned) for i, key in enumerate(planned)}
    return [
        {
            "place": (row["manifest"], row["row"]),
            "decision": row["decision"],
            "excluded_for": row["excluded_for"],
            "yielded_to": row["yielded_to"],
            "class_index": labels.index(row["label"]) if row["label"] in labels else None,
            "shard": shards[row["split"], row["key"]] if row["decision"] == "process" else None,
        }
        for row in kept
    ]


TIMES = st.sampled_from([(0.0, 10.0), (0.4, 10.0), (5.0, 15.0), (0.5, 2.5)])
ROWS = st.builds(
    lambda youtube_id, times, label, split, bad: (
        {
            "youtube_id": None,
            "time_start": None,
            "time_end": None,
            "label": None,
            "split": "unknown",
            "error": "x",
        }
        if bad
        else {"youtube_id": youtube_id, "time_start": times[0], "time_end": times[1]}
        | {"label": label, "split": split, "error": None}
    ),
    st.sampled_from(["a", "b", "c", "-d"]),
    TIMES,
    st.sampled_from(["run", "run", "jump", "跳", None]),
    st.sampled_from(["train", "train", "val", "test"]),
    st.integers(0, 9).map(lambda n: n == 0),
)


def table_of(name: str, rows: list[dict]) -> pa.Table:
    rows = [{"manifest": name, "row": i + 2, **row} for i, row in enumerate(rows)]
    return pa.Table.from_pylist(rows, schema=manifest.SCHEMA)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(ROWS, max_size=10), max_size=3),
    st.lists(st.lists(ROWS, max_size=3), max_size=2),
    st.builds(
        plan.PlanOptions,
        unique=st.sampled_from(["video", "clip"]),
        limit=st.one_of(st.none(), st.integers(0, 12)),
        shard_size=st.integers(1, 3),
        classes=st.sampled_from([None, ("run",), ("跳", "run", "jump")]),
    ),
)
def test_the_plan_is_what_the_rules_say_row_by_row(lists, excluded_lists, options):
    tables = [table_of(f"list{i}.csv", rows) for i, rows in enumerate(lists)]
    excludes = [table_of(f"other{i}.csv", rows) for i, rows in enumerate(excluded_lists)]
    table = plan.make(tables, options, excludes)
    found = [
        {"place": (row["manifest"], row["row"])}
        | {name: row[name] for name in ("decision", "excluded_for", "yielded_to", "class_index", "shard")}
        for row in table.to_pylist()
    ]
    rows = [row for other in tables for row in other.to_pylist()]
    listed = [row for other in excludes for row in other.to_pylist()]
    assert found == specification(rows, options, listed)

    for row in table.to_pylist():
        assert (row["reason"] is None) == (row["decision"] == "process")
        assert row["failure_class"] == ("manifest" if row["decision"] == "failed" else None)
    again = [key for part in plan.parts(table, 3) for key in part["key"].to_pylist()]
    assert sorted(again) == sorted(r["key"] for r in table.to_pylist() if r["decision"] == "process")
    cost.describe(cost.estimate(table))
