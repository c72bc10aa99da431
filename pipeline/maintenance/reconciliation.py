"""Compares the lists with the archives given as sources: missing, extra, refused, corrupt clips and others
of a wrong length. Writes a small JSON beside the report, which shows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.dataset.schema import SPLITS
from pipeline.lists.manifest import Clip
from pipeline.outcome import READY, FailureClass
from pipeline.sources import parse
from pipeline.sources.archive import ArchiveSource, Members, index
from pipeline.sources.directory import names
from pipeline.storage import Storage
from pipeline.storage.work_store import WorkStore

FILE = "report/archives.json"
EXAMPLES = 100
"""How many of each kind are named; all are counted."""

_SLACK = 0.5  # seconds by which a trimmed file may be longer or shorter than its row says
_CORRUPT = (str(FailureClass.CORRUPT), str(FailureClass.FORMAT))


def write(root: Storage, specs: Sequence[str], store: WorkStore, clip_hash: str) -> None:
    """Compare the lists of a published data set with its archives, if any source is one.

    Writes ``clips`` (distinct keys of the lists), ``found``, ``archives`` (path, videos, problem), and as
    ``{count, examples}``: missing (keys), extra (names that no row has), refused (name, archive, reason),
    corrupt (keys), wrong_length (key, seconds, wanted).

    Args:
        root: of the data set, whose outcomes name the rows.
        specs: sources as written on the command line.
        store, clip_hash: name the records of ready clips, which hold the length of each file found.
    """
    sources = [source for source in map(parse, specs) if isinstance(source, ArchiveSource)]
    if not sources:
        return
    places = [index(source.pattern, store.storage.url) for source in sources]
    rows = _rows(dataset.open(root).outcomes())
    named: set[str] = set()
    present, missing, corrupt, other_length = [], [], [], []
    for row in rows:
        wanted = Clip("", 0, row["youtube_id"], row["time_start"], row["time_end"], None, "")
        here = [name for name in names(wanted) if any(name in members for members in places)]
        named.update(here)
        if not here:
            missing.append(row["key"])
            continue
        present.append(row | {"trimmed": here[0] != row["youtube_id"]})
        if row["failure_class"] in _CORRUPT:
            corrupt.append(row["key"])
        elif row["failure_class"] == FailureClass.SHORT:
            other_length.append({"key": row["key"], "seconds": None, "wanted": _length(row)})
    other_length += _other_lengths(present, store, clip_hash)
    extra = sorted({stem for members in places for stem in members} - named)
    refused = [m for members in places for m in members.refused()]
    found = {
        "clips": len(rows),
        "found": len(present),
        "archives": [a for members in places for a in _archives(members)],
        "missing": _listed(missing),
        "extra": _listed(extra),
        "refused": _listed({"name": m.name, "archive": m.archive, "reason": m.refused} for m in refused),
        "corrupt": _listed(corrupt),
        "wrong_length": _listed(sorted(other_length, key=lambda found: found["key"])),
    }
    root.write(FILE, json.dumps(found, ensure_ascii=False, indent=1).encode("utf-8", "replace"))


def _rows(outcomes: pa.Table) -> list[dict[str, Any]]:
    """One row a key, the ready one first."""
    columns = ["key", "youtube_id", "time_start", "time_end", "outcome", "failure_class"]
    valid = pc.and_(pc.is_valid(outcomes["key"]), pc.is_in(outcomes["split"], pa.array(SPLITS)))
    found: dict[str, dict[str, Any]] = {}
    for row in outcomes.filter(valid).select(columns).to_pylist():
        if row["key"] not in found or row["outcome"] == READY:
            found[row["key"]] = row
    return list(found.values())


def _length(row: dict[str, Any]) -> float:
    return row["time_end"] - row["time_start"]


def _other_lengths(rows: Iterable[dict[str, Any]], store: WorkStore, clip_hash: str) -> list[dict[str, Any]]:
    """Trimmed clips of archives that are longer or shorter than their rows say, in seconds."""

    def check(row: dict[str, Any]) -> dict[str, Any] | None:
        record = store.read_record("clip", clip_hash, row["key"]) or {}
        source = record.get("meta", {}).get("source", {})
        seconds, wanted = source.get("duration"), _length(row)
        if source.get("kind") != ArchiveSource.kind or seconds is None:
            return None
        off = abs(seconds - wanted) > _SLACK
        return {"key": row["key"], "seconds": round(seconds, 2), "wanted": wanted} if off else None

    with ThreadPoolExecutor(16) as pool:  # mostly waiting for the store
        found = pool.map(check, (row for row in rows if row["trimmed"] and row["outcome"] == READY))
        return [row for row in found if row is not None]


def _archives(members: Members) -> list[dict[str, Any]]:
    return [
        {
            "path": path,
            "videos": table.num_rows - table["stem"].null_count,
            "problem": (table.schema.metadata or {}).get(b"problem", b"").decode("utf-8", "replace"),
        }
        for path, table in members.tables.items()
    ]


def _listed(items: Iterable[Any]) -> dict[str, Any]:
    found = list(items)
    return {"count": len(found), "examples": found[:EXAMPLES]}
