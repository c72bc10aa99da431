"""Finds and deletes a clip's other files: the stages of the work store, kept sources and the report.

Asks the work store by key and lists only its recipes, of which there are few. Deletes a kept source with any
clip of its video, since it holds that clip's pictures.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator

from pipeline.dataset.schema import SHARD
from pipeline.outcome import Failed
from pipeline.sources.directory import VIDEO_SUFFIXES
from pipeline.storage import Storage
from pipeline.storage.work_store import WorkStore

WORK_LOCK = "campaign.lock"
"""Held in the work store by whoever writes or deletes there; older versions know it by this name too."""

_BY_KEY = {
    "encode": (".mp4", ".record.json"),
    "flow": (".flow.mp4", ".record.json"),
    "clip": (".record.json",),
}
_SOURCES = (*VIDEO_SUFFIXES, ".record.json")
_MAX_RECORD = 1 << 24  # bytes


def exists(store: WorkStore) -> bool:
    """Whether there may be a work store; always true in an object store."""
    folder = store.storage.local(WORK_LOCK)
    return folder is None or folder.parent.is_dir()


def work(store: WorkStore, keys: Collection[str], videos: Collection[str], dry_run: bool) -> list[str]:
    """Delete all stages' files of these clips, and all kept sources of these videos and clips.

    Returns the places of the files that were there.
    """
    if not exists(store):
        return []
    paths = dict.fromkeys(_paths(store, keys, videos))
    found = _delete(store.storage, filter(store.storage.exists, paths), dry_run)
    if not dry_run:
        for folder in {path.rsplit("/", 1)[0] for path in paths}:
            store.storage.sweep(folder)  # temporary files of killed writers hold pictures too
    return found


def report(storage: Storage, dry_run: bool) -> list[str]:
    """Delete the report's page and media: its contact sheets hold many clips in one picture."""
    media = [f"report/media/{name}" for name in storage.names("report/media")]
    return _delete(storage, filter(storage.exists, ["report/index.html", *media]), dry_run)


def unpublished(storage: Storage, published: Collection[str], dry_run: bool) -> list[str]:
    """Delete all shards that dataset.json does not name: no file says for sure which clips they hold.

    A killed run left them, and the next run packs them again.
    """
    paths = (f"shards/{name}" for name in storage.names("shards"))
    return _delete(storage, (p for p in paths if SHARD.fullmatch(p) and p not in published), dry_run)


def _delete(storage: Storage, paths: Iterable[str], dry_run: bool) -> list[str]:
    """Delete files one by one; returns their places."""
    places = []
    for path in paths:
        places.append(storage.where(path))
        if not dry_run:
            storage.delete(path)
    return places


def _paths(store: WorkStore, keys: Collection[str], videos: Collection[str]) -> Iterator[str]:
    """Paths of possible files; a record comes after the files it names, so that a killed purge finds them."""
    storage = store.storage
    for stage, suffixes in _BY_KEY.items():
        for recipe in storage.names(stage):
            for key in sorted(keys):
                yield from _named(store, stage, recipe, key, suffixes)
    for recipe in storage.names("source"):
        for video in sorted(videos):
            yield from _kept(store, recipe, video)
        for name in sorted({*keys, *videos}):
            yield from _named(store, "source", recipe, name, _SOURCES)
    for name in storage.names("archive"):  # files unpacked from archives for one run
        yield f"archive/{name}"


def _named(store: WorkStore, stage: str, recipe: str, key: str, suffixes: Collection[str]) -> Iterator[str]:
    for suffix in suffixes:
        with contextlib.suppress(ValueError):  # the folder or name is not of the work store
            yield store.path(stage, recipe, key, suffix)


def _kept(store: WorkStore, recipe: str, video: str) -> Iterator[str]:
    """The files that a video's record names: the whole video, or a section for each of its clips."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, FileNotFoundError, Failed):
        path = store.path("source", recipe, video, ".record.json")
        record = json.loads(store.storage.read_bytes(path, _MAX_RECORD))
        for file in record["files"].values():
            if file["path"].startswith(f"source/{recipe}/"):
                yield file["path"]
