"""Promises on a real Spark cluster: one machine's bytes, whoever dies, and a sentence in place of a hang."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, serve
from small_runs import make_list, make_videos, pipeline, published_bytes
from test_flow import TARGETS, _has_avx512

from demo.site import Site
from deploy.spark import cluster as spark
from pipeline import dataset
from pipeline.media.clip import ffmpeg_binary

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IDS = [f"video-{number:03d}" for number in range(60)]
WRONG_ENCODER = """#!/bin/sh
# Says that it is the encoder it runs, and encodes otherwise.
for word; do
    shift
    [ "$word" = 18 ] && word=19
    set -- "$@" "$word"
done
exec {ffmpeg} "$@"
"""


def targets() -> list[str]:
    """Two processors that the flow's kernels are compiled for, one a worker."""
    return [name for name in TARGETS if "avx512" not in name or _has_avx512()][-2:]


@contextlib.contextmanager
def start() -> Iterator[spark.Cluster]:
    """Two workers of one core, each of another kind."""
    kinds = [{"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": TARGETS[name]} for name in targets()]
    try:
        spark.require()
        with spark.Cluster(2, parallelism=6, environments=kinds) as running:
            yield running
    except spark.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def cluster() -> Iterator[spark.Cluster]:
    with start() as running:
        yield running


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return make_videos(tmp_path_factory.mktemp("videos"), IDS, seconds=1.3)


@pytest.fixture(scope="module")
def list_file(tmp_path_factory) -> Path:
    rows = [f"class {n % 2},{name},0,1,{'val' if n % 4 == 3 else 'train'},0" for n, name in enumerate(IDS)]
    return make_list(tmp_path_factory.mktemp("list") / "list.csv", rows)


def arguments(list_file: Path, site: Site, root: Path | str, *more: object) -> tuple[object, ...]:
    source = f"{site.url}/{{youtube_id}}.mp4"
    given = ("--manifest", list_file, "--output", root, "--source", source, "--shard-size", 8)
    return ("prepare", *given, *more)


def fetches(site: Site) -> Counter[str]:
    """How often each video was asked for: a fetch begins with one question and may need several."""
    return Counter(request.path for request in site.requests)


@pytest.fixture(scope="module")
def local(tmp_path_factory, videos, list_file) -> dict[str, tuple[dict[str, str], int]]:
    """By kind of flow: the bytes of a run on this machine alone, and the most questions for a video."""
    found, folder = {}, tmp_path_factory.mktemp("local")
    with Site(videos) as site:
        for flow in ("tvl1", "none"):  # the second finds all clips made by the first
            given = arguments(list_file, site, folder / flow, "--flow", flow, "--work", folder / "work")
            done = pipeline(*given, timeout=600)
            assert done.returncode == 0, done.stderr
            found[flow] = published_bytes(folder / flow), max(fetches(site).values())
    return found


def test_a_cluster_of_unlike_workers_gives_the_bytes_of_one_machine(
    cluster, videos, list_file, local, tmp_path
):
    root, (bytes_, most) = tmp_path / "root", local["tvl1"]
    with Site(videos, host=cluster.host) as site:
        given = arguments(list_file, site, root, "--shared", *cluster.options)
        done = pipeline(*given, timeout=600)
        assert done.returncode == 0, done.stderr
        assert max(fetches(site).values()) <= most, "fetched twice"
    assert published_bytes(root) == bytes_
    tallies = sorted((root / "work/progress/00000").iterdir())
    assert len(tallies) == 2, "a Python worker for each worker, and no more"
    assert all('"ready"' in tally.read_text() for tally in tallies), "a worker was idle"
    if cluster.namespaces:
        assert [tally.name[:9] for tally in tallies] == ["qvspark-0", "qvspark-1"]


def with_environment(cluster: spark.Cluster, port: int, **environment: str) -> list[str]:
    """The cluster's options for Python workers that have these variables too."""
    if cluster.namespaces:
        for worker in cluster.workers:
            cluster.start_pool(worker, port, **environment)
        return [option.replace("localhost:50000", f"localhost:{port}") for option in cluster.options]
    name = "--environment_config="
    given = next(option for option in cluster.options if option.startswith(name)).removeprefix(name)
    started = json.dumps({**json.loads(given), "env": environment})
    return [name + started if option.startswith(name) else option for option in cluster.options]


def test_a_cluster_writes_into_an_object_store_what_one_machine_writes_into_a_folder(
    cluster, videos, list_file, local, tmp_path
):
    bytes_, most = local["tvl1"]
    with Site(videos, host=cluster.host) as site, serve(cluster.host) as store:
        options = with_environment(cluster, 50003, **store.environment)
        given = arguments(list_file, site, f"s3://{BUCKET}/root", *options)
        done = pipeline(*given, env={**os.environ, **store.environment}, timeout=600)
        assert done.returncode == 0, done.stderr
        assert max(fetches(site).values()) <= most, "fetched twice"
        assert published_bytes(store.download("root", tmp_path / "copy")) == bytes_
        assert len(store.names("root/work/progress/00000/")) == 2, "a worker was idle"


