"""Counts manifest rows by outcome, split, label, cause and reason. Vectorised; no markup here."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Dataset
from pipeline.outcome import EXCLUDED, FAILED, READY, RETRY_AFTER

OUTCOMES = (READY, EXCLUDED, FAILED)
_REASONS = 5  # shown for each cause


@dataclass(frozen=True)
class Reason:
    """A reason in its original words, the number of rows that have it, and one of them."""

    text: str
    count: int
    example: str


@dataclass(frozen=True)
class Cause:
    """Why rows are no samples: `name` is a failure class, or what the rows were excluded for."""

    outcome: str
    name: str
    count: int
    transient: bool
    distinct: int  # reasons
    reasons: tuple[Reason, ...]  # the most frequent of them


@dataclass(frozen=True)
class Counts:
    """The numbers of the page; each mapping is name -> outcome -> rows."""

    rows: int
    outcomes: dict[str, int]
    splits: dict[str, dict[str, int]]
    labels: dict[str, dict[str, int]]  # classes of the data set first, in order; "" for rows without
    causes: tuple[Cause, ...]  # the commonest first
    due: str | None  # when the first transient failure may be tried again, ISO 8601


def count(data: Dataset) -> Counts:
    """Count the latest outcome of every row that any generation of `data` decided."""
    table = _filled(data.outcomes(), "label")
    labels = {name: dict.fromkeys(OUTCOMES, 0) for name in data.classes} | _by(table, "label")
    splits = _by(table, "split")
    due = pc.min(table["retry_after"]).as_py()
    return Counts(
        rows=table.num_rows,
        outcomes={o: sum(s[o] for s in splits.values()) for o in OUTCOMES},
        splits={name: splits[name] for name in ("train", "val", "test", "unknown") if name in splits},
        labels=labels,
        causes=_causes(table),
        due=due.strftime("%Y-%m-%d %H:%M UTC") if due else None,
    )


def _filled(table: pa.Table, name: str) -> pa.Table:
    """The table with empty texts for the nulls of one column."""
    return table.set_column(table.schema.get_field_index(name), name, pc.fill_null(table[name], ""))


def _by(table: pa.Table, column: str) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    for row in table.group_by([column, "outcome"]).aggregate([([], "count_all")]).to_pylist():
        counts = counted.setdefault(row[column], dict.fromkeys(OUTCOMES, 0))
        counts[row["outcome"]] = row["count_all"]
    return counted


def _causes(table: pa.Table) -> tuple[Cause, ...]:
    causes = []
    for outcome, column in ((EXCLUDED, "excluded_for"), (FAILED, "failure_class")):
        part = _filled(table.filter(pc.equal(table["outcome"], outcome)), "reason")
        part = part.append_column("name", pc.fill_null(part[column], "unknown"))
        for name in pc.unique(part["name"]).to_pylist():
            rows = part.filter(pc.equal(part["name"], name))
            distinct, reasons = _reasons(rows)
            causes.append(Cause(outcome, name, rows.num_rows, name in RETRY_AFTER, distinct, reasons))
    return tuple(sorted(causes, key=lambda c: (-c.count, c.outcome, c.name)))


def _reasons(rows: pa.Table) -> tuple[int, tuple[Reason, ...]]:
    """The number of different reasons, and the most frequent ones."""
    rows = rows.append_column("number", pa.array(range(rows.num_rows), pa.int64()))
    counted = rows.group_by("reason").aggregate([([], "count_all"), ("number", "min")])
    top = counted.sort_by([("count_all", "descending"), ("number_min", "ascending")]).slice(0, _REASONS)
    reasons = []
    for found in top.to_pylist():
        row = rows.slice(found["number_min"], 1).to_pylist()[0]
        example = row["key"] or f"{row['manifest']}:{row['row']}"
        reasons.append(Reason(found["reason"], found["count_all"], example))
    return counted.num_rows, tuple(reasons)
