"""One call of `prepare` in the launching process: from lists to the next published generations.

Locks ROOT and the work store, runs the Beam job and publishes. `pipeline.job.pending_rows` chooses the rows,
`pipeline.job.graph` is the job, `pipeline.job.stages` the work on a video.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.dataset import publish, schema
from pipeline.flow.recipe import FlowRecipe
from pipeline.job import PrepareError, fetched_sources, launch, packing, pending_rows
from pipeline.job.media_stages import media_for
from pipeline.job.settings import Job, Settings
from pipeline.job.summary import Summary, remaining
from pipeline.lists import manifest, plan
from pipeline.maintenance import purge, reconciliation
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import PROCESS, CallError, Failed
from pipeline.recipe import Recipe
from pipeline.sources import archive, parse
from pipeline.sources.rate_limit import RateLimit
from pipeline.sources.recipe import FetchRecipe
from pipeline.storage import Busy, Storage, open_storage, scratch, work_store
from pipeline.storage.work_store import WorkStore

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

VIDEOS_A_PART = 500
MOST_PARTS = 1000


def run(settings: Settings, options: PipelineOptions) -> Summary:
    """Prepare the pending rows and publish them as the next generation, or with a wave size as several.

    Args:
        options: Beam's, from `pipeline.job.runner.beam_options`.

    Raises:
        CallError, PrepareError, ManifestError, PublishError, Failed: one sentence each; nothing is
            half-published.
    """
    root = open_storage(settings.output)
    store = work_store.of(root, settings.work)
    job = make_job(settings, root, store, options)
    planned = make_plan(settings)
    made: list[str] = []
    with _exclusively(root, store.storage):
        while (rows := pending_rows.choose(planned, root, store, settings, job.recipe, made)) is not None:
            job = replace(job, generation=publish.next_generation(root))
            made.append(job.generation)
            archive.lay_out(settings.sources, rows, store, job.fetch)
            if parts := _write_plan(rows, job, store):
                launch.run(job, parts, _to_process(rows).num_rows, options, settings.start_timeout)
            _publish(rows, plan.classes(planned), job, root, store)
            if not job.keep_sources:
                archive.clear(settings.sources, store)
            if settings.wave is None:
                break
            if left := remaining(planned, root, job.rate_limit.budget):
                print(left, file=sys.stderr)
        if made:
            reconciliation.write(root, settings.sources, store, job.clip_hash)
            if settings.clean_work:
                store.clean()
    return Summary.of(root, made[-1] if made else None)


def compact(settings: Settings, target: str) -> Summary:
    """Write ROOT to `target` as the one generation that a single run would give.

    Raises:
        PrepareError: ROOT is not finished, or of other lists.
        Others: as `pipeline.maintenance.compact.compact`.
    """
    from pipeline.maintenance import compact

    scratch.use(settings.scratch)
    root = open_storage(settings.output)
    outcomes = dataset.open(root).outcomes()
    planned, place = pending_rows.as_published(make_plan(settings), outcomes, root)
    if left := planned.num_rows - len(place):
        raise PrepareError(f"{left} rows of {root.url} are not decided yet; finish prepare first.")
    compact.compact(root.url, target, planned)
    return Summary.of(open_storage(target), schema.generation_name(0))


def make_plan(settings: Settings) -> pa.Table:
    """Read the lists and decide which rows are processed; uses no network and writes nothing."""
    tables = [manifest.read(path) for path in manifest.expand(settings.manifests)]
    # An excluded video's own split makes no difference, so its list may lack that column.
    exclude = [manifest.read(path, split="test") for path in manifest.expand(settings.exclude)]
    options = settings.plan
    if settings.classes:
        options = replace(options, classes=manifest.read_classes(settings.classes))
    return plan.make(tables, options, exclude)


def make_recipe(settings: Settings) -> Recipe:
    """The recipe of these settings on this machine. Raises CallError if `--ffmpeg` names no encoder."""
    flow = FlowRecipe() if settings.flow != "none" else None
    encode = EncodeRecipe(rate=settings.rate, short_side=settings.short_side)
    recipe = Recipe(FetchRecipe.of(settings.short_side), encode, flow)
    try:
        return media_for(settings.sources).complete(recipe, settings.ffmpeg, settings.flow_device)
    except Failed as failure:
        if settings.ffmpeg is None:
            raise
        raise CallError(f"--ffmpeg {failure.reason}") from failure


def make_job(settings: Settings, root: Storage, store: WorkStore, options: PipelineOptions) -> Job:
    """The job for workers, still without a generation. Raises CallError, or Failed for a scratch folder that
    takes no file."""
    from pipeline.job import runner

    if runner.is_cluster(options) and not settings.shared:
        _refuse_folders(settings, runner.name(options))
    network = any(parse(spec).network for spec in settings.sources)
    local = runner.is_local(options)
    lanes = settings.lanes or (runner.workers(options) if local else None)
    recipe = make_recipe(settings)
    job = Job(
        output=root.url,
        work=store.storage.url,
        sources=settings.sources,
        recipe=recipe,
        fetch=replace(settings.fetch, recipe=recipe.fetch, ffmpeg=settings.ffmpeg, work=store.storage.url),
        ffmpeg=settings.ffmpeg,
        generation="",
        keep_sources=network if settings.keep_sources is None else settings.keep_sources,
        rate_limit=RateLimit(budget=settings.hourly_budget, lanes=lanes, pause=settings.pause),
        scratch=settings.scratch and os.path.abspath(settings.scratch),
        local=local,
        kept=fetched_sources.other_sizes(recipe.fetch, store) if network else (),
    )
    if job.scratch and local:
        scratch.check(job.scratch)
    return job


def _refuse_folders(settings: Settings, runner: str) -> None:
    """Raise CallError for a folder of this machine that a cluster's workers would not find."""
    local = [spec.partition(":")[2] for spec in settings.sources if not parse(spec).network]
    for place in (settings.output, settings.work, *local):
        if place and open_storage(place).is_local:
            raise CallError(
                f"{place} is a folder of this machine, which the workers of {runner} may not see; give "
                "--shared if all of them have it at this very path, else a place such as s3://BUCKET/FOLDER."
            )


