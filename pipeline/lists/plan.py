"""Decides for every manifest row, before anything is fetched: process, excluded or failed, and its shard.

Pure functions over all rows at once: `pipeline.lists.uniqueness` has the rules, this module the table and its
files. `pipeline.job.graph` carries a plan out; this module knows nothing of earlier runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.lists import manifest
from pipeline.lists.manifest import PRECEDENCE, ManifestError
from pipeline.lists.options import PlanOptions
from pipeline.lists.uniqueness import REASONS, collisions, column, encode, exclusions
from pipeline.outcome import EXCLUDED, FAILED, PROCESS, FailureClass
from pipeline.storage import Storage
from pipeline.storage.tables import read_table, write_table

_BLOCK = 16_384  # rows that become Python strings at a time

SCHEMA = pa.schema(
    [
        ("manifest", pa.string()),
        ("row", pa.int64()),  # first physical line of the record, the header is 1
        ("key", pa.string()),  # null for a malformed row, as are id, times, label and video
        ("youtube_id", pa.string()),
        ("time_start", pa.float64()),  # seconds
        ("time_end", pa.float64()),
        ("label", pa.string()),
        ("split", pa.string()),  # train | val | test | unknown
        ("class_index", pa.int32()),
        ("decision", pa.string()),  # process | excluded | failed
        ("excluded_for", pa.string()),  # duplicate | leak | listed
        ("yielded_to", pa.string()),  # 'MANIFEST:ROW key' of the row that has it instead
        ("failure_class", pa.string()),  # manifest
        ("reason", pa.string()),  # a sentence unless decision is process
        ("video", pa.string()),  # the identity of the source video
        ("shard", pa.int32()),  # number within the split; null unless decision is process
    ]
)

_PURPOSE = b"purpose"


def make(manifests: Sequence[pa.Table], options: PlanOptions, exclude: Sequence[pa.Table] = ()) -> pa.Table:
    """The plan: every row of the manifests (up to the limit) once, in their order, decided.

    Order of manifests, then of rows, breaks ties. In turn:

    - A malformed row, one whose label is not among the given classes, and all rows of a split that
      share a key but not every field have failed with class manifest.
    - A video of val is kept out of test and train, a video of test out of train (leak), whatever
      the uniqueness; a row that failed still keeps its video out of the splits that yield to it.
    - A video of an ``exclude`` list is kept out of train (listed).
    - Within a split the first row of a video (or of a clip) wins, others are duplicates.

    A row that yielded stays excluded whatever becomes of the winner. Leakage, duplicates and
    classes are judged on all rows, those beyond the limit too.

    Args:
        manifests, exclude: tables as `pipeline.lists.manifest.read` returns them.

    Returns:
        a table of `SCHEMA`, whose metadata hold the classes (see `classes`).

    Raises:
        ManifestError: one manifest is given twice.
    """
    rows = _concatenate(manifests)
    listed = _concatenate(exclude)
    coded = encode(rows, listed)
    labels = options.classes
    if labels is None:
        labels = tuple(sorted(pc.unique(rows["label"]).drop_null().to_pylist()))
    class_index = _class_index(rows, labels)
    labelled = pc.is_valid(column(rows, "label")).to_numpy(zero_copy_only=False)
    unlisted = labelled & (class_index < 0)
    collision, first = collisions(coded)
    failed = ~coded.valid | unlisted | collision
    code, winner = exclusions(coded, failed, options.unique)
    excluded = code >= 0
    planned = ~failed & ~excluded
    end = _end(failed, options.limit)
    planned[end:] = False

    key = _keys(rows)
    places = _Places(pa.concat_tables([rows, listed]), pa.chunked_array([key, _keys(listed)]))
    other, same = np.flatnonzero(unlisted), np.flatnonzero(collision)
    label, shared = _take(rows["label"], other), _take(places.key, same)
    no_class = _joined(
        places.line(other), ": the label '", label, "' is not among the classes given with --classes."
    )
    one_key = _joined(
        *(places.line(same), ": rows that differ share the key ", shared),
        *(", the first of them at ", places.line(first), "."),
    )
    reason = column(rows, "error")
    reason = _put(reason, unlisted, no_class)
    reason = _put(reason, collision, one_key)
    reason = _put(reason, excluded, _choose([text for _, text in REASONS], code[excluded]))
    columns = {name: rows[name] for name in rows.column_names} | {
        "key": key,
        "class_index": pa.array(class_index.astype(np.int32), mask=class_index < 0),
        "decision": _choose([PROCESS, EXCLUDED, FAILED], np.where(failed, 2, excluded)),
        "excluded_for": _choose([name for name, _ in REASONS], code),
        "yielded_to": _put(pa.nulls(len(code), pa.string()), excluded, places.named(winner[excluded])),
        "failure_class": _choose([str(FailureClass.MANIFEST)], np.where(failed, 0, -1)),
        "reason": reason,
        "video": rows["youtube_id"],
        "shard": _shards(key, column(rows, "split"), planned, options.shard_size),
    }
    schema = SCHEMA.with_metadata({"classes": json.dumps(list(labels), ensure_ascii=False)})
    return pa.table([columns[name] for name in schema.names], schema=schema).slice(0, end)


def classes(table: pa.Table) -> list[str]:
    """The label map that a plan was made with; a label's class index is its place."""
    return json.loads((table.schema.metadata or {})[b"classes"])


