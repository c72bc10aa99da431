"""Reads the published lists of clips (Kinetics-400, 600, 700, 700-2020) into rows; a bad row stays a row.

Owns what a well-formed row is and the key of a clip. What becomes of the rows is for `pipeline.lists.plan`.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pyarrow as pa

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
MAX_LINE = 65_536  # characters
MAX_LINES = 16  # physical lines of one record: more means a quote that is never closed

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

# The published header first, then what the ActivityNet crawler and its descendants write.
_COLUMNS = {
    "youtube_id": ("youtube_id", "youtube_identifier", "video_id"),
    "time_start": ("time_start", "start_time"),
    "time_end": ("time_end", "end_time"),
    "label": ("label", "label_name", "class_label"),
    "split": ("split", "subset"),
}
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_ID}}}")
_SECONDS = re.compile(r"\+?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_NEGATIVE = re.compile(r"-(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # what surrogateescape makes of a byte that is no UTF-8
_BATCH_ROWS = 4_096


class ManifestError(CallError, ValueError):
    """A file that is no manifest at all, or no manifest of this job: one sentence with the remedy."""


class _Malformed(Exception):
    """What is wrong with one row, without its place."""


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

    Reads CSV in UTF-8 with a header: in any order youtube_id, time_start, time_end (seconds), and
    if present label and split (train, val or validate or validation, test); other columns (is_cc)
    are ignored. A row without a split takes the only one that is a word of the file's name, as in
    ``kinetics-400_val.csv``; there is no other default. Blank lines are no rows.

    Args:
        path: a file or a URL.
        split: of all rows, whatever the list says of it; None takes what it says.

    Returns:
        a table of `SCHEMA`. ``error`` is null, or "FILE:LINE: sentence"; then split is ``unknown``
        and id, times and label are null. ``manifest`` is the path as given.

    Raises:
        ManifestError: the file cannot be read, or is no manifest at all.
    """
    name = _printable(path)
    try:
        with io.TextIOWrapper(
            location.open_file(path), encoding="utf-8-sig", errors="surrogateescape"
        ) as file:
            lines = _lines(file)
            columns = _header(name, lines, split)
            return pa.Table.from_batches(_batches(name, _records(lines, columns.count), columns), SCHEMA)
    except (OSError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
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


@dataclass(frozen=True)
class _Header:
    """Where the columns are, how many there are, and the split that the file's name gives."""

    count: int
    youtube_id: int
    time_start: int
    time_end: int
    label: int | None
    split: int | None
    default_split: str | None


def _header(name: str, lines: Iterator[tuple[int, str | None]], split: str | None) -> _Header:
    remedy = "give a CSV file whose first line names youtube_id, time_start, time_end"
    line = next((text for _, text in lines if text is None or not text.isspace()), "")
    if not line:
        raise ManifestError(f"{name}: {'is empty' if line == '' else 'has an endless first line'}; {remedy}.")
    if "\0" in line or _NOT_UTF8.search(line):
        raise ManifestError(f"{name}: is not text in UTF-8; {remedy}, saved as UTF-8.")
    names = [re.sub(r"[\s-]+", "_", field.strip().lower()) for field in _header_fields(line)]
    at: dict[str, int | None] = {}
    for column, aliases in _COLUMNS.items():
        places = [i for i, field in enumerate(names) if field in aliases]
        if len(places) > 1:
            raise ManifestError(f"{name}: has more than one {column} column; remove all but one.")
        at[column] = places[0] if places else None
    missing = [column for column in ("youtube_id", "time_start", "time_end") if at[column] is None]
    if missing:
        raise ManifestError(f"{name}: is no manifest (its first line has no {', '.join(missing)}); {remedy}.")
    if split is not None:
        at["split"] = None
    default = split or _split_of_name(name)
    if at["split"] is None and default is None:
        raise ManifestError(
            f"{name}: has no split column and its name tells none; add the column, or a word to the "
            "file's name: train, val or test."
        )
    return _Header(count=len(names), default_split=default, **at)  # type: ignore[arg-type]


def _header_fields(line: str) -> list[str]:
    try:
        return _split_line([line]) or []
    except csv.Error:
        return []


def _split_of_name(name: str) -> str | None:
    """The one split that a file's name speaks of: val for kinetics-400_val.csv, None for train_val.csv."""
    words = re.split(r"[^a-z0-9]+", Path(name).name.lower())
    found = {_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def _lines(file: TextIO) -> Iterator[tuple[int, str | None]]:
    """Physical lines with their numbers from 1; None stands for one of more than MAX_LINE characters."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) <= MAX_LINE or line.endswith("\n"):
            yield number, line
            continue
        while (rest := file.readline(MAX_LINE)) and not rest.endswith("\n"):
            pass
        yield number, None


def _records(lines: Iterator[tuple[int, str | None]], count: int) -> Iterator[tuple[int, list[str] | str]]:
    """Each record with its first physical line: its fields, or a sentence that says why it has none.

    A quote that is never closed costs its own line only: reading goes on with the line after it,
    also where the quote finds a partner further down but the record then has not ``count`` fields.
    """
    pending: deque[tuple[int, str | None]] = deque()
    while True:
        number, line = pending.popleft() if pending else next(lines, (0, ""))
        if line is None:
            yield number, f"the line has more than {MAX_LINE} characters."
        elif line == "":
            return
        elif not line.isascii() and _NOT_UTF8.search(line):
            yield number, "the line is not UTF-8."
        elif '"' not in line:
            if not line.isspace():
                yield number, line.rstrip("\n").split(",")
        else:
            yield number, _quoted(line, count, pending, lines)


def _quoted(
    line: str, count: int, pending: deque[tuple[int, str | None]], lines: Iterator[tuple[int, str | None]]
) -> list[str] | str:
    """The fields of a record with quotes, which may go on over further lines: those are then taken."""
    text = [line]
    try:
        while (fields := _split_line(text)) is None and len(text) < MAX_LINES:
            if len(text) > len(pending):
                following = next(lines, None)
                if following is None:
                    break
                pending.append(following)
            more = pending[len(text) - 1][1]
            if more is None or _NOT_UTF8.search(more):
                break
            text.append(more)
    except csv.Error:
        return (
            'a quote stands in the wrong place; write a field with quotes as "..." and a quote in it as "".'
        )
    if fields is None or (len(text) > 1 and len(fields) != count):
        return "a quote is opened and never closed."
    for _ in text[1:]:
        pending.popleft()
    return fields


def _split_line(text: Sequence[str]) -> list[str] | None:
    """The fields of one record; None where the text ends inside quotes. Raises csv.Error on a stray quote."""
    try:
        return next(csv.reader(text, strict=True), [])
    except csv.Error as error:
        if "unexpected end" in str(error):
            return None
        raise


def _batches(
    name: str, records: Iterator[tuple[int, list[str] | str]], columns: _Header
) -> Iterator[pa.RecordBatch]:
    rows: list[tuple] = []
    for number, fields in records:
        try:
            if isinstance(fields, str):
                raise _Malformed(fields)
            rows.append((name, number, *_clip(fields, columns), None))
        except _Malformed as error:
            rows.append((name, number, None, None, None, None, UNKNOWN, f"{name}:{number}: {error}"))
        if len(rows) == _BATCH_ROWS:
            yield _batch(rows)
            rows = []
    yield _batch(rows)


def _batch(rows: list[tuple]) -> pa.RecordBatch:
    values = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(values, SCHEMA, strict=True)], schema=SCHEMA
    )


def _clip(fields: list[str], columns: _Header) -> tuple[str, float, float, str | None, str]:
    if len(fields) != columns.count:
        raise _Malformed(f"the row has {len(fields)} fields where the header has {columns.count}.")
    youtube_id = fields[columns.youtube_id].strip()
    if not _NAME.fullmatch(youtube_id):
        raise _Malformed(
            f"the id {_show(youtube_id)} is no plain name (1 to {MAX_ID} letters, digits, '-' and '_')."
        )
    start = _seconds(fields[columns.time_start], "start")
    end = _seconds(fields[columns.time_end], "end")
    if end <= start:
        raise _Malformed(f"the end {end} is not after the start {start}.")
    if end - start > MAX_LENGTH:
        raise _Malformed(f"the clip is {end - start:g} s long; at most {MAX_LENGTH:g} s are taken.")
    split = columns.default_split
    if columns.split is not None:
        text = fields[columns.split].strip()
        split = _SPLIT_NAMES.get(text.lower()) if text else split
        if split is None:
            raise _Malformed(f"the split {_show(text)} is none of train, val, test.")
    assert split is not None
    return youtube_id, start, end, _label(fields, columns), split


def _label(fields: list[str], columns: _Header) -> str | None:
    if columns.label is None:
        return None
    label = fields[columns.label].strip()
    if len(label) > MAX_LABEL:
        raise _Malformed(f"the label has {len(label)} characters; at most {MAX_LABEL} are taken.")
    if _CONTROL.search(label):
        raise _Malformed(f"the label {_show(label)} has a control character or a line break in it.")
    return label or None


def _seconds(text: str, which: str) -> float:
    text = text.strip()
    if not _SECONDS.fullmatch(text):
        problem = "is negative" if _NEGATIVE.fullmatch(text) else "is no number of seconds"
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
