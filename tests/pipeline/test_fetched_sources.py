"""A fetched video is on record with its tool, is not asked for twice, and is fetched again where damaged."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fetch_fixtures import clip
from small_runs import make_videos

from pipeline import sources
from pipeline.flow.recipe import FlowRecipe
from pipeline.job import fetched_sources, media_stages, progress, stages
from pipeline.job.settings import Job
from pipeline.job.stages import Task
from pipeline.job.worker import Worker
from pipeline.media.clip import encoder_version, ffmpeg_binary
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed, FailureClass
from pipeline.recipe import Recipe, stage_hash
from pipeline.sources import Fetched, FetchOptions, Piece, Video
from pipeline.sources.rate_limit import Lane, RateLimit
from pipeline.sources.recipe import FetchRecipe
from pipeline.storage.work_store import WorkStore

CLIP = clip("good", 0, 2)
TASK = Task(Video("good", (CLIP,)), (0,), (None,))
BLOCKED = Failed(FailureClass.BLOCKED, "not a bot?")


@dataclass
class Scripted:
    """A site that answers as it is told: a failure, or the video, whole for want of ranges."""

    video: Path
    answers: list[Failed | None]
    asked: int = 0
    kind: str = "url"
    network: bool = True
    heard: list[Fetched] = field(default_factory=list)

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        self.asked += 1
        failed = self.answers.pop(0)
        path = folder / f"{self.asked}.mp4"
        path.write_bytes(self.video.read_bytes())
        piece = failed or Piece(path, CLIP.time_start, CLIP.time_end, self.kind, False, 3.0)
        why = () if failed else ("no ranges there",)
        return Fetched({CLIP.key: piece}, 2, not failed, "yt-dlp 2026.01.01", fallbacks=why)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), ["good"]) / "good.mp4"


def work_through(site: Scripted, work: Path, monkeypatch, recipe: Recipe) -> tuple[stages.ClipResult, dict]:
    """Bring the clip to its outcome; the outcome, and the record of its source."""
    monkeypatch.setattr(sources, "parse", lambda spec: site)
    limit = RateLimit(pause=0.01)
    store = WorkStore(work)
    kept = fetched_sources.other_sizes(recipe.fetch, store)
    options = FetchOptions()
    job = Job(str(work), str(work), ("site",), recipe, options, None, "00000", True, limit, kept=kept)
    (result,) = stages.process(TASK, job, store, Lane(limit, store.storage), site.heard.append)
    return result, store.read_record("source", stage_hash(recipe.fetch), "good") or {}


def without_flow(**encode) -> Recipe:
    made = EncodeRecipe(encoder=encoder_version(ffmpeg_binary()), **encode)
    return Recipe(FetchRecipe.of(made.short_side), made, None)


def test_a_source_is_on_record_with_its_tool_its_fallbacks_and_all_attempts(video, tmp_path, monkeypatch):
    site = Scripted(video, [BLOCKED, BLOCKED, None])
    result, record = work_through(site, tmp_path, monkeypatch, without_flow())
    assert (result.outcome, result.attempts, site.asked) == ("ready", 3, 3)
    assert record["pieces"][CLIP.key]["tool"] == "yt-dlp 2026.01.01"
    assert record["fallbacks"] == ["no ranges there"]
    (heard,) = site.heard
    assert (heard.requests, heard.fallbacks) == (6, ("no ranges there",))


def test_a_failure_is_on_record_with_its_tool(video, tmp_path, monkeypatch):
    site = Scripted(video, [Failed(FailureClass.GONE, "it is private")])
    result, record = work_through(site, tmp_path, monkeypatch, without_flow())
    assert (result.failure_class, result.attempts) == ("gone", 1)
    assert record["pieces"][CLIP.key]["tool"] == "yt-dlp 2026.01.01"


def test_a_kept_source_is_used_again_and_one_that_is_damaged_or_gone_is_fetched_again(
    video, tmp_path, monkeypatch
):
    site = Scripted(video, [None, None, None])
    _, record = work_through(site, tmp_path, monkeypatch, without_flow())
    again, _ = work_through(site, tmp_path, monkeypatch, without_flow(crf=30))
    assert (again.outcome, site.asked) == ("ready", 1)
    kept = tmp_path / record["files"]["good"]["path"]
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    last, _ = work_through(site, tmp_path, monkeypatch, without_flow(crf=40))
    assert (last.outcome, site.asked) == ("ready", 2)
    assert kept.read_bytes() == video.read_bytes()
    kept.unlink()
    anew, _ = work_through(site, tmp_path, monkeypatch, without_flow(crf=35))
    assert (anew.outcome, site.asked) == ("ready", 3)


def test_another_rate_and_another_size_fetch_nothing_where_the_kept_source_has_the_pixels(
    video, tmp_path, monkeypatch
):
    site = Scripted(video, [None, None])  # of 256 lines
    first, _ = work_through(site, tmp_path, monkeypatch, without_flow(rate=15, short_side=300))
    assert (first.meta["frames"], first.meta["height"], site.asked) == (30, 300, 1)
    for rate, side in ((25, 256), (30, 256), (15, 128)):
        made, _ = work_through(site, tmp_path, monkeypatch, without_flow(rate=rate, short_side=side))
        assert (made.meta["frames"], made.meta["height"], site.asked) == (2 * rate, side, 1)
    larger, _ = work_through(site, tmp_path, monkeypatch, without_flow(short_side=480))
    assert (larger.meta["height"], site.asked) == (480, 2)


def test_a_flow_that_takes_too_long_fails_its_clip_and_stops_no_job(video, tmp_path, monkeypatch):
    limits = iter([60.0, 0.5])  # of the clip, of its flow
    monkeypatch.setattr(media_stages, "timeout_for", lambda seconds: next(limits))
    monkeypatch.setattr(
        media_stages,
        "solve",
        lambda gray, recipe: itertools.repeat(np.zeros((*gray.shape[1:], 2), np.float32)),
    )
    plain = without_flow()
    recipe = Recipe(plain.fetch, plain.encode, FlowRecipe(encoder=plain.encode.encoder))
    result, _ = work_through(Scripted(video, [None]), tmp_path, monkeypatch, recipe)
    assert (result.outcome, result.failure_class) == ("failed", "too_large")
    assert "not solved and encoded within" in (result.reason or "")


def test_the_longest_clip_of_a_list_has_time_enough_on_a_slow_core():
    assert media_stages.timeout_for(600) > 25 * 600 * 1.0  # seconds a pair, where 0.02 is usual


def test_full_downloads_are_told_beside_the_clips_and_are_none(tmp_path):
    store = WorkStore(tmp_path)
    job = Job(
        str(tmp_path),
        str(tmp_path),
        ("rehearsal",),
        without_flow(),
        FetchOptions(),
        None,
        "00000",
        True,
        local=True,
    )
    worker = Worker(job)
    worker.count_fetch(Fetched({}, 1, True, "yt-dlp", fallbacks=("no ranges there", "a loop")))
    for _ in range(3):
        progress.tally(store.storage, "00000", local=True).count("ready")
    worker.close()
    total = progress.counts(store.storage, "00000")
    assert progress.clips_in(total) == 3
    said = ", ".join(progress.describe(total, 60))
    assert said == "3 ready, 3.0 a minute, 2 full downloads (range requests failed)"
