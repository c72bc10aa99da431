"""Finds or fetches a video that a person names by its file, its address or its YouTube id."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.lists.manifest import Clip
from pipeline.outcome import Failed, FailureClass
from pipeline.sources import retrying, youtube
from pipeline.sources.base import FetchOptions, Video
from pipeline.sources.web import AddressSource

_YOUTUBE_HOSTS = ("youtube.com", "www.youtube.com", "m.youtube.com", "youtu.be")


def source_of(name: str) -> AddressSource | None:
    """Where to fetch `name` from: an http address, a page of YouTube or an id; None for a local file.

    A file of that name wins over an id.
    """
    if os.path.exists(name):
        return None
    if found := _youtube_id(name):
        return AddressSource(youtube.address(found), kind="youtube")
    return AddressSource(name) if name.startswith(("http://", "https://")) else None


def title(name: str) -> str:
    """A name for files made from the video: the stem of its own file, or its YouTube id."""
    if source_of(name) is None:
        return Path(name).stem
    if found := _youtube_id(name):
        return found
    stem = Path(unquote(urlsplit(name).path)).stem
    return re.sub(r"[^\w.-]+", "_", stem).strip(".") or "video"


def local_file(name: str, folder: Path, timeout: float = 3600.0) -> Path:
    """The file of a video: the named file, or a download into `folder` of an address or a YouTube id.

    Raises Failed: MISSING for a name that is neither, or the failure of the download.
    """
    source = source_of(name)
    if source is None:
        if not Path(name).is_file():
            raise Failed(FailureClass.MISSING, f"{name} is no file, address or YouTube id: name a video")
        return Path(name)
    whole = Clip("", 0, "video", 0.0, 0.0, None, "")
    options = FetchOptions(timeout=timeout)
    piece = retrying.fetch(Video(whole.youtube_id, (whole,)), (source,), folder, options).pieces[whole.key]
    if isinstance(piece, Failed):
        raise piece
    return piece.path


def _youtube_id(name: str) -> str | None:
    """The id in an address of YouTube, or a bare id."""
    if youtube.YOUTUBE_ID.fullmatch(name):
        return name
    try:
        parts = urlsplit(name)
    except ValueError:  # not an address
        return None
    if parts.hostname not in _YOUTUBE_HOSTS:
        return None
    last = parts.path.rstrip("/").rpartition("/")[2]
    found = parse_qs(parts.query).get("v", [last])[0]
    return found if youtube.YOUTUBE_ID.fullmatch(found) else None
