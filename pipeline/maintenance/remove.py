"""Removes clips from a published data set; zeros of the same size keep offsets and sample order.

Removes names before bytes, in this order: a note of the clips (``removing.jsonl``), index and outcomes,
dataset.json with the hashes that the shards will have, the shards, report and work store, and at last the
log (``removed.jsonl``). Every step can be repeated, and each file changes in one step, so a killed removal
leaves a readable data set and the next `remove` completes it. `pipeline.maintenance.erase` rewrites a shard,
`pipeline.maintenance.purge` finds a clip's other files.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.dataset import Dataset, card, consistency, publish, removal_log
from pipeline.dataset.publish import CARD_FILE, PUBLISH_LOCK
from pipeline.dataset.removal_log import Entry
from pipeline.dataset.schema import META_FILE, REMOVED_LOG, REMOVING_LOG, SPLITS, index_path, outcome_path
from pipeline.keys import KEY
from pipeline.lists import plan
from pipeline.maintenance import erase, purge
from pipeline.outcome import FAILED, READY, REMOVED, CallError
from pipeline.storage import Busy, Changed, Storage, location, open_storage, work_store
from pipeline.storage.tables import write_table
from pipeline.storage.work_store import WorkStore, canonical_json

_MAX_REASON = 500  # characters
_Rows = dict[str, list[dict[str, Any]]]


class IdsError(CallError, ValueError):
    """The ids or the reason are not valid: one sentence with the remedy."""


class RemoveError(Exception):
    """Nothing could be removed now: one sentence with the remedy."""


@dataclass
class Takedown:
    """The result of a removal; with `dry_run`, of one that was not made.

    `unknown` are ids and keys without a ready, failed or removed clip: no row has them yet, or their rows are
    excluded for another reason and their video may still come.
    """

    dry_run: bool = False
    removed: list[str] = field(default_factory=list)  # keys
    completed: list[str] = field(default_factory=list)  # keys of an earlier removal that was interrupted
    already: list[str] = field(default_factory=list)  # keys that were removed before
    unknown: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)  # rewritten, as paths below ROOT
    files: list[str] = field(default_factory=list)  # deleted from report and work store
    warnings: list[str] = field(default_factory=list)  # places not reached from here, and damage found

    def lines(self) -> list[str]:
        """For a person."""
        would = "would be " if self.dry_run else ""
        return [
            *(f"{would}removed: {key}" for key in self.removed),
            *(f"{would}completed: {key}" for key in self.completed),
            *(f"removed before: {key}" for key in self.already),
            *(f"not in the data set, on record: {given}" for given in self.unknown),
            *(f"{would}rewritten: {path}" for path in self.shards),
            *(f"{would}deleted: {path}" for path in self.files),
            *(f"note: {text}" for text in self.warnings),
        ]


def read_ids(path: str | os.PathLike[str]) -> list[str]:
    """Read the ids or keys in a text file, one a line; ignores blank lines and those that begin with #.

    Raises:
        IdsError: unreadable, empty, or with a line that is no id or key.
    """
    try:
        with io.TextIOWrapper(location.open_file(path), encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise IdsError(f"{path}: cannot be read ({why}); give a text file, one id or key a line.") from None
    found: dict[str, None] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            if not KEY.fullmatch(line):
                raise IdsError(f"{path}:{number}: {line[:40]!r} is no id or key; nothing was removed.")
            found[line] = None
    if not found:
        raise IdsError(f"{path}: names no id; write one id or key a line.")
    return list(found)


def remove(
    root: str | os.PathLike[str] | Storage,
    given: Sequence[str],
    reason: str,
    *,
    work: str | None = None,
    dry_run: bool = False,
) -> Takedown:
    """Remove clips from a published data set and from everything that belongs to it.

    Args:
        given: video ids (all clips of the video) or keys.
        reason: stands in the outcomes and in the log.
        work: the work store; ROOT/work where None.

    Raises:
        IdsError: no reason, or something that is no id or key.
        DatasetError: there is no data set, or a damaged one.
        RemoveError: a `prepare` or another `remove` is running.
        Failed: class storage; repeating the command completes it.
    """
    storage = root if isinstance(root, Storage) else open_storage(root)
    reason = " ".join(reason.split())
    if not 0 < len(reason) <= _MAX_REASON:
        raise IdsError(f"--reason wants a sentence of at most {_MAX_REASON} characters.")
    if wrong := [text for text in given if not KEY.fullmatch(text)]:
        raise IdsError(f"{wrong[0][:40]!r} is no id or key; nothing was removed.")
    dataset.open(storage)  # raises where there is none: the lock would make a folder there
    store = work_store.of(storage, work)
    with contextlib.nullcontext() if dry_run else _exclusively(storage, store):
        return _remove(storage, store, given, reason, dry_run)


def _remove(storage: Storage, store: WorkStore, given: Sequence[str], reason: str, dry_run: bool) -> Takedown:
    version = storage.version(META_FILE)
    opened = dataset.open(storage)
    rows = _rows_by_name(opened.outcomes(), given)
    pending = removal_log.read(storage, REMOVING_LOG)
    done = Takedown(dry_run, completed=[e.key for e in pending if e.key])
    entries = [*pending, *_resolve(rows, given, reason, pending, removal_log.read(storage), done)]
    keys = {e.key for e in entries if e.key}
    spans = _spans(opened, keys)
    hashes = {path: erase.digests(storage, path, places) for path, places in spans.items()}
    done.shards = [path for path, found in hashes.items() if found.before != found.after]
    damaged = [path for path, found in hashes.items() if opened.shards[path].sha256 not in found]
    for path in damaged:
        text = f"{path} was damaged or lost before; its hash in {META_FILE} stays, and verify reports it"
        done.warnings.append(text)
    if entries and not dry_run:
        removal_log.write(storage, REMOVING_LOG, entries)
        written = _mark_removed(opened, {e.key: e.reason for e in entries if e.key})
        after = {path: found.after for path, found in hashes.items() if path not in damaged}
        _rewrite_meta(opened, after, version or "", written)
        for path in done.shards:
            erase.erase(storage, path, spans[path], hashes[path].after)
    if keys:
        done.files += purge.report(storage, dry_run)
    if purge.exists(store):  # else a prepare with its work store elsewhere may be packing them
        done.files += purge.unpublished(storage, opened.shards, dry_run)
    videos = {e.youtube_id for e in entries if e.youtube_id} | (set(given) - set(rows))
    videos |= {row["youtube_id"] for found in rows.values() for row in found}
    keys |= {*done.already, *_begun(storage, store, given)}
    done.files += purge.work(store, keys, videos, dry_run)
    if entries and not dry_run:
        removal_log.write(storage, REMOVED_LOG, dict.fromkeys([*removal_log.read(storage), *entries]))
        storage.delete(REMOVING_LOG)
        for folder in ("shards", "index", "outcomes"):
            storage.sweep(folder)
    done.warnings += _out_of_reach(storage, store)
    return done


def _resolve(
    rows: _Rows, given: Sequence[str], reason: str, pending: list[Entry], log: list[Entry], done: Takedown
) -> list[Entry]:
    """The new entries of the log that the ids ask for; fills in `done`."""
    taken = {e.key for e in pending}
    on_record = {name for e in (*pending, *log) for name in (e.given, e.key)}
    time = datetime.now(UTC).isoformat(timespec="seconds")
    entries = []
    for name in dict.fromkeys(given):
        there = [row for row in rows.get(name, ()) if row["outcome"] in (READY, FAILED)]
        gone = [row["key"] for row in rows.get(name, ()) if row["excluded_for"] == REMOVED]
        for row in there:
            if (key := row["key"]) not in taken:
                taken.add(key)
                on_record |= {name, key}
                done.removed.append(key)
                entries.append(Entry(time, name, key, row["youtube_id"], reason))
        done.already += (key for key in dict.fromkeys(gone) if key not in taken)
        taken.update(gone)
        if not there and not gone:
            done.unknown.append(name)
        if name not in on_record:  # another of its clips may come in a later wave
            entries.append(Entry(time, name, None, None, reason))
    return entries


def _named(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The rows of outcomes or of a plan whose key or id is among `names`."""
    wanted = pa.array(list(names), pa.string())
    return table.filter(pc.or_(pc.is_in(table["key"], wanted), pc.is_in(table["youtube_id"], wanted)))


