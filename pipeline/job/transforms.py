"""The PTransforms of the main job: thin wrappers round plain functions, which are tested without Beam.

Elements carry ids, paths, sizes and hashes; never media.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import apache_beam as beam
from apache_beam.metrics import Metrics

from pipeline.job import packing, stages
from pipeline.job.progress import FULL_DOWNLOADS, tally
from pipeline.job.settings import Job
from pipeline.job.stages import Task
from pipeline.sources import Fetched
from pipeline.sources.rate_limit import Lane
from pipeline.storage import scratch
from pipeline.storage.work_store import WorkStore

Shard = tuple[str, int]  # split and number
_T = TypeVar("_T")


@dataclass(eq=False)  # not frozen: Beam sets the label
class ReadTasks(beam.PTransform):
    """Paths of plan parts -> `stages.Task`: source videos with the clips wanted from each.

    Spreads the parts over the workers, and with `wide` their videos too; otherwise a part is a lane, whose
    videos stay together in one worker. Groups elements by their own names: Beam's Reshuffle draws random
    keys, so that an engine which repeats part of a shuffle after a worker died loses or doubles elements.
    """

    work: str
    wide: bool

    def expand(self, paths: beam.PCollection) -> beam.PCollection:
        parts = paths | "Name parts" >> beam.Map(_named, str) | "Spread parts" >> beam.GroupByKey()
        tasks = parts | "Parts" >> beam.FlatMap(_values) | beam.FlatMap(stages.read_tasks, self.work)
        if not self.wide:
            return tasks
        videos = tasks | "Name videos" >> beam.Map(_named, _video) | "Spread videos" >> beam.GroupByKey()
        return videos | "Videos" >> beam.FlatMap(_values)


def _named(element: _T, name: Callable[[_T], str]) -> tuple[str, _T]:
    return name(element), element


def _video(task: Task) -> str:
    return task.video.youtube_id


def _values(group: tuple[str, Iterable[_T]]) -> Iterable[_T]:
    return group[1]


@dataclass(eq=False)  # not frozen: Beam sets the label
class ProcessVideos(beam.PTransform):
    """`stages.Task` -> `(shard, place)`: fetch, encode and flow fused, no barrier between them."""

    job: Job

    def expand(self, tasks: beam.PCollection) -> beam.PCollection:
        return tasks | beam.ParDo(_Process(self.job))


@dataclass(eq=False)  # not frozen: Beam sets the label
class PackShards(beam.PTransform):
    """`(shard, place)` -> paths of the parts that publishing reads: one shard, index and outcomes each."""

    job: Job

    def expand(self, places: beam.PCollection) -> beam.PCollection:
        # Labelled, since Beam names a step after its arguments: a job holds cookies and proxies.
        pack = "Pack" >> beam.MapTuple(functools.partial(packing.pack_shard, self.job))
        return places | beam.GroupByKey() | pack


class _Process(beam.DoFn):
    """Runs `stages.process` in a worker that has passed the check of its machine."""

    def __init__(self, job: Job):
        self._job = job

    def setup(self) -> None:
        self._store = WorkStore(self._job.work)
        with stages.stop_on_failure(self._store, self._job):
            scratch.use(self._job.scratch)
        self._lane = Lane(self._job.rate_limit, self._store.storage)
        self._tally = tally(self._store.storage, self._job.generation, self._job.local)
        with stages.stop_on_failure(self._store, self._job):
            self._job.media.check_machine(self._job.recipe, self._job.ffmpeg, self._store)

    def _count_fetch(self, fetched: Fetched) -> None:
        Metrics.counter("fetch", "requests").inc(fetched.requests)
        Metrics.counter("fetch", "fallbacks").inc(len(fetched.fallbacks))
        for _ in fetched.fallbacks:
            self._tally.count(FULL_DOWNLOADS)

    def finish_bundle(self) -> None:
        self._tally.flush()

    def process(self, task: Task) -> Iterator[tuple[Shard, bytes]]:
        with stages.stop_on_failure(self._store, self._job):
            for result in stages.process(task, self._job, self._store, self._lane, self._count_fetch):
                name = result.failure_class or result.outcome
                Metrics.counter("clips", name).inc()
                self._tally.count(name)
                yield (result.clip.split, result.shard), stages.place(result)
