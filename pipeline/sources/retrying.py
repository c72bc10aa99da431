"""Brings a video from several sources: in order, and again where the network failed.

`pipeline.sources.ytdlp.failures` decides about the class of a failure.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.outcome import RETRY_AFTER, Failed, FailureClass
from pipeline.sources.base import Fetched, FetchOptions, Piece, Source, Video, share_one_file
from pipeline.sources.ytdlp.failures import FailedForNow

LONGEST_PAUSE = 30.0
"""Seconds between two attempts, at most (before jitter)."""

_LEAST = 1.0  # seconds: with less time left another attempt is pointless


def fetch(video: Video, sources: tuple[Source, ...], folder: Path, options: FetchOptions) -> Fetched:
    """Bring each clip of `video` from the first source that has it.

    After a failure of class network a source is asked again, up to `options.attempts` times within
    `options.timeout` seconds, with growing pauses. A clip that one source lacks is asked of the next.

    Args:
        sources: in the order in which they are tried.
        folder: an existing folder for files; no partial file is left in it under a piece's name.

    Returns:
        A piece for every clip, or its most telling failure: one that may pass with time before one that will
        not, and either before "not in the folder".
    """
    results: list[Fetched] = []
    pieces: dict[str, Piece | Failed] = {}
    for source in sources:
        wanted = tuple(clip for clip in video.clips if not isinstance(pieces.get(clip.key), Piece))
        if not wanted:
            break
        fetched = _patiently(replace(video, clips=wanted), source, folder, options)
        results.append(fetched)
        for key, piece in fetched.pieces.items():
            earlier = pieces.get(key)
            if isinstance(earlier, Failed) and isinstance(piece, Failed):
                piece = most_telling([earlier, piece])
            pieces[key] = piece
    return Fetched(
        {clip.key: pieces[clip.key] for clip in video.clips},
        requests=sum(r.requests for r in results),
        whole=share_one_file(pieces) and any(r.whole for r in results),
        tool=next((r.tool for r in reversed(results) if r.tool), ""),
        attempts=max((r.attempts for r in results), default=0),
        fallbacks=tuple(why for r in results for why in r.fallbacks),
    )


def _patiently(video: Video, source: Source, folder: Path, options: FetchOptions) -> Fetched:
    """Ask one source, and again for clips with a network failure while attempts and time are left."""
    deadline = time.monotonic() + options.timeout
    fetched = source.fetch(video, folder, options)
    for attempt in range(1, options.attempts if source.network else 1):
        again = tuple(clip for clip in video.clips if worth_repeating(fetched.pieces[clip.key]))
        pause = min(LONGEST_PAUSE, options.backoff * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5)
        left = deadline - time.monotonic() - pause
        if not again or left < _LEAST:
            break
        time.sleep(pause)
        last = source.fetch(replace(video, clips=again), folder, replace(options, timeout=left))
        pieces = fetched.pieces | last.pieces
        fetched = replace(
            last,
            pieces=pieces,
            requests=fetched.requests + last.requests,
            whole=last.whole and share_one_file(pieces),
            attempts=attempt + 1,
            fallbacks=fetched.fallbacks + last.fallbacks,
        )
    return fetched


def worth_repeating(piece: Piece | Failed) -> bool:
    """Whether a retry in the same run may help: the network failed, and the site named no later time."""
    return (
        isinstance(piece, Failed)
        and piece.failure_class is FailureClass.NETWORK
        and not isinstance(piece, FailedForNow)
    )


def most_telling(failures: Sequence[Failed]) -> Failed:
    """The failure to keep of several sources' for one clip, as `fetch` says; the first of equals."""

    def rank(failed: Failed) -> tuple[bool, bool]:
        kind = failed.failure_class
        return kind is FailureClass.MISSING, kind not in RETRY_AFTER

    return min(failures, key=rank)
