"""The commands of the pipeline: prepare, list, verify, report, remove. Each imports heavy modules as it runs.

Exit codes: 0 done, 1 the job failed, 2 the call was wrong.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import command_line
from pipeline.command_line import EXIT_DONE, EXIT_FAILED, EXIT_WRONG_CALL, Answer, Command, option, share
from pipeline.job.settings import Settings

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

INSTEAD = "instead of preparing"
"""The group of options with which prepare does something else."""


@dataclass(frozen=True, kw_only=True)
class Prepare(Answer):
    """Options of prepare."""

    settings: Settings
    plan: bool = option("say what it would cost, and stop", False, group=INSTEAD)
    compact: str | None = option(
        "rewrite ROOT there as a single generation; fetch nothing", None, "NEWROOT", INSTEAD
    )
    rehearse: bool = option(
        "run the whole job with stand-ins: fetch, encode and solve nothing (use a temporary --output)",
        False,
        group=INSTEAD,
    )
    strict: bool = option("exit with 1 if any clip failed", False, group=command_line.ANSWERS)


@dataclass(frozen=True, kw_only=True)
class OnDataset(Answer):
    """Options of a command on a published data set."""

    root: str = option("the data set", unit="ROOT", flag="root")


@dataclass(frozen=True, kw_only=True)
class Verify(OnDataset):
    """Options of verify."""

    sample: float = option("share of clips to decode", 1.0, unit="FRACTION", parse=share)


@dataclass(frozen=True, kw_only=True)
class Remove(OnDataset):
    """Options of remove."""

    ids: str = option("video ids (all their clips) or keys, one a line", unit="FILE")
    reason: str = option("text for the outcomes and the log", unit="TEXT")
    dry_run: bool = option("list what would be removed, and change nothing", False)
    work: str | None = option("the work store", None, unit="DIR", shown="ROOT/work")


@dataclass(frozen=True, kw_only=True)
class List(Answer):
    """Options of list."""

    folder: str = option("has a folder of videos for each class", unit="FOLDER", flag="folder")
    output: str = option("the list to write, for prepare --manifest", unit="FILE")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return command_line.main("python -m pipeline", "From a Kinetics list to a data set.", [PREPARE], words)


def _guard(command: Command, debug: bool, run: Callable[[], int]) -> int:
    """Calls `run`; an exception becomes one sentence and an exit code."""
    try:
        return run()
    except KeyboardInterrupt:
        return _say("stopped; repeat the same command to do it again.", EXIT_FAILED)
    except Exception as error:
        if debug:
            raise
        from pipeline.outcome import CallError

        return _say(_sentence(error), EXIT_WRONG_CALL if isinstance(error, CallError) else EXIT_FAILED)


def _stop(signum: int, frame: object) -> None:
    """End at once: finished stages are in the work store, and local workers end with this process."""
    os.write(
        sys.stderr.fileno(), b"\npipeline: stopped; nothing is lost, repeat the same command to go on.\n"
    )
    if "pipeline.storage.object_store" in sys.modules:
        sys.modules["pipeline.storage.object_store"].release_locks()
    os._exit(EXIT_FAILED)


def _stop_on_signals() -> None:
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)


def _say(sentence: str, code: int) -> int:
    print(f"pipeline: {sentence}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    from pipeline.outcome import Failed

    if isinstance(error, Failed):
        return error.reason
    if isinstance(error, ImportError) and (missing := command_line.missing_package(error)):
        return missing
    text = str(error).strip()
    if type(error).__module__.startswith("pipeline.") or type(error) is ValueError:  # ours; not a library's
        return text
    last = text.splitlines()[-1] if text else ""
    name = type(error).__name__
    return f"the job failed unexpectedly ({name}: {last[:300]}); repeat it with --debug to see where."


def _answer(options: Answer, answer: Any, text: Callable[[], str]) -> int:
    """Print an answer, as JSON or for a person."""
    print(json.dumps(answer) if options.json else text())
    return EXIT_DONE


def _prepare(options: Prepare, beam: list[str]) -> int:
    from pipeline.job import run
    from pipeline.lists import cost
    from pipeline.outcome import READY
    from pipeline.sources import check_ytdlp, parse

    settings = options.settings
    if options.rehearse:
        settings = dataclasses.replace(settings, sources=("rehearsal",))
    check_ytdlp(settings.fetch.ytdlp)
    if not options.debug:
        logging.disable(logging.CRITICAL)  # Beam's and its workers'; failures reach the user as outcomes
    # A misspelt option stops --plan and --compact too.
    engine = _beam_options(beam) if beam else None
    if options.plan:
        network = any(parse(spec).network for spec in settings.sources)
        found = cost.estimate(
            run.make_plan(settings),
            budget=settings.hourly_budget,
            pixels=settings.pixels,
            flow=settings.flow != "none",
            network=network,
            keep_sources=network if settings.keep_sources is None else settings.keep_sources,
        )
        return _answer(options, found, lambda: cost.describe(found))
    if target := options.compact:
        summary = run.compact(settings, target)
        return _answer(options, vars(summary), lambda: "\n".join(summary.lines(target)))
    _stop_on_signals()
    summary = run.run(settings, engine or _beam_options([]))
    _answer(options, vars(summary), lambda: "\n".join(summary.lines(settings.output)))
    if not summary.counts.get(READY):
        return _say(f"no clip is ready; the commonest cause: {summary.example}", EXIT_FAILED)
    return EXIT_FAILED if options.strict and summary.failures else EXIT_DONE


def _beam_options(words: Sequence[str]) -> PipelineOptions:
    from pipeline.job import runner  # imports Beam, which --plan and --compact need not wait for

    return runner.beam_options(words)


def _list(options: List) -> int:
    from pipeline.sources import class_folders

    count = class_folders.write(options.folder, options.output)
    return _answer(options, {"videos": count}, lambda: f"{count} videos listed in {options.output}")


def _verify(options: Verify) -> int:
    from pipeline.maintenance.verify import verify

    report = verify(options.root, sample=options.sample)
    _answer(options, vars(report), lambda: "\n".join(report.lines()))
    return EXIT_FAILED if report.breaches else EXIT_DONE


def _report(options: OnDataset) -> int:
    from pipeline import report

    page = report.write(options.root)
    return _answer(options, {"page": page}, lambda: page)


def _remove(options: Remove) -> int:
    from pipeline.maintenance import remove

    _stop_on_signals()
    ids = remove.read_ids(options.ids)
    done = remove.remove(options.root, ids, options.reason, work=options.work, dry_run=options.dry_run)
    return _answer(options, vars(done), lambda: "\n".join(done.lines()))


BEAM = "Every other option goes to Apache Beam (--runner ...); no runner named: local, on all cores."
PREPARE = command_line.Group(
    "Prepare",
    (
        Command("prepare", "download, trim, encode, flow, publish", Prepare, _prepare, rest=BEAM),
        Command("list", "make a list of a folder of class folders (UCF-101, HMDB-51)", List, _list),
        Command("verify", "check every promise of a published data set", Verify, _verify),
        Command("report", "write ROOT/report/index.html", OnDataset, _report),
        Command("remove", "take clips out of a published data set, everywhere", Remove, _remove),
    ),
    _guard,
)
"""Commands that make a data set and look after it."""


if __name__ == "__main__":
    sys.exit(main())
