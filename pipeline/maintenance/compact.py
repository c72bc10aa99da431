"""Compacts a data set of many generations into the one generation that a single run would give.

Reads samples from the published shards, since the work store may be gone. Leaves removed clips out, and ROOT
as it is.
"""

from __future__ import annotations

import itertools
import operator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.dataset import publish, shards
from pipeline.dataset.schema import MEDIA, META_FILE, REMOVED_LOG, generation_name, shard_path
from pipeline.outcome import PROCESS, READY
from pipeline.storage import open_storage, scratch
from pipeline.storage.work_store import WorkStore


def compact(root: str, target: str, planned: pa.Table) -> dict[str, Any]:
    """Write the canonical single-generation layout of `root` to `target`; returns its dataset.json.

    Args:
        planned: the plan of all rows of its lists (`pipeline.lists.plan.make`) in the shards of one run,
            its lists named as they were published.

    Raises:
        PublishError: there is a data set at `target`, or rows are not conserved.
        DatasetError: `root` is no data set, or a damaged one.
        Failed: class storage.
    """
    data, storage = dataset.open(root), open_storage(target)
    if storage.exists(META_FILE):
        raise publish.PublishError(f"{storage.url} holds a data set; choose an empty place")
    publish.refuse_interrupted(data.storage)
    if data.storage.exists(REMOVED_LOG):
        storage.write(REMOVED_LOG, data.storage.read_bytes(REMOVED_LOG))
    generation = generation_name(0)
    rows = {row["key"]: row for split in data.splits for row in data.index(split).to_pylist()}
    outcomes = data.outcomes()
    ready = set(outcomes.filter(pc.equal(outcomes["outcome"], READY))["key"].to_pylist())
    wanted = [r for r in planned.to_pylist() if r["decision"] == PROCESS and r["key"] in ready]
    place = operator.itemgetter("split", "shard")
    packed = []
    for (split, number), group in itertools.groupby(sorted(wanted, key=place), key=place):
        with scratch.folder() as folder:
            members = WorkStore(folder)
            samples = [_unpack(data, rows[r["key"]], members, folder) for r in group]
            path = shard_path(split, generation, number)
            info, index = shards.pack(samples, members.storage, storage, path)
            packed.append((info, pa.Table.from_pylist(index, schema=dataset.INDEX_SCHEMA)))
    processed = pc.is_in(_names(outcomes), _names(planned.filter(pc.equal(planned["decision"], PROCESS))))
    return publish.publish(
        storage,
        plan=planned,
        outcomes=[outcomes.filter(processed)],
        packed=packed,
        recipe=data.meta["recipe"],
        classes=data.classes,
        generation=generation,
    )


def _names(rows: pa.Table) -> pa.ChunkedArray:
    """``MANIFEST:ROW`` of each row."""
    return pc.binary_join_element_wise(rows["manifest"], rows["row"].cast(pa.string()), ":")


def _unpack(
    data: dataset.Dataset, row: dict[str, Any], store: WorkStore, folder: Path
) -> shards.PackedSample:
    """Write the members of a published sample to files, for `shards.pack`."""
    sample = data.read_row(row)
    members = {}
    for suffix in MEDIA.values():
        if suffix in sample.members:
            file = folder / "member"
            file.write_bytes(sample.members[suffix])
            members[suffix] = store.put_file("compact", "0", row["key"], f".{suffix}", file)
    fields = {name: row[name] for name in shards.PackedSample.__dataclass_fields__ if name in row}
    return shards.PackedSample(**fields, meta=sample.meta, members=members)