@contextlib.contextmanager
def _exclusively(root: Storage, work: Storage) -> Iterator[None]:
    """Lock ROOT and the work store, so that no other run uses either of them."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(root.lock(".prepare.lock"))
            stack.enter_context(work.lock(purge.WORK_LOCK))
        except Busy as busy:
            raise PrepareError(
                f"another prepare or remove is at work in {root.url} or {work.url}; wait for it, or give "
                f"another --output and --work{busy.hint}."
            ) from None
        yield


def _to_process(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.equal(rows["decision"], PROCESS))


def _write_plan(rows: pa.Table, job: Job, store: WorkStore) -> list[str]:
    """Write a generation's plan and its parts into the work store; returns the parts' paths."""
    plan.write(rows, store.storage, f"plan/{job.generation}.parquet")
    videos = pc.count_distinct(_to_process(rows)["video"]).as_py()
    count = min(MOST_PARTS, -(-videos // VIDEOS_A_PART))
    if job.laned:
        count = min(job.rate_limit.lanes or 1, videos)
    paths = [f"plan/{job.generation}/{number:05d}.parquet" for number in range(count)]
    for path, part in zip(paths, plan.parts(rows, count) if count else (), strict=True):
        plan.write(part, store.storage, path)
    return paths


def _publish(rows: pa.Table, classes: list[str], job: Job, root: Storage, store: WorkStore) -> None:
    outcomes, packed = packing.read_parts(_to_process(rows), job.generation, store.storage)
    meta = schema.read_meta(root)
    known = {shard["path"] for shard in meta["shards"]} if meta else set()
    # A killed run may have left shards of another plan: a glob over ROOT/shards must not find them.
    purge.unpublished(root, known | {info.path for info, _ in packed}, dry_run=False)
    publish.publish(
        root,
        plan=rows,
        outcomes=outcomes,
        packed=packed,
        recipe=job.recipe.as_dict(),
        classes=classes,
        generation=job.generation,
    )
