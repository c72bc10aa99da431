"""Promises to the site and to the lab: the budget is kept, a block pauses everybody, waves go on."""

from __future__ import annotations

import itertools
import pickle
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from small_runs import make_list, make_videos, pipeline, published_bytes

from demo.site import Behaviour, Site
from pipeline import dataset
from pipeline.outcome import Failed, FailureClass
from pipeline.sources.rate_limit import Lane, RateLimit, _take_turn, forget_turns, paused_until
from pipeline.storage import open_storage

IDS = [f"video-{number:03d}" for number in range(8)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), IDS, seconds=1.2)


@pytest.fixture(scope="module")
def list_file(tmp_path_factory) -> Path:
    rows = [f"class {n % 2},{name},0,1,{'val' if n % 4 == 3 else 'train'},0" for n, name in enumerate(IDS)]
    return make_list(tmp_path_factory.mktemp("list") / "list.csv", rows)


def prepare(list_file: Path, site: Site, root: Path, *more: object):
    source = f"{site.url}/{{youtube_id}}.mp4"
    arguments = ("--manifest", list_file, "--output", root, "--source", source, "--flow", "none", *more)
    return pipeline("prepare", *arguments)


def starts(site: Site) -> list[float]:
    """When each video was first asked for, in order."""
    first: dict[str, float] = {}
    for request in site.requests:
        first.setdefault(request.path, request.time)
    return sorted(first.values())


def test_videos_are_asked_for_within_the_budget(videos, list_file, tmp_path):
    with Site(videos) as site:
        done = prepare(list_file, site, tmp_path / "root", "--budget", 3600, "--direct_num_workers", 2)
        assert done.returncode == 0, done.stderr
        times = starts(site)
    assert len(times) == len(IDS)
    for first, later in zip(times, times[4:], strict=False):
        assert later - first > 1.5, "more than 2 lanes of one video every 2 s"


def failed(failure_class: FailureClass) -> dict[str, Failed]:
    return {"key": Failed(failure_class, "the site says so")}


def test_a_lane_keeps_its_distance_between_starts_however_long_a_video_takes(tmp_path):
    lane = Lane(RateLimit(budget=36_000, lanes=3), open_storage(tmp_path))  # 0.3 s apart
    began = []
    for pause in (0.0, 0.2, 0.5, 0.0):
        lane.wait()
        began.append(time.monotonic())
        time.sleep(pause)
    gaps = [b - a for a, b in itertools.pairwise(began)]
    assert gaps[0] == pytest.approx(0.3, abs=0.1)
    assert gaps[1] == pytest.approx(0.3, abs=0.1)
    assert gaps[2] == pytest.approx(0.5, abs=0.1)


def test_a_lane_keeps_its_pace_in_another_workers_hands(tmp_path):
    limit = RateLimit(budget=36_000, lanes=3)  # 0.3 s apart
    Lane(limit, open_storage(tmp_path)).wait(1)
    start = time.monotonic()
    Lane(limit, open_storage(tmp_path)).wait(2)
    assert time.monotonic() - start < 0.1, "another lane has its own turns"
    Lane(limit, open_storage(tmp_path)).wait(1)
    assert time.monotonic() - start == pytest.approx(0.3, abs=0.1)


def test_without_lanes_all_workers_keep_to_the_budget_together(tmp_path):
    limit, began = RateLimit(budget=36_000, lanes=None), []  # 0.1 s apart

    def work() -> None:
        lane = Lane(limit, open_storage(tmp_path))
        for _ in range(3):
            lane.wait()
            began.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(began) - min(began) == pytest.approx(1.1, abs=0.3)
    assert all(b - a > 0.8 for a, b in zip(sorted(began), sorted(began)[9:], strict=False))


def test_turns_that_dead_workers_took_are_given_back(tmp_path):
    storage, limit = open_storage(tmp_path), RateLimit(budget=3600, lanes=None)
    for _ in range(50):
        assert _take_turn(storage, limit, None, 0.0) >= 0
    assert _take_turn(storage, limit, None, 0.0) > 40
    forget_turns(storage, limit)
    assert _take_turn(storage, limit, None, 0.0) < 2


def test_a_block_met_by_one_lane_pauses_every_lane(tmp_path):
    limit = RateLimit(pause=0.6)
    lanes = [Lane(limit, open_storage(tmp_path)) for _ in range(2)]
    start = time.monotonic()
    assert lanes[0].record_result(failed(FailureClass.BLOCKED))
    lanes[1].wait()
    assert time.monotonic() - start > 0.5
    assert paused_until(open_storage(tmp_path))[1] == "the site says so"


def test_rate_limits_in_a_row_slow_a_lane_more_and_more(tmp_path):
    lane = Lane(RateLimit(backoff=0.1), open_storage(tmp_path))
    waits = []
    for _ in range(3):
        assert not lane.record_result(failed(FailureClass.RATE))
        start = time.monotonic()
        lane.wait()
        waits.append(time.monotonic() - start)
    assert 0.04 < waits[0] < 0.15
    assert 0.19 < waits[2] < 0.45
    lane.record_result({})
    start = time.monotonic()
    lane.wait()
    assert time.monotonic() - start < 0.04


