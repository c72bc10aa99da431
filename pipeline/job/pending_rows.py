"""Chooses the rows that the next generation decides: all at first, then failed ones that may succeed now.

A decided row keeps its outcome. `pipeline.lists.plan` makes the table of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.dataset import publish, removal_log
from pipeline.job import PrepareError
from pipeline.job.settings import Settings
from pipeline.lists import plan
from pipeline.outcome import EXCLUDED, FAILED, REMOVED, RETRY_AFTER
from pipeline.recipe import Recipe
from pipeline.storage import Storage
from pipeline.storage.work_store import WorkStore

_SAME = ("key", "label", "split")  # a published row keeps these


def choose(
    planned: pa.Table,
    root: Storage,
    store: WorkStore,
    settings: Settings,
    recipe: Recipe,
    made: Sequence[str],
) -> pa.Table | None:
    """The rows that the next generation decides, with their shards; None where no row is pending.

    A generation that was begun but not published keeps its rows. Rows that failed in a generation
    of this run (`made`) wait for another run: else they would come first in each wave.

    Args:
        planned: all rows, from `pipeline.lists.plan.make`.
        root: where they are published.
        made: generations that this run has published.

    Raises:
        PrepareError: the lists hold no row, or are not those that `root` was made from.
        PublishError: as `publish.admit`.
    """
    pending = np.ones(planned.num_rows, bool)
    if publish.admit(root, recipe.as_dict(), plan.classes(planned)) is None:
        if not planned.num_rows:
            raise PrepareError("the lists hold no row, so there is nothing to prepare; check --manifest.")
    else:
        outcomes = dataset.open(root).outcomes()
        planned, place = as_published(planned, outcomes, root)
        before = pc.invert(pc.is_in(outcomes["generation"], pa.array(made, pa.string())))
        pending[place] = pc.and_(to_retry(outcomes, settings.retry), before.combine_chunks())
    if not pending.any():
        return None
    purpose = f"{plan.digest(planned)} {settings.retry} {settings.wave} {settings.plan.shard_size}"
    begun = _begun(purpose, publish.next_generation(root), store)
    if begun is not None:
        return removal_log.withhold(begun, root)
    planned = removal_log.withhold(planned, root)
    if settings.wave is not None:
        pending = plan.first_videos(planned, pending, settings.wave)
    return plan.only(planned, pending, settings.plan.shard_size, purpose)


def _begun(purpose: str, generation: str, store: WorkStore) -> pa.Table | None:
    """The rows of a generation that an earlier call began for the same purpose, but did not publish."""
    path = f"plan/{generation}.parquet"
    if not store.storage.exists(path):
        return None
    table = plan.read(store.storage, path)
    return table if plan.purpose_of(table) == purpose else None


def as_published(planned: pa.Table, outcomes: pa.Table, root: Storage) -> tuple[pa.Table, np.ndarray]:
    """Give the lists of a plan their published names, so that a list that has moved makes no new rows.

    A list is recognised by its rows, whatever its name now. Its undecided rows get its published name too,
    the first one where it has several.

    Returns:
        The renamed plan, and for each published outcome the number of its row in the plan.

    Raises:
        PrepareError: `root` was made from other lists, or with another choice of rows, or a new list has the
            published name of another one.
    """
    ours, theirs = _lists(planned), _lists(outcomes)
    rows = planned.select(["row", "decision", *_SAME])
    found = {old: _recognised(old, rows, ours, outcomes.take(pa.array(at))) for old, at in theirs.items()}
    called: dict[str, str] = {}
    # Several lists may agree with a few rows: the name with the fewest candidates chooses first.
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
    """The row numbers of each list, int64 (n,), in the order of the lists' first rows."""
    coded = rows["manifest"].combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy()
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(coded.dictionary.to_pylist())}


def _recognised(
    old: str, planned: pa.Table, ours: Mapping[str, np.ndarray], published: pa.Table
) -> dict[str, np.ndarray]:
    """The lists that hold the rows published under the name `old`, each with the places of these rows in the
    plan. A list of that very name is the only candidate if it holds them."""
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
    """Whether rows of the plan equal the published ones, in the same order."""
    removed = pc.fill_null(pc.equal(published["excluded_for"], REMOVED), False)
    excluded = (pc.equal(planned["decision"], EXCLUDED), pc.equal(published["outcome"], EXCLUDED))
    same = (planned[name].equals(published[name].cast(planned[name].type)) for name in _SAME)
    return all(same) and pc.all(pc.or_(pc.equal(*excluded), removed), min_count=0).as_py()


def to_retry(outcomes: pa.Table, retry: str) -> pa.BooleanArray:
    """Which failed rows are processed again, as `retry` says: transient, all or none."""
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
