"""Decodes a member's bytes to the pixels of its views: only the frames asked for, in one thread.

Owns decoding, colour, resize, crop, mirroring and recolouring of pixels; `trainer.data.augmentation` chooses
frames, square and colours. swscale resizes and converts with its exact settings (bilinear, widened when
shrinking): the same bytes on every x86-64, within half a grey level of exact BT.601/709. Its quick path would
save a seventh of the time and makes pictures one level darker.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import torch
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from trainer.data.augmentation import Colour, View

_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_FORMATS = ("yuv420p", "yuvj420p")
_MARGIN = 4  # pixels round a square that the interpolation of its colours may look at
_RED_GREEN_BLUE = (2, 0, 1)  # their planes in the pixel format gbrp
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # of RGB; Y is grey


class Undecodable(ValueError):
    """The bytes are no video of the size and length that the index says."""


def decode_rgb(data: bytes, views: Sequence[View], size: tuple[int, int], rate: int, out: np.ndarray) -> None:
    """Decodes an RGB member, an mp4, once for all views of a clip.

    Args:
        views: V views of it, alike in everything but frames, square, mirroring and colour.
        size: (width, height) that the index promises, in pixels.
        rate: frames a second of the data set.
        out: uint8 (V, 3, T, side, side), written in place; 0..255.

    Raises:
        Undecodable: damaged, of another size, or without one of the frames.
    """
    reformatter = VideoReformatter()
    places = _places(views)
    region, within = None, list(views)
    if (views[0].width, views[0].height) == size:  # resizing looks further round than the margin
        region = _Region(views, size)
        within = [region.of(view) for view in views]
    for number, frame in pictures(data, places, size, rate):
        planes = rgb_planes(region.take(frame) if region else frame, within[0], reformatter)
        for index, place in places[number]:
            for channel, plane in enumerate(planes):
                out[index, channel, place] = plane[within[index].square]
    _mirror(out, views)
    for pixels, view in zip(out, views, strict=True):
        if view.colour:
            recolour(pixels, view.colour)


class _Region:
    """The part of a picture that the squares of `views` need; its RGB is that of the whole, byte by byte."""

    def __init__(self, views: Sequence[View], size: tuple[int, int]):
        ends = [(view.left, view.left + view.side, view.top, view.top + view.side) for view in views]
        lefts, rights, tops, bottoms = zip(*ends, strict=True)
        (self.left, right), (self.top, bottom) = (
            (max(0, min(begins) - _MARGIN) // 2 * 2, min(length, (max(finishes) + _MARGIN + 1) // 2 * 2))
            for begins, finishes, length in ((lefts, rights, size[0]), (tops, bottoms, size[1]))
        )
        self.size = (right - self.left, bottom - self.top)
        self._whole = size
        self._graph: Graph | None = None

    def of(self, view: View) -> View:
        """`view` in the coordinates of this part."""
        width, height = self.size
        return replace(view, width=width, height=height, top=view.top - self.top, left=view.left - self.left)

    def take(self, frame: VideoFrame) -> VideoFrame:
        """This part of a picture, not copied, with the picture's colour properties."""
        if self._graph is None:
            self._graph, (width, height), unit = Graph(), self._whole, Fraction(1, 25)
            source = self._graph.add_buffer(width=width, height=height, format=frame.format, time_base=unit)
            crop = self._graph.add("crop", ":".join(map(str, (*self.size, self.left, self.top))))
            self._graph.link_nodes(source, crop, self._graph.add("buffersink")).configure()
        self._graph.push(frame)
        return cast(VideoFrame, self._graph.pull())


def decode_flow(
    data: bytes, views: Sequence[View], size: tuple[int, int], rate: int, out: np.ndarray
) -> list[tuple[float, float]]:
    """Decodes a flow member as `decode_rgb`: u above v in the luma plane, full range, without colour.

    Args:
        size: (width, height) of the clip; the flow video is twice as high.
        out: uint8 (V, 2, T, side, side), written in place; 128 stands for zero.

    Returns:
        For each view the factors of u and v (`flow_scale`).
    """
    width, height = size
    reformatter = VideoReformatter()
    places = _places(views)
    for number, frame in pictures(data, places, (width, 2 * height), rate):
        planes = flow_planes(plane_of(frame), views[0], reformatter)
        for index, place in places[number]:
            for channel, plane in enumerate(planes):
                out[index, channel, place] = plane[views[index].square]
    _mirror(out, views)
    return [flow_scale(view, size) for view in views]


def rgb_planes(frame: VideoFrame, view: View, reformatter: VideoReformatter) -> list[np.ndarray]:
    """Red, green and blue of a decoded picture resized as in `view`: uint8 (view.height, view.width) each."""
    exact: dict[str, Any] = {"interpolation": _EXACT, "dst_color_range": ColorRange.JPEG, "threads": 1}
    rgb = reformatter.reformat(frame, view.width, view.height, format="gbrp", **exact)
    return [_plane(rgb.planes[plane]) for plane in _RED_GREEN_BLUE]


def flow_planes(luma: np.ndarray, view: View, reformatter: VideoReformatter) -> list[np.ndarray]:
    """u and v of a flow picture, uint8 (2 H, W), resized as in `view`: uint8 (view.height, view.width) each.

    A resize changes the values' meaning: see `flow_scale`.
    """
    height, width = luma.shape[0] // 2, luma.shape[1]
    halves = [luma[:height], luma[height:]]  # resized apart, since one would bleed into the other
    if (view.width, view.height) == (width, height):
        return halves
    grey = (VideoFrame.from_numpy_buffer(half, format="gray") for half in halves)
    size = (view.width, view.height)
    return [
        plane_of(reformatter.reformat(half, *size, format="gray", interpolation=_EXACT, threads=1))
        for half in grey
    ]


