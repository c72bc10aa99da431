"""One run of `prepare` in the launching process: from manifests to the next published generation.

Decides what is to do, guards that nobody else does it, runs the job and publishes. The work itself is
`pipeline.job.stages`; the graph is `pipeline.job.graph`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.dataset import publish, schema, shards
from pipeline.flow.recipe import FlowRecipe
from pipeline.job import fetched_sources, launch, packing, pending_rows
from pipeline.job.media_stages import media_for
from pipeline.job.pending_rows import PrepareError
from pipeline.job.settings import Job, Settings
from pipeline.lists import manifest, plan
from pipeline.maintenance import purge, reconciliation
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import EXCLUDED, FAILED, PROCESS, CallError, Failed
from pipeline.progress_line import duration
from pipeline.recipe import Recipe
from pipeline.sources import archive, parse
from pipeline.sources.rate_limit import RateLimit
from pipeline.sources.recipe import FetchRecipe
from pipeline.storage import Busy, Storage, open_storage, scratch
from pipeline.storage.work_store import WorkStore

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

VIDEOS_A_PART = 500
MOST_PARTS = 1000
_KEEP_WORKERS_MILLISECONDS = 600_000
"""How long an executor keeps an idle Python worker; with Beam's 0 every task would start one anew."""


@dataclass(frozen=True)
class Summary:
    """What a run came to: rows by outcome over all generations, and the commonest failure."""

    generation: str | None  # None: there was nothing left to do
    counts: dict[str, int]
    failures: dict[str, int]  # by class
    example: str | None  # a reason of the commonest class, else why the commonest rows are excluded


def make_plan(settings: Settings) -> pa.Table:
    """Read the manifests and decide what becomes of every row; touches no network and writes nothing."""
    tables = [manifest.read(path) for path in manifest.expand(settings.manifests)]
    # Which split an excluded video is of elsewhere makes no difference, so its list need not tell.
    exclude = [manifest.read(path, split="test") for path in manifest.expand(settings.exclude)]
    return plan.make(tables, settings.plan, exclude)


def beam_options(flags: Sequence[str]) -> PipelineOptions:
    """Beam's options from what is left of the command line; all cores where no runner is named.

    What neither we nor Beam know goes on to a portable runner's job server, which may, and is told.

    Raises:
        CallError: an option that nobody knows, or a word that belongs to none.
    """
    from apache_beam.options.pipeline_options import (
        DirectOptions,
        PipelineOptions,
        PortableOptions,
        _BeamArgumentParser,
    )

    from pipeline.job import graph

    parser = _BeamArgumentParser(allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    unknown = parser.parse_known_args(list(flags))[1]
    found = PipelineOptions(list(flags))
    runner = graph.runner_name(found)
    if not graph.is_cluster(found) or runner == "DataflowRunner":
        stray = unknown
    else:  # a word after an unknown option may be its value
        pairs = itertools.pairwise(["", *unknown])
        stray = [word for before, word in pairs if not (word.startswith("-") or before.startswith("-"))]
    if stray:
        raise CallError(f"unknown option {stray[0]}; see python -m pipeline prepare --help.")
    if unknown:
        print(f"prepare: {' '.join(unknown)} unknown here, passed on to {runner} unread", file=sys.stderr)
    if graph.is_local(found):
        if "direct_num_workers" not in found.get_all_options(drop_default=True):
            found.view_as(DirectOptions).direct_num_workers = os.cpu_count() or 1
    elif "environment_cache_millis" not in found.get_all_options(drop_default=True):
        found.view_as(PortableOptions).environment_cache_millis = _KEEP_WORKERS_MILLISECONDS
    return found


def make_recipe(settings: Settings) -> Recipe:
    """The recipe that these settings mean on this machine. Raises CallError where `--ffmpeg` names none."""
    flow = FlowRecipe() if settings.flow != "none" else None
    encode = EncodeRecipe(rate=settings.rate, short_side=settings.short_side)
    recipe = Recipe(FetchRecipe.of(settings.short_side), encode, flow)
    try:
        return media_for(settings.sources).complete(recipe, settings.ffmpeg, settings.flow_device)
    except Failed as failure:
        if settings.ffmpeg is None:
            raise
        raise CallError(f"--ffmpeg {failure.reason}") from failure


def run(settings: Settings, options: PipelineOptions) -> Summary:
    """Prepare what is still to prepare, and publish it as the next generation, or as several in waves.

    Args:
        settings: what the user asked for.
        options: Beam's.

    Raises:
        CallError, PrepareError, ManifestError, PublishError, Failed: one sentence each;
            nothing is half-published.
    """
    from pipeline.job import graph

    root = open_storage(settings.output)
    store = WorkStore(settings.work or f"{root.url}/work")
    if graph.is_cluster(options) and not settings.shared:
        _refuse_folders(settings, graph.runner_name(options))
    network = any(parse(spec).network for spec in settings.sources)
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
        rate_limit=_rate_limit(settings, options),
        scratch=settings.scratch and os.path.abspath(settings.scratch),
        local=graph.is_local(options),
        kept=fetched_sources.other_sizes(recipe.fetch, store) if network else (),
    )
    if job.scratch and job.local:
        scratch.check(job.scratch)
    planned = make_plan(settings)
    choose = functools.partial(
        pending_rows.choose,
        planned,
        root,
        store,
        recipe=job.recipe.as_dict(),
        retry=settings.retry,
        wave=settings.wave,
        shard_size=settings.plan.shard_size,
    )
    generation = None
    made: list[str] = []
    with _exclusively(root, store.storage):
        while (table := choose(made=made)) is not None:
            generation = publish.next_generation(root)
            made.append(generation)
            job = replace(job, generation=generation)
            archive.lay_out(settings.sources, table, store, job.fetch)
            parts = _write_plan(table, job, store)
            _work(job, parts, table, options, store, settings.start_timeout)
            outcomes, packed = _parts(table, generation, store.storage)
            _sweep(root, packed)
            publish.publish(
                root,
                plan=table,
                outcomes=outcomes,
                packed=packed,
                recipe=job.recipe.as_dict(),
                classes=plan.classes(planned),
                generation=generation,
            )
            if not job.keep_sources:
                archive.clear(settings.sources, store)
            if settings.wave is None:
                break
            if left := _remaining(planned, root, job.rate_limit):
                print(left, file=sys.stderr)
        if generation is not None:
            reconciliation.write(root, settings.sources, store, job.clip_hash)
        if settings.clean_work and generation is not None:
            store.clean()
    return _summary(root, generation)


