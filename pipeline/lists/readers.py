"""Readers of published lists, one function a format: text -> records of five texts each.

A reader checks the form of a list; `pipeline.lists.manifest` checks what stands in the records.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TextIO

MAX_LINE = 65_536  # characters
MAX_LINES = 16  # physical lines of one record: more means a quote that is never closed

# The published header first, then the names that the ActivityNet crawler and its descendants write.
_COLUMNS = {
    "youtube_id": ("youtube_id", "youtube_identifier", "video_id"),
    "time_start": ("time_start", "start_time"),
    "time_end": ("time_end", "end_time"),
    "label": ("label", "label_name", "class_label"),
    "split": ("split", "subset"),
}
_REQUIRED = ("youtube_id", "time_start", "time_end")
_NOT_UTF8 = re.compile(r"[\ud800-\udfff]")  # surrogateescape puts these in place of bytes that are no UTF-8

_Line = tuple[int, str | None]  # number from 1; None: more than MAX_LINE characters
Record = tuple[int, Sequence[str] | str]  # first physical line; its fields, or the sentence why it has none


class NotAList(Exception):
    """The file is no list of its format: the end of a sentence, with the remedy."""


@dataclass(frozen=True)
class Records:
    """The records of a list: youtube_id, time_start, time_end, label and split, empty where it has none."""

    has_split: bool
    records: Iterator[Record]


def read_csv(file: TextIO) -> Records:
    """CSV with a header that names the columns, in any order; others than `_COLUMNS` are ignored."""
    remedy = "give a CSV file whose first line names youtube_id, time_start, time_end"
    lines = _lines(file)
    line = next((text for _, text in lines if text is None or not text.isspace()), "")
    if not line:
        raise NotAList(f"{'is empty' if line == '' else 'has an endless first line'}; {remedy}.")
    if "\0" in line or _NOT_UTF8.search(line):
        raise NotAList(f"is not text in UTF-8; {remedy}, saved as UTF-8.")
    try:
        header = _split_line([line]) or []
    except csv.Error:
        header = []
    names = [re.sub(r"[\s-]+", "_", field.strip().lower()) for field in header]
    places = {}
    for column, aliases in _COLUMNS.items():
        found = [i for i, field in enumerate(names) if field in aliases]
        if len(found) > 1:
            raise NotAList(f"has more than one {column} column; remove all but one.")
        places[column] = found[0] if found else -1
    if missing := [column for column in _REQUIRED if places[column] < 0]:
        raise NotAList(f"is no manifest (its first line has no {', '.join(missing)}); {remedy}.")
    records = _pick(_csv_records(lines, len(names)), len(names), itemgetter(*places.values()))
    return Records(places["split"] >= 0, records)


READERS: dict[str, Callable[[TextIO], Records]] = {".csv": read_csv}
"""The reader of a format, by the ending of a file's name."""


def read(name: str, file: TextIO) -> Records:
    """The records of the list in `file`; one of an unknown ending is read as CSV. Raises `NotAList`."""
    return READERS.get(Path(name).suffix.lower(), read_csv)(file)


def _pick(records: Iterator[Record], count: int, pick: Callable[[Sequence[str]], tuple]) -> Iterator[Record]:
    """Bring the fields of each record into the order of `_COLUMNS`; place -1 is an empty text."""
    for number, fields in records:
        if isinstance(fields, str):
            yield number, fields
        elif len(fields) != count:
            yield number, f"the row has {len(fields)} fields where the header has {count}."
        else:
            yield number, pick((*fields, ""))


def _lines(file: TextIO) -> Iterator[_Line]:
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


def _csv_records(lines: Iterator[_Line], count: int) -> Iterator[Record]:
    """Records; a quote that is never closed costs its own line only.

    Reading goes on with the line after it, also where the quote finds a partner further down but the record
    then has not ``count`` fields.
    """
    pending: deque[_Line] = deque()
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


def _quoted(line: str, count: int, pending: deque[_Line], lines: Iterator[_Line]) -> list[str] | str:
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
