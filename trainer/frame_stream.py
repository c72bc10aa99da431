"""Whole videos as networks see them, frame by frame in constant memory: raw files, or clips of a data set.

Both give the same bytes for the same video: RGB exactly, flow except for the published one's coding (see
`of_file`). Also groups the frames into clips.
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
from trainer.data.decoding import flow_planes, flow_scale, pictures, plane_of, rgb_planes

Frame = dict[str, np.ndarray]
"""A frame by stream: "rgb" uint8 (3, side, side), "flow" uint8 (2, side, side), luma as stored."""


@dataclass(frozen=True)
class FrameStream:
    """The frames of one video, to be read once, and the factors of its u and v."""

    frames: Iterator[Frame]
    scale: tuple[float, float]


def of_file(path: Path, inputs: Mapping[str, Input], threads: int = 1) -> FrameStream:
    """Reads a raw video as the pipeline does; raises Failed where it cannot, while iterating too.

    Its RGB frames are those of the clip that the pipeline would encode, bit for bit. Its flow is the
    pipeline's before coding as video, which changes a vector by .06 pixels on average.

    Args:
        inputs: "rgb", "flow" or both -> how it is fed; gives the resize and the centre crop.
        threads: compute the flow together.
    """
    first = next(iter(inputs.values()))
    recipe = EncodeRecipe(rate=first.rate, short_side=first.clip_side)
    size = clip.probe(path).output_size(recipe.short_side)
    views = {stream: _centre(input, size) for stream, input in inputs.items()}
    solve = None
    if "flow" in inputs:
        solve = partial(coding.stored_flows, bound=inputs["flow"].flow_bound, threads=threads)

    def frames() -> Iterator[Frame]:
        reformatter = VideoReformatter()
        for frame in whole_video.frames(path, solve=solve, recipe=recipe):
            seen: Frame = {}
            if "rgb" in views:
                seen["rgb"] = _cropped(rgb_planes(frame.picture, views["rgb"], reformatter), views["rgb"])
            if frame.flow is not None:
                seen["flow"] = _cropped(flow_planes(frame.flow, views["flow"], reformatter), views["flow"])
            yield seen

    return FrameStream(frames(), flow_scale(views["flow"], size) if "flow" in views else (1.0, 1.0))


def of_sample(
    members: Mapping[str, bytes], frames: range, size: tuple[int, int], rate: int, inputs: Mapping[str, Input]
) -> FrameStream:
    """Reads a clip of a published data set, with its stored flow; raises Undecodable while iterating.

    Args:
        members: by stream, as `trainer.data.reading.Reader` gives them.
        frames: the numbers of those that are wanted.
        size, rate: of the clip, (width, height) in pixels, and frames a second.
    """
    views = {stream: _centre(input, size) for stream, input in inputs.items()}
    width, height = size

    def of_stream(stream: str) -> Iterator[np.ndarray]:
        reformatter, view = VideoReformatter(), views[stream]
        shown = size if stream == "rgb" else (width, 2 * height)
        for _, picture in pictures(members[stream], frames, shown, rate):
            if stream == "rgb":
                yield _cropped(rgb_planes(picture, view, reformatter), view)
            else:
                yield _cropped(flow_planes(plane_of(picture), view, reformatter), view)

    both = zip(*(of_stream(stream) for stream in inputs), strict=True)
    seen = (dict(zip(inputs, each, strict=True)) for each in both)
    return FrameStream(seen, flow_scale(views["flow"], size) if "flow" in views else (1.0, 1.0))


def windows(
    frames: Iterator[Frame], length: int, every: int, inputs: Mapping[str, Input]
) -> Iterator[dict[str, np.ndarray]]:
    """Clips (`assembled`) of `length` frames that begin `every` frames apart, as many as fit.

    A shorter video gives one clip, with its last frame repeated.
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
    """The numbers of a clip's `count` frames that a network sees: every `stride`-th, or its segments'."""
    (view,) = evaluation_views(input, count, input.short_side, input.short_side, None, 1, 1)
    return view.frames


def _centre(input: Input, size: tuple[int, int]) -> View:
    (view,) = evaluation_views(input, 1, *size, None, 1, 1)
    return view


def _cropped(planes: list[np.ndarray], view: View) -> np.ndarray:
    return np.stack([plane[view.square] for plane in planes])
