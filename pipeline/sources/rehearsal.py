"""The whole job without its work: nothing is fetched, encoded or solved, and stand-ins of a few bytes go the
way of the media, through work store, shards and index.

For ``prepare --rehearse``: what the job itself costs with these lists, this cluster and this storage, and
whether all of them work together, before days are spent. Its recipe says what it is, and so what it makes is
never taken for a real data set's, nor for a real work store's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.flow.recipe import FlowRecipe
from pipeline.media import clip
from pipeline.media.probe import SourceInfo
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed
from pipeline.recipe import Recipe
from pipeline.sources.base import Fetched, FetchOptions, Piece, Video
from pipeline.sources.recipe import FetchRecipe

NAME = "rehearsal"
"""Of the source and of the encoder."""

_WIDTH = 340  # pixels, of a clip as they mostly are
_STAND_IN = b"This stands for a video in a rehearsal.\n"


def recipe(flow: bool) -> Recipe:
    """The recipe that says that nothing was made."""
    codec = FetchRecipe(codec=NAME)
    return Recipe(codec, EncodeRecipe(encoder=NAME), FlowRecipe(device=NAME, encoder=NAME) if flow else None)


class RehearsalSource:
    """Brings a stand-in for each clip at once, as a site brings sections."""

    kind = NAME
    network = True

    @classmethod
    def of(cls, spec: str) -> RehearsalSource:
        """The source for ``rehearsal``."""
        return cls()

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """As `pipeline.sources.base.Source` says; it never fails."""
        pieces: dict[str, Piece | Failed] = {}
        for wanted in video.clips:
            path = folder / f"{wanted.key}.source.mp4"
            path.write_bytes(_STAND_IN)
            pieces[wanted.key] = Piece.of(wanted, path, NAME, trimmed=False)
        return Fetched(pieces, tool=NAME)


def cut(start: float, end: float, encode: EncodeRecipe, out: Path | None) -> clip.Cut:
    """What `pipeline.media.clip.cut` would say of a clip, with no planes and a stand-in in `out`."""
    if out is not None:
        out.write_bytes(_STAND_IN)
    frames = round(encode.rate * (end - start))
    planes = np.zeros((0, encode.short_side, _WIDTH), np.uint8)
    return clip.Cut(frames, frames, _WIDTH, encode.short_side, planes, _INFO, note=None)


def write_flow(out: Path) -> float:
    """A stand-in for the flow; the share of saturated values, which is 0."""
    out.write_bytes(_STAND_IN)
    return 0.0


_INFO = SourceInfo(
    container="mp4",
    codec=NAME,
    width=_WIDTH,
    height=EncodeRecipe().short_side,
    sar="1:1",
    rotation=0,
    rate=25.0,
    constant_rate=25.0,
    duration=None,
    start=0.0,
    first=None,
    end=None,
    end_is_video=False,
    transfer=None,
    matrix=None,
)
