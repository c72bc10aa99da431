"""The commands of the pipeline: prepare, verify, report, remove. Each imports what is heavy when called."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

EXIT_DONE, EXIT_FAILED, EXIT_WRONG_CALL = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 the job failed, 2 the call was wrong."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command != "prepare":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.beam = rest
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        return _say("stopped; repeat the same command to do it again.", EXIT_FAILED)
    except Exception as error:
        if arguments.debug:
            raise
        from pipeline.outcome import CallError

        return _say(_sentence(error), EXIT_WRONG_CALL if isinstance(error, CallError) else EXIT_FAILED)


def _stop(signum: int, frame: object) -> None:
    """End now: what is done is in the work store, and local workers end with this process."""
    os.write(
        sys.stderr.fileno(), b"\npipeline: stopped; nothing is lost, repeat the same command to go on.\n"
    )
    if "pipeline.storage.object_store" in sys.modules:
        sys.modules["pipeline.storage.object_store"].release_locks()
    os._exit(EXIT_FAILED)


def _say(sentence: str, code: int) -> int:
    print(f"pipeline: {sentence}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    from pipeline.outcome import Failed

    if isinstance(error, Failed):
        return error.reason
    text = str(error).strip()
    if type(error).__module__.startswith("pipeline.") or type(error) is ValueError:  # ours; not a library's
        return text
    last = text.splitlines()[-1] if text else ""
    name = type(error).__name__
    return f"the job failed unexpectedly ({name}: {last[:300]}); repeat it with --debug to see where."


def _prepare(arguments: argparse.Namespace) -> int:
    from pipeline.job import run
    from pipeline.job.settings import Settings
    from pipeline.lists import cost, manifest, plan
    from pipeline.outcome import READY
    from pipeline.sources import FetchOptions, check_ytdlp, parse

    check_ytdlp(name for name, _ in arguments.yt_dlp)
    settings = Settings(
        manifests=tuple(arguments.manifest),
        output=arguments.output,
        sources=("rehearsal",) if arguments.rehearse else tuple(arguments.source or ["youtube"]),
        exclude=tuple(arguments.exclude),
        flow=arguments.flow,
        flow_device=arguments.flow_device,
        rate=arguments.rate,
        short_side=arguments.short_side,
        plan=plan.PlanOptions(
            arguments.unique,
            arguments.limit,
            arguments.shard_size,
            manifest.read_classes(arguments.classes) if arguments.classes else None,
        ),
        work=arguments.work,
        keep_sources=arguments.keep_sources,
        clean_work=arguments.clean_work,
        retry=arguments.retry,
        wave=arguments.wave,
        budget=arguments.budget,
        lanes=arguments.lanes,
        pause=arguments.pause,
        fetch=FetchOptions(
            timeout=arguments.fetch_timeout,
            attempts=arguments.attempts,
            cookies=arguments.cookies,
            proxy=arguments.proxy,
            ytdlp=dict(arguments.yt_dlp),
            max_bytes=int(arguments.scratch_limit * (1 << 30) / 2),
        ),
        ffmpeg=arguments.ffmpeg,
        scratch=arguments.scratch,
        shared=arguments.shared,
        start_timeout=arguments.start_timeout,
    )
    if not arguments.debug:
        logging.disable(logging.CRITICAL)  # Beam's and its workers'; failures reach the user as outcomes
    # A misspelt option stops --plan and --compact too.
    options = _beam_options(arguments.beam) if arguments.beam else None
    if arguments.plan:
        network = any(parse(spec).network for spec in settings.sources)
        found = cost.estimate(
            run.make_plan(settings),
            budget=settings.hourly_budget,
            pixels=settings.pixels,
            flow=settings.flow != "none",
            network=network,
            keep_sources=network if settings.keep_sources is None else settings.keep_sources,
        )
        print(json.dumps(found) if arguments.json else cost.describe(found))
        return EXIT_DONE
    if arguments.compact:
        summary = run.compact(settings, arguments.compact)
        print(json.dumps(vars(summary)) if arguments.json else "\n".join(summary.lines(arguments.compact)))
        return EXIT_DONE
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    summary = run.run(settings, options or _beam_options([]))
    print(json.dumps(vars(summary)) if arguments.json else "\n".join(summary.lines(settings.output)))
    if not summary.counts.get(READY):
        return _say(f"no clip is ready; the commonest cause: {summary.example}", EXIT_FAILED)
    return EXIT_FAILED if arguments.strict and summary.failures else EXIT_DONE


def _beam_options(words: Sequence[str]) -> PipelineOptions:
    from pipeline.job import runner  # imports Beam, which --plan and --compact need not wait for

    return runner.beam_options(words)


def _verify(arguments: argparse.Namespace) -> int:
    from pipeline.maintenance.verify import verify

    report = verify(arguments.root, sample=arguments.sample)
    if arguments.json:
        print(json.dumps(vars(report)))
    else:
        print("\n".join(report.lines()))
    return EXIT_FAILED if report.breaches else EXIT_DONE


def _list(arguments: argparse.Namespace) -> int:
    from pipeline.sources import class_folders

    count = class_folders.write(arguments.folder, arguments.output)
    print(json.dumps({"videos": count}) if arguments.json else f"{count} videos listed in {arguments.output}")
    return EXIT_DONE


def _report(arguments: argparse.Namespace) -> int:
    from pipeline import report

    page = report.write(arguments.root)
    print(json.dumps({"page": page}) if arguments.json else page)
    return EXIT_DONE


def _remove(arguments: argparse.Namespace) -> int:
    from pipeline.maintenance import remove

    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    ids = remove.read_ids(arguments.ids)
    done = remove.remove(
        arguments.root, ids, arguments.reason, work=arguments.work, dry_run=arguments.dry_run
    )
    print(json.dumps(vars(done)) if arguments.json else "\n".join(done.lines()))
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description="From a Kinetics list to a data set."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_prepare(_command(commands, "prepare", _prepare, "download, trim, encode, flow, publish"))
    listing = _command(commands, "list", _list, "make a list of a folder of class folders (UCF-101, HMDB-51)")
    listing.add_argument("folder", metavar="FOLDER", help="with a folder of videos for each class")
    listing.add_argument("--output", required=True, metavar="FILE", help="the list, for prepare --manifest")
    verify = _command(commands, "verify", _verify, "check every promise of a published data set")
    verify.add_argument("root", metavar="ROOT")
    verify.add_argument(
        "--sample", type=_fraction, default=1.0, metavar="FRACTION", help="share of clips decoded (default 1)"
    )
    report = _command(commands, "report", _report, "write ROOT/report/index.html")
    report.add_argument("root", metavar="ROOT")
    remove = _command(commands, "remove", _remove, "take clips out of a published data set, everywhere")
    remove.add_argument("root", metavar="ROOT")
    remove.add_argument(
        "--ids", required=True, metavar="FILE", help="video ids (all their clips) or keys, one a line"
    )
    remove.add_argument("--reason", required=True, metavar="TEXT", help="stands in outcomes and log")
    remove.add_argument("--dry-run", action="store_true", help="list what would go, and change nothing")
    remove.add_argument("--work", metavar="DIR", help="the work store (default ROOT/work)")
    return parser


def _command(commands, name: str, run, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print the answer as JSON")
    command.add_argument("--debug", action="store_true", help="show logs and tracebacks")
    return command


def _add_prepare(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    command.epilog = (
        "Every other option goes to Apache Beam (--runner ...); no runner named: local, on all cores."
    )
    add(
        "--manifest",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="Kinetics lists (files or globs)",
    )
    add("--output", required=True, metavar="ROOT", help="where the data set is published")
    add(
        "--source",
        nargs="+",
        action="extend",
        metavar="SOURCE",
        help="youtube (the default), a URL template such as 'http://host/{youtube_id}.mp4', dir:PATH, or "
        "archive:GLOB of tar and tar.gz files; tried in order",
    )
    add("--flow", choices=["tvl1", "none"], default="tvl1", help="optical flow (default tvl1)")
    add("--flow-device", choices=["cpu", "cuda"], default="cpu", help="what computes the flow (default cpu)")
    add("--rate", type=_natural, default=25, metavar="FPS", help="frames a second (default 25)")
    add("--short-side", type=_natural, default=256, metavar="PIXELS", help="of every clip (default 256)")
    add("--unique", choices=["video", "clip"], default="video", help="at most one clip a video, or all")
    add(
        "--exclude",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="lists whose videos must not be in train",
    )
    add(
        "--classes", metavar="FILE", help="the label map, one class a line (default: the labels of the lists)"
    )
    add("--limit", type=_natural, metavar="N", help="only the first N valid rows")
    add(
        "--rehearse",
        action="store_true",
        help="go through the whole job with stand-ins: fetch, encode and solve nothing (with an --output of "
        "its own, to throw away)",
    )
    add("--plan", action="store_true", help="say what it would cost, and stop")
    add("--compact", metavar="NEWROOT", help="write ROOT anew there as a single generation; fetch nothing")
    add(
        "--wave",
        type=_natural,
        metavar="N",
        help="publish a generation after every N videos (a tar.gz of archive: is read through once a wave)",
    )
    add(
        "--shard-size",
        type=_natural,
        default=512,
        metavar="CLIPS",
        help="clips a shard (default 512, about 1 GB)",
    )
    add("--work", metavar="DIR", help="the work store (default ROOT/work)")
    add(
        "--scratch",
        metavar="FOLDER",
        help="where a worker has a video while it is at it (default: TMPDIR, or /tmp)",
    )
    add(
        "--scratch-limit",
        type=_positive,
        default=4.0,
        metavar="GIB",
        help="the most that a worker has there: a video of more than half of it is too_large (default 4)",
    )
    add(
        "--shared",
        action="store_true",
        help="on a cluster: all workers have the folders of this call at the same paths",
    )
    add(
        "--start-timeout",
        type=_positive,
        default=900.0,
        metavar="SECONDS",
        help="on a cluster: give up when no worker has begun by then (default 900)",
    )
    add("--clean-work", action="store_true", help="delete the work store after publishing")
    add(
        "--keep-sources",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="keep fetched videos in the work store, so that no later change fetches again "
        "(default: yes for what comes over a network)",
    )
    add(
        "--retry",
        choices=["transient", "all", "none"],
        default="transient",
        help="which failed rows to take up",
    )
    add("--strict", action="store_true", help="exit 1 if any clip failed")
    add("--ffmpeg", metavar="PATH", help="another encoder than the pinned one, which is another recipe")
    _add_fetching(command)


def _add_fetching(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("how the site is reached", "More in docs/site.md.").add_argument
    add(
        "--budget",
        type=_positive,
        metavar="VIDEOS_PER_HOUR",
        help="videos asked for an hour by all workers together (default 300 for youtube, else no limit)",
    )
    add(
        "--lanes",
        type=_natural,
        metavar="N",
        help="videos fetched at a time (default: as many as there are workers)",
    )
    add(
        "--pause",
        type=_positive,
        default=1800.0,
        metavar="SECONDS",
        help="all workers wait so long when the site blocks them (default 1800)",
    )
    add("--fetch-timeout", type=_positive, default=300.0, metavar="SECONDS", help="a video (default 300)")
    add("--attempts", type=_natural, default=3, metavar="N", help="tries a video in one run (default 3)")
    add("--cookies", metavar="FILE", help="cookies.txt (Netscape format) of a session that is logged in")
    add(
        "--proxy",
        metavar="URL",
        help="proxy for every request; sections of videos want an http:// one, else whole files come",
    )
    add(
        "--yt-dlp",
        nargs="+",
        action="extend",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="further options of yt-dlp by their Python names, values as JSON, such as "
        """'extractor_args={"youtube": {"player_client": ["tv"]}}'; ratelimit holds for whole files only """
        "(a section is a few MB: --budget limits the fleet), and source_address makes whole files",
    )


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def _fraction(text: str) -> float:
    value = _positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1")
    return value


def _option(text: str) -> tuple[str, object]:
    name, sign, value = text.partition("=")
    try:
        if sign and name.isidentifier():
            return name, json.loads(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(
        f"{text!r} is not KEY=VALUE with a value in JSON, such as ratelimit=1000000"
    )


if __name__ == "__main__":
    sys.exit(main())
