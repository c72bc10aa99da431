"""Makes the media of a clip: the encode and flow stages, and the check of the machine that runs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.flow import coding, device_class, tvl1_clip, tvl1_pairs
from pipeline.flow.recipe import FlowRecipe
from pipeline.job.canary import check_canary
from pipeline.media import clip
from pipeline.media.recipe import EncodeRecipe
from pipeline.recipe import Recipe
from pipeline.sources import Piece
from pipeline.sources.rehearsal import NAME, Rehearsal
from pipeline.storage.work_store import WorkStore


def media_for(specs: Sequence[str]) -> MediaStages | Rehearsal:
    """The maker of clips for these sources: stand-ins in a rehearsal, else real media."""
    return Rehearsal() if tuple(specs) == (NAME,) else MediaStages()


def timeout_for(seconds: float) -> float:
    """The most seconds that a stage may work on a clip of `seconds`: far more than a slow core needs, so that
    only a hang reaches it."""
    return 300.0 + 30.0 * seconds


@dataclass(frozen=True)
class MediaStages:
    """Makes real clips; `pipeline.sources.rehearsal.Rehearsal` has the same methods and makes stand-ins."""

    def complete(self, recipe: Recipe, ffmpeg: str | None, flow_device: str) -> Recipe:
        """`recipe` with the version of the encoder and the kind of machine that computes the flow."""
        encoder = clip.encoder_version(clip.ffmpeg_binary(ffmpeg))
        flow = recipe.flow and replace(recipe.flow, device=device_class(flow_device), encoder=encoder)
        return replace(recipe, encode=replace(recipe.encode, encoder=encoder), flow=flow)

    def check_machine(self, recipe: Recipe, ffmpeg: str | None, store: WorkStore) -> None:
        """Raise `Failed`, class environment, on a machine that would make other bytes."""
        check_canary(recipe, clip.ffmpeg_binary(ffmpeg), store)

    def cut(
        self, piece: Piece, recipe: EncodeRecipe, out: Path | None, ffmpeg: str | None
    ) -> clip.ClipFrames:
        """`pipeline.media.clip.cut` of a piece: its planes, and its clip in `out` unless that is None."""
        return clip.cut(
            piece.path,
            piece.start,
            piece.end,
            recipe,
            out,
            ffmpeg=clip.ffmpeg_binary(ffmpeg),
            timeout=timeout_for(piece.end - piece.start),
            trimmed=piece.trimmed,
        )

    def write_flow(self, cut: clip.ClipFrames, recipe: Recipe, out: Path, ffmpeg: str | None) -> float:
        """Solve the flow of a clip's planes and store it as the video `out`.

        Returns:
            The share of flow values beyond the bound, in [0, 1]. The last flow is repeated where the
            source has no frame after the clip's last.
        """
        assert recipe.flow is not None
        gray, parameters = clip.gray(cut.planes), recipe.flow
        saturated: list[float] = []

        def flows() -> Iterator[np.ndarray]:
            last = np.zeros((*gray.shape[1:], 2), np.float32)
            for last in solve(gray, parameters):
                saturated.append(coding.saturation(last, parameters.coding))
                yield last
            for _ in range(cut.frames - len(saturated)):
                saturated.append(saturated[-1] if saturated else 0.0)
                yield last

        rate = recipe.encode.rate
        binary, timeout = clip.ffmpeg_binary(ffmpeg), timeout_for(cut.frames / rate)
        coding.encode(flows(), out, parameters.coding, rate, ffmpeg=binary, timeout=timeout)
        return round(float(np.mean(saturated)), 6)


def solve(gray: np.ndarray, recipe: FlowRecipe) -> Iterable[np.ndarray]:
    """The flow of every pair, float32 (H, W, 2) each, by the kind of device that the recipe names."""
    if recipe.device == "cuda":
        return tvl1_clip(gray, recipe.solver, device="cuda")
    return tvl1_pairs(gray, recipe.solver)