def only(table: pa.Table, chosen: np.ndarray, shard_size: int, purpose: str) -> pa.Table:
    """The chosen rows of a plan, bool (rows,), as the plan of one generation, in shards of its own.

    The `purpose` that they were chosen for is kept with the table (see `purpose_of`).
    """
    rows = table.filter(pa.array(chosen)).combine_chunks()
    planned = pc.equal(rows["decision"], PROCESS).combine_chunks().to_numpy(zero_copy_only=False)
    number = _shards(column(rows, "key"), column(rows, "split"), planned, shard_size)
    rows = rows.set_column(rows.schema.get_field_index("shard"), SCHEMA.field("shard"), number)
    return rows.replace_schema_metadata({**(table.schema.metadata or {}), _PURPOSE: purpose.encode()})


def purpose_of(table: pa.Table) -> str | None:
    """The purpose that the rows of a generation's plan were chosen for."""
    text = (table.schema.metadata or {}).get(_PURPOSE)
    return text.decode() if text is not None else None


def first_videos(table: pa.Table, chosen: np.ndarray, count: int) -> np.ndarray:
    """Of the chosen rows, bool (rows,), all that need no work and those of `count` videos.

    The videos are the first by the sha256 of their names, so that each wave is a fair sample of all splits
    and classes that are left.
    """
    planned = pc.equal(column(table, "decision"), PROCESS).to_numpy(zero_copy_only=False) & chosen
    video = column(table, "video").dictionary_encode()
    codes = video.indices.fill_null(-1).to_numpy()
    rank = np.full(len(video.dictionary) + 1, len(video.dictionary))
    wanted = np.unique(codes[planned])
    order = wanted[np.lexsort(_sha256(video.dictionary.take(pa.array(wanted))).T[::-1])]
    rank[order] = np.arange(len(order))
    return chosen & (~planned | (rank[codes] < count))


def write(table: pa.Table, storage: Storage, path: str) -> None:
    """Write a plan, or a part of one, as Parquet, whole or not at all."""
    write_table(storage, path, table)


def read(storage: Storage, path: str) -> pa.Table:
    """Read what `write` wrote."""
    return read_table(storage, path, SCHEMA, keep_metadata=True)


def digest(table: pa.Table) -> str:
    """64 hex digits over classes and rows; where the manifests lie on the disk makes no difference."""
    sha256 = hashlib.sha256(json.dumps(classes(table)).encode())
    _hash_column(sha256, column(table, "manifest").dictionary_encode().indices)
    for name in SCHEMA.names:
        if name not in ("manifest", "yielded_to", "reason"):
            _hash_column(sha256, column(table, name))
    return sha256.hexdigest()


def parts(table: pa.Table, count: int) -> list[pa.Table]:
    """The rows to process in ``count`` tables (some may be empty), all clips of a video side by side in one.

    A video's part is the first 8 bytes of the sha256 of its name, modulo ``count``: the same in
    every process. Within a part, videos come in the order of their first row.
    """
    planned = np.flatnonzero(pc.equal(table["decision"], PROCESS).to_numpy())
    video = column(table, "video").take(pa.array(planned)).dictionary_encode()
    video_part = (_sha256(video.dictionary)[:, 0] % np.uint64(count)).astype(np.int64)
    codes = video.indices.to_numpy()  # numbered by first appearance
    part = video_part[codes]
    order = pa.array(planned[np.lexsort((codes, part))])
    taken = pa.table([column(table, name).take(order) for name in table.column_names], schema=table.schema)
    ends = np.cumsum(np.bincount(part, minlength=count))
    return [taken.slice(end - size, size) for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]


