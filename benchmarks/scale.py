"""Measures what the job itself costs a clip: ``prepare --rehearse`` fetches, encodes and solves nothing.

python benchmarks/scale.py [--local 1000 10000 100000] [--spark 1000 10000] [--store 200 600]
                           [--ideal FOLDER --clips 24]

For each number of clips: wall time, processor time of all processes, peak memory of the launching process
and the largest worker (on Spark also of the job server and the largest executor). From one number to the next
the cost of a clip, without start-up. ``--store`` counts requests to an S3 server. Claims: linear, under 20 ms
of a core a clip, flat in memory. ``--ideal`` prepares the videos of FOLDER, each several times, here and on
Spark with a worker a core, and sets wall time and core seconds beside what the stages alone take of them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
MARK = "QUOVADIS_SCALE"
TICKS = os.sysconf("SC_CLK_TCK")
ROLES = (  # by what stands in the command line; the first that fits
    ("executor", "CoarseGrainedExecutorBackend"),
    ("job server", "SparkJobServerDriver"),
    ("", "org.apache.spark.deploy"),  # master and workers: Spark's own, whatever runs
    ("worker", "pipeline.job.local_workers"),
    ("worker", "worker.py"),
    ("launcher", "pipeline prepare"),
)


@dataclass
class Usage:
    """Cost of one run.

    Attributes:
        seconds: from start to end.
        core_seconds: processor time of all its processes.
        peak_mib: by role, resident memory of the largest process of it.
    """

    clips: int
    seconds: float = 0.0
    core_seconds: float = 0.0
    peak_mib: dict[str, int] = field(default_factory=dict)


class Sampler:
    """Watches all processes that were started with MARK=`value` in their environment."""

    def __init__(self, value: str):
        self._mark = f"{MARK}={value}\0".encode()
        self._times: dict[str, float] = {}
        self._peaks: dict[str, int] = {}
        self._strangers = {
            process.name for process in Path("/proc").glob("[0-9]*") if not self._ours(process)
        }
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def core_seconds(self) -> float:
        return sum(self._times.values())

    @property
    def peak_mib(self) -> dict[str, int]:
        return dict(sorted(self._peaks.items()))

    def _run(self) -> None:
        while not self._done.wait(0.2):
            for process in Path("/proc").glob("[0-9]*"):
                if process.name not in self._strangers:
                    with contextlib.suppress(OSError, ValueError):
                        self._look(process)

    def _ours(self, process: Path) -> bool:
        with contextlib.suppress(OSError):
            return self._mark in (process / "environ").read_bytes()
        return False

    def _look(self, process: Path) -> None:
        name = process.name
        if name not in self._times and not self._ours(process):
            return  # not ours, or not yet: a child has its parent's environment at first
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        self._times[name] = sum(map(int, fields[11:13])) / TICKS
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        role = next((role for role, words in ROLES if words in command), "")
        peak = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text())
        if role and peak:
            self._peaks[role] = max(self._peaks.get(role, 0), int(peak[1]) // 1024)


def make_list(path: Path, clips: int) -> Path:
    """A list of so many videos with one clip each."""
    rows = (f"action {n % 400},v{n:010d},10,20,{'val' if n % 20 == 0 else 'train'},0" for n in range(clips))
    path.write_text("label,youtube_id,time_start,time_end,split,is_cc\n" + "\n".join(rows) + "\n")
    return path


def rehearse(clips: int, options: Sequence[str], environment: Mapping[str, str], output: str) -> Usage:
    """One run over so many clips in `output`, with stand-ins for all media."""
    with tempfile.TemporaryDirectory() as folder:
        list_file = make_list(Path(folder) / "list.csv", clips)
        return prepare(list_file, clips, ["--rehearse", *options], environment, output)


def prepare(
    list_file: Path, clips: int, options: Sequence[str], environment: Mapping[str, str], output: str
) -> Usage:
    """One run over a list of so many clips in `output`; its job must end well."""
    usage, value = Usage(clips), environment.get(MARK, f"{os.getpid()}-{clips}")
    command = [sys.executable, "-m", "pipeline", "prepare", "--manifest", str(list_file), "--output", output]
    with Sampler(value) as sampler:
        start = time.perf_counter()
        subprocess.run(
            [*command, *options],
            check=True,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment, MARK: value},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        usage.seconds = round(time.perf_counter() - start, 1)
    usage.core_seconds, usage.peak_mib = round(sampler.core_seconds, 1), sampler.peak_mib
    return usage


def here(sizes: Sequence[int]) -> list[Usage]:
    """Runs on this machine alone."""
    found = []
    for clips in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(rehearse(clips, [], {}, f"{folder}/root"))
    return found


def on_spark(sizes: Sequence[int], workers: int = 2) -> list[Usage]:
    """Runs on a cluster of workers of one core, a task for some 100 clips."""
    found = []
    for clips in sizes:
        with (
            tempfile.TemporaryDirectory() as folder,
            spark(workers, max(2 * workers, -(-clips // 100))) as (options, environment),
        ):
            found.append(rehearse(clips, options, environment, f"{folder}/root"))
    return found


@contextlib.contextmanager
def spark(workers: int, parallelism: int) -> Iterator[tuple[list[str], dict[str, str]]]:
    """A cluster for one run: the options that send the job there, and what marks all its processes."""
    sys.path.insert(0, str(REPOSITORY))
    from deploy.spark.cluster import Cluster

    os.environ[MARK] = value = f"{os.getpid()}-spark-{time.monotonic_ns()}"
    try:
        with Cluster(workers, parallelism=parallelism) as cluster:
            yield ["--shared", *cluster.options], {MARK: value}
    finally:
        del os.environ[MARK]


def ideal(videos: Path, clips: int) -> Iterator[dict[str, Any]]:
    """Real runs over so many clips beside the stages alone: here, and on Spark with one worker a core.

    Yields:
        What a run took, ``stage_seconds`` (core seconds of its clips' stages, measured one after the other
        on an idle machine before it) and ``times_ideal``: wall time over stage seconds a core.
    """
    import whole_clip

    cores, paths = os.cpu_count() or 1, sorted(p for p in videos.iterdir() if p.suffix in (".mp4", ".mkv"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        chosen = [(f"clip-{number:05d}", paths[number % len(paths)]) for number in range(clips)]
        for youtube_id, path in chosen:
            shutil.copyfile(path, folder / "videos" / f"{youtube_id}{path.suffix}")
        rows = [f"a,{youtube_id},0,{whole_clip.SECONDS:g},train,0" for youtube_id, _ in chosen]
        list_file = folder / "list.csv"
        list_file.write_text("label,youtube_id,time_start,time_end,split,is_cc\n" + "\n".join(rows) + "\n")
        each = {path: whole_clip.measure(path).core_seconds for path in paths}
        stages = sum(each[path] for _, path in chosen)
        source = ["--source", f"dir:{folder / 'videos'}"]
        with spark(cores, 3 * cores) as (options, environment):
            for where, more, marked in (("here", [], {}), ("spark", options, environment)):
                usage = prepare(list_file, clips, [*source, *more], marked, f"{folder}/{where}")
                times = round(usage.seconds * cores / stages, 3)
                yield {
                    "where": where,
                    **asdict(usage),
                    "stage_seconds": round(stages, 1),
                    "cores": cores,
                    "times_ideal": times,
                }


def requests(sizes: Sequence[int]) -> dict[int, dict[str, int]]:
    """Requests to an S3 server, by method, for each number of clips."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from object_store import BUCKET, serve

    found = {}
    for clips in sizes:
        with serve() as store:
            rehearse(clips, [], store.environment, f"s3://{BUCKET}/root")
            asked = [("LIST" if request.lists else request.method) for request in store.requests]
            found[clips] = {method: asked.count(method) for method in sorted(set(asked))}
    return found


