"""Reads TensorFlow's checkpoints of version 2 ("tensor bundles") without TensorFlow.

Owns the format: the index, a sorted table as LevelDB writes it, and the shards of data that it points into
(tensorflow/core/util/tensor_bundle, tensorflow/core/lib/io/table_format.txt, tensor_bundle.proto). Every byte
is held against a checksum or a size; nothing in a file is run, and no size in it is believed before it is
compared with the file's own. `trainer.weights.formats` knows what the variables mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import torch
from torch import Tensor

from trainer.weights.keys import WeightsError

TYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    9: torch.int64,
    14: torch.bfloat16,
    19: torch.float16,
}
"""DT_ numbers of types.proto that weights and counters come in."""

_MAGIC = bytes.fromhex("57fb808b247547db")  # 0xdb4775248b80fb57, little-endian
_FOOTER_SIZE = 48
_TRAILER_SIZE = 5  # after each block: its compression, and the checksum over both
_MOST_INDEX = 1 << 24  # bytes; DeepMind's have some 10,000 for 230 variables
_MOST_ROWS = 100_000
_MOST_SHARDS = 10_000
_LONGEST_NAME = 1024
_MOST_DIMENSIONS = 16
_MOST_ELEMENTS = 1 << 31  # also where one dimension is 0 and the size says nothing of the others
_SHARD = re.compile(r"\.data-\d{5}-of-\d{5}\Z")
_DAMAGED = "download it again"


@dataclass(frozen=True)
class Entry:
    """Where a variable lies: BundleEntryProto."""

    name: str
    type: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int  # bytes
    crc: int  # masked


def prefix(path: Path) -> Path | None:
    """Find the prefix of a checkpoint's file names, from the prefix, one of its files, or their folder.

    `checkpoint`, the file in which TensorFlow notes what it wrote last, stands for the folder that it is in.
    """
    if not path.is_dir():
        name = _SHARD.sub("", path.name.removesuffix(".index").removesuffix(".meta"))
        if path.with_name(f"{name}.index").is_file():
            return path.with_name(name)
        if path.name != "checkpoint":
            return None
        path = path.parent
    found = sorted(path.glob("*.index"))
    if len(found) > 1:
        raise WeightsError(f"{path} holds {len(found)} checkpoints: name one, such as {found[0]}")
    return found[0].with_suffix("") if found else None


def read(path: Path) -> dict[str, Tensor]:
    """Read all variables of the checkpoint at `path`, as `prefix` takes it, by name.

    Raises WeightsError for files that are absent, cut short, damaged in any byte, or of another format.
    """
    start = prefix(path)
    if start is None:
        raise WeightsError(f"{path} is no TensorFlow checkpoint: there is no {path.name}.index")
    index = start.with_name(f"{start.name}.index")
    try:
        shards, entries = _read_index(index)
        files = [start.with_name(f"{start.name}.data-{i:05}-of-{shards:05}") for i in range(shards)]
        found: dict[str, Tensor] = {}
        for number, file in enumerate(files):
            mine = sorted((e for e in entries if e.shard == number), key=lambda e: (e.offset, e.size))
            found |= _read_shard(file, mine)
    except OSError as error:
        raise WeightsError(f"{error.filename} cannot be read ({error.strerror}): {_DAMAGED}") from None
    return {entry.name: found[entry.name] for entry in entries}


def masked_crc(data: bytes) -> int:
    """The CRC-32C of `data` in the form that TensorFlow stores (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_shard(file: Path, entries: list[Entry]) -> dict[str, Tensor]:
    """The variables that lie in `file`, side by side from its first byte to its last."""
    found = {}
    with file.open("rb") as stream:
        size = file.stat().st_size
        end = 0
        for entry in entries:
            if entry.offset != end or entry.offset + entry.size > size:
                raise WeightsError(f"{file} does not hold {entry.name} where it should: {_DAMAGED}")
            found[entry.name] = _read_tensor(stream, file, entry)
            end += entry.size
        if end != size:
            raise WeightsError(f"{file} has {size} bytes, its variables {end}: {_DAMAGED}")
    return found


def _read_tensor(stream: BinaryIO, file: Path, entry: Entry) -> Tensor:
    dtype = TYPES.get(entry.type)
    if dtype is None:
        what = f"{entry.name} of type {entry.type}, no number"
        raise WeightsError(f"{file} holds {what}: take a checkpoint of weights")
    most = math.prod(max(1, length) for length in entry.shape)
    if most > _MOST_ELEMENTS or math.prod(entry.shape) * dtype.itemsize != entry.size:
        raise WeightsError(f"{file}: {entry.name} is no {dtype} of {entry.shape}: {_DAMAGED}")
    data = bytearray(stream.read(entry.size))
    if masked_crc(bytes(data)) != entry.crc:
        raise WeightsError(f"{file} is damaged in {entry.name}, its checksum is another: {_DAMAGED}")
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(entry.shape)


def _read_index(file: Path) -> tuple[int, list[Entry]]:
    """The number of shards, and the entries in the order of their names."""
    with file.open("rb") as stream:
        data = stream.read(_MOST_INDEX + 1)
    if len(data) > _MOST_INDEX:
        raise WeightsError(f"{file} is too large for an index of weights: take another checkpoint")
    try:
        rows = list(islice(_rows(data), _MOST_ROWS + 1))
        if len(rows) > _MOST_ROWS:
            raise ValueError("it names more variables than a network has")
        if not rows or rows[0][0]:
            raise ValueError("it has no header")
        shards = _shards(rows[0][1])
        entries = [_entry(name, value) for name, value in rows[1:]]
        if wrong := [e for e in entries if e.shard >= shards]:
            raise ValueError(f"{wrong[0].name} is in shard {wrong[0].shard} of {shards}")
    except ValueError as error:
        raise WeightsError(f"{file} is damaged or no index of TensorFlow ({error}): {_DAMAGED}") from None
    return shards, entries


def _rows(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the table, in its order. Raises ValueError, IndexError."""
    footer = data[-_FOOTER_SIZE:]
    if len(data) < _FOOTER_SIZE or not footer.endswith(_MAGIC):
        raise ValueError("its last bytes are others")
    stream = BytesIO(footer.removesuffix(_MAGIC))
    meta, index = _handle(stream), _handle(stream)
    if any(stream.read()):
        raise ValueError("its footer is longer than it should be")
    handles = []
    for _, value in _block(data, *index):
        stream = BytesIO(value)
        handles.append(_handle(stream))
        if stream.read():
            raise ValueError("a block's place is not understood")
    handles += [meta, index]
    end = 0
    for begin, length in handles:  # side by side, so that no byte stands outside a block
        if begin != end:
            raise ValueError("its blocks do not lie side by side")
        end = begin + length + _TRAILER_SIZE
    if end != len(data) - _FOOTER_SIZE:
        raise ValueError("its blocks do not end where its footer begins")
    if list(_block(data, *meta)):
        raise ValueError("it has a filter, which TensorFlow does not write")
    before: bytes | None = None
    for handle in handles[:-2]:
        for key, value in _block(data, *handle):
            if before is not None and key <= before:
                raise ValueError("its keys are not in order")
            yield key, value
            before = key


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the block whose contents are data[offset:offset + size]."""
    end = offset + size
    if end + _TRAILER_SIZE > len(data) - _FOOTER_SIZE or size < 4:
        raise ValueError("a block lies outside it")
    if masked_crc(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + _TRAILER_SIZE], "little"):
        raise ValueError("the checksum of a block is another")
    if data[end]:
        raise ValueError("it is compressed, which TensorFlow does not do to an index")
    restarts = int.from_bytes(data[end - 4 : end], "little")
    most = size - 4 - 4 * restarts
    if most < 0:
        raise ValueError("a block has more restarts than bytes")
    key, stream = b"", BytesIO(data[offset : offset + most])
    while stream.tell() < most:
        shared, rest, length = _varint(stream), _varint(stream), _varint(stream)
        if shared > len(key) or stream.tell() + rest + length > most:
            raise ValueError("an entry is longer than its block")
        if shared + rest > _LONGEST_NAME:
            raise ValueError("a name is longer than a variable's")
        key = key[:shared] + stream.read(rest)
        yield key, stream.read(length)


def _handle(stream: BytesIO) -> tuple[int, int]:
    """The place of a block: its offset and size."""
    return _varint(stream), _varint(stream)


def _shards(header: bytes) -> int:
    """The number of shards that a BundleHeaderProto names."""
    fields = dict(_fields(header))
    shards, endianness = fields.get(1, 0), fields.get(2, 0)
    if not isinstance(shards, int) or not 0 < shards <= _MOST_SHARDS:
        raise ValueError(f"it names {shards!r} shards")
    if endianness:
        raise ValueError("it was written on a big-endian machine")
    return shards


def _entry(name: bytes, value: bytes) -> Entry:
    """A BundleEntryProto."""
    plain: dict[int, int] = {}
    shape: tuple[int, ...] = ()
    for number, field in _fields(value):
        if number == 7:
            raise ValueError(f"{name!r} is partitioned, which no checkpoint of weights known here is")
        if number == 2 and isinstance(field, bytes):
            sizes = [dict(_fields(f)).get(1, 0) for n, f in _fields(field) if n == 2 and isinstance(f, bytes)]
            shape = tuple(size for size in sizes if isinstance(size, int))
            if len(shape) != len(sizes):
                raise ValueError("a dimension is no number")
        elif isinstance(field, int):
            plain[number] = field
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{name!r} has {len(shape)} dimensions")
    shard, offset, size, crc = (plain.get(number, 0) for number in (3, 4, 5, 6))
    return Entry(name.decode("utf-8"), plain.get(1, 0), shape, shard, offset, size, crc)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields (protobuf.dev/programming-guides/encoding)."""
    stream = BytesIO(data)
    while stream.tell() < len(data):
        number, kind = divmod(_varint(stream), 8)
        if kind == 0:
            yield number, _varint(stream)
            continue
        if kind not in (1, 2, 5):
            raise ValueError("a message is not understood")
        length = _varint(stream) if kind == 2 else {1: 8, 5: 4}[kind]
        if stream.tell() + length > len(data):
            raise ValueError("a message is cut short")
        piece = stream.read(length)
        yield number, piece if kind == 2 else int.from_bytes(piece, "little")


def _varint(stream: BytesIO) -> int:
    """The next number, of seven bits a byte. Raises ValueError where the data ends."""
    value = 0
    for shift in range(0, 70, 7):
        if not (byte := stream.read(1)):
            raise ValueError("it ends early")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number has no end")
