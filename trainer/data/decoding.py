"""From the bytes of a member to the pixels of a cut: only the frames asked for, by one thread.

Owns decoding, colour, resize, crop and mirroring of pixels; which frames and which square is decided in
`trainer.data.augmentation`. Resizing and colour are swscale's with its exact settings (bilinear, widened
when shrinking): the same bytes on every x86-64, and nearer to exact BT.601/709 than one grey level.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from trainer.data.augmentation import Cut

_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
_RED_GREEN_BLUE = (2, 0, 1)  # their planes in the pixel format gbrp


class Undecodable(ValueError):
    """The bytes are no video of the size and length that the index says."""


def decode_rgb(data: bytes, cut: Cut, size: tuple[int, int], rate: int, out: np.ndarray) -> None:
    """Decode an RGB member.

    Args:
        data: the mp4.
        cut: what to take of it.
        size: (width, height) that the index promises, in pixels.
        rate: frames a second of the data set.
        out: uint8 (3, T, side, side), written in place; 0..255.

    Raises:
        Undecodable: damaged, of another size, or without one of the frames.
    """
    reformatter = VideoReformatter()
    crop = np.s_[cut.top : cut.top + cut.side, cut.left : cut.left + cut.side]
    for number, frame in _frames(data, set(cut.frames), size, rate):
        rgb = reformatter.reformat(
            frame,
            cut.width,
            cut.height,
            format="gbrp",
            interpolation=_EXACT,
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        for place in _places(cut, number):
            for channel, plane in enumerate(_RED_GREEN_BLUE):
                out[channel, place] = _plane(rgb.planes[plane])[crop]
    _mirror(out, cut)


def decode_flow(
    data: bytes, cut: Cut, size: tuple[int, int], rate: int, out: np.ndarray
) -> tuple[float, float]:
    """Decode a flow member: u above v in the luma plane, which is full range and needs no colour.

    Args:
        data: the mp4.
        cut, rate: as in `decode_rgb`.
        size: (width, height) of the clip; the flow video is twice as high.
        out: uint8 (2, T, side, side), written in place; 128 stands for zero.

    Returns:
        What u and v must be multiplied by: the resize, and -1 for a mirrored u.

    Raises:
        Undecodable: as in `decode_rgb`.
    """
    width, height = size
    reformatter = VideoReformatter()
    crop = np.s_[cut.top : cut.top + cut.side, cut.left : cut.left + cut.side]
    for number, frame in _frames(data, set(cut.frames), (width, 2 * height), rate):
        luma = _plane(frame.planes[0])
        for channel in range(2):
            half = luma[channel * height : (channel + 1) * height]
            if (cut.width, cut.height) != size:
                half = _resize_grey(half, cut, reformatter)
            for place in _places(cut, number):
                out[channel, place] = half[crop]
    _mirror(out, cut)
    return (-cut.width if cut.mirrored else cut.width) / width, cut.height / height


def _frames(
    data: bytes, wanted: Collection[int], size: tuple[int, int], rate: int
) -> Iterator[tuple[int, VideoFrame]]:
    """The wanted frames with their numbers, in order, decoded from the keyframe before the first."""
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
            decoder.options = {"err_detect": "explode"}
            if not stream.time_base:
                raise Undecodable("its frames have no times")
            unit = float(stream.time_base) * rate  # frames a tick
            container.seek(round(first / unit), stream=stream)
            to_feed = set(left)
            for packet in container.demux(stream):
                if packet.pts is None:
                    break
                to_feed.discard(round(packet.pts * unit))
                yield from _take(decoder.decode(packet), left, unit)
                if not to_feed:  # what these frames refer to comes before them: nothing more is needed
                    break
            yield from _take(decoder.decode(None), left, unit)
    except av.FFmpegError as error:
        raise Undecodable(f"it does not decode: {error.strerror or error}") from None
    if left:
        raise Undecodable(f"frame {min(left)} is not in it")


def _take(frames: list[VideoFrame], left: set[int], unit: float) -> Iterator[tuple[int, VideoFrame]]:
    for frame in frames:
        number = round((frame.pts or 0) * unit)
        if frame.is_corrupt:
            raise Undecodable(f"frame {number} is damaged")
        if number in left:
            left.discard(number)
            yield number, frame


def _places(cut: Cut, number: int) -> list[int]:
    """Where a frame stands in the cut: more than one place in a looped window."""
    return [place for place, wanted in enumerate(cut.frames) if wanted == number]


def _plane(plane: VideoPlane) -> np.ndarray:
    """A view of a plane: uint8 (height, width)."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]  # type: ignore[call-overload]


def _resize_grey(picture: np.ndarray, cut: Cut, reformatter: VideoReformatter) -> np.ndarray:
    """uint8 (H, W) -> (cut.height, cut.width); u and v apart, since one would bleed into the other."""
    frame = VideoFrame.from_numpy_buffer(picture, format="gray")
    resized = reformatter.reformat(
        frame, cut.width, cut.height, format="gray", interpolation=_EXACT, threads=1
    )
    return _plane(resized.planes[0])


def _mirror(out: np.ndarray, cut: Cut) -> None:
    if cut.mirrored:
        pixels = torch.from_numpy(out)
        pixels.copy_(pixels.flip(-1))  # ten times faster than numpy's copy from a negative stride
