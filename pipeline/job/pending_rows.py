"""What the next generation decides: all rows at first, then what failed and may succeed now.

A row that is decided keeps its outcome; which rows there are at all is `pipeline.lists.plan`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.dataset import publish, removal_log
from pipeline.lists import plan
from pipeline.outcome import EXCLUDED, FAILED, REMOVED, RETRY_AFTER
from pipeline.storage import Storage
from pipeline.storage.work_store import WorkStore

_SAME = ("key", "label", "split")  # what a row published keeps


class PrepareError(Exception):
    """The run cannot start or go on: one sentence with the remedy."""


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
        planned: `pipeline.lists.plan.make`'s.
        root: where it is published.
        store: the work store.
        recipe: as `publish.admit` wants it.
        retry: transient, all or none: which failed rows are taken up again.
        wave: videos a generation; None for all.
        shard_size: clips a shard.
        made: generations that this run has published.

    Raises:
        PrepareError: the lists hold no row, or are not those that `root` was made from.
        PublishError: as `publish.admit`.
    """
    due = np.ones(planned.num_rows, bool)
    if publish.admit(root, recipe, plan.classes(planned)) is None:
        if not planned.num_rows:
            raise PrepareError("the lists hold no row, so there is nothing to prepare; check --manifest.")
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

    A list is known by its rows, whatever it is called now; its rows that are not decided yet get its
    published name too, the first one where it has several.

    Raises:
        PrepareError: it was published from other lists, or with another choice of rows, or a list that is
            new has the name that another one was published under.
    """
    ours, theirs = _lists(planned), _lists(outcomes)
    rows = planned.select(["row", "decision", *_SAME])
    found = {old: _recognised(old, rows, ours, outcomes.take(pa.array(at))) for old, at in theirs.items()}
    called: dict[str, str] = {}
    # Several lists may agree with a few rows: what has the least choice chooses first.
    for old in sorted(theirs, key=lambda old: len(found[old])):
        free = [new for new in found[old] if new not in called.values()]
        called[old] = next(iter([*free, *found[old]]), "")
    place = np.full(outcomes.num_rows, -1)
    for old, new in called.items():
        place[theirs[old]] = found[old].get(new, -1)
    if np.any(place < 0) or len(np.unique(place)) < len(place):
        raise PrepareError(
            f"{root.url} was made from other lists or with another choice of rows (--manifest, --exclude, "
            "--unique, --limit), or by a version that passed over rows of --exclude without a known split; "
            "give the same ones and leave such rows out, or give another --output."
        )
    names = np.asarray(planned["manifest"], object)
    for new, at in ours.items():
        name = next((old for old in theirs if called[old] == new), None)
        if name is None and new in theirs:
            raise PrepareError(
                f"{root.url} has another list by the name {new}; give this one by its whole path."
            )
        names[at] = name or new
    names[place] = outcomes["manifest"].to_pylist()
    column = planned.schema.get_field_index("manifest")
    return planned.set_column(column, planned.schema.field(column), pa.array(names, pa.string())), place


def _lists(rows: pa.Table) -> dict[str, np.ndarray]:
    """Which rows each list has, int64 (n,); the lists in the order of their first rows."""
    coded = rows["manifest"].combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy()
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(coded.dictionary.to_pylist())}


def _recognised(
    old: str, planned: pa.Table, ours: Mapping[str, np.ndarray], published: pa.Table
) -> dict[str, np.ndarray]:
    """The lists that outcomes published as of `old` may be of, each with their rows in the plan; the one of
    that name alone where they agree with it."""
    found = {}
    numbers, asked = planned["row"].to_numpy(), published["row"].to_numpy()
    for name in sorted(ours, key=lambda name: name != old):
        rows = ours[name]
        place = rows[np.minimum(np.searchsorted(numbers[rows], asked), len(rows) - 1)]
        if np.array_equal(numbers[place], asked) and _agree(planned.take(pa.array(place)), published):
            found[name] = place
            if name == old:
                break
    return found


def _agree(planned: pa.Table, published: pa.Table) -> bool:
    """Whether rows of the plan are the published ones, in the same order."""
    removed = pc.fill_null(pc.equal(published["excluded_for"], REMOVED), False)
    excluded = (pc.equal(planned["decision"], EXCLUDED), pc.equal(published["outcome"], EXCLUDED))
    same = (planned[name].equals(published[name].cast(planned[name].type)) for name in _SAME)
    return all(same) and pc.all(pc.or_(pc.equal(*excluded), removed), min_count=0).as_py()


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
