"""The stages of one source video: fetch, then encode and flow of each clip wanted from it.

Each stage writes a file and a record to the work store, and does nothing where the record is there. A clip's
outcome is a record too, so a killed job repeats nothing that is done. Knows nothing of Beam.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.job import fetched_sources
from pipeline.job.settings import Job
from pipeline.lists import plan
from pipeline.lists.manifest import Clip
from pipeline.media import clip
from pipeline.outcome import FAILED, READY, Failed, FailureClass
from pipeline.recipe import stage_hash
from pipeline.sources import Fetched, Piece, Video
from pipeline.sources.rate_limit import Lane
from pipeline.storage import open_storage, scratch
from pipeline.storage.work_store import WorkStore, canonical_json


@dataclass(frozen=True)
class Task:
    """One source video with the clips wanted from it, and where the plan puts each of them."""

    video: Video
    shards: tuple[int, ...]  # number within the clip's split
    class_indices: tuple[int | None, ...]
    lane: int = 0  # number of the plan's part that holds it


@dataclass(frozen=True)
class ClipResult:
    """The outcome of one clip: its members in the work store, or the reason why there are none."""

    clip: Clip
    shard: int
    class_index: int | None
    outcome: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # "mp4", "flow.mp4" -> path, size, sha256
    meta: dict[str, Any] = field(default_factory=dict)
    failure_class: str | None = None
    reason: str | None = None
    retry_after: str | None = None  # ISO 8601, UTC
    attempts: int = 0


def read_tasks(part: str, work: str) -> Iterator[Task]:
    """Read the tasks of one part of the plan, which has all clips of a video side by side."""
    rows, lane = plan.read(open_storage(work), part).to_pylist(), int(Path(part).stem)
    for video, group in itertools.groupby(rows, key=lambda row: row["video"]):
        found = list(group)
        clips = tuple(Clip(**{name: row[name] for name in Clip.__dataclass_fields__}) for row in found)
        yield Task(
            Video(video, clips),
            tuple(row["shard"] for row in found),
            tuple(row["class_index"] for row in found),
            lane,
        )


def process(
    task: Task, job: Job, store: WorkStore, lane: Lane, on_fetch: Callable[[Fetched], None] = lambda _: None
) -> Iterator[ClipResult]:
    """Bring every clip of a video to its outcome, from whatever stage an earlier run reached.

    Args:
        lane: waits until the site may be asked.
        on_fetch: called with the result if anything was to fetch.

    Yields:
        One result a clip, in the order of the task's clips.

    Raises:
        Failed: only with a class of the machine (environment, storage); the job must stop then.
    """
    video = task.video
    records = {c.key: _known(store, job, c) for c in video.clips}
    pending = tuple(c for c in video.clips if records[c.key] is None)
    if pending:
        with scratch.folder() as folder:
            wait = functools.partial(lane.wait, task.lane if job.laned else None)
            fetched = fetched_sources.fetch(
                replace(video, clips=pending), job, store, folder, wait, lane.record_result
            )
            on_fetch(fetched)
            for wanted in pending:
                piece = fetched.pieces[wanted.key]
                record = _outcome(wanted, piece, fetched.attempts, job, store, folder)
                record["generation"] = job.generation
                store.write_record("clip", job.clip_hash, wanted.key, record)
                records[wanted.key] = record
        if not job.keep_sources:
            fetched_sources.forget(video, job, store)
    for wanted, shard, class_index in zip(video.clips, task.shards, task.class_indices, strict=True):
        yield _result(wanted, shard, class_index, records[wanted.key] or {})


def _outcome(
    wanted: Clip, piece: Piece | Failed, attempts: int, job: Job, store: WorkStore, folder: Path
) -> dict[str, Any]:
    """Make a clip of its piece, and return its record, which may be a failure's.

    Raises:
        Failed: with a class of the machine, or where the disk for temporary files is full.
    """
    if isinstance(piece, Failed):
        if scratch.is_full(piece):
            raise piece
        return fetched_sources.failure_record(piece, attempts)
    try:
        return {**_make(wanted, piece, job, store, folder), "attempts": max(1, attempts)}
    except Failed as failure:
        if failure.failure_class in fetched_sources.MACHINE:
            raise
        return fetched_sources.failure_record(failure, attempts)


@contextlib.contextmanager
def stop_on_failure(store: WorkStore, job: Job) -> Iterator[None]:
    """Leave the sentence of a failure in the block where the launching process finds it."""
    try:
        yield
    except Failed as failure:
        with contextlib.suppress(Failed):  # the store itself may be what failed
            store.write_record("stop", job.generation, "reason", {"reason": failure.reason})
        raise


def stop_reason(store: WorkStore, generation: str) -> str | None:
    """The sentence that `stop_on_failure` left, or None."""
    record = store.read_record("stop", generation, "reason")
    return record["reason"] if record else None


def clear_stop(store: WorkStore, generation: str) -> None:
    """Delete the sentence of an earlier run."""
    store.write_record("stop", generation, "reason", {"reason": None})


def _known(store: WorkStore, job: Job, wanted: Clip) -> dict[str, Any] | None:
    """The clip's record if it still counts; a failure counts within its own generation."""
    record = store.read_record("clip", job.clip_hash, wanted.key)
    if record and record["outcome"] == FAILED and record.get("generation") != job.generation:
        return None
    return record


