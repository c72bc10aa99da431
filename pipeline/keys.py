"""The form of keys and ids: the names that clips and videos have in a data set and in the work store."""

from __future__ import annotations

import hashlib
import re

KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
"""A key or an id: no dot (webdataset's grouping), and a tar header has 100 bytes for a name."""

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def id_of(name: str) -> str:
    """The id of a video that has only a file name (without its ending).

    A plain name of at most 64 letters, digits, '-' and '_' is the id. Any other is shortened, its other
    characters are replaced by '_', and the first eight hex digits of its sha256 are appended.
    """
    if _PLAIN.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:55]}-{digest}"