def compact(settings: Settings, target: str) -> Summary:
    """Write ROOT anew to `target` as the one generation that a single run would give.

    Raises:
        PrepareError: ROOT is not finished, or of other lists; else as
        `pipeline.maintenance.compact.compact`.
    """
    from pipeline.maintenance import compact

    scratch.use(settings.scratch)
    root = open_storage(settings.output)
    outcomes = dataset.open(root).outcomes()
    planned, place = pending_rows.as_published(make_plan(settings), outcomes, root)
    if len(place) < planned.num_rows:
        left = planned.num_rows - len(place)
        raise PrepareError(f"{left} rows of {root.url} are not decided yet; finish prepare first.")
    compact.compact(root.url, target, planned)
    return _summary(open_storage(target), schema.generation_name(0))


def _refuse_folders(settings: Settings, runner: str) -> None:
    """Raise CallError for a folder of this machine that a cluster's workers would not find."""
    local = [spec.partition(":")[2] for spec in settings.sources if not parse(spec).network]
    for place in (settings.output, settings.work, *local):
        if place and open_storage(place).is_local:
            raise CallError(
                f"{place} is a folder of this machine, which the workers of {runner} may not see; give "
                "--shared if all of them have it at this very path, else a place such as s3://BUCKET/FOLDER."
            )


def _rate_limit(settings: Settings, options: PipelineOptions) -> RateLimit:
    """The settings' rate limit, with what was not said: a site's budget, and a lane for each local worker."""
    from pipeline.job import graph

    lanes = settings.lanes or (graph.workers(options) if graph.is_local(options) else None)
    return RateLimit(budget=settings.hourly_budget, lanes=lanes, pause=settings.pause)


