"""Where else a clip's files lie: the stages of the work store, kept sources, the report; and deleting them.

The work store is asked by key, never listed (only the names of its recipes are, of which there are few). A
kept source goes with any clip of its video, since it holds that clip's footage.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator

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
    """Whether there may be a work store; an object store is always asked."""
    folder = store.storage.local(WORK_LOCK)
    return folder is None or folder.parent.is_dir()


def work(store: WorkStore, keys: Collection[str], videos: Collection[str], dry_run: bool) -> list[str]:
    """Delete all stages' files of these clips, and all kept sources of these videos and clips.

    Returns:
        The places of the files that were there.
    """
    storage, found = store.storage, []
    if not exists(store):
        return []
    folders = set()
    for path in _paths(store, keys, videos):
        folders.add(path.rsplit("/", 1)[0])
        if storage.exists(path):
            found.append(storage.where(path))
            if not dry_run:
                storage.delete(path)
    if not dry_run:
        for folder in folders:
            storage.sweep(folder)  # what killed writers left holds footage too
    return list(dict.fromkeys(found))


def report(storage: Storage, dry_run: bool) -> list[str]:
    """Delete the report's page and media: its contact sheets hold many clips in one picture."""
    media = [f"report/media/{name}" for name in storage.names("report/media")]
    there = [path for path in ("report/index.html", *media) if storage.exists(path)]
    if not dry_run:
        for path in there:
            storage.delete(path)
    return [storage.where(path) for path in there]


def unpublished(storage: Storage, published: Collection[str], dry_run: bool) -> list[str]:
    """Delete shards that a killed run left and dataset.json does not name; the next run packs them again.

    All of them: which clips one holds is said nowhere for sure."""
    paths = [f"shards/{name}" for name in storage.names("shards")]
    left = [path for path in paths if SHARD.fullmatch(path) and path not in published]
    if not dry_run:
        for path in left:
            storage.delete(path)
    return [storage.where(path) for path in left]


def _paths(store: WorkStore, keys: Collection[str], videos: Collection[str]) -> Iterator[str]:
    """Where files may lie; a record comes after what it names, so that a killed purge finds them again."""
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
        with contextlib.suppress(ValueError):  # a folder or name that is not the work store's
            yield store.path(stage, recipe, key, suffix)


def _kept(store: WorkStore, recipe: str, video: str) -> Iterator[str]:
    """The files that a video's record names: whole, or a section for each of its clips."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, FileNotFoundError, Failed):
        path = store.path("source", recipe, video, ".record.json")
        record = json.loads(store.storage.read_bytes(path, _MAX_RECORD))
        for file in record["files"].values():
            if file["path"].startswith(f"source/{recipe}/"):
                yield file["path"]
