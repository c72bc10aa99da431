"""The types that travel between sources, `pipeline.sources.retrying` and the stages of the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.command_line import key_and_value, natural, option, positive
from pipeline.outcome import CallError, Failed
from pipeline.sources.recipe import FetchRecipe
from pipeline.sources.ytdlp.options import refuse_ours

if TYPE_CHECKING:
    from pipeline.lists.manifest import Clip

GIB = 1 << 30
SITE = "how the site is reached"
"""The group of the options of fetching in help."""


@dataclass(frozen=True)
class Video:
    """One source video and all the clips wanted from it."""

    youtube_id: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Piece:
    """A local file that holds a clip.

    Attributes:
        path: the file.
        start, end: the clip's times in seconds on the file's own clock, which is the source's: a section of
            the source is cut at the times of the manifest too. Where `trimmed`: 0 and the clip's length, from
            the file's first time stamp on.
        kind: of the source: youtube, url, dir or archive.
        trimmed: the file starts at the clip's own zero.
        duration: of the source that was fetched, in seconds, rounded to hundredths. A section and the whole
            file have the same value here, unlike what a probe of them gives. None where nothing was fetched.
    """

    path: Path
    start: float
    end: float
    kind: str
    trimmed: bool
    duration: float | None = None

    @classmethod
    def of(cls, clip: Clip, path: Path, kind: str, *, trimmed: bool, duration: float | None = None) -> Piece:
        """The piece for `clip` in a file that holds the clip alone (`trimmed`) or its source video."""
        start, end = (0.0, clip.time_end - clip.time_start) if trimmed else (clip.time_start, clip.time_end)
        return cls(path, start, end, kind, trimmed, duration)


@dataclass(frozen=True)
class Fetched:
    """The result of asking for one video.

    Attributes:
        pieces: clip key -> its `Piece`, or the `Failed` that says why there is none; every clip has one.
        requests: how many requests were sent, as far as we make or see them (ffmpeg's follow-ups within one
            range are not seen).
        whole: every piece is one and the same whole video.
        tool: the fetching program, for example "yt-dlp 2026.10.26"; empty for a folder.
        attempts: how often the video was asked for.
        fallbacks: why range requests were given up for a full download, one sentence for each time.
    """

    pieces: dict[str, Piece | Failed]
    requests: int = 0
    whole: bool = False
    tool: str = ""
    attempts: int = 1
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch.

    Attributes:
        recipe: the part that changes bytes.
        timeout: seconds for a video, all its attempts together.
        attempts: how often a video is asked for in one run where the network fails.
        ffmpeg: the binary that reads ranges; None takes the pinned one of imageio-ffmpeg.
        cookies: a cookies.txt file in Netscape format; it is read, never written.
        proxy: URL of a proxy for every request.
        ytdlp: further options of yt-dlp by their Python names (extractor_args, ratelimit, source_address,
            sleep_interval_requests, ...). ratelimit holds for full downloads only.
        max_bytes: of one file; more is too_large.
        max_duration: seconds; a longer video is not downloaded whole (a section of it is).
        backoff: seconds before the second attempt, doubled for each one after it, with jitter.
        work: the work store, which remembers what archives hold; None reads the archives again.

    Raises:
        CallError: the cookies file does not exist, or this program itself decides an option in `ytdlp`.
    """

    recipe: FetchRecipe = field(default_factory=FetchRecipe)
    timeout: float = option(
        "give up a video after that long, all attempts together",
        300.0,
        "seconds",
        SITE,
        flag="--fetch-timeout",
        parse=positive,
    )
    attempts: int = option("tries a video in one run", 3, "N", SITE, parse=natural)
    ffmpeg: str | None = None
    cookies: str | None = option(
        "cookies.txt (Netscape format) of a session that is logged in", None, "FILE", SITE
    )
    proxy: str | None = option(
        "proxy for every request; sections of videos need an http:// one, else full downloads are made",
        None,
        "URL",
        SITE,
    )
    ytdlp: Mapping[str, Any] = option(
        "further options of yt-dlp by their Python names, values as JSON, such as "
        """'extractor_args={"youtube": {"player_client": ["tv"]}}'; ratelimit holds for full """
        "downloads only (a section is a few MB: --budget limits all workers); source_address makes full ones",
        {},
        "KEY=VALUE",
        SITE,
        flag="--yt-dlp",
        parse=key_and_value,
    )
    max_bytes: int = option(
        "most disk space of a worker; a video of more than half of it is too_large",
        2 * GIB,
        "GIB",
        "where it runs",
        flag="--scratch-limit",
        shown="4 GiB: one video of up to 2 GiB, and what is made of it",
        parse=lambda text: int(positive(text) * GIB / 2),
    )
    max_duration: float = 6 * 3600.0
    backoff: float = 1.0
    work: str | None = None

    def __post_init__(self) -> None:
        refuse_ours(self.ytdlp)
        if self.cookies is not None and not Path(self.cookies).is_file():
            raise CallError(f"The cookies file {self.cookies!r} does not exist: name an existing file.")


class Source(Protocol):
    """A place that videos come from; `pipeline.sources.registry` makes one by its class method ``of(spec)``.

    Attributes:
        kind: youtube, url, dir or archive.
        network: whether a request leaves the machine, so that rate limits and retries apply.
    """

    @property
    def kind(self) -> str: ...

    @property
    def network(self) -> bool: ...

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """Bring what the clips of `video` need, once; new files go into `folder`. Nothing is retried here.

        A failure stands in `Fetched.pieces` for each clip that it concerns.
        """


def all_failed(video: Video, failure: Failed) -> Fetched:
    """The result for a video whose clips all failed for one reason, before any request."""
    return Fetched({clip.key: failure for clip in video.clips})


def share_one_file(pieces: Mapping[str, Piece | Failed]) -> bool:
    """Whether all pieces are one and the same file, which no clip was trimmed to."""
    paths = {p.path if isinstance(p, Piece) and not p.trimmed else None for p in pieces.values()}
    return len(paths) == 1 and None not in paths


def seconds_text(seconds: float) -> str:
    """A time as people write it: 10, or 10.5."""
    return str(int(seconds)) if float(seconds).is_integer() else repr(float(seconds))
