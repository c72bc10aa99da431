"""Checks a sample's members against the format: its json, its clip, its flow. Plain functions, no I/O."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from pipeline.dataset.schema import FLOW_BOUND, FLOW_ZERO

_MAX_GAP = 16  # frames from one keyframe to the next
_SOURCE_FIELDS = ("kind", "codec", "width", "height", "rate", "duration")
_FULL = 2  # AVColorRange; 1 is limited, 0 unspecified, which for yuv420p means limited
_MAX_PIXELS = 1 << 24  # of a picture: a hostile header must not fill the memory
_CHROMA_TOLERANCE = 1  # steps: the encoder's transform rounds


@dataclass(frozen=True)
class Video:
    """Facts of a video from decoding every frame; sizes in pixels."""

    frames: int
    width: int
    height: int
    pixel_format: str
    full_range: bool
    codec: str
    audio: bool
    others: int  # streams that are neither video nor audio, or further videos
    constant_rate: bool  # frame i stands at i/rate s after the first
    square_pixels: bool
    upright: bool
    longest_gap: int  # frames from one keyframe to the next, or to the end
    damaged: int  # frames that the decoder had to conceal
    gray: bool  # chroma is 128 throughout


@dataclass(frozen=True)
class Promised:
    """Promises of a data set's recipe for every sample."""

    rate: int  # frames a second
    short_side: int  # pixels
    flow: bool


def sample_breaches(row: dict[str, Any], members: dict[str, bytes], promised: Promised) -> list[str]:
    """Checks a sample's raw members by suffix: a sentence fragment for each breach, without its name."""
    index = None if row["class_index"] is None else str(row["class_index"]).encode()
    cls = members.get("cls")
    found = [] if cls == index else [f"cls says {cls!r}, not {index!r}"]
    found += _json_breaches(row, members["json"], promised)
    if promised.flow != ("flow.mp4" in members):
        found.append("its flow is missing" if promised.flow else "it has flow though the recipe has none")
    for suffix, breaches in (("mp4", rgb_breaches), ("flow.mp4", flow_breaches)):
        if suffix in members:
            try:
                found += breaches(inspect(members[suffix], promised.rate), row, promised)
            except ValueError as error:
                found.append(f"{suffix} {error}")
    return found


def rgb_breaches(video: Video, row: dict[str, Any], promised: Promised) -> list[str]:
    """Checks a clip against its row of the index."""
    width, height, short = video.width, video.height, min(video.width, video.height)
    same = (width, height) == (row["width"], row["height"])
    rules = {
        f"has {width}x{height} pixels, the index says {row['width']}x{row['height']}": same,
        f"has a short side of {short}, not {promised.short_side}": short == promised.short_side,
        f"has an odd side: {width}x{height}": width % 2 == height % 2 == 0,
        f"is {video.pixel_format}, not yuv420p": video.pixel_format == "yuv420p",
        "is full range, not limited": not video.full_range,
    }
    return _broken("mp4", rules, video, row, promised.rate)


def flow_breaches(video: Video, row: dict[str, Any], promised: Promised) -> list[str]:
    """Checks a flow video against its row of the index."""
    size, wanted = f"{video.width}x{video.height}", f"{row['width']}x{2 * row['height']}"
    rules = {
        f"has {size} pixels, not {wanted}": size == wanted,
        f"is {video.pixel_format}, not yuv420p": video.pixel_format in ("yuv420p", "yuvj420p"),
        "is limited range, not full": video.full_range,
        f"has chroma other than {FLOW_ZERO}": video.gray,
    }
    return _broken("flow.mp4", rules, video, row, promised.rate)


