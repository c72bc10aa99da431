"""The log of takedowns, which keeps removed clips out of later generations.

`pipeline.maintenance.remove` takes a clip down.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.schema import REMOVED_LOG
from pipeline.outcome import EXCLUDED, PROCESS, READY, REMOVED
from pipeline.storage import Storage
from pipeline.storage.work_store import canonical_json

_MAX_LOG = 1 << 28  # bytes


class LogError(Exception):
    """The log cannot be read: one sentence with the remedy."""


@dataclass(frozen=True)
class Entry:
    """One line of the log: a request, and the clip that it named.

    ``time`` is ISO 8601, UTC; ``given`` the id or key requested; ``key`` and ``youtube_id`` are None where
    the data set has no such clip, so that a later generation leaves it out.
    """

    time: str
    given: str
    key: str | None
    youtube_id: str | None
    reason: str


def read(storage: Storage, path: str = REMOVED_LOG) -> list[Entry]:
    """Read a log, oldest entry first; empty where there is none. Raises LogError for a damaged one."""
    try:
        lines = storage.read_bytes(path, _MAX_LOG).splitlines()
        names = Entry.__dataclass_fields__
        return [Entry(**{n: fields.get(n) for n in names}) for fields in map(json.loads, lines)]
    except FileNotFoundError:
        return []
    except (ValueError, AttributeError):
        raise LogError(f"{storage.where(path)} is damaged: bring it back from a copy.") from None


def write(storage: Storage, path: str, entries: Iterable[Entry]) -> None:
    """Write a log, replacing the file."""
    storage.write(path, b"".join(canonical_json(asdict(entry)) + b"\n" for entry in entries))


def withhold(plan: pa.Table, storage: Storage) -> pa.Table:
    """Exclude from a plan all rows that ROOT's log names by id or key: a removed clip never comes back."""
    reasons = _reasons(storage)
    if not reasons:
        return plan
    place = _places(plan, reasons)
    return exclude(plan, pc.and_(pc.equal(plan["decision"], PROCESS), pc.is_valid(place)), place, reasons)


def exclude(
    rows: pa.Table, gone: pa.ChunkedArray, place: pa.ChunkedArray, reasons: dict[str, str]
) -> pa.Table:
    """Exclude the rows `gone` of a plan or of outcomes as removed; `place` is that of each row's reason."""
    reason = pa.array(list(reasons.values()), pa.string()).take(place.combine_chunks())
    values = {"decision": EXCLUDED, "outcome": EXCLUDED, "excluded_for": REMOVED, "reason": reason}
    values |= dict.fromkeys(("shard", "failure_class", "retry_after", "yielded_to"))
    for number, field in enumerate(rows.schema):
        if field.name in values:
            value = values[field.name]
            value = value if isinstance(value, pa.Array) else pa.scalar(value, field.type)
            column = pc.if_else(gone.combine_chunks(), value, rows[field.name].combine_chunks())
            rows = rows.set_column(number, field, column)
    return rows


def not_gone(outcomes: pa.Table, storage: Storage) -> list[str]:
    """Keys of the ready rows of `outcomes` (`OUTCOME_SCHEMA`) that the log names."""
    reasons = _reasons(storage)
    if not reasons:
        return []
    named = pc.is_valid(_places(outcomes, reasons))
    return outcomes.filter(pc.and_(named, pc.equal(outcomes["outcome"], READY)))["key"].to_pylist()


def _reasons(storage: Storage) -> dict[str, str]:
    """Reasons by id or key as given, and by the key of the clip."""
    return {name: e.reason for e in read(storage) for name in (e.given, e.key) if name}


def _places(rows: pa.Table, reasons: dict[str, str]) -> pa.ChunkedArray:
    """The place among `reasons` of each row's key or id; null where neither is among them."""
    names = pa.array(list(reasons), pa.string())
    return pc.coalesce(pc.index_in(rows["key"], names), pc.index_in(rows["youtube_id"], names))
