"""Local folders and object stores behind one set of methods: `open_storage` a root, then see `Storage`."""

from __future__ import annotations

import os

from pipeline.storage.atomic import replacing
from pipeline.storage.base import CHUNK, Storage, Sync
from pipeline.storage.errors import AlreadyExists, Busy, Changed
from pipeline.storage.local import LocalStorage
from pipeline.storage.object_store import ObjectStore

__all__ = ["CHUNK", "AlreadyExists", "Busy", "Changed", "Storage", "Sync", "open_storage", "replacing"]


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """The storage whose root is a folder or a URL; nothing is read or made yet.

    Args:
        url: a folder, ``file://`` or any fsspec URL (``s3://bucket/prefix``, ``gs://...``, ``memory://...``);
            ValueError where it names no bucket.
    """
    text = os.fspath(url).removeprefix("file://")
    if "://" not in text:
        return LocalStorage(os.path.abspath(os.path.expanduser(text)))
    if not text.rstrip("/").partition("://")[2]:
        raise ValueError(f"{text} names no bucket; give {text}BUCKET/FOLDER")
    return ObjectStore(text.rstrip("/"))
