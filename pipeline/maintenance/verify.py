"""Checks every promise of the format on a published data set, in parallel processes. Changes nothing.

Checks the tables' content, whatever pyarrow wrote them; `pipeline.maintenance.verify_shards` checks shard
files, `pipeline.maintenance.verify_media` samples.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.dataset import INDEX_SCHEMA, SPLITS, Dataset, DatasetError, ShardInfo, consistency, removal_log
from pipeline.dataset.publish import CARD_FILE
from pipeline.dataset.schema import META_FILE, REMOVED_LOG, REMOVING_LOG, index_path, outcome_path
from pipeline.dataset.shards import order
from pipeline.maintenance.verify_media import Promised, sample_breaches
from pipeline.maintenance.verify_shards import shard_breaches
from pipeline.outcome import Failed
from pipeline.storage import Storage, open_storage

_CLIPS_A_TASK = 16
_Task = tuple[Callable[..., list[str]], tuple]


@dataclass
class Report:
    """The result of `verify`: breaches of the format, notes on harmless findings, and counts of checks."""

    breaches: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no breach was found."""
        return not self.breaches

    @contextlib.contextmanager
    def catching(self, where: str = "") -> Iterator[None]:
        """Take errors of a data set in the block as breaches; `where` begins their sentences."""
        try:
            yield
        except (DatasetError, consistency.Inconsistent, removal_log.LogError) as error:
            self.breaches.append(f"{where}{error}")

    def lines(self) -> list[str]:
        """For a person: a line for each breach and note, then what was checked."""
        checked = ", ".join(f"{number} {what}" for what, number in self.checked.items())
        verdict = "every promise holds" if self.ok else f"{len(self.breaches)} breaches"
        return [
            *(f"breach: {text}" for text in self.breaches),
            *(f"note: {text}" for text in self.notes),
            f"checked {checked or 'nothing'}: {verdict}",
        ]


def verify(root: str | os.PathLike[str] | Storage, sample: float = 1.0, workers: int | None = None) -> Report:
    """Check a data set against the format's promises.

    Always checks tables, counts and the hash of every byte.

    Args:
        sample: share of the clips whose every frame is decoded, 0 to 1; their keys decide which.
        workers: processes, by default one a core; 1 works in this process.

    Raises:
        ValueError: `sample` is not between 0 and 1.
        NoDatasetError: there is no data set.
        Failed: class storage.
    """
    if not 0 <= sample <= 1:
        raise ValueError(f"--sample is a share between 0 and 1, not {sample:g}")
    storage = root if isinstance(root, Storage) else open_storage(root)
    report = Report()
    try:
        opened = dataset.open(storage)
    except dataset.NoDatasetError:
        raise
    except DatasetError as error:
        report.breaches.append(str(error))
        return report
    tables = _check_tables(opened, report)
    report.notes += _leftovers(opened)
    report.checked["shards hashed"] = len(opened.shards)
    count = workers or len(os.sched_getaffinity(0))
    for breaches in _run(_tasks(opened, tables, sample, report), count):
        report.breaches += breaches
    return report


