"""Videos that are fetched: from YouTube, or from any URL that a template makes of a clip.

Both go through yt-dlp, in a process of its own (`pipeline.sources.ytdlp.process`). One extraction a video,
then one range for each clip; the whole file where ranges cannot be had.

What is refused: addresses that are not of the open internet (save those the template or the proxy names),
schemes other than http and https, playlists. Redirections are followed and checked by us. What is not seen:
ffmpeg looks up the media host's name once more by itself; one that cannot be told otherwise (before version
8) follows the media host's redirections by itself, still over http and https only; behind a proxy, names are
the proxy's to look up. A proxy or a source_address that ffmpeg does not know means that it is not asked: the
whole file comes.
"""

from __future__ import annotations

import math
import re
import shutil
import string
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from pipeline.sources import (
    Failed,
    FailureClass,
    Fetched,
    FetchOptions,
    Piece,
    SourceError,
    Video,
    all_failed,
)
from pipeline.sources.ytdlp import process as workers
from pipeline.sources.ytdlp.failures import FailedForNow

if TYPE_CHECKING:
    from pipeline.lists.manifest import Clip

_FIELDS = ("youtube_id", "key", "start", "end", "label")
_PER_CLIP = {"key", "start", "end"}
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
PATIENCE = 20.0
"""Seconds without a byte after which a connection counts as stalled."""


@dataclass(frozen=True)
class YoutubeSource:
    """``youtube``: the site itself, by its own address of the video."""

    kind: str = "youtube"
    network: bool = True

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """One extraction, and one range for each clip."""
        if not _YOUTUBE_ID.fullmatch(video.youtube_id):
            failure = Failed(FailureClass.MANIFEST, f"{video.youtube_id[:64]!r} is no YouTube id.")
            return Fetched(all_failed(video, failure), requests=0, whole=False, tool="")
        url = f"https://www.youtube.com/watch?v={video.youtube_id}"
        return _fetch(self.kind, {url: video.clips}, folder, options, trusted=(), trimmed=False)


@dataclass(frozen=True)
class UrlSource:
    """A URL template: ``https://host/path/{youtube_id}.mp4``, fields quoted for a URL.

    With {key}, {start} or {end} every clip has its own address, which holds the clip already trimmed: the
    whole file is taken, from its own zero. Without them the address holds the whole video ({label} may stand
    in either), and sections of it are asked for. Times are written as plain numbers: 10, or 10.5.
    """

    template: str
    kind: str = "url"
    network: bool = True

    @classmethod
    def of(cls, template: str) -> UrlSource:
        """The source for `template`; `SourceError` for unknown fields, or fields in the host."""
        try:
            fields = [
                (name, style, conversion) for _, name, style, conversion in string.Formatter().parse(template)
            ]
        except ValueError as error:
            raise SourceError(f"{template!r} is no URL template: {error}.") from error
        names = {name for name, _, _ in fields if name is not None}
        unknown = sorted(name for name in names if name not in _FIELDS)
        if unknown or any(style or conversion for _, style, conversion in fields):
            allowed = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise SourceError(f"{template!r} has a field that is not known: write {allowed} as they are.")
        if not names & {"youtube_id", "key"}:
            raise SourceError(
                f"{template!r} would be one address for all: put {{youtube_id}} or {{key}} into it."
            )
        try:
            parts = urlsplit(template)
            host = parts.hostname if parts.port is None or parts.port else None
        except ValueError:
            host = None
        if not host or "{" in parts.netloc:
            raise SourceError(f"{template!r} needs a fixed host: the fields belong into the path.")
        return cls(template)

    @property
    def trimmed(self) -> bool:
        """Whether the template names clips that are already trimmed."""
        return bool(_PER_CLIP & {name for _, name, _, _ in string.Formatter().parse(self.template) if name})

    def url(self, clip: Clip) -> str:
        """The address of `clip`, or of its video."""
        values = {
            "youtube_id": clip.youtube_id,
            "key": clip.key,
            "start": _number(clip.time_start),
            "end": _number(clip.time_end),
            "label": clip.label or "",
        }
        return self.template.format(**{name: quote(value, safe="") for name, value in values.items()})

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """One extraction for each address, and one range for each clip of it."""
        groups: dict[str, list[Clip]] = defaultdict(list)
        for clip in video.clips:
            groups[self.url(clip)].append(clip)
        clips = {url: tuple(some) for url, some in groups.items()}
        return _fetch(self.kind, clips, folder, options, trusted=(self.template,), trimmed=self.trimmed)


