"""Ranged reads of samples, many in flight: only the bytes of the members that are trained on.

Knows places, not contents. Clients of object stores are made by the process that reads.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from pipeline.dataset import REMOVED_MEMBER
from pipeline.outcome import Failed
from pipeline.storage import open_storage
from trainer.data.cache import Cache
from trainer.data.rows import MEDIA, Rows

_HEADER = 512  # bytes of a tar header, right before each payload

T = TypeVar("T")


class SampleError(ValueError):
    """The bytes at a row's place are not its sample's: a failure, and another row takes its place."""


class RemovedError(SampleError):
    """The clip was removed after the index was read: no failure, and another row takes its place."""


class ReadError(RuntimeError):
    """The data cannot be reached, so training must not go on without them; one sentence."""


class Reader:
    """Reads the members of samples for `streams` ("rgb", "flow" or both, which come in one read)."""

    def __init__(self, rows: Rows, streams: tuple[str, ...], cache: Cache | None = None):
        self._rows, self._streams, self._cache = rows, streams, cache
        self._storages = [open_storage(root) for root in rows.roots]

    def read(self, row: int) -> dict[str, bytes]:
        """The members of a row by stream.

        Raises:
            RemovedError: it was removed during this run.
            SampleError: the shard ends before them, or another sample is at their place.
            ReadError: the shard is absent, or the storage does not answer.
        """
        root, _ = self._rows.shards[self._rows.shard[row]]
        if self._cache is None or self._storages[root].is_local:
            return self._fetch(row, self._streams)
        digests = {s: self._rows.digests[s][row].as_py() for s in self._streams}
        members = {s: data for s, d in digests.items() if (data := self._cache.get(d)) is not None}
        if missing := tuple(s for s in self._streams if s not in members):
            members |= self._fetch(row, missing)
            for stream in missing:
                if hashlib.sha256(members[stream]).hexdigest() != digests[stream]:
                    raise SampleError(f"its {stream} is not what the index says")
                self._cache.put(digests[stream], members[stream])
        return members

    def _fetch(self, row: int, streams: tuple[str, ...]) -> dict[str, bytes]:
        rows = self._rows
        root, path = rows.shards[rows.shard[row]]
        places = {s: (int(rows.offsets[s][row]), int(rows.sizes[s][row])) for s in streams}
        begin = min(offset for offset, _ in places.values()) - _HEADER
        end = max(offset + size for offset, size in places.values())
        if begin < 0:
            raise SampleError("the index points before the shard's first member")
        storage = self._storages[root]
        try:
            data = storage.read_range(path, begin, end - begin)
        except FileNotFoundError:
            where = storage.where(path)
            raise ReadError(f"{where} is missing: bring it back, or prepare the data set again") from None
        except Failed as error:  # the store's client has asked as often as it is set to
            raise ReadError(error.reason) from None
        if len(data) != end - begin:
            raise SampleError(f"{path} ends before it does")
        for stream, (offset, _) in places.items():
            name = data[offset - begin - _HEADER :][:100].split(b"\0", 1)[0]
            if name != f"{rows.keys[row].as_py()}.{MEDIA[stream]}".encode():
                if name == REMOVED_MEMBER.encode():
                    raise RemovedError("it was taken down")
                found = name.decode("ascii", "replace")
                raise SampleError(f"{path} has {found!r} at its place: the index is of another state")
        return {s: data[offset - begin : offset - begin + size] for s, (offset, size) in places.items()}


def ahead(
    reader: Reader, wanted: Iterable[tuple[T, int]], in_flight: int
) -> Generator[tuple[T, Future[dict[str, bytes]]]]:
    """Yields the items of (item, row) pairs with their members, while the next `in_flight` rows are read."""
    pending: deque[tuple[T, Future[dict[str, bytes]]]] = deque()
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="read")
    try:
        for item, row in wanted:
            pending.append((item, pool.submit(reader.read, row)))
            if len(pending) > in_flight:
                yield pending.popleft()
        yield from pending
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
