"""Reads the comparison of the lists with the archives, where archives were sources."""

from __future__ import annotations

import json
from typing import Any

from pipeline.maintenance.reconciliation import FILE
from pipeline.storage import Storage

_MEANINGS = {
    "missing": "in the lists, in no archive",
    "extra": "in an archive, in no list",
    "refused": "in an archive, and not to be read",
    "corrupt": "cannot be decoded",
    "wrong_length": "longer or shorter than its row says",
}
_MAX_BYTES = 1 << 24


def read(storage: Storage) -> dict[str, Any] | None:
    """Read the comparison that lies in a data set, for the page; None if there is none, or no readable one.

    Its `archives` have path, videos and problem; its `kinds` name, meaning, count and examples.
    """
    try:
        found = json.loads(storage.read_bytes(FILE, _MAX_BYTES))
        archives = [{name: a[name] for name in ("path", "videos", "problem")} for a in found["archives"]]
        numbers = {"videos": sum(int(a["videos"]) for a in archives)}
        numbers |= {name: int(found[name]) for name in ("clips", "found")}
        kinds = [
            {
                "name": name.replace("_", " "),
                "meaning": meaning,
                "count": int(found[name]["count"]),
                "examples": [_example(item) for item in found[name]["examples"]],
            }
            for name, meaning in _MEANINGS.items()
        ]
        return {"archives": archives, "kinds": kinds, **numbers}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _example(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    if "reason" in item:
        return f"{item['name']} in {item['archive']} {item['reason']}"
    length = "less than a second" if item["seconds"] is None else f"{item['seconds']:g} s"
    return f"{item['key']}: {length} instead of {item['wanted']:g} s"
