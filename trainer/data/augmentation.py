"""Chooses a clip's views: which frames, which square, which colours. Numbers only, no pixels.

One view serves both streams, so flow stays the flow of its RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.data.batches import Input
from trainer.data.sampler import KeyedRandom


@dataclass(frozen=True)
class Colour:
    """A change of a clip's colours, the same for all its frames."""

    brightness: float  # factor
    contrast: float  # factor, about the clip's mean grey
    saturation: float  # factor; 0 is grey
    hue: float  # turns of the colour circle


@dataclass(frozen=True)
class View:
    """Frames of a clip, its resized size, and a square in that; lengths in pixels."""

    frames: tuple[int, ...]  # frame numbers in their order; repeated where the clip is too short
    height: int  # of the whole resized picture
    width: int
    top: int
    left: int
    side: int
    mirrored: bool = False
    colour: Colour | None = None  # of RGB; None leaves it as it is

    @property
    def square(self) -> tuple[slice, slice]:
        """Rows and columns of the square in the resized picture."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)


def resized(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(width, height) with `short_side` as the shorter and the longer rounded half up."""
    short = min(width, height)
    return tuple((2 * side * short_side + short) // (2 * short) for side in (width, height))  # type: ignore[return-value]


def random_view(input: Input, frames: int, width: int, height: int, rng: KeyedRandom) -> View:
    """A training view of a clip of `frames` pictures, width x height, at random.

    The window starts early enough to fit; a clip shorter than it is looped from its first frame
    (Carreira and Zisserman 2017, section 3.2). With `segments` each snippet starts anywhere in its part of
    the clip (L. Wang et al., arXiv:1608.00859, section 3.1). With `scales` the square is such a share of the
    short side, or as wide and as high as two neighbouring ones (section 3.2 there; K. Hara et al.,
    arXiv:1711.09577, section 3.3). The first four draws are the same whatever the settings.
    """
    start, top, left, mirror = (rng.uniform() for _ in range(4))
    if input.segments:
        numbers = segments(input, frames, [rng.uniform() for _ in range(input.segments)])
    else:
        last_start = frames - _span(input, input.frames)
        first = min(int(start * (last_start + 1)), last_start) if last_start > 0 else 0
        numbers = window(first, input.frames, input.stride, frames)
    w, h = _scaled(input, width, height, rng) if input.scales else resized(width, height, input.short_side)
    spare_y, spare_x = h - input.crop, w - input.crop
    if input.corners:
        centre = (spare_y // 2, spare_x // 2)
        places = [(0, 0), (0, spare_x), (spare_y, 0), (spare_y, spare_x), centre]
        y, x = places[int(top * len(places))]
    else:
        y, x = min(int(top * (spare_y + 1)), spare_y), min(int(left * (spare_x + 1)), spare_x)
    colour = random_colour(input, rng) if any(input.colour_jitter) else None
    return View(numbers, h, w, y, x, input.crop, input.flip and mirror < 0.5, colour)


def random_colour(input: Input, rng: KeyedRandom) -> Colour:
    """Factors within 1 plus or minus the first three of `input.colour_jitter`, and a hue within the fourth.

    Evenly drawn, as torchvision's ColorJitter does.
    """
    brightness, contrast, saturation, hue = ((2 * rng.uniform() - 1) * most for most in input.colour_jitter)
    return Colour(1 + brightness, 1 + contrast, 1 + saturation, hue)


def _scaled(input: Input, width: int, height: int, rng: KeyedRandom) -> tuple[int, int]:
    """(width, height) to resize a picture to, so that `crop` pixels are a drawn share of its short side."""
    scales = input.scales
    across = rng.below(len(scales))
    low, high = max(0, across - input.distortion), min(len(scales) - 1, across + input.distortion)
    down = low + rng.below(high - low + 1)
    short = min(width, height)
    return tuple(  # type: ignore[return-value]
        max(input.crop, round(side * input.crop / (scales[place] * short)))
        for side, place in ((width, across), (height, down))
    )


def segments(input: Input, frames: int, where: Sequence[float]) -> tuple[int, ...]:
    """The frame numbers of one snippet a part of the clip; `where` in each part, in [0, 1), it starts.

    At .5 these are the places of TSN's and TSM's tests (github.com/yjxiong/tsn-pytorch, dataset.py).
    """
    length = input.frames // input.segments
    starts = max(1, frames - _span(input, length) + 1)
    firsts = [int((part + at) / len(where) * starts) for part, at in enumerate(where)]
    return tuple(number for first in firsts for number in window(first, length, input.stride, frames))


def evaluation_views(
    input: Input, frames: int, width: int, height: int, window_frames: int | None, clips: int, crops: int
) -> list[View]:
    """The views of a clip, clip by clip: `clips` windows spread evenly, times `crops` squares.

    A window has `window_frames`; None: the whole clip, once. With `segments` it is their snippets, each from
    the middle of its part of the clip (of several windows, spread evenly there). One square is the centre;
    three are the two ends of the long side and the centre.
    """
    w, h = resized(width, height, input.short_side)
    if input.segments:
        parts = input.test_segments or input.segments
        windows = [segments(input, frames, [(i + 0.5) / clips] * parts) for i in range(clips)]
    elif window_frames is None:
        windows = [tuple(range(0, frames, input.stride))]
    else:
        spare = max(frames - _span(input, window_frames), 0)
        firsts = [spare // 2] if clips == 1 else [spare * i // (clips - 1) for i in range(clips)]
        windows = [window(first, window_frames, input.stride, frames) for first in firsts]
    spare_y, spare_x = h - input.crop, w - input.crop
    centre = (spare_y // 2, spare_x // 2)
    ends = [(0, centre[1]), (spare_y, centre[1])] if h > w else [(centre[0], 0), (centre[0], spare_x)]
    squares = [centre] if crops == 1 else [ends[0], centre, ends[1]]
    return [View(numbers, h, w, y, x, input.crop) for numbers in windows for y, x in squares]


def window(first: int, count: int, stride: int, frames: int) -> tuple[int, ...]:
    """`count` frame numbers from `first`, `stride` apart, looped in a clip of `frames`."""
    return tuple((first + i * stride) % frames for i in range(count))


def _span(input: Input, count: int) -> int:
    return (count - 1) * input.stride + 1
