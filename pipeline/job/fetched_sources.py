"""Caches fetched videos in the work store, so that a rerun downloads nothing twice.

The record of a video says for each clip which file holds it or why there is none, which tool fetched it, and
why range requests were given up. `pipeline.sources.retrying` asks the sources.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pipeline import sources
from pipeline.job.settings import Job
from pipeline.media.probe import probe
from pipeline.outcome import FAILED, Failed, FailureClass
from pipeline.recipe import stage_hash
from pipeline.sources import Fetched, Piece, Source, Video, retrying
from pipeline.sources.recipe import FORMATS, FetchRecipe
from pipeline.storage.work_store import Stored, WorkStore, refuse_newer

MACHINE = (FailureClass.ENVIRONMENT, FailureClass.STORAGE)
"""Failure classes of the machine, not of the clip."""
_FALLBACKS = 20  # the most sentences in a video's record


def fetch(
    video: Video,
    job: Job,
    store: WorkStore,
    folder: Path,
    wait: Callable[[], None],
    record_result: Callable[[Mapping[str, object]], bool],
) -> Fetched:
    """Get the pieces of `video` from the work store, and those that are not there from the sources.

    Sources on this machine that come first need not `wait`; files from the other sources are kept.
    """
    chosen = tuple(sources.parse(spec) for spec in job.sources)
    if not job.network:
        return retrying.fetch(video, chosen, folder, job.fetch)
    near = tuple(itertools.takewhile(lambda source: not source.network, chosen))
    record = _source_record(video, stage_hash(job.recipe.fetch), store)
    pieces = _kept_pieces(video, record, job, store, folder)
    for other in job.kept:
        if (wanted := _without(video, pieces)).clips:
            pieces |= _large_enough(wanted, other, job, store, folder)
    failures: dict[str, Failed] = {}
    if near and (wanted := _without(video, pieces)).clips:
        for key, piece in retrying.fetch(wanted, near, folder, job.fetch).pieces.items():
            if isinstance(piece, Failed):
                failures[key] = piece
            else:
                pieces[key] = piece
    missing = _without(video, pieces)
    if not missing.clips:
        return Fetched(pieces, requests=0, whole=False, tool="", attempts=0)
    fetched = _ask(missing, chosen[len(near) :], job, folder, wait, record_result)
    for key, piece in fetched.pieces.items():
        if isinstance(piece, Failed) and key in failures:
            fetched.pieces[key] = retrying.most_telling([failures[key], piece])
    _keep(video, fetched, record, job, store)
    return replace(fetched, pieces=pieces | fetched.pieces)


def _ask(
    video: Video,
    chosen: tuple[Source, ...],
    job: Job,
    folder: Path,
    wait: Callable[[], None],
    record_result: Callable[[Mapping[str, object]], bool],
) -> Fetched:
    """Fetch over a network, again after each pause of all workers; the counts are those of all tries."""
    tries: list[Fetched] = []
    for _ in range(1 + job.rate_limit.pauses):
        wait()
        tries.append(retrying.fetch(video, chosen, folder, job.fetch))
        if not record_result(tries[-1].pieces):
            break
    return replace(
        tries[-1],
        requests=sum(one.requests for one in tries),
        attempts=sum(one.attempts for one in tries),
        fallbacks=tuple(why for one in tries for why in one.fallbacks),
    )


def _without(video: Video, pieces: Mapping[str, object]) -> Video:
    """`video` with the clips that have no piece yet."""
    return replace(video, clips=tuple(c for c in video.clips if c.key not in pieces))


def _kept_pieces(
    video: Video, record: dict, job: Job, store: WorkStore, folder: Path
) -> dict[str, Piece | Failed]:
    """A video's stored pieces by clip key, as local files, and its failures of this generation."""
    found: dict[str, Piece | Failed] = {}
    copies: dict[str, Path | None] = {}
    for key, piece in record["pieces"].items():
        with contextlib.suppress(KeyError, TypeError, ValueError):  # a damaged record: fetched again
            if "failure_class" in piece:
                if piece["generation"] == job.generation:
                    found[key] = _failure(piece)
            elif piece["file"] in record["files"]:
                name = piece["file"]
                if name not in copies:
                    copies[name] = store.local_copy(Stored(**record["files"][name]), folder)
                if (local := copies[name]) is not None:  # else the file is damaged or gone, and fetched again
                    where = f"the record of {video.youtube_id} in {store.storage.url}"
                    refuse_newer(Piece, piece["piece"], where)
                    found[key] = Piece(local, **piece["piece"])
    return found


def other_sizes(fetch: FetchRecipe, store: WorkStore) -> tuple[str, ...]:
    """Hashes of fetches for clips of other sizes that the work store has sources of, smallest first."""
    there = store.storage.names("source")
    others = (stage_hash(replace(fetch, short_side=side)) for side in FORMATS if side != fetch.short_side)
    return tuple(other for other in others if other in there)


def _large_enough(
    video: Video, fetch_hash: str, job: Job, store: WorkStore, folder: Path
) -> dict[str, Piece | Failed]:
    """Pieces that were fetched for clips of another size and have the pixels for these."""
    record = _source_record(video, fetch_hash, store)
    wanted = {clip.key for clip in video.clips}
    record["pieces"] = {k: p for k, p in record["pieces"].items() if k in wanted and "file" in p}
    found = _kept_pieces(video, record, job, store, folder)
    return {key: piece for key, piece in found.items() if _short_side(piece) >= job.recipe.encode.short_side}


def _short_side(piece: Piece | Failed) -> float:
    """Pixels of the picture as shown; 0 for a file that cannot be read."""
    try:
        return 0 if isinstance(piece, Failed) else float(min(probe(piece.path, piece.trimmed).shown_size))
    except Failed:
        return 0


def _source_record(video: Video, fetch_hash: str, store: WorkStore) -> dict:
    return store.read_record("source", fetch_hash, video.youtube_id) or {"files": {}, "pieces": {}}


def _keep(video: Video, fetched: Fetched, record: dict, job: Job, store: WorkStore) -> None:
    """Store the fetched files, and record each piece with the tool that fetched it."""
    fetch_hash = stage_hash(job.recipe.fetch)
    names: dict[Path, str] = {}
    for key, piece in fetched.pieces.items():
        if isinstance(piece, Failed):
            if piece.failure_class in MACHINE:
                continue
            failed = failure_record(piece, fetched.attempts)
            record["pieces"][key] = {**failed, "generation": job.generation, "tool": fetched.tool}
            continue
        if piece.path not in names:
            names[piece.path] = name = video.youtube_id if fetched.whole else key
            stored = store.put_file("source", fetch_hash, name, piece.path.suffix, piece.path)
            record["files"][name] = stored.as_dict()
        about = {name: value for name, value in vars(piece).items() if name != "path"}
        record["pieces"][key] = {"file": names[piece.path], "piece": about, "tool": fetched.tool}
    record["fallbacks"] = [*record.get("fallbacks", []), *fetched.fallbacks][-_FALLBACKS:]
    store.write_record("source", fetch_hash, video.youtube_id, record)


def forget(video: Video, job: Job, store: WorkStore) -> None:
    """Delete the kept files of `video` once its clips are made."""
    fetch_hash = stage_hash(job.recipe.fetch)
    record = _source_record(video, fetch_hash, store)
    if record["files"]:
        store.write_record("source", fetch_hash, video.youtube_id, {**record, "files": {}})
        for file in record["files"].values():
            store.storage.delete(file["path"])


def failure_record(failure: Failed, attempts: int) -> dict:
    """A failure as it stands in records."""
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