def _make(wanted: Clip, piece: Piece, job: Job, store: WorkStore, folder: Path) -> dict[str, Any]:
    """Encode a clip and its flow in one pass over its piece, and return the record of the ready clip.

    Only decodes a clip that was encoded before, for another flow; does not even that without flow. Re-encodes
    a clip that an earlier version stored with another time origin.
    """
    recipe, encode_hash = job.recipe, stage_hash(job.recipe.fetch, job.recipe.encode)
    encoded = store.read_record("encode", encode_hash, wanted.key)
    if encoded is not None and not isinstance(encoded.get("meta"), dict):  # damaged
        encoded = None
    video_file = folder / f"{wanted.key}.mp4"
    if encoded is None or recipe.flow is not None:
        out = video_file if encoded is None else None
        cut = job.media.cut(piece, recipe.encode, out, job.ffmpeg)
        if encoded is not None and encoded.get("moved", 0.0) != cut.source.moved:
            encoded, cut = None, job.media.cut(piece, recipe.encode, video_file, job.ffmpeg)
    if encoded is None:
        stored = store.put_file("encode", encode_hash, wanted.key, ".mp4", video_file)
        video_file.unlink()
        about = {"meta": _describe(wanted, piece, cut), "moved": cut.source.moved}
        encoded = {"files": {"mp4": stored.as_dict()}, **about}
        store.write_record("encode", encode_hash, wanted.key, encoded)
    files, meta = dict(encoded["files"]), dict(encoded["meta"])
    if recipe.flow is not None:
        flow_file = folder / f"{wanted.key}.flow.mp4"
        saturation = job.media.write_flow(cut, recipe, flow_file, job.ffmpeg)
        stored = store.put_file("flow", job.clip_hash, wanted.key, ".flow.mp4", flow_file)
        flow_file.unlink()
        files["flow.mp4"] = stored.as_dict()
        meta["flow"] = {
            "bound": recipe.flow.coding.bound,
            "saturation": saturation,
            "tvl1": asdict(recipe.flow.solver),
        }
    return {"outcome": READY, "files": files, "meta": meta}


def _describe(wanted: Clip, piece: Piece, cut: clip.ClipFrames) -> dict[str, Any]:
    """The facts of a clip and its source that a sample's json holds."""
    return {
        "key": wanted.key,
        "frames": cut.frames,
        "frames_wanted": cut.wanted,
        "note": cut.note,
        "width": cut.width,
        "height": cut.height,
        "source": {
            "kind": piece.kind,
            "codec": cut.source.codec,
            "width": cut.source.width,
            "height": cut.source.height,
            "rate": cut.source.constant_rate,  # of section and whole file the same, as bytes must be
            "duration": cut.source.duration if piece.duration is None else piece.duration,
        },
    }


def place(result: ClipResult) -> bytes:
    """Name a result for packing in few bytes, since an engine holds them for all clips."""
    return canonical_json([*astuple(result.clip), result.shard, result.class_index])


def read_result(placed: bytes, job: Job, store: WorkStore) -> ClipResult:
    """Read the result that `place` named. Raises `Failed`, class storage, where its record is gone."""
    *fields, shard, class_index = json.loads(placed)
    wanted = Clip(*fields)
    record = store.read_record("clip", job.clip_hash, wanted.key, whole=False)  # packing reads its files
    if record is None:
        where = store.storage.where(store.path("clip", job.clip_hash, wanted.key, ".record.json"))
        raise Failed(
            FailureClass.STORAGE, f"{where} is gone or damaged since it was written; repeat the command"
        )
    return _result(wanted, shard, class_index, record)


def _result(wanted: Clip, shard: int, class_index: int | None, record: Mapping[str, Any]) -> ClipResult:
    known = ClipResult.__dataclass_fields__
    return ClipResult(wanted, shard, class_index, **{n: v for n, v in record.items() if n in known})
