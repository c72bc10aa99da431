"""The work of one process of a job, here or on a cluster: checks the machine, then processes videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.job import packing, stages
from pipeline.job.progress import FULL_DOWNLOADS, tally
from pipeline.job.settings import Job
from pipeline.job.stages import Task
from pipeline.sources import Fetched
from pipeline.sources.rate_limit import Lane
from pipeline.storage import scratch
from pipeline.storage.work_store import WorkStore

Shard = tuple[str, int]  # split and number


class Worker:
    """Processes and packs; a failure of its machine is left for the launching process.

    Args:
        count: called with the group and the name of a counter, and by how much it grows.
        begin: called with the name of each video of a part before the work on it.

    Raises:
        Failed: with a class of the machine, from the start on and from every method.
    """

    def __init__(
        self,
        job: Job,
        count: Callable[[str, str, int], None] = lambda *_: None,
        begin: Callable[[str], None] = lambda _: None,
    ):
        self._job, self._count, self._begin = job, count, begin
        self._store = WorkStore(job.work)
        with stages.stop_on_failure(self._store, job):
            scratch.use(job.scratch)
        self._lane = Lane(job.rate_limit, self._store.storage)
        self._tally = tally(self._store.storage, job.generation, job.local)
        with stages.stop_on_failure(self._store, job):
            job.media.check_machine(job.recipe, job.ffmpeg, self._store)

    def process(self, task: Task) -> Iterator[tuple[Shard, bytes]]:
        """Process a video; yields the shard of each clip and its place (`stages.place`)."""
        with stages.stop_on_failure(self._store, self._job):
            for result in stages.process(task, self._job, self._store, self._lane, self.count_fetch):
                name = result.failure_class or result.outcome
                self._count("clips", name, 1)
                self._tally.count(name)
                yield (result.clip.split, result.shard), stages.place(result)

    def process_all(self, work: Task | str) -> list[tuple[Shard, bytes]]:
        """Process a video, or one by one those of the plan's part at a path."""
        if isinstance(work, Task):
            return list(self.process(work))
        placed: list[tuple[Shard, bytes]] = []
        for task in stages.read_tasks(work, self._job.work):
            self._begin(f"the video {task.video.youtube_id}")
            placed += self.process(task)
        return placed

    def pack(self, group: tuple[Shard, list[bytes]]) -> list[str]:
        """Pack a shard (`packing.pack_shard`)."""
        shard, places = group
        return [packing.pack_shard(self._job, shard, places)]

    def count_fetch(self, fetched: Fetched) -> None:
        """Count the requests of a fetched video."""
        self._count("fetch", "requests", fetched.requests)
        self._count("fetch", "fallbacks", len(fetched.fallbacks))
        for _ in fetched.fallbacks:
            self._tally.count(FULL_DOWNLOADS)

    def close(self) -> None:
        """Write the counts now."""
        self._tally.flush()