def flow_scale(view: View, size: tuple[int, int]) -> tuple[float, float]:
    """Factors of u and v of a clip of `size` (width, height) in `view`: the resize, and -1 for mirrored u."""
    width, height = size
    return (-view.width if view.mirrored else view.width) / width, view.height / height


def plane_of(frame: VideoFrame) -> np.ndarray:
    """The luma of a decoded picture, uint8 (H, W), which must not outlive it."""
    return _plane(frame.planes[0])


def pictures(
    data: bytes, wanted: Collection[int], size: tuple[int, int], rate: int
) -> Iterator[tuple[int, VideoFrame]]:
    """The wanted frames with their numbers, in order, decoded from the keyframe before the first.

    Raises Undecodable as `decode_rgb` does.
    """
    left = set(wanted)
    first = min(left)
    try:
        with av.open(io.BytesIO(data), "r", format="mp4") as container:
            if not container.streams.video:
                raise Undecodable("there is no video in it")
            stream = container.streams.video[0]
            decoder = stream.codec_context
            if (decoder.width, decoder.height) != size:
                found = f"{decoder.width}x{decoder.height}"
                raise Undecodable(f"its pictures are {found}, not {size[0]}x{size[1]} as the index says")
            decoder.thread_count, decoder.thread_type = 1, "NONE"
            if not stream.time_base:
                raise Undecodable("its frames have no times")
            unit = float(stream.time_base) * rate  # frames a tick
            container.seek(round(first / unit), stream=stream)
            to_feed = set(left)
            for packet in container.demux(stream):
                if packet.pts is None:
                    break
                number = round(packet.pts * unit)
                to_feed.discard(number)
                # On the way from the keyframe, what no other frame refers to need not be decoded.
                decoder.skip_frame = "NONREF" if number < first else "DEFAULT"
                yield from _take(decoder.decode(packet), left, size, unit)
                if not to_feed:  # what these frames refer to comes before them: nothing more is needed
                    break
            yield from _take(decoder.decode(None), left, size, unit)
    except av.FFmpegError as error:
        raise Undecodable(f"it does not decode: {error.strerror or error}") from None
    if left:
        raise Undecodable(f"frame {min(left)} is not in it")


def _take(
    frames: list[VideoFrame], left: set[int], size: tuple[int, int], unit: float
) -> Iterator[tuple[int, VideoFrame]]:
    for frame in frames:
        number = round((frame.pts or 0) * unit)
        if frame.is_corrupt:
            raise Undecodable(f"frame {number} is damaged")
        if (frame.width, frame.height) != size or frame.format.name not in _FORMATS:
            found = f"{frame.width}x{frame.height} {frame.format.name}"
            raise Undecodable(f"frame {number} is {found}, not {size[0]}x{size[1]} yuv420p")
        if number in left:
            left.discard(number)
            yield number, frame


def _places(views: Sequence[View]) -> dict[int, list[tuple[int, int]]]:
    """Frame number -> each (view, place in it) where it stands; several in a looped window."""
    places: dict[int, list[tuple[int, int]]] = {}
    for index, view in enumerate(views):
        for place, number in enumerate(view.frames):
            places.setdefault(number, []).append((index, place))
    return places


def _plane(plane: VideoPlane) -> np.ndarray:
    """A view of a plane: uint8 (height, width)."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]  # type: ignore[call-overload]


def _mirror(out: np.ndarray, views: Sequence[View]) -> None:
    for pixels in (torch.from_numpy(out[index]) for index, view in enumerate(views) if view.mirrored):
        pixels.copy_(pixels.flip(-1))  # ten times faster than numpy's copy from a negative stride


def recolour(pixels: np.ndarray, colour: Colour) -> None:
    """Changes the colours of a clip in place: uint8 (3, T, H, W), red, green and blue.

    All four changes are linear: one matrix and one offset for all pixels; what leaves 0..255 is cut once, at
    the end. Saturation scales, and hue turns, the plane of I and Q, so that greys stay what they are (YIQ, as
    in MXNet's HueJitterAug).
    """
    angle, within = 2 * np.pi * colour.hue, np.eye(3)
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    within[1:, 1:] = colour.saturation * np.array(turn)
    gain = colour.brightness * colour.contrast
    matrix = (gain * (np.linalg.inv(_YIQ) @ within @ _YIQ)).astype(np.float32)
    offset = np.float32(0.5)  # for rounding
    if colour.contrast != 1:
        grey = _YIQ[0] @ pixels.reshape(3, -1).sum(axis=1) / pixels[0].size
        offset += np.float32((1 - colour.contrast) * colour.brightness * grey)
    before = np.empty((3, *pixels.shape[2:]), np.float32)
    after, share = np.empty_like(before[0]), np.empty_like(before[0])
    for frame in range(pixels.shape[1]):
        before[:] = pixels[:, frame]
        for channel, weights in enumerate(matrix):
            after[:] = offset
            for own, weight in zip(before, weights, strict=True):
                after += np.multiply(own, weight, out=share)
            pixels[channel, frame] = np.clip(after, 0, 255.5, out=after)
