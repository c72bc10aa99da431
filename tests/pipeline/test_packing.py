"""Promises of packing: what a killed run left is not published, and a failure says its sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.dataset import shards
from pipeline.job import packing, stages
from pipeline.job.settings import Job
from pipeline.job.stages import ClipResult
from pipeline.lists.manifest import Clip
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import FAILED, READY, Failed
from pipeline.recipe import Recipe
from pipeline.sources import FetchOptions
from pipeline.sources.recipe import FetchRecipe
from pipeline.storage.work_store import WorkStore

SHARD = ("train", 0)


@pytest.fixture
def job(tmp_path) -> Job:
    return Job(
        output=str(tmp_path / "root"),
        work=str(tmp_path / "work"),
        sources=(f"dir:{tmp_path}",),
        recipe=Recipe(FetchRecipe(), EncodeRecipe(), None),
        fetch=FetchOptions(),
        ffmpeg="ffmpeg",
        generation="00000",
        keep_sources=False,
    )


@pytest.fixture
def ready(job, tmp_path) -> ClipResult:
    (tmp_path / "clip").write_bytes(b"a clip")
    wanted = Clip("list.csv", 2, "aaaaaaaaaa1", 0.0, 2.0, None, "train")
    stored = WorkStore(job.work).put_file("encode", "0", wanted.key, ".mp4", tmp_path / "clip")
    meta = {"key": wanted.key, "frames": 50, "width": 340, "height": 256}
    return ClipResult(wanted, 0, None, READY, {"mp4": stored.as_dict()}, meta)


def pack(job: Job, result: ClipResult) -> None:
    """Pack a clip of which the work store says so."""
    about = {
        name: value for name, value in vars(result).items() if name not in ("clip", "shard", "class_index")
    }
    WorkStore(job.work).write_record("clip", job.clip_hash, result.clip.key, about)
    packing.pack_shard(job, SHARD, [stages.place(result)])


def test_a_shard_that_a_killed_run_packed_is_forgotten_when_none_of_its_clips_is_ready_now(job, ready):
    work = WorkStore(job.work).storage
    pack(job, ready)
    assert shards.read_part(work, packing.index_part(*_names(job))) is not None
    failed = replace(ready, outcome=FAILED, files={}, meta={}, failure_class="missing", reason="not there")
    pack(job, failed)
    assert shards.read_part(work, packing.index_part(*_names(job))) is None


def test_a_shard_that_cannot_be_packed_leaves_its_sentence_for_the_launcher(job, ready):
    store = WorkStore(job.work)
    (member,) = ready.files.values()
    store.storage.write(member["path"], b"other")
    with pytest.raises(Failed, match="not what its record says"):
        pack(job, ready)
    assert "delete it and repeat" in (stages.stop_reason(store, job.generation) or "")


def test_a_clip_whose_record_is_gone_stops_packing_with_a_sentence(job, ready):
    with pytest.raises(Failed, match="gone or damaged since it was written; repeat the command"):
        packing.pack_shard(job, SHARD, [stages.place(ready)])


def _names(job: Job) -> tuple[str, str, int]:
    return SHARD[0], job.generation, SHARD[1]
