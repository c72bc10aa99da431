"""Beam's options and the runner that they name; no runner named means all cores of this machine."""

from __future__ import annotations

import copy
import itertools
import os
import sys
from collections.abc import Sequence

from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    _BeamArgumentParser,
)

from pipeline import command_line
from pipeline.command_line import nearest
from pipeline.job.settings import Settings
from pipeline.outcome import CallError

_ON_THIS_MACHINE = ("BundleBasedDirectRunner", "DirectRunner", "FnApiRunner", "PrismRunner")
_KEEP_WORKERS_MILLISECONDS = 600_000
"""How long an executor keeps an idle Python worker; with Beam's default of 0 every task starts a new one."""


def beam_options(flags: Sequence[str]) -> PipelineOptions:
    """Make Beam's options of the words that our own command line left over.

    A portable runner's job server may know options that Beam does not: those are passed on, with a note on
    standard error.

    Raises:
        CallError: an unknown option, or a word that belongs to none.
    """
    parser = _BeamArgumentParser(allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    unknown = parser.parse_known_args(list(flags))[1]
    found = PipelineOptions(list(flags))
    runner = name(found)
    if not is_cluster(found) or runner == "DataflowRunner":
        stray = unknown
    else:  # a word after an unknown option may be its value
        pairs = itertools.pairwise(["", *unknown])
        stray = [word for before, word in pairs if not (word.startswith("-") or before.startswith("-"))]
    if stray:
        word = stray[0].partition("=")[0]
        near = nearest(word, [*command_line.flags(Settings), *parser._option_string_actions])
        raise CallError(f"unknown option {word}{near or '; see python -m pipeline prepare --help.'}")
    if unknown:
        near = nearest(unknown[0].partition("=")[0], command_line.flags(Settings))
        text = f"prepare: {' '.join(unknown)} unknown here, passed on to {runner} unread{near}"
        print(text, file=sys.stderr)
    given = found.get_all_options(drop_default=True)
    if is_local(found):
        if "direct_num_workers" not in given:
            found.view_as(DirectOptions).direct_num_workers = os.cpu_count() or 1
    elif "environment_cache_millis" not in given:
        found.view_as(PortableOptions).environment_cache_millis = _KEEP_WORKERS_MILLISECONDS
    return found


def is_local(options: PipelineOptions) -> bool:
    """Whether no runner is named, so that worker processes of our own run the job on this machine."""
    return options.view_as(StandardOptions).runner is None


def is_cluster(options: PipelineOptions) -> bool:
    """Whether the job's workers may be other machines."""
    return (options.view_as(StandardOptions).runner or "DirectRunner") not in _ON_THIS_MACHINE


def name(options: PipelineOptions) -> str:
    """The runner, as the user named it."""
    return options.view_as(StandardOptions).runner or "the local runner"


def workers(options: PipelineOptions) -> int:
    """The number of worker processes of a local job. Raises CallError."""
    wanted = options.view_as(DirectOptions).direct_num_workers
    if wanted < 0:
        raise CallError(f"--direct_num_workers {wanted} is no number of processes: give 1 or more.")
    return wanted or os.cpu_count() or 1


def in_memory(options: PipelineOptions) -> PipelineOptions:
    """A copy of `options` for Beam's runner within this process; our processes do the parallel work."""
    found = copy.deepcopy(options)
    direct = found.view_as(DirectOptions)
    direct.direct_num_workers, direct.direct_running_mode = 1, "in_memory"
    return found


def stop_job_servers() -> None:
    """End the Java processes through which Beam submits jobs to Spark. Beam ends them when this process
    exits, but not when a signal kills it."""
    spark = sys.modules.get("apache_beam.runners.portability.spark_runner")
    servers = getattr(spark, "JOB_SERVER_CACHE", {})
    while servers:
        servers.popitem()[1].stop()
