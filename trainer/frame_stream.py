"""Whole videos as networks see them, frame by frame in constant memory: raw files, or clips of a data set.

Both give the same bytes where the video is the same: RGB exactly, flow but for the coding of the published
one (see `of_file`). Clips are cut out of the frames here; what is made of them is not known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from av.video.reformatter import VideoReformatter

from pipeline.flow import coding
from pipeline.media import clip, whole_video
from pipeline.media.recipe import EncodeRecipe
from trainer.data.augmentation import View, evaluation_views
from trainer.data.batches import Input
from trainer.data.decoding import flow_planes, flow_scale, pictures, plane_of, rgb_planes, square

Frame = dict[str, np.ndarray]
"""A frame by stream: "rgb" uint8 (3, side, side), "flow" uint8 (2, side, side), luma as stored."""


@dataclass(frozen=True)
class FrameStream:
    """The frames of one video, to be gone through once, and what its u and v are multiplied by."""

    frames: Iterator[Frame]
    scale: tuple[float, float]


def of_file(path: Path, inputs: Mapping[str, Input], threads: int = 1) -> FrameStream:
    """A raw video, read as the pipeline reads what it prepares.

    Its RGB frames are those of the clip that the pipeline would encode, bit for bit. Its flow is the one that
    the pipeline would code as video, before that coding, which changes a vector by .06 pixels on average.

    Args:
        inputs: "rgb", "flow" or both -> what is fed; the resize and the crop, at the centre, are its.
        threads: that share the computing of the flow.

    Raises:
        Failed: the video cannot be read; while iterating too.
    """
    first = next(iter(inputs.values()))
    recipe = EncodeRecipe(rate=first.rate, short_side=first.clip_side)
    size = clip.probe(path).output_size(recipe.short_side)
    cuts = {stream: _centre(input, size) for stream, input in inputs.items()}
    solve = None
    if "flow" in inputs:
        solve = partial(coding.stored_flows, bound=inputs["flow"].flow_bound, threads=threads)

    def frames() -> Iterator[Frame]:
        reformatter = VideoReformatter()
        for frame in whole_video.frames(path, solve=solve, recipe=recipe):
            seen: Frame = {}
            if "rgb" in cuts:
                seen["rgb"] = _cropped(rgb_planes(frame.picture, cuts["rgb"], reformatter), cuts["rgb"])
            if frame.flow is not None:
                seen["flow"] = _cropped(flow_planes(frame.flow, cuts["flow"], reformatter), cuts["flow"])
            yield seen

    return FrameStream(frames(), flow_scale(cuts["flow"], size) if "flow" in cuts else (1.0, 1.0))


def of_sample(
    members: Mapping[str, bytes], frames: range, size: tuple[int, int], rate: int, inputs: Mapping[str, Input]
) -> FrameStream:
    """A clip of a published data set, with the flow that is stored there.

    Args:
        members: by stream, as `trainer.data.reading.Reader` gives them.
        frames: the numbers of those that are wanted.
        size, rate: of the clip, (width, height) in pixels, and frames a second.
        inputs: as in `of_file`.

    Raises:
        Undecodable: while iterating, where the members are not what the index says.
    """
    cuts = {stream: _centre(input, size) for stream, input in inputs.items()}
    width, height = size

    def of_stream(stream: str) -> Iterator[np.ndarray]:
        reformatter, cut = VideoReformatter(), cuts[stream]
        shown = size if stream == "rgb" else (width, 2 * height)
        for _, picture in pictures(members[stream], frames, shown, rate):
            if stream == "rgb":
                yield _cropped(rgb_planes(picture, cut, reformatter), cut)
            else:
                yield _cropped(flow_planes(plane_of(picture), cut, reformatter), cut)

    def both() -> Iterator[Frame]:
        for each in zip(*(of_stream(stream) for stream in inputs), strict=True):
            yield dict(zip(inputs, each, strict=True))

    return FrameStream(both(), flow_scale(cuts["flow"], size) if "flow" in cuts else (1.0, 1.0))


def windows(
    frames: Iterator[Frame], length: int, every: int, inputs: Mapping[str, Input]
) -> Iterator[dict[str, np.ndarray]]:
    """Clips of `length` frames that begin `every` frames apart, as many as fit; at least one.

    Where the video is shorter than one, its last frame is repeated. See `assembled` for what a clip is.
    """
    held: deque[Frame] = deque(maxlen=length)
    given = 0
    for seen, frame in enumerate(frames, 1):
        held.append(frame)
        if seen == given * every + length:
            yield assembled(list(held), inputs)
            given += 1
    if held and not given:
        yield assembled([*held, *[held[-1]] * (length - len(held))], inputs)


def pieces(frames: Iterator[Frame], length: int, least: int) -> Iterator[list[Frame]]:
    """The frames in runs of `length`, the last one of `least` to `length` + `least` - 1, or all there are."""
    held: list[Frame] = []
    for frame in frames:
        held.append(frame)
        if len(held) == length + least:
            yield held[:length]
            held = held[length:]
    if held:
        yield held


def assembled(frames: Sequence[Frame], inputs: Mapping[str, Input]) -> dict[str, np.ndarray]:
    """A clip of consecutive frames as `evaluate` sees a whole one: uint8 (C, T, side, side) by stream."""
    return {
        stream: np.stack([frames[number][stream] for number in numbers(input, len(frames))], axis=1)
        for stream, input in inputs.items()
    }


def numbers(input: Input, count: int) -> tuple[int, ...]:
    """Which of a clip's `count` frames a network sees: every `stride`-th, or its segments' snippets."""
    (cut,) = evaluation_views(input, count, input.short_side, input.short_side, None, 1, 1)
    return cut.frames


def _centre(input: Input, size: tuple[int, int]) -> View:
    (cut,) = evaluation_views(input, 1, *size, None, 1, 1)
    return cut


def _cropped(planes: list[np.ndarray], cut: View) -> np.ndarray:
    return np.stack([plane[square(cut)] for plane in planes])
