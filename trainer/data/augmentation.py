"""Which frames and which square of a clip a network sees: numbers only, no pixels.

The same cut serves both streams, so that flow stays the flow of the RGB it goes with.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainer.data.batch import Input
from trainer.data.order import Draws


@dataclass(frozen=True)
class Cut:
    """Frames of a clip, its resized size, and a square in that; lengths in pixels."""

    frames: tuple[int, ...]  # frame numbers in their order; repeated where the clip is too short
    height: int  # of the whole resized picture
    width: int
    top: int
    left: int
    side: int
    mirrored: bool = False


def resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) with `short_side` as the shorter and the longer rounded half up."""
    short = min(width, height)
    return tuple((2 * side * short_side + short) // (2 * short) for side in (width, height))  # type: ignore[return-value]


def random_cut(input: Input, frames: int, width: int, height: int, draws: Draws) -> Cut:
    """A training cut of a clip of `frames` pictures, width x height: window, square, mirroring at random.

    The window starts early enough to fit; a clip shorter than it is looped from its first frame
    (Carreira and Zisserman 2017, section 3.2). Always four draws, whatever the settings.
    """
    start, top, left, mirror = (draws.uniform() for _ in range(4))
    w, h = resized(width, height, input.short_side)
    last_start = frames - _span(input, input.frames)
    first = min(int(start * (last_start + 1)), last_start) if last_start > 0 else 0
    return Cut(
        window(first, input.frames, input.stride, frames),
        h,
        w,
        min(int(top * (h - input.crop + 1)), h - input.crop),
        min(int(left * (w - input.crop + 1)), w - input.crop),
        input.crop,
        input.flip and mirror < 0.5,
    )


def evaluation_cuts(
    input: Input, frames: int, width: int, height: int, window_frames: int | None, clips: int, crops: int
) -> list[Cut]:
    """The views of a clip, clip by clip: `clips` windows spread evenly, times `crops` squares.

    Args:
        window_frames: frames in each window; None for the whole clip (then `clips` must be 1).
        crops: 1 for the centre; 3 for the two ends of the long side and the centre.
    """
    w, h = resized(width, height, input.short_side)
    if window_frames is None:
        windows = [tuple(range(0, frames, input.stride))]
    else:
        spare = max(frames - _span(input, window_frames), 0)
        firsts = [spare // 2] if clips == 1 else [spare * i // (clips - 1) for i in range(clips)]
        windows = [window(first, window_frames, input.stride, frames) for first in firsts]
    spare_y, spare_x = h - input.crop, w - input.crop
    centre = (spare_y // 2, spare_x // 2)
    if h > w:
        squares = [(0, centre[1]), centre, (spare_y, centre[1])]
    else:
        squares = [(centre[0], 0), centre, (centre[0], spare_x)]
    chosen = [centre] if crops == 1 else squares
    return [Cut(frames_, h, w, y, x, input.crop) for frames_ in windows for y, x in chosen]


def window(first: int, count: int, stride: int, frames: int) -> tuple[int, ...]:
    """`count` frame numbers from `first`, `stride` apart, looped in a clip of `frames`."""
    return tuple((first + i * stride) % frames for i in range(count))


def _span(input: Input, count: int) -> int:
    return (count - 1) * input.stride + 1
