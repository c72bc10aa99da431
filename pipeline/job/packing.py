"""From the results of a shard's clips to the shard itself and the parts that publishing reads.

Runs once a shard, after the group-by; the tar is `pipeline.dataset.shards`', the data set
`pipeline.dataset.publish`'s.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import pyarrow as pa

from pipeline.dataset import shards
from pipeline.dataset.schema import OUTCOME_SCHEMA, shard_path, write_table
from pipeline.job import stages
from pipeline.job.settings import Job
from pipeline.job.stages import ClipResult
from pipeline.outcome import READY, Outcome
from pipeline.storage import open_storage
from pipeline.storage.work_store import Stored, WorkStore


def index_part(split: str, generation: str, number: int) -> str:
    """Where a packed shard's description waits in the work store; absent when no clip of it was ready."""
    return f"packed/{generation}/{split}-{number:05d}.index.parquet"


def outcome_part(split: str, generation: str, number: int) -> str:
    """Where the outcomes of a shard's clips wait in the work store; written last."""
    return f"packed/{generation}/{split}-{number:05d}.outcomes.parquet"


def pack_shard(job: Job, shard: tuple[str, int], places: Iterable[bytes]) -> str:
    """Pack the ready clips of one shard into ROOT and leave its parts in the work store.

    Args:
        job: the run's settings.
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


def _pack(job: Job, shard: tuple[str, int], results: Iterable[ClipResult]) -> str:
    split, number = shard
    work = open_storage(job.work)
    ordered = sorted(results, key=lambda result: shards.order(result.clip.key))
    ready = [_sample(result) for result in ordered if result.outcome == READY]
    if ready:
        path = shard_path(split, job.generation, number)
        info, rows = shards.pack(ready, work, open_storage(job.output), path)
        shards.write_part(work, index_part(split, job.generation, number), info, rows)
    else:  # what a killed run packed of clips that were ready then must not be published
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
    clip, due = result.clip, result.retry_after
    return Outcome(
        key=clip.key,
        manifest=clip.manifest,
        row=clip.row,
        youtube_id=clip.youtube_id,
        time_start=clip.time_start,
        time_end=clip.time_end,
        label=clip.label,
        split=clip.split,
        outcome=result.outcome,
        failure_class=result.failure_class,
        reason=result.reason,
        retry_after=datetime.fromisoformat(due) if due else None,
        attempts=result.attempts,
        generation=generation,
    )
