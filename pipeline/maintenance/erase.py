"""Erases samples of a shard: zeros of the same size, whose members are called ``__removed__``.

Writes a new file that takes the shard's name in one step. Changing the shard in place would tear a clip that
somebody is reading, and a kill would leave half a member; object stores cannot do it at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from pipeline.dataset.schema import REMOVED_MEMBER
from pipeline.outcome import Failed, FailureClass
from pipeline.storage import CHUNK, Storage

_BLOCK = tarfile.BLOCKSIZE
Spans = Sequence[tuple[int, int]]
"""(offset, size) of samples in a shard, in bytes: from the first header to the end of the last padding."""


class Digests(NamedTuple):
    """The sha256 of a shard as it is, and as it will be."""

    before: str
    after: str


def digests(storage: Storage, path: str, spans: Spans) -> Digests:
    """Compute the hashes of a shard before and after erasing; equal if it is erased already, or absent."""
    before, after = hashlib.sha256(), hashlib.sha256()
    with contextlib.suppress(FileNotFoundError), storage.open(path) as source:
        for old, new in erased(source, spans):
            before.update(old)
            after.update(new)
    return Digests(before.hexdigest(), after.hexdigest())


def erase(storage: Storage, path: str, spans: Spans, sha256: str) -> None:
    """Replace a shard by its erased form, in one step.

    Raises:
        Failed: class storage; also if the erased form has not the given `sha256`.
    """
    digest = hashlib.sha256()
    with storage.open(path) as source, storage.writer(path) as target:
        for _, new in erased(source, spans):
            target.write(new)
            digest.update(new)
        if digest.hexdigest() != sha256:
            reason = f"{storage.where(path)} changed while it was read; repeat the command"
            raise Failed(FailureClass.STORAGE, reason)


def erased(source: BinaryIO, spans: Spans) -> Iterator[tuple[bytes, bytes]]:
    """Read a shard in chunks; yields each with its erased form, of the same length."""
    position = 0
    for offset, size in sorted(spans):
        for chunk in _chunks(source, offset - position):
            yield chunk, chunk
        yield from _blanked(source, size)
        position = offset + size
    while chunk := source.read(CHUNK):
        yield chunk, chunk


def _blanked(source: BinaryIO, left: int) -> Iterator[tuple[bytes, bytes]]:
    """Read the members of one sample; yields them with headers renamed and payloads zeroed."""
    while left > 0:
        header = source.read(_BLOCK)
        if len(header) < _BLOCK:  # a shard that was cut off before
            yield header, bytes(len(header))
            return
        size = _payload(header, left - _BLOCK)
        member = tarfile.TarInfo(REMOVED_MEMBER)
        member.size, member.mode = size, 0o644
        yield header, member.tobuf(tarfile.USTAR_FORMAT)
        padded = -(-size // _BLOCK) * _BLOCK
        for chunk in _chunks(source, padded):
            yield chunk, bytes(len(chunk))
        left -= _BLOCK + padded


def _payload(header: bytes, left: int) -> int:
    """A member's size in bytes; all that is left of the sample if its header is damaged."""
    try:
        size = tarfile.TarInfo.frombuf(header, "ascii", "surrogateescape").size
    except tarfile.HeaderError:
        return left
    return size if 0 <= -(-size // _BLOCK) * _BLOCK <= left else left


def _chunks(source: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (chunk := source.read(min(size, CHUNK))):
        yield chunk
        size -= len(chunk)
