"""Videos that are already in a folder, whole or trimmed, in the names the field uses.

The folder is walked once for each process; clips are looked up by name, so no path is ever made of a
manifest's text.
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.dataset.schema import id_of
from pipeline.sources import (
    Failed,
    FailureClass,
    Fetched,
    FetchOptions,
    Piece,
    SourceError,
    Video,
    all_failed,
    missing,
)

if TYPE_CHECKING:
    from pipeline.lists.manifest import Clip

SUFFIXES = (
    ".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi", ".ts", ".flv", ".mpg", ".mpeg", ".3gp", ".3g2",
    ".wmv", ".ogv", ".m2ts", ".mts", ".vob", ".asf",
)  # fmt: skip
"""Endings of video files, in the order in which they win where one name has several."""


@dataclass(frozen=True)
class DirectorySource:
    """``dir:PATH_OR_GLOB``: video files in a folder (and the folders in it), or those that a glob matches.

    A clip is looked for as ``<key>.ext`` and ``<id>_<start>_<end>.ext`` (already trimmed: the file starts at
    the clip's zero), then as ``<id>.ext`` (the whole video). Folders that a glob matches are walked like a
    named one. Where one name occurs twice, the first path in alphabetical order is taken.
    """

    pattern: str
    kind: str = "dir"
    network: bool = False

    @classmethod
    def of(cls, pattern: str) -> DirectorySource:
        """The source for what stands after ``dir:``; `SourceError` where nothing is there to look in."""
        if not pattern:
            raise SourceError("dir: names no folder: write dir:PATH or dir:'GLOB'.")
        pattern = os.path.abspath(os.path.expanduser(pattern))
        if not os.path.exists(pattern) and not any(glob.iglob(pattern, recursive=True)):
            raise SourceError(
                f"{pattern!r} does not exist and matches no file: name a folder or a glob of files."
            )
        return cls(pattern)

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """The pieces of `video`'s clips, where they lie; nothing is copied."""
        try:
            files = index(self.pattern)
        except OSError as error:
            why = f"{error.filename} cannot be listed: {(error.strerror or str(error)).lower()}"
            remedy = "see that every worker can read it, and repeat the command"
            failure = Failed(FailureClass.STORAGE, f"{why}; {remedy}")
            return Fetched(all_failed(video, failure), requests=0, whole=False, tool="")
        pieces = {clip.key: self._piece(clip, files) for clip in video.clips}
        paths = {None if isinstance(p, Failed) or p.trimmed else p.path for p in pieces.values()}
        return Fetched(pieces, requests=0, whole=len(paths) == 1 and None not in paths, tool="")

    def _piece(self, clip: Clip, files: dict[str, str]) -> Piece | Failed:
        for name in trimmed_names(clip):
            if name in files:
                return Piece(Path(files[name]), 0.0, clip.time_end - clip.time_start, self.kind, trimmed=True)
        if clip.youtube_id in files:
            path = Path(files[clip.youtube_id])
            return Piece(path, clip.time_start, clip.time_end, self.kind, trimmed=False)
        return missing(f"Neither {clip.key} nor {clip.youtube_id} is in {self.pattern}.")


def trimmed_names(clip: Clip) -> list[str]:
    """Names, without ending, of a trimmed `clip`: its key, then its times as people write them."""
    names = [clip.key]
    for style in (_plain, _decimal):
        names.append(f"{clip.youtube_id}_{style(clip.time_start)}_{style(clip.time_end)}")
    return names


def _plain(seconds: float) -> str:
    return str(int(seconds)) if float(seconds).is_integer() else repr(float(seconds))


def _decimal(seconds: float) -> str:
    return repr(float(seconds))


@functools.lru_cache(maxsize=8)
def index(pattern: str) -> dict[str, str]:
    """Name without ending, and the id made of it -> path, of every video that `pattern` names; made once a
    process."""
    found: dict[str, tuple[int, str]] = {}
    for path in _files(pattern):
        stem, suffix = os.path.splitext(os.path.basename(path))
        rank = _RANK.get(suffix.lower())
        if rank is None:
            continue
        for name in {stem, id_of(stem)}:
            if name not in found or (rank, path) < found[name]:
                found[name] = (rank, path)
    return {stem: path for stem, (_, path) in found.items()}


_RANK = {suffix: rank for rank, suffix in enumerate(SUFFIXES)}


def _files(pattern: str) -> Iterator[str]:
    places = [pattern] if os.path.exists(pattern) else glob.iglob(pattern, recursive=True)
    for place in places:
        if os.path.isdir(place):
            yield from walk(place, strict=True)
        else:
            yield place


def walk(folder: str, strict: bool = False) -> Iterator[str]:
    """Every file below `folder` that is not hidden, in folders that links lead to as well; each folder once,
    by the first path to it in alphabetical order, so that a circle of links comes to an end.

    What a link leads to is passed over where it cannot be listed, and so is a folder that this user may not
    read, unless the walk is `strict`; else OSError.
    """
    waiting, seen = [(folder, False)], set()
    while waiting:
        place, linked = waiting.pop()
        try:
            status = os.stat(place)
            identity = status.st_dev, status.st_ino
            if identity in seen:
                continue
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if linked or (isinstance(error, PermissionError) and not strict):
                continue
            raise
        seen.add(identity)
        folders = []
        for entry in found:
            link = entry.is_symlink()
            if entry.is_dir(follow_symlinks=False) or (link and os.path.isdir(entry.path)):
                folders.append((entry.path, linked or link))
            elif not entry.name.startswith("."):
                yield entry.path
        waiting.extend(reversed(folders))
