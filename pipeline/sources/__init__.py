"""Where a video comes from: the site, a URL template, a folder, archives; and what a source hands over.

Owns the specifications users write after ``--source`` and the types that travel between sources,
`pipeline.sources.retrying` and the stages. Retrying and the order of several sources are for
`pipeline.sources.retrying`.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.outcome import CallError, Failed, FailureClass
from pipeline.sources.recipe import FetchRecipe

if TYPE_CHECKING:
    from pipeline.lists.manifest import Clip

GIB = 1 << 30

_OURS = {
    "allowed_extractors": None,
    "continuedl": None,
    "cookiefile": "--cookies",
    "download_archive": None,
    "download_ranges": None,
    "enable_file_urls": None,
    "exec_cmd": None,
    "external_downloader": None,
    "external_downloader_args": None,
    "extract_flat": None,
    "extractor_retries": "--attempts",
    "ffmpeg_location": "--ffmpeg",
    "file_access_retries": None,
    "force_keyframes_at_cuts": None,
    "hls_prefer_native": None,
    "ignoreerrors": None,
    "logger": None,
    "max_filesize": None,
    "noplaylist": None,
    "noprogress": None,
    "outtmpl": None,
    "paths": None,
    "playlist_items": None,
    "postprocessors": None,
    "proxy": "--proxy",
    "retries": "--attempts",
    "skip_unavailable_fragments": None,
    "updatetime": None,
}
"""Options of yt-dlp that are not the user's to set, and what is for the user instead."""


class SourceError(CallError, ValueError):
    """A source or an option of fetching that makes no sense: one sentence with the remedy."""


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
        start, end: the clip's times in seconds on the file's own clock, which is the source's, so a section
            of it too is cut at the times of the manifest; where `trimmed`, 0 and the clip's length, from the
            file's first time stamp on.
        kind: of the source: youtube, url, dir or archive.
        trimmed: the file starts at the clip's own zero.
        duration: of the source, not of the file, in hundredths of a second, where it was fetched: a section
            and the whole file say the same here, unlike what a probe of them says.
    """

    path: Path
    start: float
    end: float
    kind: str
    trimmed: bool
    duration: float | None = None


@dataclass(frozen=True)
class Fetched:
    """What came of one video.

    Attributes:
        pieces: clip key -> its `Piece`, or the `Failed` that says why there is none; every clip has one.
        requests: how many requests were sent, as far as we make or see them (ffmpeg's follow-ups within one
            range are not seen).
        whole: every piece is one and the same whole video.
        tool: what fetched it, for example "yt-dlp 2026.10.26"; empty for a folder.
        attempts: how often the video was asked for.
        fallbacks: why ranges were given up for the whole file, one sentence for each time.
    """

    pieces: dict[str, Piece | Failed]
    requests: int
    whole: bool
    tool: str
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
            sleep_interval_requests, ...); the ones that are decided here are refused with `SourceError`, and
            by `check_ytdlp` those that it does not have. ratelimit holds for whole files only.
        max_bytes: of one file; more is too_large.
        max_duration: seconds; a longer video is not downloaded whole (a section of it is).
        backoff: seconds before the second attempt, doubled for each one after it, with jitter.
        work: the work store, where it is known what archives hold; None reads them anew.
    """

    recipe: FetchRecipe = field(default_factory=FetchRecipe)
    timeout: float = 300.0
    attempts: int = 3
    ffmpeg: str | None = None
    cookies: str | None = None
    proxy: str | None = None
    ytdlp: Mapping[str, Any] = field(default_factory=dict)
    max_bytes: int = 2 * GIB
    max_duration: float = 6 * 3600.0
    backoff: float = 1.0
    work: str | None = None

    def __post_init__(self) -> None:
        for name in self.ytdlp:
            if name in _OURS:
                remedy = f"use {_OURS[name]}" if _OURS[name] else "leave it out"
                raise SourceError(f"yt-dlp's option {name!r} is decided by this program: {remedy}.")
        if self.cookies is not None and not Path(self.cookies).is_file():
            raise SourceError(f"The cookies file {self.cookies!r} does not exist: name an existing file.")


def check_ytdlp(names: Iterable[str]) -> None:
    """Raise `SourceError` for a name that is no option of the installed yt-dlp, which would pass it over."""
    names = list(names)
    if not names:
        return
    from yt_dlp import parse_options

    known = parse_options([]).ydl_opts
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "names are those of yt_dlp.YoutubeDL."
            raise SourceError(f"yt-dlp has no option {name!r}; {hint}")


class Source(Protocol):
    """A place that videos come from.

    Attributes:
        kind: youtube, url, dir or archive.
        network: whether a request leaves the machine, so that pace and retries apply.
    """

    @property
    def kind(self) -> str: ...

    @property
    def network(self) -> bool: ...

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """Bring what `video`'s clips need, once; files that must be written go into `folder`.

        A failure is the piece of the clips it concerns. Nothing is repeated here.
        """


@functools.lru_cache(maxsize=64)
def parse(spec: str) -> Source:
    """The source that `spec` names.

    Args:
        spec: ``youtube``; a URL template with {youtube_id}, {key}, {start}, {end} or {label};
            ``dir:PATH_OR_GLOB``; or ``archive:GLOB`` of tar and tar.gz files.

    Raises:
        SourceError: with one sentence that says what would do.
    """
    from pipeline.sources.archive import ArchiveSource
    from pipeline.sources.directory import DirectorySource
    from pipeline.sources.rehearsal import RehearsalSource
    from pipeline.sources.web import UrlSource, YoutubeSource

    if spec == "rehearsal":  # prepare --rehearse
        return RehearsalSource()
    if spec == "youtube":
        return YoutubeSource()
    if spec.startswith("dir:"):
        return DirectorySource.of(spec.removeprefix("dir:"))
    if spec.startswith(("http://", "https://")):
        return UrlSource.of(spec)
    if spec.startswith("archive:"):
        return ArchiveSource.of(spec.removeprefix("archive:"))
    raise SourceError(
        f"{spec!r} is no source: use youtube, dir:PATH, archive:GLOB, or a template like "
        "'https://host/{youtube_id}.mp4'."
    )


def all_failed(video: Video, failure: Failed) -> dict[str, Piece | Failed]:
    """Pieces of a video of which nothing came, for one reason."""
    return {clip.key: failure for clip in video.clips}


def missing(reason: str) -> Failed:
    """The failure of a clip that is not in a folder or archive."""
    return Failed(FailureClass.MISSING, reason)
