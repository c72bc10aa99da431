"""Publishes a generation: index, outcomes and card, then dataset.json, in one step, last.

The shards lie in ROOT already and are invisible until dataset.json names them. A reader never sees half a
data set, published bytes never change, and of two publishers one gets an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset import Dataset, DatasetError, card, consistency, latest, removal_log, schema
from pipeline.dataset.schema import INDEX_SCHEMA, META_FILE, SPLITS, ShardInfo, index_path, outcome_path
from pipeline.storage import AlreadyExists, Busy, Changed, Storage
from pipeline.storage.tables import write_table
from pipeline.storage.work_store import canonical_json

CARD_FILE = "README.md"
PUBLISH_LOCK = ".publish.lock"


class PublishError(Exception):
    """Nothing was published: one sentence with the remedy."""


def next_generation(storage: Storage) -> str:
    """The name of the generation that a new job makes: five digits, counted from 00000."""
    meta = schema.read_meta(storage)
    return schema.generation_name(int(meta["generations"][-1]) + 1 if meta and meta["generations"] else 0)


def admit(storage: Storage, recipe: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any] | None:
    """Check that ROOT takes a generation made this way; returns its dataset.json, None where it has none.

    Raises:
        PublishError: it has another recipe or other classes; a takedown was interrupted; or a README.md that
            is no card of a data set lies there.
        DatasetError: dataset.json is not of this format.
    """
    meta = schema.read_meta(storage)
    if meta is None:
        with contextlib.suppress(FileNotFoundError):
            if storage.read_range(CARD_FILE, 0, len(card.TITLE)) != card.TITLE.encode():
                raise PublishError(
                    f"{storage.where(CARD_FILE)} is not ours and would be lost; choose an empty folder"
                )
        return None
    refuse_interrupted(storage)
    for name, given in (("recipe", _plain(recipe)), ("classes", list(classes))):
        if meta[name] != given:
            raise PublishError(
                f"{storage.url} was made with other {name}{_difference(meta[name], given)}; "
                "give the same again, or choose another --output"
            )
    return meta


def refuse_interrupted(storage: Storage) -> None:
    """Raise PublishError where a takedown was interrupted."""
    if storage.exists(schema.REMOVING_LOG):
        raise PublishError(
            f"a takedown of {storage.url} has not come to its end; repeat its python -m pipeline remove first"
        )


def publish(
    storage: Storage,
    *,
    plan: pa.Table,
    outcomes: Sequence[pa.Table],
    packed: Sequence[tuple[ShardInfo, pa.Table]],
    recipe: Mapping[str, Any],
    classes: Sequence[str],
    generation: str,
) -> dict[str, Any]:
    """Publish one generation; returns the new dataset.json.

    Args:
        storage: ROOT, with this generation's shards in it.
        plan: the rows that this generation decides, with the columns of `pipeline.lists.plan.SCHEMA`: all
            rows in the first one, those retried (or not yet decided) in a later one.
        outcomes: tables of `OUTCOME_SCHEMA`, together one row for each plan row to be processed; their
            generation column is replaced.
        packed: the shards with their index rows (`pipeline.dataset.shards.read_part`); none where no clip is
            ready.
        recipe: `Recipe.as_dict()`.
        classes: names by class index.
        generation: its name, from `next_generation`.

    Raises:
        PublishError: rows are not conserved, another recipe, a shard that is not there whole, a clip that
            was removed meanwhile, or another publisher was first. Nothing is published then.
        Failed: class storage. Nothing is published then.
    """
    with _refusals(storage, generation), storage.lock(PUBLISH_LOCK):
        version = storage.version(META_FILE)
        meta = admit(storage, recipe, classes) or {"pyarrow": {}, "generations": [], "shards": []}
        if generation in meta["generations"]:
            raise Changed
        shards = sorted((info for info, _ in packed), key=lambda info: info.path)
        index = pa.concat_tables([INDEX_SCHEMA.empty_table(), *(p.cast(INDEX_SCHEMA) for _, p in packed)])
        _check_shards(storage, shards, index, generation)
        consistency.check_classes(index, classes)
        decided = consistency.decided(plan, outcomes, generation)
        consistency.check_outcomes(decided)
        consistency.check_index(decided, index, shards)
        everything = decided
        if version is not None:
            everything = _continued(Dataset(storage, meta), decided, index, shards)
        if gone := removal_log.not_gone(decided, storage):
            raise DatasetError(f"{gone[0]} was removed meanwhile; repeat the command, which leaves it out")
        new = {
            "format": schema.FORMAT,
            "recipe": _plain(recipe),
            "classes": list(classes),
            "pyarrow": meta.get("pyarrow", {}) | {generation: pa.__version__},  # it wrote the index
            "counts": consistency.counts(everything),
            "generations": [*meta["generations"], generation],
            "shards": [*meta["shards"], *map(dataclasses.asdict, shards)],
        }
        if problem := schema.problem_with(new):
            raise DatasetError(problem)
        _write(storage, new, version, index, decided, everything)
        storage.sweep("shards")
    return new


def _continued(
    earlier: Dataset, outcomes: pa.Table, index: pa.Table, shards: Sequence[ShardInfo]
) -> pa.Table:
    """The latest outcomes with those of a new generation, checked against all that is published."""
    before = earlier.outcomes()
    published = pa.concat_tables(map(earlier.index, SPLITS))
    consistency.check_again(before, outcomes, published)
    everything = latest([before, outcomes])
    all_shards = [*earlier.shards.values(), *shards]
    consistency.check_index(everything, pa.concat_tables([published, index]), all_shards)
    return everything


def _write(
    storage: Storage,
    meta: dict[str, Any],
    version: str | None,
    index: pa.Table,
    outcomes: pa.Table,
    everything: pa.Table,
) -> None:
    generation = meta["generations"][-1]
    with _taken_back_on_failure(storage) as written:
        for split in SPLITS:
            rows = index.filter(pc.equal(index["split"], split))
            if rows.num_rows:
                written.append(index_path(split, generation))
                order = [("shard", "ascending"), ("sample_offset", "ascending")]
                write_table(storage, written[-1], rows.sort_by(order))
        written.append(outcome_path(generation))
        write_table(storage, written[-1], outcomes)
        if version is None and not storage.exists(CARD_FILE):
            written.append(CARD_FILE)
        storage.write(CARD_FILE, card.text(meta, everything).encode())
        content = canonical_json(meta)
        if version is None:
            storage.create(META_FILE, content)
        else:
            storage.replace(META_FILE, content, version)


def _check_shards(storage: Storage, shards: Sequence[ShardInfo], index: pa.Table, generation: str) -> None:
    for info in shards:
        if info.generation != generation:
            raise DatasetError(f"{info.path} is not of generation {generation}")
        if not storage.exists(info.path) or storage.size(info.path) != info.size:
            raise DatasetError(f"{storage.where(info.path)} is not there whole")
    for split in {info.split for info in shards}:
        rows = index.filter(pc.equal(index["split"], split))
        schema.check_offsets(rows, {i.path: i for i in shards if i.split == split}, split, "the new index")


@contextlib.contextmanager
def _refusals(storage: Storage, generation: str) -> Iterator[None]:
    """Errors of publishing as `PublishError`s."""
    try:
        yield
    except Busy as busy:
        raise PublishError(
            f"another run is publishing to {storage.url}; repeat the command when it is done{busy.hint}"
        ) from None
    except (AlreadyExists, Changed):
        raise PublishError(
            f"another run has published to {storage.url} since this one started (generation {generation}); "
            "repeat the command to add what it lacks"
        ) from None
    except (consistency.Inconsistent, DatasetError) as error:
        raise PublishError(f"nothing was published: {error}") from None


@contextlib.contextmanager
def _taken_back_on_failure(storage: Storage) -> Iterator[list[str]]:
    """Files of an unpublished generation are deleted again if publishing fails."""
    written: list[str] = []
    try:
        yield written
    except BaseException:
        for path in written:
            with contextlib.suppress(Exception):
                storage.delete(path)
        raise


def _plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(canonical_json(dict(recipe)))


def _difference(old: Any, new: Any) -> str:
    """`` (encode.crf 18, now 23)``: the first place where two recipes part; nothing for lists of names."""
    path: list[str] = []
    while isinstance(old, dict) and isinstance(new, dict):
        name = next((n for n in sorted(old | new) if old.get(n) != new.get(n)), None)
        if name is None:
            return ""
        path.append(name)
        old, new = old.get(name), new.get(name)
    old, new = (str("none" if value is None else value)[:80] for value in (old, new))
    return f" ({'.'.join(path)} {old}, now {new})" if path else ""
