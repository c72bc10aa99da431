"""The request to the process that runs yt-dlp, and the options of yt-dlp that follow from it.

The user's own options override our defaults, but not the options that decide bytes and safety.
"""

from __future__ import annotations

import difflib
import functools
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.media import subprocesses
from pipeline.outcome import CallError, Failed, FailureClass

COOKIES = "cookies.txt"
"""Name of the copy of the user's cookies in a request's folder, while it runs."""

_DEMUXERS = "mov,matroska"
_PROTOCOLS = "http,https,httpproxy,tcp,tls,crypto"
_OURS = dict.fromkeys(
    (
        "allowed_extractors", "continuedl", "download_archive", "download_ranges", "enable_file_urls",
        "exec_cmd", "external_downloader", "external_downloader_args", "extract_flat", "file_access_retries",
        "force_keyframes_at_cuts", "hls_prefer_native", "ignoreerrors", "logger", "max_filesize",
        "noplaylist", "noprogress", "outtmpl", "paths", "playlist_items", "postprocessors",
        "skip_unavailable_fragments", "updatetime",
    ),
    "leave it out",
) | {
    "cookiefile": "use --cookies",
    "extractor_retries": "use --attempts",
    "ffmpeg_location": "use --ffmpeg",
    "proxy": "use --proxy",
    "retries": "use --attempts",
}  # fmt: skip
"""Options of yt-dlp that users cannot set, and what they can do instead."""


def refuse_ours(names: Iterable[str]) -> None:
    """Raise `CallError` for an option of yt-dlp that this program decides."""
    for name in names:
        if name in _OURS:
            raise CallError(f"yt-dlp's option {name!r} is decided by this program: {_OURS[name]}.")


def check_ytdlp(names: Collection[str]) -> None:
    """Raise `CallError` for an option that the installed yt-dlp does not know and would ignore."""
    if not names:
        return
    from yt_dlp import parse_options

    known = parse_options([]).ydl_opts
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "names are those of yt_dlp.YoutubeDL."
            raise CallError(f"yt-dlp has no option {name!r}; {hint}")


@dataclass(frozen=True)
class FetchRequest:
    """One request to the process: a URL and the ranges wanted of it (none: the whole file, once)."""

    url: str
    site: bool  # YouTube, not a plain URL
    ranges: list[list[float]]  # low, high, start, end: seconds to ask for, and those that must be there
    folder: str
    short_side: int
    codec: str
    ffmpeg: str
    trusted: list[str]  # URLs that the user named: their hosts may be private
    cookies: str | None
    proxy: str | None
    ytdlp: dict[str, Any]
    max_bytes: int
    max_duration: float
    stall_seconds: float  # without a byte


@dataclass
class Log:
    """Collects the messages of yt-dlp; its warnings tell why formats are missing."""

    warnings: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def debug(self, message: str) -> None:
        self.lines = [*self.lines[-20:], message]

    info = debug

    def warning(self, message: str) -> None:
        self.warnings = [*self.warnings[-20:], message]
        self.debug(message)

    error = debug


def options(request: FetchRequest, log: Log) -> dict[str, Any]:
    """yt-dlp's options for `request`: our defaults, the user's own, then ours that nobody overrides."""
    reader = [
        "-seek_timestamp", "1",
        "-protocol_whitelist", _PROTOCOLS,
        "-format_whitelist", _DEMUXERS,
        "-rw_timeout", str(int(request.stall_seconds * 1e6)),
    ]  # fmt: skip
    if _refuses_redirects(request.ffmpeg):
        reader += ["-max_redirects", "0"]
    writer = ["-copyts", "-nostats", "-map", "0:V:0", "-fs", str(request.max_bytes)]
    defaults = {
        "format": "bv*/b",
        "format_sort": [f"+res:{request.short_side}", f"vcodec:{request.codec}", "proto", "br"],
        "socket_timeout": request.stall_seconds,
        "fragment_retries": 1,
    }
    ours = {
        "allowed_extractors": ["youtube"] if request.site else ["generic"],
        "noplaylist": True,
        "playlist_items": "1",
        "extract_flat": "in_playlist",
        "logger": log,
        "noprogress": True,
        "retries": 0,
        "extractor_retries": 0,
        "file_access_retries": 0,
        "skip_unavailable_fragments": False,
        "hls_prefer_native": True,
        "continuedl": False,
        "updatetime": False,
        "max_filesize": request.max_bytes,
        "ffmpeg_location": request.ffmpeg,
        "external_downloader_args": {"ffmpeg_i": reader, "ffmpeg": writer},
        "cookiefile": _copy_of(request.cookies, Path(request.folder)),
        "proxy": request.proxy,
    }
    return defaults | request.ytdlp | ours


def _copy_of(cookies: str | None, folder: Path) -> str | None:
    """A copy of the cookies file for this request alone, since yt-dlp writes to the file that it reads."""
    if cookies is None:
        return None
    copy = folder / COOKIES
    try:
        shutil.copyfile(cookies, copy)
    except OSError as error:
        reason = f"The cookies file {cookies!r} cannot be read on this machine ({error.strerror})."
        raise Failed(FailureClass.ENVIRONMENT, reason) from error
    copy.chmod(0o600)
    return str(copy)


@functools.cache
def _refuses_redirects(ffmpeg: str) -> bool:
    """Whether this ffmpeg has an option against following redirects; older versions always follow them."""
    said = subprocesses.run([ffmpeg, "-hide_banner", "-h", "protocol=http"], timeout=30).stdout
    return b"-max_redirects" in said
