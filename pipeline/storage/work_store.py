"""The work store: each stage's files and records by clip key; the only checkpoint of a run.

A path follows from (stage, hash of that stage's part of the recipe, key), fanned out by two hex digits,
so no folder is listed. A stage skips a clip that has a record and all its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from pipeline.keys import KEY
from pipeline.outcome import Failed, FailureClass, Misplaced
from pipeline.recipe import unknown
from pipeline.storage import CHUNK, Storage, Sync, open_storage

_STAGE = re.compile(r"[a-z][a-z0-9-]{0,30}")
_SUFFIX = re.compile(r"(\.[A-Za-z0-9]{1,12}){1,3}")
_RECORD = ".record.json"
_FOLDERS = (
    "archive", "canary", "clip", "encode", "flow", "lanes",
    "log", "packed", "plan", "progress", "source", "stop",
)  # fmt: skip
_FIELDS: dict[str, dict[str, Any]] = {
    "clip": {"outcome": str},
    "encode": {"files": dict},
    "source": {"files": dict, "pieces": dict},
    "stop": {"reason": (str, NoneType)},
}
"""The least fields of each stage's record, and their types; a record without them is damaged."""
_MAX_RECORD = 1 << 24  # bytes


@dataclass(frozen=True)
class Stored:
    """A file in the work store: path relative to its root, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a record; `Stored(**record)` reads them."""
        return asdict(self)


class WorkStore:
    """Files and records of all stages under one root, shared by all workers. Raises what `Storage` raises."""

    def __init__(self, root: str | os.PathLike[str] | Storage):
        self.storage = root if isinstance(root, Storage) else open_storage(root)

    def __repr__(self) -> str:
        return f"WorkStore({self.storage.url!r})"

    def path(self, stage: str, stage_hash: str, key: str, suffix: str) -> str:
        """``<stage>/<hash>/<hh>/<key><suffix>`` of a clip's key or a video's id.

        Raises ValueError unless every part is a plain name.
        """
        for part, form in ((stage, _STAGE), (stage_hash, KEY), (key, KEY), (suffix, _SUFFIX)):
            if not form.fullmatch(part):
                raise ValueError(f"not a plain name: {part[:100]!r}")
        fan = hashlib.sha256(key.encode()).hexdigest()[:2]
        return f"{stage}/{stage_hash}/{fan}/{key}{suffix}"

    def put_file(self, stage: str, stage_hash: str, key: str, suffix: str, local: Path) -> Stored:
        """Copy a local file into the store, whole or not at all. A power cut may remove it again."""
        path = self.path(stage, stage_hash, key, suffix)
        digest, size = hashlib.sha256(), 0
        with open(local, "rb") as source, self.storage.writer(path, Sync.CONTENT) as file:
            while chunk := source.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        return Stored(path, size, digest.hexdigest())

    def local_copy(self, stored: Stored, folder: Path) -> Path | None:
        """The file itself on local disk, else a copy in `folder`; None where it is gone or damaged."""
        local = self.storage.local(stored.path)
        target = local or folder / stored.path.rsplit("/", 1)[1]
        digest = hashlib.sha256()
        with contextlib.ExitStack() as stack:
            try:
                source = stack.enter_context(self.storage.open(stored.path, stored.size))
                copy = None if local else stack.enter_context(open(target, "wb"))
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
                    if copy is not None:
                        copy.write(chunk)
            except FileNotFoundError:
                return None
        return target if digest.hexdigest() == stored.sha256 else None

    def write_record(self, stage: str, stage_hash: str, key: str, record: dict[str, Any]) -> None:
        """Write a stage's record of a key, after its files: ``"files"`` has name -> `Stored.as_dict()`."""
        self.storage.write(self.path(stage, stage_hash, key, _RECORD), canonical_json(record), Sync.NOTHING)

    def read_record(self, stage: str, stage_hash: str, key: str, whole: bool = True) -> dict[str, Any] | None:
        """The record; None where it is absent or damaged, or a file that it names is not complete.

        With `whole` False the files are not checked: for callers that read them anyway.

        Raises:
            Failed: class environment, for a record of a newer version.
        """
        path = self.path(stage, stage_hash, key, _RECORD)
        try:
            record = json.loads(self.storage.read_bytes(path, _MAX_RECORD))
            if not all(isinstance(record[name], kind) for name, kind in _FIELDS.get(stage, {}).items()):
                return None
            files = record.get("files", {}).values()
            for file in files:
                refuse_newer(Stored, file, self.storage.where(path))
            return record if not whole or all(self.has(Stored(**f)) for f in files) else None
        except (FileNotFoundError, ValueError, TypeError, AttributeError, KeyError):
            return None

    def clean(self) -> None:
        """Delete the files of all stages and runs; other files under the root stay."""
        for name in _FOLDERS:
            self.storage.delete_folder(name)

    def has(self, stored: Stored) -> bool:
        """Whether the file exists with its size; `local_copy` checks the hash."""
        try:
            return self.storage.size(stored.path) == stored.size
        except FileNotFoundError:
            return False


def of(root: Storage, work: str | None) -> WorkStore:
    """The work store at `work`; without one ROOT/work of a data set.

    Raises:
        Misplaced: ROOT/work is a symbolic link.
    """
    if work:
        return WorkStore(work)
    folder = root.local("work")
    if folder and folder.is_symlink():
        raise Misplaced(f"{folder} is a symbolic link: name the work store with --work, or delete the link")
    return WorkStore(f"{root.url}/work")


def refuse_newer(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Raise Failed(ENVIRONMENT) where the record at `where` has a value that the dataclass `kind` lacks."""
    if newer := unknown(kind, values):
        reason = f"{where} has {newer}, which this version does not know: upgrade quovadis"
        raise Failed(FailureClass.ENVIRONMENT, reason)


def canonical_json(value: Any) -> bytes:
    """JSON whose bytes depend on the value only: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
