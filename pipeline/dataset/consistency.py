"""Checks that no row is lost and none counted twice.

Pure functions over whole tables (650,000 rows in seconds), called by `pipeline.dataset.publish` before it
writes and by `pipeline.maintenance.verify` afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.schema import INDEX_SCHEMA, OUTCOME_SCHEMA, ShardInfo
from pipeline.outcome import (
    EXCLUDED,
    EXCLUDED_FOR,
    FAILED,
    PROCESS,
    READY,
    REMOVED,
    RETRY_AFTER,
    FailureClass,
)

_IDENTITY = ("key", "youtube_id", "time_start", "time_end", "label", "split")


class Inconsistent(Exception):
    """Rows were lost, made up or counted twice: one sentence that names the first of them."""


def decided(plan: pa.Table, parts: Sequence[pa.Table], generation: str) -> pa.Table:
    """Every row of the plan with its outcome and the generation's name, in the plan's order.

    Args:
        plan: one row for each manifest row that this generation decides (columns of `pipeline.lists.plan`).
        parts: outcomes (`OUTCOME_SCHEMA`) of exactly the rows whose decision is process.

    Raises:
        Inconsistent: a row without outcome or with two, or an outcome of a row not asked for.
    """
    process = pc.equal(plan["decision"], PROCESS)
    by_plan = _by_plan(plan.filter(pc.invert(process)))
    results = pa.concat_tables([OUTCOME_SCHEMA.empty_table(), *map(_select, parts)])
    planned = plan.filter(process)
    ids, wanted, came = _row_ids(plan, planned, results)
    _distinct(ids, plan, "the plan")
    _distinct(came, results, "the outcomes")
    _same(wanted, planned, came, results)
    results = results.take(pa.array(_positions(came, wanted)))
    for name in _IDENTITY:
        _equal_columns(planned, results, name, "the plan", "the outcomes")
    table = pa.concat_tables([by_plan, results])
    (order,) = _row_ids(table)
    table = table.take(pa.array(_positions(order, _row_ids(plan)[0])))
    place = OUTCOME_SCHEMA.get_field_index("generation")
    return table.set_column(place, OUTCOME_SCHEMA.field(place), pa.repeat(generation, table.num_rows))


def check_outcomes(outcomes: pa.Table) -> None:
    """Each row's fields agree with its outcome, and no (manifest, row) stands twice, else Inconsistent."""
    (ids,) = _row_ids(outcomes)
    _distinct(ids, outcomes, "the outcomes")
    kind, failure = outcomes["outcome"], outcomes["failure_class"]
    failed = pc.equal(kind, FAILED)
    transient = _one_of(failure, map(str, RETRY_AFTER))
    empty_reason = pc.equal(pc.fill_null(pc.utf8_length(outcomes["reason"]), 0), 0)
    listed, again = pc.is_valid(failure), pc.is_valid(outcomes["retry_after"])
    excluded, reasoned = pc.equal(kind, EXCLUDED), pc.is_valid(outcomes["excluded_for"])
    rules = {
        "an outcome that is none": pc.invert(_one_of(kind, (READY, EXCLUDED, FAILED))),
        "no reason": pc.and_(pc.not_equal(kind, READY), empty_reason),
        "a failure class that does not go with its outcome": pc.not_equal(failed, listed),
        "an unknown failure class": pc.and_not(listed, _one_of(failure, map(str, FailureClass))),
        "an exclusion that does not go with its outcome": pc.not_equal(
            excluded, _one_of(outcomes["excluded_for"], EXCLUDED_FOR)
        ),
        "an exclusion without being excluded": pc.and_not(reasoned, excluded),
        "a retry_after though asking again is no use": pc.and_not(again, transient),
        "no key though it is ready": pc.and_(pc.equal(kind, READY), pc.is_null(outcomes["key"])),
    }
    for rule, broken in rules.items():
        _refuse(outcomes, broken, f"{{}} has {rule}")


def check_index(outcomes: pa.Table, index: pa.Table, shards: Sequence[ShardInfo]) -> None:
    """Ready outcomes, index rows and the shards' sample counts agree on the clips, else Inconsistent.

    Args:
        outcomes: only the ready rows are looked at.
        index: rows of `INDEX_SCHEMA`, of all `shards`; removed rows need no ready outcome.
    """
    keys = index["key"]
    if (twice := _first_twice(keys)) is not None:
        raise Inconsistent(f"the index has {twice} twice")
    ready = outcomes.filter(pc.equal(outcomes["outcome"], READY))
    if (twice := _first_twice(ready["key"])) is not None:
        raise Inconsistent(f"{twice} is ready twice")
    present = index.filter(pc.invert(index["removed"]))
    for left, right, sentence in (
        (ready, present, "{} is ready but in no shard"),
        (present, ready, "{} is in a shard but not ready"),
    ):
        missing = left.filter(pc.invert(pc.is_in(left["key"], _plain(right["key"]))))
        if missing.num_rows:
            more = f" ({missing.num_rows} such clips)" if missing.num_rows > 1 else ""
            raise Inconsistent(sentence.format(missing["key"][0].as_py()) + more)
    ready, present = ready.sort_by("key"), present.sort_by("key")
    for name in _IDENTITY[1:]:
        _equal_columns(ready, present, name, "the outcomes", "the index")
    counted = {found["values"]: found["counts"] for found in index["shard"].value_counts().to_pylist()}
    for shard in shards:
        if counted.pop(shard.path, 0) != shard.samples:
            raise Inconsistent(f"{shard.path} has {shard.samples} samples, the index lists another number")
    if counted:
        raise Inconsistent(f"the index names {min(counted)}, which is no shard of this data set")