@contextlib.contextmanager
def _exclusively(root: Storage, work: Storage) -> Iterator[None]:
    """Hold ROOT and the work store, whichever of them another run has too."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(root.lock(".prepare.lock"))
            stack.enter_context(work.lock("campaign.lock"))
        except Busy as busy:
            hint = "" if root.is_local and work.is_local else f"; if none is, delete {busy}"
            raise PrepareError(
                f"another prepare or remove is at work in {root.url} or {work.url}; wait for it, or give "
                f"another --output and --work{hint}."
            ) from None
        yield


def _write_plan(table: pa.Table, job: Job, store: WorkStore) -> list[str]:
    """Write the plan and its parts into the work store; the parts' paths."""
    plan.write(table, store.storage, f"plan/{job.generation}.parquet")
    videos = pc.count_distinct(table.filter(pc.equal(table["decision"], PROCESS))["video"]).as_py()
    count = min(MOST_PARTS, -(-videos // VIDEOS_A_PART))
    if job.laned:
        count = min(job.rate_limit.lanes or 1, videos)
    paths = [f"plan/{job.generation}/{number:05d}.parquet" for number in range(count)]
    for path, part in zip(paths, plan.parts(table, count) if count else (), strict=True):
        plan.write(part, store.storage, path)
    return paths


def _work(
    job: Job,
    parts: Sequence[str],
    table: pa.Table,
    options: PipelineOptions,
    store: WorkStore,
    start_timeout: float,
) -> None:
    """Run the graph over the plan's parts, if it has any."""
    if not parts:
        return
    clips = pc.sum(pc.equal(table["decision"], PROCESS)).as_py()
    try:
        launch.run(job, parts, clips, options, store, start_timeout)
    except launch.LaunchError as error:
        raise PrepareError(str(error)) from error


def _parts(table: pa.Table, generation: str, work: Storage) -> tuple[list[pa.Table], list[Any]]:
    """What packing left in the work store: outcomes, and shards with their index rows."""
    planned = table.filter(pc.equal(table["decision"], PROCESS))
    numbers = planned.group_by(["split", "shard"]).aggregate([]).to_pylist()
    names = sorted((row["split"], row["shard"]) for row in numbers)
    outcomes = [
        schema.read_table(work, packing.outcome_part(split, generation, number), schema.OUTCOME_SCHEMA)
        for split, number in names
    ]
    found = (shards.read_part(work, packing.index_part(s, generation, n)) for s, n in names)
    return outcomes, [part for part in found if part is not None]


def _remaining(planned: pa.Table, root: Storage, limit: RateLimit) -> str:
    """After a wave: what is left, and how long it will take at this budget; empty when nothing is."""
    outcomes = dataset.open(root).outcomes()
    rows, decided = planned.num_rows, outcomes.num_rows
    if decided == rows:
        return ""
    left = pc.equal(planned["decision"], PROCESS).to_numpy().copy()
    left[pending_rows.as_published(planned, outcomes, root)[1]] = False
    videos = pc.count_distinct(planned["video"].filter(pa.array(left))).as_py()
    text = f"prepare: {decided} of {rows} rows are decided and published; {rows - decided} rows of {videos} "
    if not limit.budget:
        return f"{text}videos are left"
    time = duration(3600 * videos / limit.budget)
    return f"{text}videos are left, about {time} at this budget"


def _sweep(root: Storage, packed: Sequence[tuple[schema.ShardInfo, pa.Table]]) -> None:
    """Delete shards that an earlier, unpublished plan left: a glob over ROOT/shards must not find them."""
    meta = schema.read_meta(root)
    published = {shard["path"] for shard in meta["shards"]} if meta else set()
    purge.unpublished(root, published | {info.path for info, _ in packed}, dry_run=False)


def _summary(root: Storage, generation: str | None) -> Summary:
    outcomes = dataset.open(root).outcomes()
    failed = outcomes.filter(pc.equal(outcomes["outcome"], FAILED))
    failures = Counter(failed["failure_class"].to_pylist())
    example = None
    for kind, column in ((FAILED, "failure_class"), (EXCLUDED, "excluded_for")):
        rows = outcomes.filter(pc.equal(outcomes["outcome"], kind))
        if rows.num_rows:
            commonest = Counter(rows[column].to_pylist()).most_common(1)[0][0]
            example = rows.filter(pc.equal(rows[column], commonest))["reason"][0].as_py()
            break
    return Summary(generation, dict(Counter(outcomes["outcome"].to_pylist())), dict(failures), example)


def text(summary: Summary, output: str) -> str:
    """What a run came to, for a person."""
    counts = ", ".join(f"{n} {name}" for name, n in sorted(summary.counts.items(), reverse=True)) or "no rows"
    lines = [f"{output}: {counts}"]
    if summary.failures:
        causes = ", ".join(f"{n} {name}" for name, n in Counter(summary.failures).most_common())
        lines.append(f"failed: {causes} (each with its reason in {output}/outcomes)")
    if summary.generation is None:
        lines.append("nothing is due: no row is left that may succeed now (see --retry)")
    else:
        lines.append(f"published as generation {summary.generation}")
    return "\n".join(lines)
