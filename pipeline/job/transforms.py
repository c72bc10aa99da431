"""The PTransforms of the main job: thin wrappers round plain functions, which are tested without Beam.

Elements carry ids, paths, sizes and hashes; never media. On this machine the work is done by the processes of
`pipeline.job.local_workers`, on a cluster by Beam's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows

from pipeline.job import local_workers, packing, stages
from pipeline.job.settings import Job
from pipeline.job.stages import Task
from pipeline.job.worker import Shard, Worker

_T = TypeVar("_T")


@dataclass(eq=False)  # not frozen: Beam sets the label
class ReadTasks(beam.PTransform):
    """Paths of plan parts -> `stages.Task`: source videos with the clips wanted from each.

    A lane's videos stay together in one worker; on this machine a lane stays a path. On a cluster, spreads
    the parts over the workers and, without lanes, their videos. Groups elements by their own
    names: Beam's Reshuffle draws random keys, so that an engine which repeats part of a shuffle after a
    worker died loses or doubles elements.
    """

    job: Job

    def expand(self, paths: beam.PCollection) -> beam.PCollection:
        read = beam.FlatMap(stages.read_tasks, self.job.work)
        if self.job.local:
            return paths if self.job.laned else paths | read
        parts = paths | "Name parts" >> beam.Map(_named, str) | "Spread parts" >> beam.GroupByKey()
        tasks = parts | "Parts" >> beam.FlatMap(_values) | read
        if self.job.laned:
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
        return tasks | beam.ParDo(_Local("process_all", _task) if self.job.local else _Process(self.job))


@dataclass(eq=False)  # not frozen: Beam sets the label
class PackShards(beam.PTransform):
    """`(shard, place)` -> paths of the parts that publishing reads: one shard, index and outcomes each."""

    job: Job

    def expand(self, places: beam.PCollection) -> beam.PCollection:
        groups = places | beam.GroupByKey()
        if self.job.local:
            return groups | beam.MapTuple(_listed) | beam.ParDo(_Local("pack", _shard))
        # Labelled, since Beam names a step after its arguments: a job holds cookies and proxies.
        return groups | "Pack" >> beam.MapTuple(functools.partial(packing.pack_shard, self.job))


def _task(work: Task | str) -> str:
    return f"the video {_video(work)}" if isinstance(work, Task) else f"the part {work} of the plan"


def _shard(group: tuple[Shard, list[bytes]]) -> str:
    (split, number), _ = group
    return f"the shard {number} of {split}"


def _listed(shard: Shard, places: Iterable[bytes]) -> tuple[Shard, list[bytes]]:
    return shard, list(places)


class _Process(beam.DoFn):
    """`pipeline.job.worker.Worker` in a process of Beam's."""

    def __init__(self, job: Job):
        self._job = job

    def setup(self) -> None:
        self._worker = Worker(self._job, lambda group, name, by: Metrics.counter(group, name).inc(by))

    def process(self, task: Task) -> Iterator[tuple[Shard, bytes]]:
        return self._worker.process(task)

    def finish_bundle(self) -> None:
        self._worker.close()


class _Local(beam.DoFn):
    """Hands its elements to the worker processes of this machine, as many at a time as there are."""

    def __init__(self, method: Literal["process_all", "pack"], name: Callable[[Any], str]):
        self._method, self._name = method, name

    def process(self, element: Any) -> list[Any]:
        return local_workers.current().put(self._method, element, self._name(element))

    def finish_bundle(self) -> Iterator[Any]:
        return map(GlobalWindows.windowed_value, local_workers.current().drain())
