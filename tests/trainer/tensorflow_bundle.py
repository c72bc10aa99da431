"""A writer of TensorFlow's checkpoints of version 2, after the format's documents and not after our reader.

tensorflow/core/lib/io/table_format.txt and table_builder.cc, tensor_bundle.proto, tensor_shape.proto and
types.proto, and the masked CRC-32C of tensorflow/core/lib/hash/crc32c.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numba
import numpy as np

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "float16": 19}


@numba.njit(cache=True)
def _crc(data, crc):
    after = np.empty(256, np.int64)
    for byte in range(256):
        value = np.int64(byte)
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 * (value & 1))
        after[byte] = value
    for byte in data:
        crc = (crc >> 8) ^ after[(crc ^ byte) & 255]
    return crc


def checksum(data: bytes) -> int:
    """Byte by byte, then rotated by 15 and moved by 0xa282ead8."""
    crc = int(_crc(np.frombuffer(data, np.uint8), np.int64(0xFFFFFFFF))) ^ 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF


def write(
    prefix: Path,
    variables: Mapping[str, np.ndarray],
    shards: int = 1,
    block_size: int = 262_144,
    restart_interval: int = 16,
    header: bytes | None = None,
    extra: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Writes `prefix`.index and its shards, which take the variables in turn.

    Args:
        block_size: bytes after which a block of the index ends; TensorFlow's is 262144.
        restart_interval: keys after which one is written whole.
        header: another BundleHeaderProto.
        extra: more rows of the index.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True)
    data = [bytearray() for _ in range(shards)]
    rows = [(b"", header or varint(1 << 3) + varint(shards) + message(3, number(1, 1)))]
    for place, name in enumerate(sorted(variables)):
        value = np.asarray(variables[name])
        shard, payload = place % shards, value.tobytes()
        shape = b"".join(message(2, number(1, size)) for size in value.shape)
        entry = number(1, DTYPES[str(value.dtype)]) + message(2, shape) + number(3, shard)
        entry += number(4, len(data[shard])) + number(5, len(payload))
        entry += varint(6 << 3 | 5) + struct.pack("<I", checksum(payload))
        rows.append((name.encode(), entry))
        data[shard] += payload
    rows = [*rows, *extra]
    for place, payload in enumerate(data):
        path = prefix.with_name(f"{prefix.name}.data-{place:05d}-of-{shards:05d}")
        path.write_bytes(payload)
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(rows, block_size, restart_interval))


def table(
    rows: Sequence[tuple[bytes, bytes]], block_size: int = 262_144, restart_interval: int = 16
) -> bytes:
    """A sorted table of `rows`."""
    out = bytearray()
    handles = []
    part: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in rows:
        part.append((key, value))
        size += len(key) + len(value)
        if size >= block_size:
            handles.append((key, _append(out, block(part, restart_interval))))
            part, size = [], 0
    if part:
        handles.append((part[-1][0], _append(out, block(part, restart_interval))))
    meta = _append(out, block([], restart_interval))
    index = _append(out, block([(key + b"\x01", handle) for key, handle in handles], 1))
    footer = meta + index
    return bytes(out + footer + bytes(40 - len(footer)) + struct.pack("<Q", 0xDB4775248B80FB57))


def block(rows: Sequence[tuple[bytes, bytes]], restart_interval: int) -> bytes:
    """Rows, of whose keys the beginning is left out where it is the former's; then where that begins anew."""
    out, restarts, before = bytearray(), [], b""
    for place, (key, value) in enumerate(rows):
        shared = 0
        if place % restart_interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return bytes(out) + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def _append(out: bytearray, contents: bytes) -> bytes:
    """Appends a block, uncompressed, with its trailer; returns its handle."""
    handle = varint(len(out)) + varint(len(contents))
    out += contents + b"\0" + struct.pack("<I", checksum(contents + b"\0"))
    return handle


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out + bytes([value]))


def number(field: int, value: int) -> bytes:
    """A field of a protocol buffer; zero is left out, as proto3 does."""
    return varint(field << 3) + varint(value) if value else b""


def message(field: int, contents: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(contents)) + contents
