"""What the next generation decides: all rows at first, then what failed and may succeed now.

A row that is decided keeps its outcome; which rows there are at all is `pipeline.plan`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset, plan, publish, removal_log
from pipeline.outcome import FAILED, RETRY_AFTER
from pipeline.storage import Storage
from pipeline.work import WorkStore


class CampaignError(Exception):
    """The campaign cannot start or go on: one sentence with the remedy."""


def choose(
    planned: pa.Table,
    root: Storage,
    store: WorkStore,
    *,
    recipe: Mapping[str, Any],
    retry: str,
    wave: int | None,
    shard_size: int,
    made: Sequence[str],
) -> pa.Table | None:
    """The rows that the next generation decides, with their shards; None when nothing is due.

    A generation that was begun and not published goes on with the rows it was begun with. What failed in a
    generation of this run (`made`) waits for another run: else it would take each wave's first places.

    Args:
        planned: `pipeline.plan.make`'s.
        root: where it is published.
        store: the work store.
        recipe: as `publish.admit` wants it.
        retry: transient, all or none: which failed rows are taken up again.
        wave: videos a generation; None for all.
        shard_size: clips a shard.
        made: generations that this run has published.

    Raises:
        CampaignError: the lists hold no row, or are not those that `root` was made from.
        PublishError: as `publish.admit`.
    """
    due = np.ones(planned.num_rows, bool)
    if publish.admit(root, recipe, plan.classes(planned)) is None:
        if not planned.num_rows:
            raise CampaignError("the lists hold no row, so there is nothing to prepare; check --manifest.")
    else:
        outcomes = dataset.open(root).outcomes()
        planned, place = as_published(planned, outcomes, root)
        before = pc.invert(pc.is_in(outcomes["generation"], pa.array(made, pa.string())))
        due[place] = pc.and_(again(outcomes, retry), before.combine_chunks())
    if not due.any():
        return None
    purpose = f"{plan.digest(planned)} {retry} {wave} {shard_size}"
    begun = _begun(purpose, publish.next_generation(root), store)
    if begun is not None:
        return removal_log.withhold(begun, root)
    planned = removal_log.withhold(planned, root)
    if wave is not None:
        due = plan.first_videos(planned, due, wave)
    return plan.only(planned, due, shard_size, purpose)


def _begun(purpose: str, generation: str, store: WorkStore) -> pa.Table | None:
    """The rows of a generation that an earlier call began for the same purpose and did not publish."""
    path = f"plan/{generation}.parquet"
    if not store.storage.exists(path):
        return None
    table = plan.read(store.storage, path)
    return table if plan.purpose_of(table) == purpose else None


def as_published(planned: pa.Table, outcomes: pa.Table, root: Storage) -> tuple[pa.Table, np.ndarray]:
    """The plan with its lists named as they were published (one that has moved makes no new rows), and for
    each published outcome its row in the plan.

    Raises:
        CampaignError: it was published from other lists, or with another choice of rows.
    """
    ours, theirs = (pc.unique(t["manifest"]).to_pylist() for t in (planned, outcomes))
    renamed = {} if set(theirs) <= set(ours) else dict(zip(theirs, ours, strict=False))
    numbers = {name: number for number, name in enumerate(ours)}
    named = [numbers.get(renamed.get(name, name), -1) for name in outcomes["manifest"].to_pylist()]
    wide = np.int64(1) << 40
    ids = (
        np.array([numbers[name] for name in planned["manifest"].to_pylist()]) * wide
        + planned["row"].to_numpy()
    )
    asked = np.array(named, np.int64) * wide + outcomes["row"].to_numpy()
    order = np.argsort(ids)
    place = order[np.minimum(np.searchsorted(ids, asked, sorter=order), len(ids) - 1)] if len(ids) else asked
    same = len(ids) >= len(asked) and bool(np.all(ids[place] == asked))
    if same:
        rows = planned.take(pa.array(place))
        removed = pc.fill_null(pc.equal(outcomes["excluded_for"], "removed"), False)
        excluded = pc.equal(outcomes["outcome"], "excluded")
        decided = pc.or_(pc.equal(pc.equal(rows["decision"], "excluded"), excluded), removed)
        same = pc.all(decided, min_count=0).as_py() and all(
            rows[name].equals(outcomes[name].cast(rows[name].type)) for name in ("key", "label", "split")
        )
    if not same:
        raise CampaignError(
            f"{root.url} was made from other lists or with another choice of rows (--manifest, --exclude, "
            "--unique, --limit); give the same ones, or another --output."
        )
    names = np.asarray(planned["manifest"], object)
    names[place] = outcomes["manifest"].to_pylist()
    column = planned.column_names.index("manifest")
    return planned.set_column(column, planned.schema.field("manifest"), pa.array(names, pa.string())), place


def again(outcomes: pa.Table, retry: str) -> pa.BooleanArray:
    """Which rows are taken up again: failed ones, as `retry` says (transient, all or none)."""
    failed = pc.equal(outcomes["outcome"], FAILED)
    if retry == "transient":
        transient = pc.is_in(outcomes["failure_class"], pa.array([str(c) for c in RETRY_AFTER]))
        now = pa.scalar(datetime.now(UTC), outcomes["retry_after"].type)
        arrived = pc.fill_null(pc.less_equal(outcomes["retry_after"], now), True)
        chosen = pc.and_(failed, pc.and_(transient, arrived))
    elif retry == "all":
        chosen = pc.and_(failed, pc.not_equal(pc.fill_null(outcomes["failure_class"], ""), "manifest"))
    else:
        chosen = pc.and_(failed, False)
    return chosen.combine_chunks()
