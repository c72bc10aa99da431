"""Videos in a folder, whole or trimmed, by the names that the field uses.

Each process lists the folder once. Clips are looked up by name, so no path is ever made from the text of a
manifest.
"""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.keys import id_of
from pipeline.outcome import CallError, Failed, FailureClass
from pipeline.sources.base import (
    Fetched,
    FetchOptions,
    Piece,
    Video,
    all_failed,
    seconds_text,
    share_one_file,
)

if TYPE_CHECKING:
    from pipeline.lists.manifest import Clip

VIDEO_SUFFIXES = (
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
    def of(cls, spec: str) -> DirectorySource:
        """The source for ``dir:PATH_OR_GLOB``; `CallError` where that is no folder and matches no file."""
        pattern = spec.removeprefix("dir:")
        if not pattern:
            raise CallError("dir: names no folder: write dir:PATH or dir:'GLOB'.")
        pattern = os.path.abspath(os.path.expanduser(pattern))
        if not os.path.exists(pattern) and not any(glob.iglob(pattern, recursive=True)):
            raise CallError(
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
            return all_failed(video, Failed(FailureClass.STORAGE, f"{why}; {remedy}"))
        return gather(video, self.kind, self.pattern, files, lambda name: Path(files[name]))


def names(clip: Clip) -> list[str]:
    """Names, without ending, that a file for `clip` may have, in the order in which they win.

    Its key, its id with the times as people write them, or with a decimal point (all trimmed files); last
    the id alone (the whole video).
    """
    start, end = float(clip.time_start), float(clip.time_end)
    plain = f"{clip.youtube_id}_{seconds_text(start)}_{seconds_text(end)}"
    return [clip.key, plain, f"{clip.youtube_id}_{start!r}_{end!r}", clip.youtube_id]


def gather(
    video: Video, kind: str, place: str, present: Container[str], file: Callable[[str], Path]
) -> Fetched:
    """The result without requests: for each clip the file of the first of its `names` that is `present`.

    `file` gets that name, and may raise Failed.
    """
    pieces: dict[str, Piece | Failed] = {}
    for clip in video.clips:
        name = next((name for name in names(clip) if name in present), None)
        try:
            if name is None:
                reason = f"Neither {clip.key} nor {clip.youtube_id} is in {place}."
                raise Failed(FailureClass.MISSING, reason)
            trimmed = name != clip.youtube_id
            pieces[clip.key] = Piece.of(clip, file(name), kind, trimmed=trimmed)
        except Failed as failure:
            pieces[clip.key] = failure
    return Fetched(pieces, whole=share_one_file(pieces))


@functools.lru_cache(maxsize=8)
def index(pattern: str) -> dict[str, str]:
    """Name without ending, and the id made of it -> path, of every video that `pattern` names; cached."""
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


_RANK = {suffix: rank for rank, suffix in enumerate(VIDEO_SUFFIXES)}


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

    Skips a folder behind a link that cannot be listed, and unless `strict` a folder that this user may not
    read. Raises OSError for any other folder that cannot be listed.
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