def _check_tables(opened: Dataset, report: Report) -> dict[str, pa.Table]:
    tables: dict[str, pa.Table] = {}
    for split in SPLITS:
        with report.catching():
            tables[split] = opened.index(split)
    parts = []
    for generation in opened.generations:
        path = outcome_path(generation)
        with report.catching():
            part = opened.outcome_part(generation)
            parts.append(part)
            if part["generation"].unique().to_pylist() not in ([], [generation]):
                report.breaches.append(f"{path} has rows of another generation")
            with report.catching(f"{path}: "):
                consistency.check_outcomes(part)
    index = pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables.values()])
    outcomes = dataset.latest(parts)
    report.checked["outcomes"] = outcomes.num_rows
    report.checked["index rows"] = index.num_rows
    if len(tables) == len(SPLITS) and len(parts) == len(opened.generations):
        with report.catching("index and outcomes: "):
            consistency.check_index(outcomes, index, list(opened.shards.values()))
        with report.catching("index: "):
            consistency.check_classes(index, opened.classes)
        if (found := consistency.counts(outcomes)) != opened.meta["counts"]:
            report.breaches.append(f"{META_FILE} has counts {opened.meta['counts']}, the outcomes {found}")
    with_flow = opened.meta["recipe"].get("flow") is not None
    for name in ("flow_offset", "flow_size", "flow_sha256", "flow_saturation"):
        if index[name].null_count != (0 if with_flow else index.num_rows):
            promise = "in every row" if with_flow else "nowhere, as the recipe has no flow"
            report.breaches.append(f"index: {name} does not stand {promise}")
    again = "repeat python -m pipeline remove"
    if opened.storage.exists(REMOVING_LOG):
        report.breaches.append(f"{REMOVING_LOG} is there: a takedown has not come to its end; {again}")
    with report.catching():
        for key in removal_log.not_gone(outcomes, opened.storage):
            report.breaches.append(f"{key} is there, but {REMOVED_LOG} says that it was removed; {again}")
    if opened.classes != sorted(opened.classes):
        report.notes.append("classes are not sorted: they come from --classes")
    if not opened.storage.exists(CARD_FILE):
        report.breaches.append(f"{CARD_FILE} is absent")
    return tables


def _leftovers(opened: Dataset) -> Iterator[str]:
    named = {*opened.shards, *(outcome_path(g) for g in opened.generations)}
    named |= {index_path(s.split, s.generation) for s in opened.shards.values()}
    for folder in ("shards", "index", "outcomes"):
        for name in opened.storage.names(folder):
            if f"{folder}/{name}" not in named:
                yield f"{folder}/{name} is not part of the data set: of an unfinished run, or left by one"


def _tasks(opened: Dataset, tables: dict[str, pa.Table], sample: float, report: Report) -> Iterator[_Task]:
    """Make the tasks one by one, since the rows of a large data set do not fit in memory as Python values."""
    promised = Promised(opened.rate, opened.short_side, flow=opened.meta["recipe"].get("flow") is not None)
    report.checked["clips decoded"] = 0
    for info in opened.shards.values():
        table = tables.get(info.split, INDEX_SCHEMA.empty_table())
        rows = table.filter(pc.equal(table["shard"], info.path)).to_pylist()
        yield shard_breaches, (opened.storage, info, rows)
        chosen = [r for r in rows if not r["removed"] and int(order(r["key"])[:8], 16) < sample * 2**32]
        report.checked["clips decoded"] += len(chosen)
        for first in range(0, len(chosen), _CLIPS_A_TASK):
            yield clip_breaches, (opened.storage, info, chosen[first : first + _CLIPS_A_TASK], promised)


def clip_breaches(
    storage: Storage, info: ShardInfo, rows: Iterable[dict[str, Any]], promised: Promised
) -> list[str]:
    """Check samples of one shard, decoding every frame; returns a sentence for each breach."""
    opened = Dataset(storage, {"classes": [], "generations": [], "shards": [], "recipe": {}})
    found: list[str] = []
    for row in rows:
        try:
            members = opened.read_row(row).members
            found += [f"{info.path}: {row['key']}: {b}" for b in sample_breaches(row, members, promised)]
        except DatasetError as error:
            found.append(str(error))
        except FileNotFoundError:
            return found  # the check of the shard reports it
        except Failed as failure:
            found.append(failure.reason)
    return found


def _run(tasks: Iterator[_Task], workers: int) -> Iterator[list[str]]:
    if workers == 1:
        for function, arguments in tasks:
            yield function(*arguments)
        return
    # Spawned: a forked process has pyarrow's locks without its threads, and stale object store connections.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: list[concurrent.futures.Future[list[str]]] = []
        try:
            for function, arguments in tasks:
                waiting.append(pool.submit(function, *arguments))
                if len(waiting) >= 4 * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        except BrokenProcessPool:
            yield ["a process died while it checked: a member crashes the decoder, or memory ran out"]