def test_a_lane_waits_as_long_as_the_site_asks_for_but_not_for_ever(tmp_path):
    for longest, expected in ((600.0, 1.5), (0.3, 0.3)):
        lane = Lane(RateLimit(backoff=0.01, longest=longest), open_storage(tmp_path))
        due = datetime.now(UTC) + timedelta(seconds=1.5)
        lane.record_result({"key": pickle.loads(pickle.dumps(Failed(FailureClass.RATE, "too many", due)))})
        start = time.monotonic()
        lane.wait()
        assert time.monotonic() - start == pytest.approx(expected, abs=0.2)


def test_an_installation_that_fails_three_videos_in_a_row_stops_the_job(tmp_path):
    lane = Lane(RateLimit(), open_storage(tmp_path))
    lane.record_result(failed(FailureClass.ENVIRONMENT))
    lane.record_result(failed(FailureClass.ENVIRONMENT))
    lane.record_result(failed(FailureClass.GONE))
    lane.record_result(failed(FailureClass.ENVIRONMENT))
    lane.record_result(failed(FailureClass.ENVIRONMENT))
    with pytest.raises(Failed, match="the site says so"):
        lane.record_result(failed(FailureClass.ENVIRONMENT))


def test_waves_publish_as_they_go_and_compact_gives_what_one_run_gives(videos, list_file, tmp_path):
    with Site(videos, {"/video-002.mp4": Behaviour(status=404)}) as site:
        done = prepare(list_file, site, tmp_path / "waves", "--wave", 3)
        assert done.returncode == 0, done.stderr
        assert "5 rows of 5 videos are left" in done.stderr
        site.clear()
        assert prepare(list_file, site, tmp_path / "waves").returncode == 0
        assert not site.requests, "what is known is not asked for again"
        whole = prepare(list_file, site, tmp_path / "whole")
        assert whole.returncode == 0, whole.stderr
    data = dataset.open(tmp_path / "waves")
    assert data.generations == ["00000", "00001", "00002"]
    assert data.meta["counts"] == {"train": {"failed": 1, "ready": 5}, "val": {"ready": 2}}
    assert pipeline("verify", tmp_path / "waves").returncode == 0
    done = pipeline(
        "prepare", "--manifest", list_file, "--output", tmp_path / "waves", "--compact", tmp_path / "compact"
    )
    assert done.returncode == 0, done.stderr
    assert published_bytes(tmp_path / "compact") == published_bytes(tmp_path / "whole")
    assert pipeline("verify", tmp_path / "compact").returncode == 0


def test_a_wave_of_failures_does_not_block_later_videos(videos, list_file, tmp_path):
    """A lane's worth of videos that fail again and again once took the first places of every wave."""
    with Site(videos, {f"/{name}.mp4": Behaviour(status=404) for name in IDS[:6]}) as site:
        done = prepare(list_file, site, tmp_path / "root", "--wave", 2, "--retry", "all")
        assert done.returncode == 0, done.stderr
        data = dataset.open(tmp_path / "root")
        assert data.meta["counts"] == {"train": {"failed": 5, "ready": 1}, "val": {"failed": 1, "ready": 1}}
        assert len(data.generations) == 4
        site.behaviours.clear()
        done = prepare(list_file, site, tmp_path / "root", "--wave", 4, "--retry", "all")
        assert done.returncode == 0, done.stderr
    assert dataset.open(tmp_path / "root").meta["counts"] == {"train": {"ready": 6}, "val": {"ready": 2}}


def test_local_sources_wait_for_no_lane(videos, list_file, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    for name in IDS[1:]:
        shutil.copy(videos / f"{name}.mp4", here)
    start = time.monotonic()
    with Site(videos) as site:
        sources = (f"dir:{here}", f"{site.url}/{{youtube_id}}.mp4")
        done = pipeline(
            "prepare", "--manifest", list_file, "--output", tmp_path / "root", "--flow", "none",
            "--source", *sources, "--budget", 60, "--direct_num_workers", 1,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert {request.path for request in site.requests} == {f"/{IDS[0]}.mp4"}
    assert time.monotonic() - start < 60, "a video a minute, had each been asked for"
    assert dataset.open(tmp_path / "root").meta["counts"] == {"train": {"ready": 6}, "val": {"ready": 2}}
    kept = {path.stem.split("_")[0] for path in (tmp_path / "root/work/source").rglob("*.mp4")}
    assert kept == {IDS[0]}, "what lies in a folder is not copied"


def test_flow_added_later_fetches_nothing(videos, list_file, tmp_path):
    work = ("--work", tmp_path / "work")
    with Site(videos) as site:
        done = prepare(list_file, site, tmp_path / "rgb", *work)
        assert done.returncode == 0, done.stderr
        site.clear()
        done = prepare(list_file, site, tmp_path / "both", *work, "--flow", "tvl1")
        assert done.returncode == 0, done.stderr
        assert not site.requests
        done = prepare(list_file, site, tmp_path / "fresh", "--flow", "tvl1")
        assert done.returncode == 0, done.stderr
    assert published_bytes(tmp_path / "both") == published_bytes(tmp_path / "fresh")
