"""Reads the published lists of clips (Kinetics-400, 600, 700, 700-2020) into rows; a bad row stays a row.

Owns the rules for a well-formed row and the key of a clip. `pipeline.lists.plan` decides about the rows.
"""

from __future__ import annotations

import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.lists import readers
from pipeline.outcome import CallError
from pipeline.storage import location

PRECEDENCE = ("val", "test", "train")
"""The splits, the one that wins a video first."""

UNKNOWN = "unknown"
"""The split of a malformed row."""

MAX_ID = 64  # characters: with two times and '.flow.mp4' the name still fits a tar header's 100 bytes
MAX_TIME = 999_999.0  # seconds: more would not fit the key's six digits
MAX_LENGTH = 600.0  # seconds of one clip: its planes are held in memory
MAX_LABEL = 500  # characters

SCHEMA = pa.schema(
    [
        ("manifest", pa.string()),
        ("row", pa.int64()),
        ("youtube_id", pa.string()),
        ("time_start", pa.float64()),
        ("time_end", pa.float64()),
        ("label", pa.string()),
        ("split", pa.string()),
        ("error", pa.string()),
    ]
)

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_ID}}}")
_SECONDS = re.compile(r"([+-]?)(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BATCH_ROWS = 4_096


class ManifestError(CallError, ValueError):
    """A file that is no manifest at all, or no manifest of this job: one sentence with the remedy."""


class _Malformed(Exception):
    """A row that breaks a rule: the sentence without the row's place."""


@dataclass(frozen=True)
class Clip:
    """One well-formed manifest row: what to cut from which video.

    ``row`` is the first physical line of the record (the header is line 1), times are seconds,
    ``label`` is None in a list without labels, ``split`` is train, val or test.
    """

    manifest: str
    row: int
    youtube_id: str
    time_start: float
    time_end: float
    label: str | None
    split: str

    @property
    def key(self) -> str:
        """The clip's name in the data set, see `key_of`."""
        return key_of(self.youtube_id, self.time_start, self.time_end)


def key_of(youtube_id: str, time_start: float, time_end: float) -> str:
    """``<youtube_id>_<start>_<end>``: six digits each, seconds rounded half to even in the key only."""
    return f"{youtube_id}_{round(time_start):06d}_{round(time_end):06d}"


def expand(patterns: Iterable[str]) -> list[str]:
    """Names, URLs and globs to files: patterns in the order given, a glob's files sorted, each file once.

    Raises:
        ManifestError: a pattern that matches no file.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        names = location.expand(pattern)
        if not names:
            raise ManifestError(f"{_printable(pattern)}: no such file; check the name given.")
        for name in names:
            found.setdefault(name if location.is_url(name) else os.path.realpath(name), name)
    return list(found.values())


def read(path: str | os.PathLike[str], split: str | None = None) -> pa.Table:
    """All rows of one list, in file order, each well-formed or with its error.

    Reads the formats of `pipeline.lists.readers` in UTF-8: youtube_id, time_start, time_end (seconds), and
    if present label and split (train, val or validate or validation, test). A row without a split takes the
    only one that is a word of the file's name, as in ``kinetics-400_val.csv``. Blank lines are no rows.

    Args:
        split: of all rows, whatever the list says of it; None takes what it says.

    Returns:
        a table of `SCHEMA`. ``error`` is null, or "FILE:LINE: sentence"; then split is ``unknown``
        and id, times and label are null. ``manifest`` is the path as given.

    Raises:
        ManifestError: the file cannot be read, or is no manifest at all.
    """
    name = _printable(path)
    default = _split_of_name(name)
    try:
        with io.TextIOWrapper(
            location.open_file(path), encoding="utf-8-sig", errors="surrogateescape"
        ) as file:
            found = readers.read(name, file)
            if not (found.has_split or split or default):
                raise readers.NotAList(
                    "has no split column and its name tells none; add the column, or a word to the file's "
                    "name: train, val or test."
                )
            return pa.Table.from_batches(_batches(_rows(name, found.records, split, default)), SCHEMA)
    except readers.NotAList as error:
        raise ManifestError(f"{name}: {error}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ManifestError(
            f"{name}: cannot be read ({why}); give the path of a readable CSV file."
        ) from error


def read_classes(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The class names of a label map, one a line; a class's index is its place among them.

    Raises:
        ManifestError: unreadable, empty, not UTF-8, or a name that stands there twice.
    """
    name = _printable(path)
    try:
        with io.TextIOWrapper(location.open_file(path), encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ManifestError(f"{name}: cannot be read ({why}); give a text file, one class a line.") from error
    names = tuple(filter(None, (line.strip() for line in lines)))
    if not names:
        raise ManifestError(f"{name}: is empty; give a text file, one class a line.")
    if len(set(names)) < len(names):
        twice = next(label for i, label in enumerate(names) if label in names[:i])
        raise ManifestError(
            f"{name}: the class {_show(twice)} stands there twice; remove one of the two lines."
        )
    return names


def _split_of_name(name: str) -> str | None:
    """The one split that a file's name speaks of: val for kinetics-400_val.csv, None for train_val.csv."""
    words = re.split(r"[^a-z0-9]+", Path(name).name.lower())
    found = {_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def _rows(
    name: str, records: Iterator[readers.Record], split: str | None, default: str | None
) -> Iterator[tuple]:
    for number, fields in records:
        try:
            if isinstance(fields, str):
                raise _Malformed(fields)
            yield name, number, *_checked(fields, split, default), None
        except _Malformed as error:
            yield name, number, None, None, None, None, UNKNOWN, f"{name}:{number}: {error}"


def _batches(rows: Iterator[tuple]) -> Iterator[pa.RecordBatch]:
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        columns = zip(zip(*batch, strict=True), SCHEMA.types, strict=True)
        yield pa.RecordBatch.from_arrays([pa.array(*column) for column in columns], schema=SCHEMA)


def _checked(
    fields: Sequence[str], given: str | None, default: str | None
) -> tuple[str, float, float, str | None, str]:
    """The values of a well-formed row; the split is the `given` one, its own, or the `default`."""
    youtube_id, start, end, label, split = map(str.strip, fields)
    if not _NAME.fullmatch(youtube_id):
        raise _Malformed(
            f"the id {_show(youtube_id)} is no plain name (1 to {MAX_ID} letters, digits, '-' and '_')."
        )
    first, last = _seconds(start, "start"), _seconds(end, "end")
    if last <= first:
        raise _Malformed(f"the end {last} is not after the start {first}.")
    if last - first > MAX_LENGTH:
        raise _Malformed(f"the clip is {last - first:g} s long; at most {MAX_LENGTH:g} s are taken.")
    found = given or (_SPLIT_NAMES.get(split.lower()) if split else default)
    if found is None:
        raise _Malformed(f"the split {_show(split)} is none of train, val, test.")
    if len(label) > MAX_LABEL:
        raise _Malformed(f"the label has {len(label)} characters; at most {MAX_LABEL} are taken.")
    if _CONTROL.search(label):
        raise _Malformed(f"the label {_show(label)} has a control character or a line break in it.")
    return youtube_id, first, last, label or None, found


def _seconds(text: str, which: str) -> float:
    found = _SECONDS.fullmatch(text)
    if not found or found[1] == "-":
        problem = "is negative" if found else "is no number of seconds"
        raise _Malformed(f"the {which} {_show(text)} {problem}.")
    value = float(text)
    if value > MAX_TIME:
        raise _Malformed(f"the {which} {_show(text)} is beyond {MAX_TIME:.0f} s.")
    return value


def _show(text: str) -> str:
    """A short quotation of hostile text: printable, at most 40 characters of it."""
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _printable(path: str | os.PathLike[str]) -> str:
    return os.fsencode(path).decode("utf-8", "replace")
