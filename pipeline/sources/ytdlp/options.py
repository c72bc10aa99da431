"""What the process that runs yt-dlp is asked for, and the options of yt-dlp that follow from it.

The user's own options come between our defaults and what decides bytes and safety.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.media import subprocesses
from pipeline.outcome import Failed, FailureClass

COOKIES = "cookies.txt"
"""Name of the copy of the user's cookies in a job's folder, while it runs."""

_DEMUXERS = "mov,matroska"
_PROTOCOLS = "http,https,httpproxy,tcp,tls,crypto"


@dataclass(frozen=True)
class Job:
    """One request, as it comes in: a URL and the ranges wanted of it (none: the whole file, once)."""

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
    patience: float  # seconds without a byte


@dataclass
class Log:
    """What yt-dlp has to say; its warnings tell why formats are missing."""

    warnings: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def debug(self, message: str) -> None:
        self.lines = [*self.lines[-20:], message]

    info = debug

    def warning(self, message: str) -> None:
        self.warnings = [*self.warnings[-20:], message]
        self.debug(message)

    error = debug


def options(job: Job, log: Log) -> dict[str, Any]:
    """yt-dlp's options for `job`: the user's own, then ours, which decide bytes and safety."""
    reader = [
        "-seek_timestamp", "1",
        "-protocol_whitelist", _PROTOCOLS,
        "-format_whitelist", _DEMUXERS,
        "-rw_timeout", str(int(job.patience * 1e6)),
    ]  # fmt: skip
    if _refuses_redirects(job.ffmpeg):
        reader += ["-max_redirects", "0"]
    writer = ["-copyts", "-nostats", "-map", "0:V:0", "-fs", str(job.max_bytes)]
    defaults = {
        "format": "bv*/b",
        "format_sort": [f"+res:{job.short_side}", f"vcodec:{job.codec}", "proto", "br"],
        "socket_timeout": job.patience,
        "fragment_retries": 1,
    }
    ours = {
        "allowed_extractors": ["youtube"] if job.site else ["generic"],
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
        "max_filesize": job.max_bytes,
        "ffmpeg_location": job.ffmpeg,
        "external_downloader_args": {"ffmpeg_i": reader, "ffmpeg": writer},
        "cookiefile": _copy_of(job.cookies, Path(job.folder)),
        "proxy": job.proxy,
    }
    return defaults | job.ytdlp | ours


def _copy_of(cookies: str | None, folder: Path) -> str | None:
    """yt-dlp writes the cookies it was given back: many processes would write one file."""
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


_redirects: dict[str, bool] = {}


def _refuses_redirects(ffmpeg: str) -> bool:
    """Whether this ffmpeg can be told not to follow redirections; older ones follow by themselves."""
    if ffmpeg not in _redirects:
        said = subprocesses.run([ffmpeg, "-hide_banner", "-h", "protocol=http"], timeout=30).stdout
        _redirects[ffmpeg] = b"-max_redirects" in said
    return _redirects[ffmpeg]
