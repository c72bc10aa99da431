"""CRC-32C (Castagnoli), by which TensorFlow's files check themselves, for megabytes without compiled code."""

from __future__ import annotations

import numpy as np

_POLYNOMIAL = 0x82F63B78  # reflected; RFC 3720, section B.4
_LANES = 1 << 14


def _table() -> np.ndarray:
    """uint32 (256,): the register after one byte, from zero."""
    crc: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = crc >> 1 ^ np.where(crc & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return crc


_TABLE = _table()
_BITS = np.arange(32, dtype=np.uint32)[:, None]


def crc32c(data: bytes) -> int:
    """The checksum of `data` (RFC 3720: of b"123456789" it is 0xE3069283)."""
    if len(data) < 4:
        register = 0xFFFFFFFF
        for byte in data:
            register = register >> 8 ^ int(_TABLE[(register ^ byte) & 255])
        return register ^ 0xFFFFFFFF
    # To begin with ones is to begin with zero and the first four bytes inverted; and from zero, bytes of zero
    # in front change nothing, so that the data can be cut into lanes of one length.
    length = -(-len(data) // _LANES)
    count = -(-len(data) // length)
    lanes = np.zeros(count * length, np.uint8)
    lanes[-len(data) :] = np.frombuffer(data, np.uint8)
    lanes[len(lanes) - len(data) :][:4] ^= 255
    columns = np.ascontiguousarray(lanes.reshape(count, length).T)
    registers = np.zeros(count, np.uint32)
    for column in columns:
        registers = registers >> 8 ^ _TABLE[(registers ^ column) & 255]
    return _joined(registers, length) ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """The form in which a checksum is stored (tensorflow/core/lib/hash/crc32c.h): rotated, and moved."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _joined(registers: np.ndarray, length: int) -> int:
    """The register after all lanes, of those after each, lanes being `length` bytes long."""
    shift = _shift(length)
    while len(registers) > 1:
        if len(registers) % 2:
            registers = np.concatenate([np.zeros(1, np.uint32), registers])
        registers = _through(shift, registers[::2]) ^ registers[1::2]
        shift = _through(shift, shift)
    return int(registers[0])


def _shift(length: int) -> np.ndarray:
    """uint32 (32,): what `length` bytes of zero make of each bit of the register."""
    bits = np.uint32(1) << _BITS[:, 0]
    result, power = bits, bits >> 8 ^ _TABLE[bits & 255]
    while length:
        if length & 1:
            result = _through(power, result)
        power = _through(power, power)
        length >>= 1
    return result


def _through(matrix: np.ndarray, registers: np.ndarray) -> np.ndarray:
    """The registers multiplied by a matrix over GF(2) whose columns are `matrix`."""
    return np.bitwise_xor.reduce((registers >> _BITS & 1) * matrix[:, None], axis=0)
