"""Videos whose every frame shows its own presentation time, and the reader of what they show.

A time is drawn as 32 blocks of luma (4 rows of 8: 24 bits of milliseconds, 8 of checksum), so it
survives encoding, scaling to a short side of 256 pixels and tone mapping. Files are written with
PyAV, since only the exact presentation times make a test of them.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TIME_BASE = Fraction(1, 90000)
ROWS, COLUMNS = 4, 8
RATES = {
    "12": Fraction(12),
    "23.976": Fraction(24000, 1001),
    "29.97": Fraction(30000, 1001),
    "50": Fraction(50),
}
CONTAINERS = ("mp4", "webm", "mkv", "ts")


def constant(rate: Fraction | float, seconds: float, start: float = 0.0) -> list[Fraction]:
    """Times of a constant rate: `start` + i / rate, in seconds, while less than start + seconds."""
    rate = Fraction(rate).limit_denominator(100000)
    first = Fraction(start).limit_denominator(90000)
    return [first + i / rate for i in range(int(np.ceil(seconds * float(rate) - 1e-9)))]


def variable(seconds: float, start: float = 0.0, hole: tuple[float, float] | None = None) -> list[Fraction]:
    """Times of a variable rate (15 to 48 frames a second, drawn with a fixed seed); none inside `hole`."""
    random = np.random.default_rng(7)
    times, now = [], start
    while now < start + seconds:
        if hole is None or not hole[0] < now < hole[1]:
            times.append(Fraction(round(now * 1000), 1000))
        now += random.uniform(1 / 48, 1 / 15)
    return times


def picture(time: float, width: int, height: int) -> np.ndarray:
    """uint8 (height, width), limited range: the blocks that show `time` (seconds, 0 to 16777)."""
    number = round(float(time) * 1000)
    word = number << 8 | (number * 37 + 11 & 255 ^ number >> 8 & 255 ^ number >> 16 & 255)
    bits = np.array([word >> 31 - i & 1 for i in range(32)], dtype=bool).reshape(ROWS, COLUMNS)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.where(bits[rows][:, columns], 200, 50).astype(np.uint8)


def read_times(frames: np.ndarray) -> np.ndarray:
    """Times shown by `frames`, uint8 (T, H, W) luma or gray or (T, H, W, 3) RGB: float64 (T,) seconds.

    A frame whose checksum does not fit (torn, blended, upside down) reads as NaN.
    """
    if frames.ndim == 4:
        frames = frames.mean(axis=3)
    count, height, width = frames.shape
    y = (np.arange(ROWS) * 2 + 1) * height // (2 * ROWS)
    x = (np.arange(COLUMNS) * 2 + 1) * width // (2 * COLUMNS)
    middle = (
        sum(frames[:, y + dy][:, :, x + dx].astype(np.float64) for dy in (-2, 0, 2) for dx in (-2, 0, 2)) / 9
    )
    flat = middle.reshape(count, -1)
    threshold = (flat.min(axis=1) + flat.max(axis=1)) / 2
    words = (flat > threshold[:, None]) @ (1 << np.arange(31, -1, -1, dtype=np.int64))
    number = words >> 8
    check = (number * 37 + 11) & 255 ^ (number >> 8) & 255 ^ (number >> 16) & 255
    return np.where(check == (words & 255), number / 1000, np.nan)


@dataclass(frozen=True)
class Look:
    """How a source is coded; the defaults are an ordinary upright video of 320 x 240 square pixels."""

    width: int = 320
    height: int = 240
    pixel_format: str = "yuv420p"
    codec: str | None = None  # default by container: libvpx-vp9 for webm, else libx264
    rotation: int = 0  # degrees that the player has to turn the stored picture counter-clockwise
    pixel_aspect: Fraction = Fraction(1)
    hdr: bool = False  # PQ, BT.2020, 10 bit HEVC
    interlaced: bool = False
    full_range: bool = False
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A written file. Frame i is shown from `times[i]` seconds on, by the clock of the contract:
    the file's own for mp4, mkv and webm, from the first time stamp of any stream for mpegts."""

    path: Path
    times: np.ndarray  # float64, seconds, by the contract's clock
    shown: np.ndarray  # float64, seconds: what the frames themselves show

    def expected(self, start: float, count: int, rate: int = 25) -> np.ndarray:
        """Index of the source frame on screen at start + i / rate, int64 (count,)."""
        at = start + np.arange(count) / rate
        return np.clip(np.searchsorted(self.times, at + 1e-4, side="right") - 1, 0, None)

    def worst_error(self, frames: np.ndarray, start: float, rate: int = 25) -> int:
        """Largest distance, in source frames, between a decoded clip (see `read_times`) and the truth;
        a frame that shows no readable time counts as 10**6."""
        shown = read_times(frames)
        if np.isnan(shown).any():
            return 10**6
        index = np.abs(self.shown[None, :] - shown[:, None]).argmin(axis=1)
        return int(np.abs(index - self.expected(start, len(frames), rate)).max())


