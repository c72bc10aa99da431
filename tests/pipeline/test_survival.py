"""The longer proofs of acquisition: a site that misbehaves, a job killed again and again, damaged videos."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timestamped
from small_runs import make_list, make_videos, pipeline, published_bytes, start, wait_for_workers
from test_fetch_site import MISBEHAVIOUR, _scripts

from demo.site import Behaviour, Site
from pipeline import dataset
from pipeline.media import clip
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed

pytestmark = pytest.mark.slow


def command(list_file: Path, site: Site, root: Path, *more: object) -> list[str]:
    source = f"{site.url}/{{youtube_id}}.mp4"
    arguments = ["prepare", "--manifest", list_file, "--output", root, "--source", source, *more]
    return [str(word) for word in arguments]


def test_of_500_videos_of_a_bad_site_every_row_ends_in_its_one_right_outcome(tmp_path):
    timestamped.write(tmp_path / "good.mp4", timestamped.constant(25, 12), audio_from=0.1)
    stalling = {
        "stall": (Behaviour(file="good.mp4", stall=0), "network"),
        "drip": (Behaviour(file="good.mp4", rate=2000), "network"),
    }
    kinds = {f"{name}-{i}": name for i in range(500 // len(MISBEHAVIOUR) + 1) for name in MISBEHAVIOUR}
    expected = {video: MISBEHAVIOUR[kind][1] or "ready" for video, kind in kinds.items()}
    expected |= {name: wanted for name, (_, wanted) in stalling.items()}
    rows = [f"a,{video},4,5.2,train,0" for video in expected]
    list_file = make_list(tmp_path / "list.csv", rows)
    budget = 18_000  # videos an hour: five a second
    with Site(tmp_path) as private, Site(tmp_path) as site:
        site.behaviours |= _scripts(private, kinds)
        site.behaviours |= {f"/{name}.mp4": behaviour for name, (behaviour, _) in stalling.items()}
        limited = Behaviour(status=429, headers={"Retry-After": "2"})  # a lane waits as long as it is told
        site.behaviours |= {f"/{name}.mp4": limited for name, kind in kinds.items() if kind == "s429"}
        limits = ("--flow", "none", "--fetch-timeout", 20, "--budget", budget, "--lanes", 2)
        done = pipeline(*command(list_file, site, tmp_path / "root", *limits), timeout=900)
        assert done.returncode == 0, done.stderr
        assert private.requests == []
        asked = Counter(request.path for request in site.requests)
        first: dict[str, float] = {}
        for request in site.requests:
            first.setdefault(request.path, request.time)
    outcomes = dataset.open(tmp_path / "root").outcomes().to_pylist()
    came = {o["youtube_id"]: o["failure_class"] or o["outcome"] for o in outcomes}
    assert came == expected
    assert all(o["reason"] for o in outcomes if o["outcome"] != "ready")
    for video, kind in kinds.items():
        assert asked[f"/{video}.mp4"] <= MISBEHAVIOUR[kind][2], video
    times = sorted(first.values())
    for begin, end in zip(times, times[50:], strict=False):
        assert end - begin > 0.8 * 50 * 3600 / budget, "faster than the budget"
    assert pipeline("verify", tmp_path / "root").returncode == 0


def start_and_kill(argv: list[str], root: Path, seconds: float, whole_group: bool) -> bool:
    """Run the command and SIGKILL it after a while; returns whether it had ended by itself."""
    process = start(argv, root)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        if whole_group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for_workers(root, 30)
    return process.returncode == 0


def known_videos(root: Path) -> set[str]:
    """Videos of which the work store says what came of asking for them."""
    suffix = ".record.json"
    return {path.name[: -len(suffix)] for path in root.glob(f"work/source/*/*/*{suffix}")}


def test_25_kills_cost_no_byte_and_no_second_question(tmp_path):
    ids = [f"video-{number:03d}" for number in range(80)]
    videos = make_videos(tmp_path / "videos", ids, seconds=1.3)
    behaviours = {f"/{ids[3]}.mp4": Behaviour(status=404), f"/{ids[7]}.mp4": Behaviour(status=429)}
    rows = [f"class {n % 2},{name},0,1,{'val' if n % 4 == 3 else 'train'},0" for n, name in enumerate(ids)]
    list_file = make_list(tmp_path / "list.csv", rows)
    root, kills, chance = tmp_path / "root", 0, random.Random(0)
    with Site(videos, behaviours) as site:
        while kills < 25:
            before = known_videos(root)
            site.clear()
            pace = ("--budget", 900, "--shard-size", 8)  # a few videos a run
            ended = start_and_kill(
                command(list_file, site, root, *pace), root, chance.uniform(3, 12), bool(kills % 2)
            )
            asked = {request.path[1:-4] for request in site.requests}
            assert not asked & before, "asked again for what was known"
            assert not ended, "too few videos for so many kills"
            kills += 1
            assert not (root / "dataset.json").exists()
        done = pipeline(*command(list_file, site, root, "--shard-size", 8))
        assert done.returncode == 0, done.stderr
        undisturbed = pipeline(*command(list_file, site, tmp_path / "whole", "--shard-size", 8))
        assert undisturbed.returncode == 0, undisturbed.stderr
    assert published_bytes(root) == published_bytes(tmp_path / "whole")
    assert pipeline("verify", root).returncode == 0


def test_sigterm_ends_within_a_clips_time_and_says_how_to_go_on(tmp_path):
    videos = make_videos(tmp_path / "videos", [f"video-{n}" for n in range(20)], seconds=3)
    list_file = make_list(tmp_path / "list.csv", [f"a,video-{n},0,3,train,0" for n in range(20)])
    root = tmp_path / "root"
    with Site(videos) as site:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *command(list_file, site, root)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "QUOVADIS_TEST_ROOT": str(root)},
        )
        while not known_videos(root):
            time.sleep(0.05)
        process.terminate()
        said = process.communicate(timeout=20)[1]
    assert process.returncode == 1
    assert "repeat the same command" in said
    wait_for_workers(root, 20)


def test_1000_damaged_videos_each_come_to_a_clip_or_a_failure(tmp_path):
    whole = {}
    for suffix in ("mp4", "webm", "mkv", "ts"):
        path = tmp_path / f"whole.{suffix}"
        timestamped.write(path, timestamped.constant(25, 3))
        whole[suffix] = path.read_bytes()
    ffmpeg, recipe = clip.ffmpeg_binary(), EncodeRecipe()

    def one(number: int) -> str:
        chance = random.Random(number)
        suffix = chance.choice(sorted(whole))
        data = bytearray(whole[suffix])
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.choice((0, 1, 10, 200))):
            if data:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(data)
        try:
            cut = clip.cut(path, 0.5, 2.5, recipe, tmp_path / f"{number}.out", ffmpeg=ffmpeg, timeout=60)
            assert 25 <= cut.frames <= 50
            return "ready"
        except Failed as failure:
            return str(failure.failure_class)
        finally:
            path.unlink()

    with ThreadPoolExecutor(2) as pool:
        came = Counter(pool.map(one, range(1000)))
    assert sum(came.values()) == 1000
    assert set(came) <= {"ready", "corrupt", "format", "short", "too_large"}, came
    assert came["ready"] > 100
    assert came["corrupt"] > 100