def steps(usages: Sequence[Usage]) -> list[dict[str, float]]:
    """From each number of clips to the next: milliseconds a clip, without what every run costs."""
    return [
        {
            "from": a.clips,
            "to": b.clips,
            "core_ms_a_clip": round(1e3 * (b.core_seconds - a.core_seconds) / (b.clips - a.clips), 2),
            "wall_ms_a_clip": round(1e3 * (b.seconds - a.seconds) / (b.clips - a.clips), 2),
        }
        for a, b in itertools.pairwise(usages)
    ]


def main() -> None:
    """Measure what is asked for; one JSON line for each run and each step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--local", nargs="*", type=int, default=[], metavar="CLIPS", help="run here")
    parser.add_argument("--spark", nargs="*", type=int, default=[], metavar="CLIPS", help="run on Spark")
    parser.add_argument(
        "--store", nargs="*", type=int, default=[], metavar="CLIPS", help="count an S3 server's requests"
    )
    parser.add_argument("--ideal", type=Path, metavar="FOLDER", help="of real videos of ten seconds or more")
    parser.add_argument("--clips", type=int, default=24, help="of --ideal (default 24)")
    arguments = parser.parse_args()
    for where, measure, sizes in (("local", here, arguments.local), ("spark", on_spark, arguments.spark)):
        usages = measure(sizes)
        for usage in usages:
            print(json.dumps({"where": where, **asdict(usage)}), flush=True)
        for step in steps(usages):
            print(json.dumps({"where": where, **step}), flush=True)
    for found in ideal(arguments.ideal, arguments.clips) if arguments.ideal else ():
        print(json.dumps(found), flush=True)
    counted = requests(arguments.store)
    for clips, methods in counted.items():
        print(json.dumps({"where": "store", "clips": clips, "requests": methods}), flush=True)
    for (few, a), (many, b) in itertools.pairwise(counted.items()):
        each = {m: round((b.get(m, 0) - a.get(m, 0)) / (many - few), 2) for m in sorted({*a, *b})}
        print(json.dumps({"where": "store", "requests_a_clip": each}), flush=True)


if __name__ == "__main__":
    main()