def check_classes(index: pa.Table, classes: Sequence[str]) -> None:
    """Class indices are the places of the labels in `classes`, null without label, else Inconsistent."""
    place = pc.fill_null(pc.index_in(index["label"], pa.array(classes, pa.string())), -1)
    unlisted = pc.and_(pc.is_valid(index["label"]), pc.equal(place, -1))
    wrong = pc.or_(unlisted, pc.not_equal(place, pc.fill_null(index["class_index"], -1)))
    if pc.any(wrong, min_count=0).as_py():
        row = index.filter(wrong).slice(0, 1).to_pylist()[0]
        raise Inconsistent(f"{row['key']} has class index {row['class_index']} and label {row['label']!r}")


def check_again(earlier: pa.Table, outcomes: pa.Table, index: pa.Table) -> None:
    """A later generation decides only open rows of the same manifests, else Inconsistent.

    Args:
        earlier: the latest outcomes published before.
        outcomes: the new generation's.
        index: all samples published before.
    """
    old, new = _row_ids(earlier, outcomes)
    again = np.isin(new, old)
    if not again.any():
        return
    now = outcomes.filter(pa.array(again))
    before = earlier.take(pa.array(_positions(old, new[again])))
    for name in _IDENTITY:
        _equal_columns(before, now, name, "the published outcomes", "the manifests given now")
    removed = pc.fill_null(pc.equal(before["excluded_for"], REMOVED), False)
    removed = pc.and_(removed, pc.not_equal(now["outcome"], EXCLUDED))
    _refuse(now, removed, "{} was removed and is decided again; repeat the command")
    published = pc.is_in(now["key"], _plain(index["key"]))
    _refuse(now, pc.and_(published, pc.equal(now["outcome"], READY)), "{} is published already")
    _refuse(before, pc.equal(before["outcome"], READY), "{} was ready and is decided again")


def counts(outcomes: pa.Table) -> dict[str, dict[str, int]]:
    """Split -> outcome -> number of rows, sorted by name."""
    table = outcomes.group_by(["split", "outcome"]).aggregate([("row", "count")])
    found: dict[str, dict[str, int]] = {}
    for row in table.sort_by([("split", "ascending"), ("outcome", "ascending")]).to_pylist():
        found.setdefault(row["split"], {})[row["outcome"]] = row["row_count"]
    return found


def _by_plan(rows: pa.Table) -> pa.Table:
    rows = rows.append_column("outcome", rows["decision"])
    rows = rows.append_column("attempts", pa.repeat(0, rows.num_rows))
    for name in ("retry_after", "generation"):
        rows = rows.append_column(name, pa.nulls(rows.num_rows))
    return _select(rows)


def _select(table: pa.Table) -> pa.Table:
    return table.select(OUTCOME_SCHEMA.names).cast(OUTCOME_SCHEMA)


def _row_ids(*tables: pa.Table) -> list[np.ndarray]:
    """(manifest, row) as one int64 each, the numbering of manifests shared by all tables."""
    names = pa.chunked_array([c for t in tables for c in t["manifest"].chunks], pa.string()).unique()
    codes = [pc.index_in(t["manifest"], names).to_numpy().astype(np.int64) for t in tables]
    return [code << 40 | t["row"].to_numpy() for code, t in zip(codes, tables, strict=True)]


def _positions(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place in `ids` of each of `wanted`; all must be there."""
    order = np.argsort(ids, kind="stable")
    return order[np.searchsorted(ids, wanted, sorter=order)]


def _distinct(ids: np.ndarray, table: pa.Table, what: str) -> None:
    ordered, places = np.sort(ids), np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twice):
        raise Inconsistent(f"{_name(table.slice(int(places[twice[0]]), 1))} stands in {what} twice")


def _same(wanted: np.ndarray, planned: pa.Table, came: np.ndarray, results: pa.Table) -> None:
    for left, right, table, sentence in (
        (wanted, came, planned, "{} has no outcome{}: rows would be lost"),
        (came, wanted, results, "{} has an outcome though nobody asked for it{}"),
    ):
        missing = np.flatnonzero(~np.isin(left, right))
        if len(missing):
            more = f", nor have {len(missing) - 1} others" if len(missing) > 1 else ""
            raise Inconsistent(sentence.format(_name(table.slice(int(missing[0]), 1)), more))


def _equal_columns(left: pa.Table, right: pa.Table, name: str, one: str, other: str) -> None:
    kind = (INDEX_SCHEMA if name in INDEX_SCHEMA.names else OUTCOME_SCHEMA).field(name).type
    a, b = _plain(left[name].cast(kind)), _plain(right[name].cast(kind))
    if a.equals(b):
        return
    for number, (x, y) in enumerate(zip(a.to_pylist(), b.to_pylist(), strict=True)):
        if x != y:
            where = _name(left.slice(number, 1))
            raise Inconsistent(f"{where} has {name} {x!r} in {one} and {y!r} in {other}")


def _one_of(column: pa.ChunkedArray, words: Iterable[str]) -> pa.ChunkedArray:
    return pc.is_in(column, pa.array(list(words)))


def _refuse(rows: pa.Table, broken: pa.ChunkedArray, sentence: str) -> None:
    """Raise Inconsistent with the name of the first row where `broken` is true, if there is one."""
    if (found := rows.filter(broken)).num_rows:
        raise Inconsistent(sentence.format(_name(found)))


def _first_twice(keys: pa.ChunkedArray) -> str | None:
    counted = keys.value_counts()
    twice = counted.filter(pc.greater(counted.field("counts"), 1))
    return twice.field("values")[0].as_py() if len(twice) else None


def _plain(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)


def _name(rows: pa.Table) -> str:
    row = rows.slice(0, 1).to_pylist()[0]
    text = f"{row['manifest']}:{row['row']}" if "manifest" in row else ""
    return " ".join(filter(None, (text, row.get("key"))))
