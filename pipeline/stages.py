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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from pipeline import clip, fetch, plan, rehearsal, scratch, sources
from pipeline.flow import coding, tvl1_clip, tvl1_pairs
from pipeline.manifest import Clip
from pipeline.outcome import FAILED, READY, Failed, FailureClass
from pipeline.pressure import Lane, Pressure
from pipeline.recipe import FlowRecipe, Recipe, stage_hash
from pipeline.sources import Fetched, FetchOptions, Piece, Video
from pipeline.storage import Storage
from pipeline.work import Stored, WorkStore, canonical_json

_MACHINE = (FailureClass.ENVIRONMENT, FailureClass.STORAGE)
"""Classes that say something of the machine and nothing of the clip."""


@dataclass(frozen=True)
class Job:
    """All that a worker must know; travels to every worker, so it holds plain values only."""

    output: str  # ROOT
    work: str
    sources: tuple[str, ...]
    recipe: Recipe
    fetch: FetchOptions
    ffmpeg: str | None  # None: the reference encoder of the worker's own installation
    generation: str
    keep_sources: bool
    pressure: Pressure = field(default_factory=Pressure)
    scratch: str | None = None  # where workers have their files of the moment; None: the machine's own place
    local: bool = False  # the workers are processes of this machine, not of a cluster
    encode_timeout: float = 300.0  # seconds a clip: 200 times what a clip takes, so only a hang meets it

    @property
    def clip_hash(self) -> str:
        """Names the last stage: all that decides a clip's bytes."""
        return stage_hash(self.recipe.fetch, self.recipe.encode, self.recipe.flow)

    @property
    def network(self) -> bool:
        """Whether videos come over a network."""
        return any(sources.parse(spec).network for spec in self.sources)

    @property
    def rehearsed(self) -> bool:
        """Whether stand-ins take the place of all media."""
        return self.sources == (rehearsal.NAME,)

    @property
    def laned(self) -> bool:
        """Whether the plan's parts are lanes: the videos of one are one worker's, one after the other."""
        return self.network and self.pressure.lanes is not None


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
    rows, lane = plan.read(Storage(work), part).to_pylist(), int(Path(part).stem)
    for video, group in itertools.groupby(rows, key=lambda row: row["video"]):
        found = list(group)
        clips = tuple(Clip(**{name: row[name] for name in Clip.__dataclass_fields__}) for row in found)
        yield Task(
            Video(video, clips),
            tuple(row["shard"] for row in found),
            tuple(row["class_index"] for row in found),
            lane,
        )


