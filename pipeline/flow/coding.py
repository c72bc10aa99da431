"""Flow stored as video: 8-bit luma in H.264, u above v in one picture.

A luma value g stands for v = (g - 128) * bound / 127 pixels, so that zero is exact; 0 is not used. Owns
that law, the encoder's command and the decoding; what a flow means is `pipeline.flow.pairs`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.flow.pairs import tvl1_clip, tvl1_pairs
from pipeline.flow.recipe import FlowCoding
from pipeline.media import clip
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed, FailureClass

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_ZERO, _STEPS = 128, 127
_DEFAULTS = FlowCoding()


def quantise(flow: np.ndarray, coding: FlowCoding = _DEFAULTS) -> np.ndarray:
    """float32 pixels to uint8 of the same shape: clip(rint(v * 127 / bound) + 128, 1, 255)."""
    scaled = np.multiply(flow, np.float32(_STEPS), dtype=np.float32)
    scaled /= np.float32(coding.bound)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -_STEPS, _STEPS, out=scaled)
    scaled += np.float32(_ZERO)
    return scaled.astype(np.uint8)


def dequantise(luma: np.ndarray, bound: float = _DEFAULTS.bound) -> np.ndarray:
    """uint8 to float32 pixels of the same shape: (g - 128) * bound / 127."""
    table = ((np.arange(256) - _ZERO) * (bound / _STEPS)).astype(np.float32)
    return table[luma]


def stored_flows(grays: Iterator[np.ndarray], bound: float, threads: int = 1) -> Iterator[np.ndarray]:
    """Flow of each frame, uint8 (H, W), to the next as the flow video holds it before it is encoded.

    Yields one fewer than there are frames: uint8 (2 H, W), u above v, 128 for zero, 127 steps for `bound`
    pixels. The bytes do not depend on the number of threads that share the pairs.
    """

    def solved() -> Iterator[np.ndarray]:
        if threads == 1:
            yield from tvl1_pairs(grays)
            return
        before: list[np.ndarray] = []
        while some := list(islice(grays, 8 * threads)):
            together = before + some
            yield from tvl1_clip(together, threads=threads)
            before = together[-1:]

    for flow in solved():
        luma = quantise(flow, FlowCoding(bound=bound))
        yield np.concatenate([luma[..., 0], luma[..., 1]])


def saturation(flow: np.ndarray, coding: FlowCoding = _DEFAULTS) -> float:
    """Share of values in [0, 1] whose magnitude lies beyond the bound and is lost by `quantise`."""
    return float(np.mean(np.abs(flow) > coding.bound))


def encode(
    flows: Iterable[np.ndarray],
    out: Path,
    coding: FlowCoding = _DEFAULTS,
    rate: int = EncodeRecipe.rate,
    *,
    ffmpeg: str,
    timeout: float,
) -> None:
    """Write flows as an mp4 of constant rate, frame by frame as they come.

    Args:
        flows: float32 (H, W, 2) each, pixels; W even.
        out: appears whole or not at all.
        timeout: seconds for all of it, the making of the flows included.

    Raises:
        ValueError: no flow, flows of different shapes, or an odd width.
        Failed: ENVIRONMENT when ffmpeg does not run or fails, TOO_LARGE past `timeout`, STORAGE when `out`
            cannot be written.
    """
    rest = iter(flows)
    first = next(rest, None)
    if first is None:
        raise ValueError("there is no flow to encode")
    height, width, _ = first.shape
    if width % 2:
        raise ValueError(f"H.264 needs an even width, not {width}")
    with clip.written(Path(out), "the flow") as temporary:
        argv = command(temporary, width, 2 * height, coding, rate, ffmpeg)
        pictures = _pictures(chain((first,), rest), first.shape, coding)
        finished = clip.run_ffmpeg(argv, timeout, "the flow was not solved and encoded", stdin=pictures)
        if finished.returncode:
            said = (finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"])[0]
            full = "No space left" in finished.stderr
            kind = FailureClass.STORAGE if full else FailureClass.ENVIRONMENT
            raise Failed(kind, f"ffmpeg did not encode the flow: {said}")


def command(out: Path, width: int, height: int, coding: FlowCoding, rate: int, ffmpeg: str) -> list[str]:
    """The argument list that makes `out` of raw yuv420p on standard input.

    aq-mode=0 spends no bits on the flat areas that flow is full of; B-frames and weighted prediction would
    double the time for a few per cent of size.
    """
    import ffmpeg as ffmpeg_python

    source = ffmpeg_python.input(
        "pipe:0",
        f="rawvideo",
        pix_fmt="yuv420p",
        video_size=(width, height),
        framerate=rate,
        color_range="pc",
    )
    x264 = ":aq-mode=0:bframes=0:weightp=0"
    output = clip.h264_output(source, coding, out, x264, pix_fmt="yuv420p", color_range="pc")
    return [ffmpeg, "-hide_banner", "-y", "-v", "error", *output.get_args()]


def _pictures(flows: Iterable[np.ndarray], shape: tuple[int, ...], coding: FlowCoding) -> Iterator[bytes]:
    """Raw yuv420p pictures, u above v, chroma 128."""
    height, width, _ = shape
    chroma = bytes([_ZERO]) * (2 * height * (width // 2))
    for flow in flows:
        if flow.shape != shape:
            raise ValueError(f"flow of shape {flow.shape} follows flow of shape {shape}")
        luma = quantise(flow, coding)
        yield luma[..., 0].tobytes()
        yield luma[..., 1].tobytes()
        yield chroma


def decode(
    data: bytes | Path, frames: range | None = None, bound: float = _DEFAULTS.bound, threads: int = 1
) -> np.ndarray:
    """Flow of one of our videos, or of a contiguous range of its frames: float32 (T, H, W, 2), pixels.

    Raises Failed and IndexError as `pipeline.media.clip.pictures`.
    """
    lumas = [_luma(picture) for picture in clip.pictures(data, frames, threads, "the flow")]
    if not lumas or lumas[0].shape[0] % 2:
        raise Failed(FailureClass.CORRUPT, "flow cannot be decoded: no picture of u above v in it")
    height, width = lumas[0].shape[0] // 2, lumas[0].shape[1]
    planes = np.stack(lumas).reshape(-1, 2, height, width)
    return dequantise(np.moveaxis(planes, 1, -1), bound)


def _luma(picture: VideoFrame) -> np.ndarray:
    """The luma plane, uint8 (2H, W)."""
    plane = picture.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)  # type: ignore[call-overload]
    return rows[:, : plane.width].copy()
