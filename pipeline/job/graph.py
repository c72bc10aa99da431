"""The Beam graph of the main job: plan parts -> videos -> fetch, encode, flow -> group by shard -> pack."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions

from pipeline.job.settings import Job
from pipeline.job.transforms import PackShards, ProcessVideos, ReadTasks

if TYPE_CHECKING:
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.runners.runner import PipelineResult

_ON_THIS_MACHINE = ("BundleBasedDirectRunner", "DirectRunner", "FnApiRunner", "PrismRunner")


MIN_RAM = "4GB"
"""Of a Dataflow worker: the longest clip that a list may hold (`pipeline.lists.manifest.MAX_LENGTH`, 600 s)
is 15,001 planes of 256 x 456, 1.8 GB, and its gray copy as much; a clip of 10 s needs 0.4 GB in all."""


def build(root: beam.Pipeline, job: Job, parts: Sequence[str]) -> beam.PCollection:
    """Add the main job to `root`.

    Args:
        root: the pipeline to add to.
        job: the run's settings.
        parts: paths of the plan's parts in the work store, each a lane where there are lanes; a thousand at
            most, so the graph stays small.

    Returns:
        Paths of the packed parts in the work store, one a shard.
    """
    return (
        root
        | "Plan parts" >> beam.Create(parts, reshuffle=False)  # "Read tasks" spreads them
        | "Read tasks" >> ReadTasks(job.work, wide=not job.laned)
        | "Fetch, encode, flow" >> ProcessVideos(job)
        | "Pack shards" >> PackShards(job)
    )


def run(job: Job, parts: Sequence[str], options: PipelineOptions) -> PipelineResult:
    """Run the main job on the runner that `options` name; if none, locally on all cores and to its end."""
    root = pipeline(options)
    build(root, job, parts)
    return root.run()


def pipeline(options: PipelineOptions) -> beam.Pipeline:
    """An empty pipeline for the runner that `options` name, asking for the memory that a clip may need."""
    standard = options.view_as(StandardOptions)
    if standard.runner == "DataflowRunner" and not any("min_ram" in hint for hint in standard.resource_hints):
        # For the whole graph: a hint on one stage alone would give it other worker processes than the rest.
        standard.resource_hints = [*standard.resource_hints, f"min_ram={MIN_RAM}"]
    return beam.Pipeline(runner=_runner(options), options=options)


def stop_job_servers() -> None:
    """End the Java processes that Beam started to submit jobs to Spark. Beam does so when this process exits,
    but a signal may end it otherwise."""
    spark = sys.modules.get("apache_beam.runners.portability.spark_runner")
    servers = getattr(spark, "JOB_SERVER_CACHE", {})
    while servers:
        servers.popitem()[1].stop()


def is_local(options: PipelineOptions) -> bool:
    """Whether the job runs on the local runner of our choice."""
    return options.view_as(StandardOptions).runner is None


def is_cluster(options: PipelineOptions) -> bool:
    """Whether the job's workers may be other machines."""
    return (options.view_as(StandardOptions).runner or "DirectRunner") not in _ON_THIS_MACHINE


def runner_name(options: PipelineOptions) -> str:
    """The runner, as the user named it."""
    return options.view_as(StandardOptions).runner or "the local runner"


def workers(options: PipelineOptions) -> int:
    """Worker processes of a local job."""
    return options.view_as(DirectOptions).direct_num_workers or 1


def _runner(options: PipelineOptions) -> FnApiRunner | None:
    if not is_local(options):
        return None  # Beam takes the one that the options name
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    command = shlex.join([sys.executable, "-m", "pipeline.job.local_workers", str(os.getpid())])
    return FnApiRunner(SubprocessSDKEnvironment.from_command_string(command))