def _rows_by_name(outcomes: pa.Table, names: Sequence[str]) -> _Rows:
    """Rows by key and by id, as far as `names` asks for them."""
    found: _Rows = {}
    for row in _named(outcomes, names).to_pylist():
        for name in {row["key"], row["youtube_id"]}:
            found.setdefault(name, []).append(row)
    return found


def _begun(storage: Storage, store: WorkStore, given: Sequence[str]) -> list[str]:
    """Keys of the ids or keys in a generation that was begun, of which the work store may have files."""
    path = f"plan/{publish.next_generation(storage)}.parquet"
    if not purge.exists(store) or not store.storage.exists(path):
        return []
    return _named(plan.read(store.storage, path), given)["key"].drop_null().to_pylist()


def _mark_removed(opened: Dataset, reasons: dict[str, str]) -> set[str]:
    """Mark the clips as removed, with `reasons` by key; returns the generations whose index was written."""
    storage, written = opened.storage, set()
    names = pa.array(list(reasons), pa.string())
    for generation in opened.generations:
        for split in SPLITS:
            table = opened.index(split, [generation])
            gone = pc.and_(pc.is_in(table["key"], names), pc.invert(table["removed"]))
            if pc.any(gone, min_count=0).as_py():
                place = table.schema.get_field_index("removed")
                removed = pc.or_(table["removed"], gone)
                table = table.set_column(place, table.schema.field("removed"), removed)
                write_table(storage, index_path(split, generation), table)
                written.add(generation)
        part = opened.outcome_part(generation)
        present = pc.is_in(part["outcome"], pa.array([READY, FAILED], pa.string()))
        gone = pc.and_(pc.is_in(part["key"], names), present)
        if pc.any(gone, min_count=0).as_py():
            part = removal_log.exclude(part, gone, pc.index_in(part["key"], names), reasons)
            write_table(storage, outcome_path(generation), part)
    return written