def inspect(data: bytes, rate: int) -> Video:
    """Decodes a whole mp4 of `rate` frames a second. Raises ValueError where it cannot be decoded."""
    try:
        with av.open(io.BytesIO(data), format="mp4") as container:
            assert isinstance(container, av.container.InputContainer)
            videos = container.streams.video
            if not videos:
                raise ValueError("has no video stream")
            context = videos[0].codec_context
            if context.width * context.height > _MAX_PIXELS:
                raise ValueError(f"declares {context.width}x{context.height} pixels")
            frames, places = _decoded(container, videos[0])
            gaps = [b - a for a, b in zip(places, [*places[1:], len(frames)], strict=True)]
            steps = [f.time - frames[0].time for f in frames]
            return Video(
                frames=len(frames),
                width=context.width,
                height=context.height,
                pixel_format=str(context.pix_fmt),
                full_range=context.color_range == _FULL or str(context.pix_fmt).startswith("yuvj"),
                codec=context.name,
                audio=bool(container.streams.audio),
                others=len(container.streams) - len(container.streams.audio) - 1,
                constant_rate=steps == [Fraction(i, rate) for i in range(len(steps))],
                square_pixels=context.sample_aspect_ratio in (None, 0, 1),
                upright=all(f.upright for f in frames),
                longest_gap=max(gaps) if places[:1] == [0] else len(frames) + 1,
                damaged=sum(f.damaged for f in frames),
                gray=all(f.gray for f in frames),
            )
    except (av.FFmpegError, OverflowError, IndexError) as error:
        raise ValueError(f"cannot be decoded: {error}") from None


@dataclass(frozen=True)
class _Frame:
    time: Fraction  # seconds
    damaged: bool
    upright: bool
    gray: bool


def _decoded(container: av.container.InputContainer, stream: Any) -> tuple[list[_Frame], list[int]]:
    """All frames in display order, and the numbers of those that the container marks as keyframes."""
    stream.codec_context.thread_count = 1
    frames, times, keyframes = [], [], set()
    for packet in container.demux(stream):
        if packet.size and packet.is_keyframe and packet.pts is not None:
            keyframes.add(packet.pts)
        for frame in packet.decode():
            frames.append(_frame(frame))
            times.append(frame.pts)
    return frames, [number for number, time in enumerate(times) if time in keyframes]


def _frame(frame: av.VideoFrame) -> _Frame:
    width = -(-frame.width // 2)
    chroma = (np.frombuffer(p, np.uint8).reshape(-1, p.line_size)[:, :width] for p in frame.planes[1:])  # type: ignore[call-overload]
    gray = all(abs(c.astype(np.int16) - FLOW_ZERO).max(initial=0) <= _CHROMA_TOLERANCE for c in chroma)
    base = frame.time_base or Fraction(0)
    time = Fraction(-1) if frame.pts is None else Fraction(frame.pts * base.numerator, base.denominator)
    return _Frame(time, bool(frame.is_corrupt), frame.rotation == 0, gray)


def _broken(suffix: str, rules: dict[str, bool], video: Video, row: dict[str, Any], rate: int) -> list[str]:
    """Fragments for those of the `rules`, and of the rules for all videos, that do not hold."""
    rules |= {
        f"has {video.frames} frames, the index says {row['frames']}": video.frames == row["frames"],
        f"is {video.codec}, not h264": video.codec == "h264",
        "has audio": not video.audio,
        "has further streams": video.others == 0,
        f"is not constant {rate} frames a second": video.constant_rate,
        "has pixels that are not square": video.square_pixels,
        "is turned by its metadata": video.upright,
        f"has {video.longest_gap} frames between keyframes, more than {_MAX_GAP}": (
            video.longest_gap <= _MAX_GAP
        ),
        f"has {video.damaged} damaged frames": video.damaged == 0,
    }
    return [f"{suffix} {text}" for text, holds in rules.items() if not holds]


def _json_breaches(row: dict[str, Any], data: bytes, promised: Promised) -> list[str]:
    try:
        meta = json.loads(data)
        source, flow = meta["source"], meta.get("flow")
        found = [f"json has no source.{name}" for name in _SOURCE_FIELDS if name not in source]
        for name in ("key", "frames", "width", "height"):
            if meta[name] != row[name]:
                found.append(f"json says {name} {meta[name]!r}, the index {row[name]!r}")
        wanted = round(promised.rate * (row["time_end"] - row["time_start"]))
        shorter = promised.rate <= row["frames"] < wanted and bool(meta.get("note"))
        if row["frames"] != wanted and not shorter:
            found.append(f"{row['frames']} frames instead of {wanted}, and the json does not say why")
        if promised.flow:
            if flow["bound"] != FLOW_BOUND:
                found.append(f"json says flow bound {flow['bound']!r}, not {FLOW_BOUND}")
            if (said := flow["saturation"]) != row["flow_saturation"]:
                found.append(f"json says flow saturation {said!r}, not {row['flow_saturation']!r}")
            if not isinstance(flow["tvl1"], dict):
                found.append("json has no TV-L1 parameters")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [f"json is not as promised: {type(error).__name__} {error}"]
    return found
