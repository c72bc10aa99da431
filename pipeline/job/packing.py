"""Packs the ready clips of a shard, and leaves its index rows and outcomes in the work store for publishing.

Runs once a shard, after the group-by. `pipeline.dataset.shards` writes the tar.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime

import pyarrow as pa

from pipeline.dataset import shards
from pipeline.dataset.schema import OUTCOME_SCHEMA, ShardInfo, shard_path
from pipeline.job import stages
from pipeline.job.settings import Job
from pipeline.job.stages import ClipResult
from pipeline.outcome import READY, Outcome
from pipeline.storage import Storage, open_storage
from pipeline.storage.tables import read_table, write_table
from pipeline.storage.work_store import Stored, WorkStore


def index_part(split: str, generation: str, number: int) -> str:
    """Path of a packed shard's index rows in the work store; absent where no clip of it was ready."""
    return f"packed/{generation}/{split}-{number:05d}.index.parquet"


def outcome_part(split: str, generation: str, number: int) -> str:
    """Path of the outcomes of a shard's clips in the work store; written last."""
    return f"packed/{generation}/{split}-{number:05d}.outcomes.parquet"


def pack_shard(job: Job, shard: tuple[str, int], places: Iterable[bytes]) -> str:
    """Pack the ready clips of one shard into ROOT and leave its parts in the work store.

    Args:
        shard: split and number.
        places: of all clips that the plan put there (`stages.place`), in any order.

    Returns:
        The path of the outcome part, relative to the work store.

    Raises:
        Failed: class storage; its sentence is left for the launching process.
    """
    store = WorkStore(job.work)
    with stages.stop_on_failure(store, job):
        return _pack(job, shard, [stages.read_result(place, job, store) for place in places])


def read_parts(
    rows: pa.Table, generation: str, work: Storage
) -> tuple[list[pa.Table], list[tuple[ShardInfo, pa.Table]]]:
    """Read the parts of a generation's shards, whose planned `rows` were processed.

    Returns:
        Tables of outcomes, and the packed shards with their index rows.
    """
    numbers = rows.group_by(["split", "shard"]).aggregate([]).to_pylist()
    names = sorted((row["split"], generation, row["shard"]) for row in numbers)
    outcomes = [read_table(work, outcome_part(*name), OUTCOME_SCHEMA) for name in names]
    found = (shards.read_part(work, index_part(*name)) for name in names)
    return outcomes, [part for part in found if part is not None]


def _pack(job: Job, shard: tuple[str, int], results: Iterable[ClipResult]) -> str:
    split, number = shard
    work = open_storage(job.work)
    ordered = sorted(results, key=lambda result: shards.order(result.clip.key))
    ready = [_sample(result) for result in ordered if result.outcome == READY]
    if ready:
        path = shard_path(split, job.generation, number)
        info, rows = shards.pack(ready, work, open_storage(job.output), path)
        shards.write_part(work, index_part(split, job.generation, number), info, rows)
    else:  # a killed run may have packed clips that were ready then: they must not be published
        work.delete(index_part(split, job.generation, number))
    outcomes = [vars(_outcome(result, job.generation)) for result in ordered]
    path = outcome_part(split, job.generation, number)
    write_table(work, path, pa.Table.from_pylist(outcomes, schema=OUTCOME_SCHEMA))
    return path


def _sample(result: ClipResult) -> shards.PackedSample:
    clip = result.clip
    return shards.PackedSample(
        key=clip.key,
        label=clip.label,
        class_index=result.class_index,
        split=clip.split,
        youtube_id=clip.youtube_id,
        time_start=clip.time_start,
        time_end=clip.time_end,
        meta=result.meta,
        members={suffix: Stored(**file) for suffix, file in result.files.items()},
    )


def _outcome(result: ClipResult, generation: str) -> Outcome:
    return Outcome(
        key=result.clip.key,
        **asdict(result.clip),
        outcome=result.outcome,
        failure_class=result.failure_class,
        reason=result.reason,
        retry_after=datetime.fromisoformat(result.retry_after) if result.retry_after else None,
        attempts=result.attempts,
        generation=generation,
    )