def test_a_worker_that_encodes_otherwise_stops_the_job_with_the_remedy(cluster, videos, list_file, tmp_path):
    if not cluster.namespaces:
        pytest.skip("without namespaces all workers have one and the same encoder")
    wrong = tmp_path / "ffmpeg"
    wrong.write_text(WRONG_ENCODER.format(ffmpeg=ffmpeg_binary()))
    wrong.chmod(0o755)
    cluster.start_pool(cluster.workers[0], 50001)
    cluster.start_pool(cluster.workers[1], 50001, IMAGEIO_FFMPEG_EXE=str(wrong))
    options = [option.replace("localhost:50000", "localhost:50001") for option in cluster.options]
    with Site(videos, host=cluster.host) as site:
        done = pipeline(
            *arguments(list_file, site, tmp_path / "root", "--flow", "none", "--shared", *options)
        )
    assert done.returncode == 1
    assert "gives other bytes for encode than the first worker" in done.stderr
    assert "with the same ffmpeg" in done.stderr
    assert not (tmp_path / "root/dataset.json").exists()


def test_a_job_whose_python_workers_cannot_start_ends_with_a_sentence(cluster, videos, list_file, tmp_path):
    if cluster.namespaces:
        for worker in cluster.workers:
            cluster.start_pool(worker, 50002, PATH="/usr/bin:/bin")  # finds a Python without Beam
        options = [option.replace("localhost:50000", "localhost:50002") for option in cluster.options]
    else:
        options = [option.replace("worker.py", "hosts.py") for option in cluster.options]
    with Site(videos, host=cluster.host) as site:
        given = arguments(list_file, site, tmp_path / "root", "--shared", *options, "--start-timeout", 20)
        start = time.monotonic()
        done = pipeline(*given)
        assert time.monotonic() - start < 100
        assert not site.requests
    assert done.returncode == 1
    assert done.stderr.count("\n") <= 5
    assert "none of PortableRunner's workers has begun within 20 s" in done.stderr
    assert "--start-timeout" in done.stderr


def test_a_worker_that_dies_costs_no_byte_and_only_the_video_in_hand(videos, list_file, local, tmp_path):
    root, (bytes_, most) = tmp_path / "root", local["none"]
    with start() as cluster, Site(videos, host=cluster.host) as site:
        given = arguments(list_file, site, root, "--flow", "none", "--shared", *cluster.options)
        command = [sys.executable, "-m", "pipeline", *map(str, given)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 300
            while sum(1 for _ in root.glob("work/clip/*/*/*.record.json")) < len(IDS) // 4:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            before = len(fetches(site))
            cluster.workers[1].kill()
            said = process.communicate(timeout=500)[1]
        finally:
            process.kill()
        again = [video for video, times in fetches(site).items() if times > most]
    assert process.returncode == 0, said
    assert before < len(IDS), "the worker died too late to matter"
    assert published_bytes(root) == bytes_
    assert len(again) <= 1, "more was asked for again than the one video in hand"
    outcomes = dataset.open(root).outcomes().to_pylist()
    assert all(outcome["attempts"] == 1 for outcome in outcomes)


def test_sigterm_of_the_launching_process_ends_the_clusters_job(cluster, videos, list_file, tmp_path):
    root = tmp_path / "root"
    with Site(videos, host=cluster.host) as site:
        given = arguments(list_file, site, root, "--flow", "none", "--shared", *cluster.options)
        command = [sys.executable, "-m", "pipeline", *map(str, given), "--budget", "3600"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            deadline = time.monotonic() + 300
            while len(fetches(site)) < 2:
                assert process.poll() is None, process.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.terminate()
            said = process.communicate(timeout=60)[1]
        finally:
            process.kill()
        asked, since = len(fetches(site)), time.monotonic()
        while time.monotonic() < since + 8:  # eight videos' time in which nothing is asked for
            if len(fetches(site)) > asked:  # what workers had in hand
                asked, since = len(fetches(site)), time.monotonic()
            time.sleep(0.1)
    assert process.returncode == 1
    assert "repeat the same command" in said
    assert asked < len(IDS) // 2, "the job went on with nobody to watch it"
    assert not (root / "dataset.json").exists()


def test_folders_of_this_machine_are_refused_unless_they_are_said_to_be_shared(list_file, tmp_path):
    given = ("prepare", "--manifest", list_file, "--source", "http://127.0.0.1:9/{youtube_id}.mp4")
    runner = ("--runner=PortableRunner", "--job_endpoint=localhost:9")
    for places in (
        ("--output", tmp_path / "root"),
        ("--output", "memory://root", "--work", tmp_path / "work"),
        ("--output", "memory://root", "--source", f"dir:{tmp_path}"),
    ):
        done = pipeline(*given, *places, *runner)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"{tmp_path}" in done.stderr
        assert "--shared" in done.stderr
    assert os.listdir(tmp_path) == []