def write(
    path: Path, times: list[Fraction], look: Look | None = None, audio_from: float | None = None
) -> Source:
    """Write a video whose frame i is presented at `times[i]` s, with silence from `audio_from` s on.

    The container is `path`'s suffix. An `audio_from` of less than 0.05 s makes muxers shift all times
    (encoder priming would be negative), so keep above it.
    """
    look = look or Look()
    target = path if not look.rotation else path.with_name(f"unturned-{path.name}")
    earliest = _mux(target, times, look, audio_from)
    if look.rotation:
        _set_rotation(target, path, look.rotation)
        target.unlink()
    shown = np.array([round(float(t) * 1000) / 1000 for t in times])
    origin = earliest if path.suffix == ".ts" else 0.0
    return Source(path, np.array([float(t) for t in times]) - origin, shown)


def _mux(path: Path, times: list[Fraction], look: Look, audio_from: float | None) -> float:
    """Encode and mux; the earliest presentation time of any packet, in seconds."""
    earliest = [float("inf")]
    with av.open(str(path), "w") as container:
        video = _video_stream(container, path.suffix, look)
        audio = None
        if audio_from is not None:
            name = "libopus" if path.suffix == ".webm" else "aac"
            audio = container.add_stream(name, rate=48000, layout="mono")
        packets = []
        for time in times:
            frame = _frame(float(time), look)
            frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
            packets.extend(video.encode(frame))
        packets.extend(video.encode(None))
        if audio is not None:
            packets.extend(_silence(audio, audio_from or 0.0, float(times[-1])))
        for packet in sorted(packets, key=lambda p: float(p.dts * p.time_base)):
            earliest.append(float(packet.pts * packet.time_base))
            container.mux(packet)
    return min(earliest)


def _video_stream(container, suffix: str, look: Look):
    codec = look.codec or ("libx265" if look.hdr else "libvpx-vp9" if suffix == ".webm" else "libx264")
    options = {
        "libx264": {"preset": "ultrafast", "crf": "20", "bf": "2"},
        "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30"},
    }.get(codec, {})
    if look.interlaced:
        options = options | {"x264-params": "tff=1"}
    video = container.add_stream(codec, rate=25, options=options | look.options)
    turned = look.rotation % 180 == 90
    video.width, video.height = (look.height, look.width) if turned else (look.width, look.height)
    video.pix_fmt = look.pixel_format
    video.codec_context.time_base = TIME_BASE
    video.time_base = TIME_BASE
    video.codec_context.gop_size = 40
    video.codec_context.sample_aspect_ratio = look.pixel_aspect
    video.codec_context.color_range = 2 if look.full_range else 1
    if look.hdr:
        video.codec_context.color_primaries, video.codec_context.color_trc = 9, 16
        video.codec_context.colorspace = 9
    return video


def _frame(time: float, look: Look) -> av.VideoFrame:
    """The picture of `time`, turned as it is stored: luma exactly as drawn, chroma neutral."""
    luma = np.rot90(picture(time, look.width, look.height), -look.rotation // 90)
    height, width = luma.shape
    frame = av.VideoFrame(width, height, look.pixel_format)
    depth, kind = (2, np.dtype("<u2")) if look.pixel_format.endswith("10le") else (0, np.dtype(np.uint8))
    for i, plane in enumerate(frame.planes):
        padded = np.full((plane.height, plane.line_size // kind.itemsize), 128 << depth, kind)
        if i == 0:
            padded[:, :width] = luma.astype(kind) << depth
        plane.update(padded.tobytes())
    return frame


def _silence(audio, start: float, end: float) -> list:
    packets, size = [], 960
    for i in range(int((end - start) * 48000 / size)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, size), np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
        frame.pts = round(start * 48000) + i * size
        packets.extend(audio.encode(frame))
    return packets + list(audio.encode(None))


def _set_rotation(source: Path, target: Path, degrees: int) -> None:
    import imageio_ffmpeg

    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-nostdin",
        "-y",
        "-display_rotation",
        str(degrees),
    ]
    subprocess.run([*command, "-i", str(source), "-c", "copy", str(target)], check=True)


def plain_cases() -> dict[str, tuple[str, list[Fraction], float | None]]:
    """name -> (suffix, times, audio_from): every container by every rate, at 6 s from zero; then, in
    every container, a variable rate, a hole, a non-zero start, and audio that starts before the video."""
    cases: dict[str, tuple[str, list[Fraction], float | None]] = {}
    for container in CONTAINERS:
        for name, rate in RATES.items():
            cases[f"{container}-{name}"] = (container, constant(rate, 6), None)
        cases[f"{container}-variable"] = (container, variable(6), None)
        cases[f"{container}-hole"] = (container, variable(8, hole=(1.7, 4.9)), 0.1)
        cases[f"{container}-late-start"] = (container, constant(RATES["29.97"], 6, start=1.5), None)
        cases[f"{container}-audio-first"] = (container, constant(RATES["23.976"], 6, start=0.7), 0.1)
    return cases


LOOKS = {
    "rotated": Look(width=240, height=320, rotation=90),
    "upside-down": Look(rotation=180),
    "wide-pixels": Look(width=240, height=240, pixel_aspect=Fraction(4, 3)),
    "tall-pixels": Look(pixel_aspect=Fraction(8, 9)),
    "portrait": Look(width=240, height=426),
    "odd-444": Look(width=321, height=241, pixel_format="yuv444p"),
    "hdr": Look(pixel_format="yuv420p10le", hdr=True),
    "interlaced": Look(interlaced=True),
    "full-range": Look(full_range=True),
}
