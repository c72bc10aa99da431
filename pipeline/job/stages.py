"""The stages of one source video: fetch, then encode and flow of each clip wanted from it.

Each stage leaves a file in the work store and a record beside it; a stage whose record is there does
nothing. What became of a clip is a record too, so a job that was killed never repeats what it knows.
Knows nothing of Beam.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

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
    """What became of one clip: its members in the work store, or why there are none."""

    clip: Clip
    shard: int
    class_index: int | None
    outcome: str
    files: dict[str, dict]  # "mp4" and "flow.mp4" -> path, size, sha256
    meta: dict
    failure_class: str | None = None
    reason: str | None = None
    retry_after: str | None = None  # ISO 8601, UTC
    attempts: int = 0


def read_tasks(part: str, work: str) -> Iterator[Task]:
    """The tasks of one part of the plan, which has all clips of a video side by side."""
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
    task: Task, job: Job, store: WorkStore, lane: Lane, heard: Callable[[Fetched], None] = lambda _: None
) -> Iterator[ClipResult]:
    """Bring every clip of a video to its outcome, from whatever stage an earlier run reached.

    Args:
        task: one source video with all the clips wanted from it.
        job: the run's settings.
        store: the work store.
        lane: says when the site may be asked.
        heard: gets what came of asking, if anything was to ask.

    Yields:
        One result a clip, in the order of the task's clips.

    Raises:
        Failed: only with a class that is the machine's and not the clip's (environment, storage);
            the job must stop then.
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
            heard(fetched)
            for wanted in pending:
                piece = fetched.pieces[wanted.key]
                try:
                    if isinstance(piece, Failed):
                        if scratch.is_full(piece):
                            raise piece
                        record = fetched_sources.failure_record(piece, fetched.attempts)
                    else:
                        record = _make(wanted, piece, job, store, folder)
                        record["attempts"] = max(1, fetched.attempts)
                except Failed as failure:
                    if failure.failure_class in fetched_sources.MACHINE:
                        raise
                    record = fetched_sources.failure_record(failure, fetched.attempts)
                record["generation"] = job.generation
                store.write_record("clip", job.clip_hash, wanted.key, record)
                records[wanted.key] = record
        if not job.keep_sources:
            fetched_sources.forget(video, job, store)
    for wanted, shard, class_index in zip(video.clips, task.shards, task.class_indices, strict=True):
        yield _result(wanted, shard, class_index, records[wanted.key] or {})


@contextlib.contextmanager
def stop_on_failure(store: WorkStore, job: Job) -> Iterator[None]:
    """Leave the sentence of a failure that is the machine's where the launching process finds it."""
    try:
        yield
    except Failed as failure:
        with contextlib.suppress(Failed):  # the store itself may be what failed
            store.write_record("stop", job.generation, "reason", {"reason": failure.reason})
        raise


def stop_reason(store: WorkStore, generation: str) -> str | None:
    """The sentence that `stop_on_failure` left, if any."""
    record = store.read_record("stop", generation, "reason")
    return record["reason"] if record else None


def clear_stop(store: WorkStore, generation: str) -> None:
    """Forget the sentence of an earlier run."""
    store.write_record("stop", generation, "reason", {"reason": None})


def _known(store: WorkStore, job: Job, wanted: Clip) -> dict | None:
    """The clip's record where it still answers the question; a failure answers within its generation."""
    record = store.read_record("clip", job.clip_hash, wanted.key)
    if record and record["outcome"] == FAILED and record["generation"] != job.generation:
        return None
    return record


def _make(wanted: Clip, piece: Piece, job: Job, store: WorkStore, folder: Path) -> dict:
    """Encode and flow of one clip out of its piece, in one pass; the record of the clip that is ready.

    A clip that was encoded before, for another flow, is only decoded again; without flow not even that. What
    was encoded by another clock, by a version that had no other for trimmed files, is made anew.
    """
    recipe, encode_hash = job.recipe, stage_hash(job.recipe.fetch, job.recipe.encode)
    encoded = store.read_record("encode", encode_hash, wanted.key)
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


def _describe(wanted: Clip, piece: Piece, cut: clip.Cut) -> dict:
    """What a sample's json says of the clip and its source."""
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
    """What travels of a result to packing: as little as names it, for an engine holds it for all clips."""
    return canonical_json([*astuple(result.clip), result.shard, result.class_index])


def read_result(placed: bytes, job: Job, store: WorkStore) -> ClipResult:
    """The result that `place` was made of. Raises `Failed`, class storage, where its record is gone."""
    *fields, shard, class_index = json.loads(placed)
    wanted = Clip(*fields)
    record = store.read_record("clip", job.clip_hash, wanted.key, whole=False)  # packing reads its files
    if record is None:
        where = store.storage.where(store.path("clip", job.clip_hash, wanted.key, ".record.json"))
        raise Failed(
            FailureClass.STORAGE, f"{where} is gone or damaged since it was written; repeat the command"
        )
    return _result(wanted, shard, class_index, record)


def _result(wanted: Clip, shard: int, class_index: int | None, record: dict) -> ClipResult:
    return ClipResult(
        clip=wanted,
        shard=shard,
        class_index=class_index,
        outcome=record["outcome"],
        files=record.get("files", {}),
        meta=record.get("meta", {}),
        failure_class=record.get("failure_class"),
        reason=record.get("reason"),
        retry_after=record.get("retry_after"),
        attempts=record.get("attempts", 0),
    )