def _shards(key: pa.Array, split: pa.Array, planned: np.ndarray, size: int) -> pa.Array:
    """Shard numbers: the planned rows of a split by the sha256 of the key, in even runs of at most `size`;
    null for other rows."""
    shard = np.zeros(len(planned), np.int32)
    for name in PRECEDENCE:
        found = np.flatnonzero(planned & pc.equal(split, name).to_numpy(zero_copy_only=False))
        if len(found):
            order = np.lexsort(_sha256(key.take(pa.array(found))).T[::-1])
            runs = -(-len(found) // size)
            shard[found[order]] = np.arange(len(found)) * runs // len(found)
    return pa.array(shard, mask=~planned)


def _sha256(texts: pa.Array) -> np.ndarray:
    """uint64 (n, 4): hashes as four big-endian words, so that they sort as their hex digits do."""
    words = np.empty((len(texts), 4), np.uint64)
    for first in range(0, len(texts), _BLOCK):
        block = texts.slice(first, _BLOCK).to_pylist()
        hashes = b"".join([hashlib.sha256(text.encode()).digest() for text in block])
        words[first : first + _BLOCK] = np.frombuffer(hashes, ">u8").reshape(-1, 4)
    return words


def _concatenate(tables: Sequence[pa.Table]) -> pa.Table:
    names = [name for table in tables for name in pc.unique(table["manifest"]).to_pylist()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ManifestError(f"{min(twice)}: is given twice; name each list once.")
    return pa.concat_tables([manifest.SCHEMA.empty_table(), *tables])


def _end(failed: np.ndarray, limit: int | None) -> int:
    """How many rows are part of the job: up to the last of the first ``limit`` rows that have not failed."""
    if limit is None or limit > np.count_nonzero(~failed):
        return len(failed)
    return int(np.flatnonzero(~failed)[limit - 1]) + 1 if limit else 0


def _class_index(rows: pa.Table, labels: Sequence[str]) -> np.ndarray:
    """int64 (n,), -1 for a row whose label is absent or not among the labels."""
    found = pc.index_in(column(rows, "label"), pa.array(labels, pa.string()), skip_nulls=True)
    return found.fill_null(-1).to_numpy()


def _keys(rows: pa.Table) -> pa.Array:
    """`pipeline.lists.manifest.key_of` over all rows; null for a malformed one."""

    def digits(name: str) -> pa.Array:
        whole = pc.round(column(rows, name), round_mode="half_to_even").cast(pa.int64())
        return pc.utf8_lpad(whole.cast(pa.string()), 6, "0")

    return pc.binary_join_element_wise(
        column(rows, "youtube_id"), digits("time_start"), digits("time_end"), "_"
    )


class _Places:
    """Rows as a person finds them; rows of the exclude lists are numbered after those of the plan."""

    def __init__(self, rows: pa.Table, key: pa.ChunkedArray):
        self.manifest, self.row, self.key = rows["manifest"], rows["row"], key

    def line(self, rows: np.ndarray) -> pa.Array:
        """'MANIFEST:ROW'."""
        manifests, numbers = (_take(values, rows) for values in (self.manifest, self.row))
        return _joined(manifests, ":", numbers.cast(pa.string()))

    def named(self, rows: np.ndarray) -> pa.Array:
        """'MANIFEST:ROW key'."""
        return _joined(self.line(rows), " ", _take(self.key, rows))


def _joined(*texts: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*texts, "")


def _take(values: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    return values.take(pa.array(rows)).combine_chunks()


def _choose(words: Sequence[str], codes: np.ndarray) -> pa.Array:
    """The word of each code, null for a negative one."""
    return pa.array(words, pa.string()).take(pa.array(codes.astype(np.int32), mask=codes < 0))


def _put(values: pa.Array, which: np.ndarray, those: pa.Array) -> pa.Array:
    return pc.replace_with_mask(values, pa.array(which), those)


def _hash_column(sha256: Any, values: pa.Array) -> None:
    """Feeds values and nulls, whatever the buffers under the nulls hold."""
    sha256.update(np.packbits(pc.is_null(values).to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_string(values.type):
        values = values.fill_null("")
        sha256.update(pc.binary_length(values).to_numpy().tobytes())
        for first in range(0, len(values), _BLOCK):
            sha256.update("".join(values.slice(first, _BLOCK).to_pylist()).encode())
    else:
        sha256.update(values.fill_null(0).to_numpy().tobytes())
