"""Streams a whole video as RGB and flow, and lays pictures over a copy of it.

Frames are made as those of a prepared clip (`pipeline.media.clip`), in memory that does not grow with the
video's length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.media import clip
from pipeline.media.corruption import NO_DAMAGE, examine, judge
from pipeline.media.probe import SourceInfo, probe
from pipeline.media.recipe import EncodeRecipe
from pipeline.media.streaming import Pass
from pipeline.outcome import Failed, FailureClass

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_ENDLESS = 1 << 40  # frames: of a video that does not say how long it is
_LARGEST_SHORT_SIDE = 720  # pixels, of an annotated video


@dataclass(frozen=True)
class Frame:
    """One frame of a video at the recipe's rate and size.

    `picture` is decoded from the encoded clip (yuv420p); `flow`, uint8 (2 H, W), the flow to the next frame
    as the published flow video holds it before it is coded: u above v, 128 for zero. None without flow.
    """

    picture: VideoFrame
    flow: np.ndarray | None


def frames(
    path: Path,
    *,
    solve: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]] | None = None,
    recipe: EncodeRecipe | None = None,
    ffmpeg: str | None = None,
    timeout: float = 300.0,
) -> Iterator[Frame]:
    """Streams the frames of a whole video, as `clip.read` gives them, in constant memory.

    Args:
        solve: makes each frame's flow, as in `Frame`, of the gray planes, uint8 (H, W) each; for example
            `pipeline.flow.coding.stored_flows`. None: no flow is wanted.
        timeout: seconds without a frame after which ffmpeg is killed.

    Raises:
        Failed: as `clip.cut` does; for damage only after the last frame. A video may be shorter than a
            second; SHORT is one without a frame.
    """
    recipe = recipe or EncodeRecipe()
    info = probe(path)
    start, wanted = _extent(info, recipe)
    width, height = info.output_size(recipe.short_side)
    with Pass(path, info, start, wanted, recipe, clip.ffmpeg_binary(ffmpeg), timeout) as made:
        flows = None if solve is None else solve(made.grays())
        given, last = 0, np.full((2 * height, width), 128, np.uint8)
        for picture in made.pictures():
            if flows is None:
                made.plane()
            else:
                last = next(flows, last)  # repeated where the source has no frame after its last
            given += 1
            yield Frame(picture, None if flows is None else last)
        complaint = made.ended()
    end = start + given / recipe.rate
    damage = examine(path, info, start, end, timeout=max(60.0, 4 * end)) if complaint else NO_DAMAGE
    judge(info, start, given if info.end is None else wanted, given, recipe.rate, complaint, damage, least=1)


def _extent(info: SourceInfo, recipe: EncodeRecipe) -> tuple[float, int]:
    """Where a whole video starts, seconds by the clip's clock, and how many frames it has, at least one."""
    start = info.start - info.origin
    return start, _ENDLESS if info.end is None else max(1, round(recipe.rate * (info.end - start)))


def annotate(
    path: Path,
    out: Path,
    labels: Callable[[int, int], Iterable[bytes]],
    seconds: float,
    *,
    rate: int = EncodeRecipe.rate,
    ffmpeg: str | None = None,
    timeout: float = 3600.0,
) -> None:
    """Writes a video with pictures laid over it, one after another.

    The copy has `rate` frames a second, is upright, and has square pixels and a short side of at most 720.

    Args:
        out: an mp4; it appears whole or not at all.
        labels: (width, height) -> pictures, RGBA (height, width, 4) bytes each; the last one stays.
        seconds: that each is shown.

    Raises:
        Failed: CORRUPT where the video cannot be read, STORAGE where `out` cannot be written, TOO_LARGE past
            the time limit, ENVIRONMENT without ffmpeg.
    """
    import ffmpeg as ffmpeg_python

    info = probe(path)
    short = min(_LARGEST_SHORT_SIDE, round(min(info.shown_size)))
    recipe = EncodeRecipe(rate=rate, short_side=short + short % 2)
    width, height = info.output_size(recipe.short_side)
    start, wanted = _extent(info, recipe)
    base = clip.frame_graph(path, info, start, wanted, recipe).filter("trim", end_frame=wanted)
    over = ffmpeg_python.input(
        "pipe:0", f="rawvideo", pix_fmt="rgba", video_size=(width, height), framerate=f"{1 / seconds:.9f}"
    )
    shown = ffmpeg_python.filter([base, over], "overlay", eof_action="repeat")
    with clip.written(out, str(out)) as temporary:
        argv = [
            clip.ffmpeg_binary(ffmpeg),
            *clip.GENERAL,
            *clip.h264_output(shown, recipe, temporary).get_args(),
        ]
        finished = clip.run_ffmpeg(argv, timeout, f"{out} was not written", stdin=labels(width, height))
        if finished.returncode:
            said = (finished.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Failed(FailureClass.STORAGE, f"{out} cannot be written: {said}")
