"""Finds the source that a specification names. A new source is one file beside this one and one line here."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from pipeline.outcome import CallError

if TYPE_CHECKING:
    from pipeline.sources.base import Source

_SOURCES = (
    # how a specification begins (a plain word: all of it), its class, and its place in `usage` if it has one
    ("youtube", "youtube.YoutubeSource", "youtube"),
    ("https://", "web.UrlSource", "a URL template like 'https://host/{youtube_id}.mp4'"),
    ("http://", "web.UrlSource", ""),
    ("dir:", "directory.DirectorySource", "dir:PATH"),
    ("archive:", "archive.ArchiveSource", "archive:GLOB of tar and tar.gz files"),
    ("rehearsal", "rehearsal.Rehearsal", ""),  # prepare --rehearse
)


@functools.lru_cache(maxsize=64)
def parse(spec: str) -> Source:
    """The source that `spec` names, such as ``youtube`` or ``dir:videos``. Raises CallError."""
    for beginning, place, _ in _SOURCES:
        if spec == beginning or (not beginning.isalnum() and spec.startswith(beginning)):
            module, name = place.split(".")
            return getattr(importlib.import_module(f"pipeline.sources.{module}"), name).of(spec)
    raise CallError(f"{spec!r} is no source: use {usage()}.")


def usage() -> str:
    """The specifications that users may write, as the end of a sentence."""
    *others, last = (text for _, _, text in _SOURCES if text)
    return f"{', '.join(others)}, or {last}"
