"""Fetches the clips of a video through yt-dlp, address by address, within one time limit.

yt-dlp runs in a process of its own (`pipeline.sources.ytdlp.process`): one extraction an address, then one
range for each clip, or a full download where ranges cannot be had.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from pipeline.outcome import Failed
from pipeline.sources.base import Fetched, FetchOptions, Piece, share_one_file
from pipeline.sources.ytdlp import process
from pipeline.sources.ytdlp.failures import failure_of, record_of
from pipeline.sources.ytdlp.options import FetchRequest

if TYPE_CHECKING:
    from pipeline.lists.manifest import Clip

STALL_SECONDS = 20.0
"""Seconds without a byte after which a connection counts as stalled."""


def section(clip: Clip, options: FetchOptions) -> tuple[float, float]:
    """Seconds to ask for, so that the encode has its pre-roll and the frame after the last."""
    low = max(0.0, clip.time_start - options.recipe.before)
    return math.floor(low * 1000) / 1000, math.ceil((clip.time_end + options.recipe.after) * 1000) / 1000


def fetch(
    kind: str,
    clips_by_url: Mapping[str, tuple[Clip, ...]],
    folder: Path,
    options: FetchOptions,
    *,
    trusted: tuple[str, ...] = (),
    trimmed: bool = False,
) -> Fetched:
    """Ask for each address in turn and gather the results, each address in a folder of its own.

    Args:
        kind: of the source, for its pieces.
        clips_by_url: address -> the clips that it holds.
        trusted: URLs named by the user, whose hosts may have private addresses.
        trimmed: each address holds its clips alone, so that the whole file is wanted.
    """
    from pipeline.media.clip import ffmpeg_binary

    deadline = monotonic() + options.timeout
    ffmpeg = ffmpeg_binary(options.ffmpeg)
    pieces: dict[str, Piece | Failed] = {}
    requests, tool, fallbacks = 0, "", []
    for url, clips in clips_by_url.items():
        own = Path(tempfile.mkdtemp(prefix="fetch-", dir=folder))
        request = FetchRequest(
            url=url,
            site=kind == "youtube",
            ranges=[] if trimmed else [[*section(c, options), c.time_start, c.time_end] for c in clips],
            folder=str(own),
            short_side=options.recipe.short_side,
            codec=options.recipe.codec,
            ffmpeg=ffmpeg,
            trusted=list(trusted),
            cookies=options.cookies,
            proxy=options.proxy,
            ytdlp=dict(options.ytdlp),
            max_bytes=options.max_bytes,
            max_duration=options.max_duration,
            stall_seconds=min(STALL_SECONDS, options.timeout / 2),
        )
        try:
            answer = process.ask(request, max(0.1, deadline - monotonic()))
        except Failed as failure:
            answer = {"pieces": [record_of(failure)], "requests": 1, "fallback": None, "tool": tool}
        tool = answer["tool"]
        requests += answer["requests"]
        fallbacks += [answer["fallback"]] if answer["fallback"] else []
        results = answer["pieces"] * len(clips) if len(answer["pieces"]) == 1 else answer["pieces"]
        found = {c.key: _piece(c, one, kind, trimmed) for c, one in zip(clips, results, strict=True)}
        if not any(isinstance(piece, Piece) for piece in found.values()):
            shutil.rmtree(own, ignore_errors=True)
        pieces |= found
    whole = share_one_file(pieces) and all(
        isinstance(p, Piece) and p.path.stem == "whole" for p in pieces.values()
    )
    return Fetched(pieces, requests, whole, tool, fallbacks=tuple(fallbacks))


def _piece(clip: Clip, result: dict[str, Any], kind: str, trimmed: bool) -> Piece | Failed:
    if "failed" in result:
        return failure_of(result)
    return Piece.of(clip, Path(result["file"]), kind, trimmed=trimmed, duration=result["duration"])