@dataclass(frozen=True)
class AddressSource:
    """One address that a person named: the whole file there, whatever clip is asked for."""

    url: str
    kind: str = "url"
    network: bool = True

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """One extraction, and the whole file."""
        trusted = (self.url,) if self.kind == "url" else ()
        return _fetch(self.kind, {self.url: video.clips}, folder, options, trusted=trusted, trimmed=True)


def whole_video(youtube_id: str) -> AddressSource:
    """The site's whole video of an id."""
    return AddressSource(f"https://www.youtube.com/watch?v={youtube_id}", kind="youtube")


def _number(seconds: float) -> str:
    return str(int(seconds)) if float(seconds).is_integer() else repr(float(seconds))


def section(clip: Clip, options: FetchOptions) -> tuple[float, float]:
    """Seconds to ask for, so that the encode has its pre-roll and the frame after the last."""
    low = max(0.0, clip.time_start - options.recipe.before)
    return math.floor(low * 1000) / 1000, math.ceil((clip.time_end + options.recipe.after) * 1000) / 1000


def _fetch(
    kind: str,
    clips_by_url: Mapping[str, tuple[Clip, ...]],
    folder: Path,
    options: FetchOptions,
    *,
    trusted: tuple[str, ...],
    trimmed: bool,
) -> Fetched:
    """Ask for each address in turn, within one time limit, and gather what came."""
    from time import monotonic

    from pipeline.media.clip import ffmpeg_binary

    deadline = monotonic() + options.timeout
    ffmpeg = ffmpeg_binary(options.ffmpeg)
    pieces: dict[str, Piece | Failed] = {}
    requests, tool, fallbacks = 0, "", []
    for url, clips in clips_by_url.items():
        own = Path(tempfile.mkdtemp(prefix="fetch-", dir=folder))
        wanted = [] if trimmed else [[*section(c, options), c.time_start, c.time_end] for c in clips]
        request = _request(kind, url, wanted, own, ffmpeg, options, trusted)
        try:
            answer, version = workers.ask(request, max(0.1, deadline - monotonic()))
        except workers.Timeout:
            reason = f"The video did not come in time: {options.timeout:.3g} s were left for it."
            answer = {
                "pieces": [_failed(Failed(FailureClass.NETWORK, reason))],
                "requests": 1,
                "fallback": None,
            }
        except Failed as failure:
            answer = {"pieces": [_failed(failure)], "requests": 1, "fallback": None}
        else:
            tool = f"yt-dlp {version}"
        requests += answer["requests"]
        fallbacks += [answer["fallback"]] if answer["fallback"] else []
        results = answer["pieces"] * len(clips) if len(answer["pieces"]) == 1 else answer["pieces"]
        for clip, result in zip(clips, results, strict=True):
            pieces[clip.key] = _piece(clip, result, kind, trimmed)
        if not any(isinstance(pieces[c.key], Piece) for c in clips):
            shutil.rmtree(own, ignore_errors=True)
    paths = {p.path if isinstance(p, Piece) else None for p in pieces.values()}
    whole = not trimmed and len(paths) == 1 and all(p is not None and p.stem == "whole" for p in paths)
    return Fetched(pieces, requests, whole, tool, fallbacks=tuple(fallbacks))


def _request(
    kind: str,
    url: str,
    ranges: list[list[float]],
    folder: Path,
    ffmpeg: str,
    options: FetchOptions,
    trusted: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "url": url,
        "site": kind == "youtube",
        "ranges": ranges,
        "folder": str(folder),
        "short_side": options.recipe.short_side,
        "codec": options.recipe.codec,
        "ffmpeg": ffmpeg,
        "trusted": list(trusted),
        "cookies": options.cookies,
        "proxy": options.proxy,
        "ytdlp": dict(options.ytdlp),
        "max_bytes": options.max_bytes,
        "max_duration": options.max_duration,
        "patience": min(PATIENCE, options.timeout / 2),
    }


def _failed(failure: Failed) -> dict[str, Any]:
    due = failure.named.isoformat() if failure.named else None
    return {
        "failed": str(failure.failure_class),
        "reason": failure.reason,
        "retry_after": due,
        "for_now": False,
    }


def _piece(clip: Clip, result: dict[str, Any], kind: str, trimmed: bool) -> Piece | Failed:
    if "failed" in result:
        due = result["retry_after"] and datetime.fromisoformat(result["retry_after"])
        failed = FailedForNow if result["for_now"] else Failed
        return failed(FailureClass(result["failed"]), result["reason"], due or None)
    times = (0.0, clip.time_end - clip.time_start) if trimmed else (clip.time_start, clip.time_end)
    return Piece(Path(result["file"]), *times, kind, trimmed, result["duration"])
