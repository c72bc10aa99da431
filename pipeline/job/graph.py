"""The Beam graph of the main job: plan parts -> videos -> fetch, encode, flow -> group by shard -> pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.job import runner
from pipeline.job.settings import Job
from pipeline.job.transforms import PackShards, ProcessVideos, ReadTasks

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult

MIN_RAM = "4GB"
"""Of a Dataflow worker: the longest clip that a list may hold (`pipeline.lists.manifest.MAX_LENGTH`, 600 s)
is 15,001 planes of 256 x 456, 1.8 GB, and its gray copy as much; a clip of 10 s needs 0.4 GB in all."""


def build(root: beam.Pipeline, job: Job, parts: Sequence[str]) -> beam.PCollection:
    """Add the main job to the pipeline `root`.

    Args:
        parts: paths of the plan's parts in the work store, each a lane where there are lanes; a thousand at
            most, so the graph stays small.

    Returns:
        Paths of the packed parts in the work store, one a shard.
    """
    return (
        root
        | "Plan parts" >> beam.Create(parts, reshuffle=False)  # "Read tasks" spreads them
        | "Read tasks" >> ReadTasks(job)
        | "Fetch, encode, flow" >> ProcessVideos(job)
        | "Pack shards" >> PackShards(job)
    )


def run(job: Job, parts: Sequence[str], options: PipelineOptions) -> PipelineResult:
    """Start the main job on the runner that `options` name; the local runner also runs it to its end."""
    root = pipeline(options)
    build(root, job, parts)
    return root.run()


def pipeline(options: PipelineOptions) -> beam.Pipeline:
    """An empty pipeline for the runner that `options` name, with the memory that a clip may need."""
    standard = options.view_as(StandardOptions)
    if standard.runner == "DataflowRunner" and not any("min_ram" in hint for hint in standard.resource_hints):
        # For the whole graph: a hint on one stage alone would give it other worker processes than the rest.
        standard.resource_hints = [*standard.resource_hints, f"min_ram={MIN_RAM}"]
    if runner.is_local(options):
        return beam.Pipeline(runner=FnApiRunner(), options=runner.in_memory(options))
    return beam.Pipeline(options=options)