def process(task: Task, job: Job, store: WorkStore, lane: Lane) -> Iterator[ClipResult]:
    """Bring every clip of a video to its outcome, from whatever stage an earlier run reached.

    Args:
        task: one source video with all the clips wanted from it.
        job: the campaign's settings.
        store: the work store.
        lane: says when the site may be asked.

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
            fetched = _fetch(replace(video, clips=pending), job, store, folder, wait, lane.heed)
            for wanted in pending:
                piece = fetched.pieces[wanted.key]
                try:
                    if isinstance(piece, Failed):
                        if scratch.is_full(piece):
                            raise piece
                        record = _failure_record(piece, fetched.attempts)
                    else:
                        record = _make(wanted, piece, job, store, folder)
                        record["attempts"] = max(1, fetched.attempts)
                except Failed as failure:
                    if failure.failure_class in _MACHINE:
                        raise
                    record = _failure_record(failure, fetched.attempts)
                record["generation"] = job.generation
                store.write_record("clip", job.clip_hash, wanted.key, record)
                records[wanted.key] = record
        if not job.keep_sources:
            forget_source(video, job, store)
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


def _fetch(
    video: Video,
    job: Job,
    store: WorkStore,
    folder: Path,
    wait: Callable[[], None],
    heed: Callable[[Mapping[str, object]], bool],
) -> Fetched:
    """The pieces of `video`: kept ones from the work store, the others from the sources.

    Sources on this machine that come first `wait` for no lane; what comes from the others is kept.
    """
    chosen = tuple(sources.parse(spec) for spec in job.sources)
    if not job.network:
        return fetch.fetch(video, chosen, folder, job.fetch)
    near = tuple(itertools.takewhile(lambda source: not source.network, chosen))
    record = _source_record(video, job, store)
    pieces = _kept_pieces(record, job, store, folder)
    failures: dict[str, Failed] = {}
    if near and (wanted := _without(video, pieces)).clips:
        for key, piece in fetch.fetch(wanted, near, folder, job.fetch).pieces.items():
            if isinstance(piece, Failed):
                failures[key] = piece
            else:
                pieces[key] = piece
    missing = _without(video, pieces)
    if not missing.clips:
        return Fetched(pieces, requests=0, whole=False, tool="", attempts=0)
    for _ in range(1 + job.pressure.pauses):
        wait()
        fetched = fetch.fetch(missing, chosen[len(near) :], folder, job.fetch)
        if not heed(fetched.pieces):
            break
    for key, piece in fetched.pieces.items():
        if isinstance(piece, Failed) and key in failures:
            fetched.pieces[key] = fetch.most_telling([failures[key], piece])
    _keep(video, fetched, record, job, store)
    return replace(fetched, pieces=pieces | fetched.pieces)


def _without(video: Video, pieces: Mapping[str, object]) -> Video:
    """`video` with the clips that have no piece yet."""
    return replace(video, clips=tuple(c for c in video.clips if c.key not in pieces))


def _make(wanted: Clip, piece: Piece, job: Job, store: WorkStore, folder: Path) -> dict:
    """Encode and flow of one clip out of its piece, in one pass; the record of the clip that is ready.

    A clip that was encoded before, for another flow, is only decoded again; without flow not even that.
    """
    recipe, encode_hash = job.recipe, stage_hash(job.recipe.fetch, job.recipe.encode)
    encoded = store.read_record("encode", encode_hash, wanted.key)
    video_file = folder / f"{wanted.key}.mp4"
    if encoded is None or recipe.flow is not None:
        cut = _cut(piece, job, video_file if encoded is None else None)
    if encoded is None:
        stored = store.put_file("encode", encode_hash, wanted.key, ".mp4", video_file)
        video_file.unlink()
        encoded = {"files": {"mp4": stored.as_dict()}, "meta": _describe(wanted, piece, cut)}
        store.write_record("encode", encode_hash, wanted.key, encoded)
    files, meta = dict(encoded["files"]), dict(encoded["meta"])
    if recipe.flow is not None:
        flow_file = folder / f"{wanted.key}.flow.mp4"
        if job.rehearsed:
            saturation = rehearsal.write_flow(flow_file)
        else:
            saturation = write_flow(clip.gray(cut.planes), cut.frames, recipe.flow, flow_file, job)
        stored = store.put_file("flow", job.clip_hash, wanted.key, ".flow.mp4", flow_file)
        flow_file.unlink()
        files["flow.mp4"] = stored.as_dict()
        meta["flow"] = {
            "bound": recipe.flow.coding.bound,
            "saturation": saturation,
            "tvl1": asdict(recipe.flow.solver),
        }
    return {"outcome": READY, "files": files, "meta": meta}


def _cut(piece: Piece, job: Job, out: Path | None) -> clip.Cut:
    if job.rehearsed:
        return rehearsal.cut(piece.start, piece.end, job.recipe.encode, out)
    ffmpeg, timeout = clip.ffmpeg_binary(job.ffmpeg), job.encode_timeout
    return clip.cut(
        piece.path, piece.start, piece.end, job.recipe.encode, out, ffmpeg=ffmpeg, timeout=timeout
    )


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


def write_flow(gray: np.ndarray, frames: int, recipe: FlowRecipe, out: Path, job: Job) -> float:
    """Solve and store the flow of `gray`, uint8 (frames or frames + 1, H, W), as the video `out`.

    Returns:
        The share of flow values beyond the bound, in [0, 1]. The last flow is repeated where the
        source has no frame after the clip's last.
    """
    saturated: list[float] = []

    def flows() -> Iterator[np.ndarray]:
        last = np.zeros((*gray.shape[1:], 2), np.float32)
        for last in solve(gray, recipe):
            saturated.append(coding.saturation(last, recipe.coding))
            yield last
        for _ in range(frames - len(saturated)):
            saturated.append(saturated[-1] if saturated else 0.0)
            yield last

    ffmpeg = clip.ffmpeg_binary(job.ffmpeg)
    coding.encode(flows(), out, recipe.coding, ffmpeg=ffmpeg, timeout=job.encode_timeout)
    return round(float(np.mean(saturated)), 6)


def solve(gray: np.ndarray, recipe: FlowRecipe) -> Iterable[np.ndarray]:
    """The flow of every pair, float32 (H, W, 2) each, by the kind of device that the recipe names."""
    if recipe.device == "cuda":
        return tvl1_clip(gray, recipe.solver, device="cuda")
    return tvl1_pairs(gray, recipe.solver)


def _kept_pieces(record: dict, job: Job, store: WorkStore, folder: Path) -> dict[str, Piece | Failed]:
    """What an earlier run fetched of a video, by clip key, as local files; and how the rest failed."""
    found: dict[str, Piece | Failed] = {}
    for key, piece in record["pieces"].items():
        if "failure_class" in piece:
            if piece["generation"] == job.generation:
                found[key] = _failure(piece)
        elif piece["file"] in record["files"]:
            local = store.local_copy(Stored(**record["files"][piece["file"]]), folder)
            found[key] = Piece(local, **piece["piece"])
    return found


def _source_record(video: Video, job: Job, store: WorkStore) -> dict:
    record = store.read_record("source", stage_hash(job.recipe.fetch), video.youtube_id)
    return record or {"files": {}, "pieces": {}}


def _keep(video: Video, fetched: Fetched, record: dict, job: Job, store: WorkStore) -> None:
    fetch_hash = stage_hash(job.recipe.fetch)
    names: dict[Path, str] = {}
    for key, piece in fetched.pieces.items():
        if isinstance(piece, Failed):
            if piece.failure_class in _MACHINE:
                continue
            record["pieces"][key] = {**_failure_record(piece, fetched.attempts), "generation": job.generation}
            continue
        if piece.path not in names:
            names[piece.path] = name = video.youtube_id if fetched.whole else key
            stored = store.put_file("source", fetch_hash, name, piece.path.suffix, piece.path)
            record["files"][name] = stored.as_dict()
        about = {name: value for name, value in vars(piece).items() if name != "path"}
        record["pieces"][key] = {"file": names[piece.path], "piece": about}
    store.write_record("source", fetch_hash, video.youtube_id, record)


def forget_source(video: Video, job: Job, store: WorkStore) -> None:
    """Delete the kept source of `video`, once its clips are made and nobody wants it kept."""
    record = _source_record(video, job, store)
    if record["files"]:
        store.write_record("source", stage_hash(job.recipe.fetch), video.youtube_id, {**record, "files": {}})
        for file in record["files"].values():
            store.storage.delete(file["path"])


def _failure_record(failure: Failed, attempts: int) -> dict:
    return {
        "outcome": FAILED,
        "failure_class": str(failure.failure_class),
        "reason": failure.reason,
        "retry_after": failure.retry_after.isoformat() if failure.retry_after else None,
        "attempts": attempts,
    }


def _failure(record: dict) -> Failed:
    due = record["retry_after"] and datetime.fromisoformat(record["retry_after"])
    return Failed(FailureClass(record["failure_class"]), record["reason"], due)


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
