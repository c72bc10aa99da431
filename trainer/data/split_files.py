"""Reads the published lists of UCF-101 and HMDB-51: the training and test videos of one of three splits.

UCF-101: trainlist01.txt and testlist01.txt, lines "Class/name.avi 1" and "Class/name.avi". HMDB-51: a file a
class, <class>_test_split1.txt, lines "name.avi 1" whose number says 0 unused, 1 trains, 2 tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pipeline.dataset import id_of
from pipeline.outcome import CallError


class ListError(CallError, ValueError):
    """The file is no such list; one sentence with the remedy."""


@dataclass(frozen=True)
class Listed:
    """The videos of one part of the lists, by their ids in a data set."""

    part: str  # train | test
    ids: frozenset[str] = field(repr=False)


class Lists(NamedTuple):
    """The training and the test videos of all lists given."""

    train: Listed
    test: Listed


def read(files: Iterable[str | os.PathLike[str]]) -> Lists:
    """The lists in `files`, of either data set. Raises ListError."""
    found: dict[str, set[str]] = {"train": set(), "test": set()}
    for file in files:
        for name, part in _lines(Path(file)):
            if part:
                found[part].add(id_of(PurePosixPath(name).stem))
    if both := found["train"] & found["test"]:
        raise ListError(f"{min(both)} both trains and tests: give the files of one split")
    return Lists(*(Listed(part, frozenset(ids)) for part, ids in found.items()))


def _lines(path: Path) -> Iterator[tuple[str, str | None]]:
    """(name of a video file, train or test or None) of each line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ListError(f"{path} cannot be read ({why}): name a published list") from None
    of_file = next((part for part in ("train", "test") if part in path.name.lower()), None)
    codes = {"0": None, "1": "train", "2": "test"}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, _, code = line.strip().rpartition(" ")
        if "/" in line and of_file:
            yield (name if name and code.isdigit() else line.strip()), of_file
        elif "/" not in line and name and code in codes:
            yield name.strip(), codes[code]
        else:
            raise ListError(
                f"{path}:{number} is neither a line of UCF-101's trainlist and testlist nor of HMDB-51's "
                "<class>_test_split1.txt: give those files as published"
            )