def _rewrite_meta(opened: Dataset, after: dict[str, str], version: str, written: set[str]) -> None:
    """Rewrite dataset.json with the new counts and the hashes that the shards will have, then the card."""
    storage, outcomes = opened.storage, opened.outcomes()
    shards = [s | {"sha256": after.get(s["path"], s["sha256"])} for s in opened.meta["shards"]]
    rewritten = written | {s["generation"] for s in shards if s not in opened.meta["shards"]}
    writers = opened.meta.get("pyarrow", {}) | dict.fromkeys(rewritten, pa.__version__)
    changed = {"shards": shards, "counts": consistency.counts(outcomes)}
    meta = opened.meta | changed | ({"pyarrow": writers} if writers else {})
    if meta != opened.meta:
        try:
            storage.replace(META_FILE, canonical_json(meta), version)
        except Changed:
            raise RemoveError(f"another run has published to {storage.url}; repeat the command.") from None
    storage.write(CARD_FILE, card.text(meta, outcomes).encode())


def _spans(opened: Dataset, names: Iterable[str | None]) -> dict[str, list[tuple[int, int]]]:
    """Shard -> (offset, size) of each named sample in it, in bytes."""
    wanted = pa.array(list(names), pa.string())
    found: dict[str, list[tuple[int, int]]] = {}
    for split in opened.splits:
        table = opened.index(split).select(["key", "shard", "sample_offset", "sample_size"])
        for row in table.filter(pc.is_in(table["key"], wanted)).to_pylist():
            found.setdefault(row["shard"], []).append((row["sample_offset"], row["sample_size"]))
    return found


@contextlib.contextmanager
def _exclusively(storage: Storage, store: WorkStore) -> Iterator[None]:
    """Lock ROOT against publishing, and the work store against a run that would write deleted files again."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(storage.lock(PUBLISH_LOCK))
            if purge.exists(store):
                stack.enter_context(store.storage.lock(purge.WORK_LOCK))
        except Busy as busy:
            raise RemoveError(
                f"a prepare or another remove is at work on {storage.url}; stop it (nothing is lost), "
                f"remove, and repeat its command{busy.hint}."
            ) from None
        yield


def _out_of_reach(storage: Storage, store: WorkStore) -> Iterator[str]:
    if not purge.exists(store):
        absent = f"there is no work store at {store.storage.url}"
        yield f"{absent}: if prepare was given --work DIR, repeat this command with it"
    yield (
        "not reached from here: exports, copies, features, checkpoints and caches made from the data set, "
        "folders and archives given with --source, snapshots and backups"
    )
    if not storage.is_local:
        yield "a bucket with versioning keeps the old objects: delete their noncurrent versions too"
