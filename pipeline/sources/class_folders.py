"""Makes a list from a folder of class folders, as UCF-101 and HMDB-51 are published: CLASS/VIDEO.avi."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.keys import id_of
from pipeline.lists.manifest import ManifestError
from pipeline.media import probe
from pipeline.outcome import Failed
from pipeline.sources.directory import VIDEO_SUFFIXES, walk
from pipeline.storage import replacing

_UNKNOWN_SECONDS = 10.0  # for a video that names no length: `prepare` reads what is in it


def write(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> int:
    """Write a list of the videos in `folder`, all in train.

    Each row is a whole video; its id is its file's name (`pipeline.keys.id_of`), its label its
    folder's. Returns how many there are. Raises ManifestError where there is none, or two of one name.
    """
    rows: dict[str, tuple[str, str]] = {}
    for label, video in _videos(Path(folder)):
        name = id_of(video.stem)
        try:
            f"{label}/{name}".encode()
        except UnicodeEncodeError:
            raise ManifestError(f"{str(video)!a} is no UTF-8 text: rename it or its folder.") from None
        if name in rows:
            raise ManifestError(f"{video} and {rows[name][1]} have one name: rename one of them.")
        rows[name] = label, str(video)
    if not rows:
        raise ManifestError(
            f"{os.fspath(folder)} has no folders of videos: name the one that has a folder a class."
        )
    try:
        with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["label", "youtube_id", "time_start", "time_end", "split"])
            for name, (label, source) in rows.items():
                out.writerow([label, name, 0, f"{_seconds(source):.6f}", "train"])
    except OSError as error:
        raise ManifestError(
            f"{os.fspath(path)} cannot be written ({error.strerror}): name another file."
        ) from None
    return len(rows)


def _videos(folder: Path) -> Iterator[tuple[str, Path]]:
    """(label, file) of every video in the folders of `folder`, in their order."""
    try:
        for label in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
            for video in sorted(map(Path, walk(str(label)))):
                if video.suffix.lower() in VIDEO_SUFFIXES and video.is_file():
                    yield label.name, video
    except OSError as error:
        raise ManifestError(
            f"{error.filename} cannot be listed ({error.strerror}): name a folder of class folders."
        ) from None


def _seconds(video: str) -> float:
    try:
        return probe.probe(video).duration or _UNKNOWN_SECONDS
    except Failed:
        return _UNKNOWN_SECONDS
