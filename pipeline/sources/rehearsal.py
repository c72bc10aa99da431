"""The whole job without its work: nothing is fetched, encoded or solved. Stand-ins of a few bytes pass
through work store, shards and index in place of the media.

For ``prepare --rehearse``: shows what the job itself costs with these lists, this cluster and this storage,
and whether all of them work together, before days are spent. Its recipe names the rehearsal, so its output is
never taken for that of a real data set or work store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.media.clip import ClipFrames
from pipeline.media.probe import SourceInfo
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed
from pipeline.recipe import Recipe
from pipeline.sources.base import Fetched, FetchOptions, Piece, Video
from pipeline.storage.work_store import WorkStore

NAME = "rehearsal"
"""The specification of the source, and the encoder in the recipe."""

_WIDTH = 340  # pixels, the usual width of a clip
_STAND_IN = b"This stands for a video in a rehearsal.\n"


@dataclass(frozen=True)
class Rehearsal:
    """Stands in for the source of the videos and for `pipeline.job.media_stages.MediaStages`."""

    kind: str = NAME
    network: bool = True

    @classmethod
    def of(cls, spec: str) -> Rehearsal:
        """The source for ``rehearsal``."""
        return cls()

    def fetch(self, video: Video, folder: Path, options: FetchOptions) -> Fetched:
        """A stand-in for each clip, as a site brings sections; it never fails."""
        pieces: dict[str, Piece | Failed] = {}
        for wanted in video.clips:
            path = folder / f"{wanted.key}.source.mp4"
            path.write_bytes(_STAND_IN)
            pieces[wanted.key] = Piece.of(wanted, path, NAME, trimmed=False)
        return Fetched(pieces, tool=NAME)

    def complete(self, recipe: Recipe, ffmpeg: str | None, flow_device: str) -> Recipe:
        """`recipe` with the rehearsal named in every stage."""
        return Recipe(
            replace(recipe.fetch, codec=NAME),
            replace(recipe.encode, encoder=NAME),
            recipe.flow and replace(recipe.flow, device=NAME, encoder=NAME),
        )

    def check_machine(self, recipe: Recipe, ffmpeg: str | None, store: WorkStore) -> None:
        """Any machine will do."""

    def cut(self, piece: Piece, recipe: EncodeRecipe, out: Path | None, ffmpeg: str | None) -> ClipFrames:
        """The result of `pipeline.media.clip.cut` for a common clip: no planes, a stand-in in `out`."""
        if out is not None:
            out.write_bytes(_STAND_IN)
        frames = round(recipe.rate * (piece.end - piece.start))
        planes = np.zeros((0, recipe.short_side, _WIDTH), np.uint8)
        return ClipFrames(frames, frames, _WIDTH, recipe.short_side, planes, _INFO, note=None)

    def write_flow(self, cut: ClipFrames, recipe: Recipe, out: Path, ffmpeg: str | None) -> float:
        """A stand-in for the flow; returns the share of saturated values, which is 0."""
        out.write_bytes(_STAND_IN)
        return 0.0


_INFO = SourceInfo(
    container="mp4",
    codec=NAME,
    width=_WIDTH,
    height=EncodeRecipe.short_side,
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
