"""Reads a source video's container, codec, size, clock and colours without trusting the file.

Owns the list of formats that are opened at all, and the limits on them. Only containers that cannot name
other files are opened, and no protocol but local files; only the first picture is decoded here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.outcome import Failed, FailureClass

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

FORMATS = "mov,matroska,mpegts,avi,flv,mpeg,ogg,asf"
"""FFmpeg's names of the containers that are opened. Playlists, concat lists, images, subtitles and
descriptions of streams elsewhere (HLS, DASH, SDP, ffconcat...) are not among them."""
MAX_PIXELS = 7680 * 4352  # an 8K picture in whole macroblocks
MAX_ASPECT = 8  # of the picture as shown: a short side of 256 makes 2048 pixels of the long one
_PACKETS_TO_FIRST_PICTURE = 300
_OPEN_SECONDS = 30.0

_CODECS = frozenset(
    # of the web, of broadcasts, of cameras
    "h264 hevc vvc av1 vp8 vp9 vp6 vp6f vp6a theora dirac h261 h263 h263i h263p flv1 mpeg1video mpeg2video "  # noqa: SIM905
    "mpeg4 msmpeg4v1 msmpeg4v2 msmpeg4v3 wmv1 wmv2 wmv3 vc1 mjpeg mjpegb dvvideo prores dnxhd cfhd jpeg2000 "
    # without loss
    "rawvideo v210 ffv1 huffyuv ffvhuff utvideo magicyuv lagarith png qtrle fraps zlib mszh zmbv "
    # of the years before
    "rv10 rv20 rv30 rv40 svq1 svq3 indeo2 indeo3 indeo4 indeo5 vp3 vp5 cinepak msrle msvideo1 smc rpza "
    "8bps".split()
)
"""FFmpeg's names of the codecs that are decoded: those that videos are kept in, as far as both the reference
encoder and PyAV read them. FFmpeg has decoders of texts, drawings and games too, which no file is given."""
_OWN_ZERO = ("mpegts", "mpeg")  # containers of broadcasts and discs, whose clocks begin anywhere
_TRANSFERS = {
    1: "bt709",
    4: "gamma22",
    6: "smpte170m",
    8: "linear",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    18: "arib-std-b67",
}
_MATRICES = {
    0: "gbr",
    1: "bt709",
    4: "fcc",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    9: "bt2020nc",
    10: "bt2020c",
}
SEEKABLE = ("mov", "matroska")
"""Where a seek lands on a keyframe at or before its time. In mpegts it lands seconds late, in avi behind
the only keyframe even at 0, and what is decoded then is grey: others are read from their start."""
HDR = frozenset({"smpte2084", "arib-std-b67"})
_HIGHEST_RATE = 240  # frames a second


@dataclass(frozen=True)
class SourceInfo:
    """A source's first video stream; plain values, as they go into a sample's json."""

    container: str  # FFmpeg's name of the demuxer
    codec: str
    width: int  # pixels as stored
    height: int
    sar: str  # width:height of one stored pixel
    rotation: int  # degrees counter-clockwise that make the stored picture upright: 0, 90, 180, 270
    rate: float  # mean frames a second; 0 where the file does not say
    constant_rate: float | None  # frames a second, the same for a section as for all; None: it varies
    duration: float | None  # seconds of the video stream, else of the file; None where neither says
    start: float  # seconds: the file's first time stamp
    first: float | None  # seconds by the clip's clock: when the first picture that decodes is shown
    end: float | None  # seconds by the clip's clock: where the header says that the last picture ends
    end_is_video: bool  # whether it says so of the video stream, and not of the longest one
    transfer: str | None  # None: not tagged
    matrix: str | None
    origin: float = 0.0  # seconds: the time stamp that the clip's clock counts from

    @property
    def moved(self) -> float:
        """Seconds by which the clip's clock counts from later than the container's, as it is trimmed."""
        return self.origin - (self.start if self.container in _OWN_ZERO else 0.0)

    @property
    def shown_size(self) -> tuple[Fraction, Fraction]:
        """Width and height of the upright picture in square pixels of the stored height."""
        across, down = self.sar.split(":")
        width, height = self.width * Fraction(int(across), int(down)), Fraction(self.height)
        return (height, width) if self.rotation % 180 == 90 else (width, height)

    def output_size(self, short_side: int) -> tuple[int, int]:
        """Width and height, both even, of this picture, upright and square, scaled to `short_side`."""
        width, height = self.shown_size
        factor = short_side / min(width, height)
        across, down = (2 * int(side * factor / 2 + Fraction(1, 2)) for side in (width, height))
        return across, down

    @property
    def is_hdr(self) -> bool:
        return self.transfer in HDR


def reader_options() -> dict[str, str]:
    """Options for FFmpeg on a file of unknown origin: no other file, no network, no huge picture."""
    return {
        "protocol_whitelist": "file,pipe",
        "format_whitelist": FORMATS,
        "probesize": "5000000",  # bytes, and microseconds: FFmpeg's own defaults, the same for both readers
        "analyzeduration": "5000000",
        "max_pixels": str(MAX_PIXELS),
        "threads": "1",
    }


def probe(path: str | Path, trimmed: bool = False) -> SourceInfo:
    """Read the header and the first picture of a local file.

    Args:
        trimmed: the clip's clock counts from the file's first time stamp of any stream, as it does anyhow in
            mpegts and mpeg, and not from zero. A negative start (audio priming) counts as 0.

    Raises:
        Failed: FORMAT when this is no video file (a page, a playlist, audio, nothing), CORRUPT when it
            is one that cannot be read, TOO_LARGE for a picture beyond the limits, MISSING without file.
    """
    import av

    path = Path(path).absolute()
    try:
        if not path.is_file():
            raise Failed(FailureClass.MISSING, "the source is no file")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise Failed(FailureClass.MISSING, f"the source file cannot be read: {error.strerror}") from error
    if not head:
        raise Failed(FailureClass.FORMAT, "the source file is empty")
    try:
        with av.open(f"file:{path}", options=reader_options(), timeout=_OPEN_SECONDS) as container:
            return _describe(container, trimmed)
    except (av.error.FFmpegError, ValueError, UnicodeError) as error:
        if _looks_like_video(head):
            said = str(error).split(";")[0].split(": '")[0][:120]
            text = f"the source is damaged: its header cannot be read ({said})"
            raise Failed(FailureClass.CORRUPT, text) from error
        raise Failed(FailureClass.FORMAT, f"the source is no video file: it begins {head[:24]!r}") from error


def _looks_like_video(head: bytes) -> bool:
    """Whether a file's first 512 bytes bear the mark of one of `FORMATS`."""
    boxes = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
    marks = (b"\x1a\x45\xdf\xa3", b"FLV\x01", b"OggS", b"\0\0\1\xba", b"\0\0\1\xb3", b"\x30\x26\xb2\x75")
    transport = any(
        head[i : i + 1] == b"\x47" == head[i + step : i + step + 1] for i, step in ((0, 188), (4, 192))
    )
    return head[4:8] in boxes or head.startswith(marks) or head[8:12] == b"AVI " or transport


def _describe(container: InputContainer, trimmed: bool) -> SourceInfo:
    video = main_video(container)
    context = video.codec_context
    codec = "of an unknown codec" if context is None else context.codec.canonical_name
    if codec not in _CODECS:
        text = f"the source's video stream is {codec}, which is not read here: encode it again"
        raise Failed(FailureClass.FORMAT, text)
    sar = video.sample_aspect_ratio or Fraction(1)
    _check_size(context.width, context.height, sar)
    name = container.format.name.split(",")[0]
    start = (container.start_time or 0) / 1e6
    origin = start if name in _OWN_ZERO else max(0.0, start) if trimmed else 0.0
    duration, is_video = _duration(container, video)
    if name == "matroska" and duration is not None:  # its durations count from zero, not from the start
        duration = round(duration - origin, 6)
    rotation, first = _first_picture(container, video)
    lowest = video.base_rate  # of all time stamps: thousands a second where the rate varies
    return SourceInfo(
        container=name,
        codec=codec,
        width=context.width,
        height=context.height,
        sar=f"{sar.numerator}:{sar.denominator}",
        rotation=rotation,
        rate=round(float(video.average_rate or 0), 6),
        constant_rate=round(float(lowest), 3) if lowest and lowest <= _HIGHEST_RATE else None,
        duration=duration,
        start=start,
        first=None if first is None else round(first - origin, 6),
        end=_end(name, video, start, duration, origin),
        end_is_video=is_video,
        transfer=_TRANSFERS.get(int(context.color_trc)),
        matrix=_MATRICES.get(int(context.colorspace)),
        origin=origin,
    )


def main_video(container: InputContainer) -> Any:
    """The first video stream that is no cover picture, which ffmpeg calls V:0.

    Raises Failed: FORMAT where there is only sound, CORRUPT where there is nothing.
    """
    cover = 0x400  # AV_DISPOSITION_ATTACHED_PIC
    video = next((s for s in container.streams.video if not int(s.disposition) & cover), None)
    if video is None and not container.streams.audio:
        raise Failed(FailureClass.CORRUPT, "the source is damaged: its header names no stream")
    if video is None:
        raise Failed(FailureClass.FORMAT, "the source has no video stream")
    return video


def _check_size(width: int, height: int, sar: Fraction) -> None:
    """Raise Failed where a picture is nothing, or too large to be decoded or scaled."""
    if width <= 0 or height <= 0 or sar <= 0:
        raise Failed(FailureClass.CORRUPT, "the source's pictures have no size that can be decoded")
    if width * height > MAX_PIXELS:
        text = f"a picture of {width} x {height} is more than {MAX_PIXELS} pixels"
        raise Failed(FailureClass.TOO_LARGE, text)
    aspect = width * sar / height
    if not Fraction(1, MAX_ASPECT) <= aspect <= MAX_ASPECT:
        text = f"a picture {float(aspect):.3g} times as wide as high is out of bounds"
        raise Failed(FailureClass.TOO_LARGE, text)


def _first_picture(container: InputContainer, video: Any) -> tuple[int, float | None]:
    """Rotation in degrees, which PyAV shows only with a picture, and time stamp in seconds."""
    import av

    video.codec_context.thread_count = 1
    for count, packet in enumerate(packets(container, video)):
        try:
            for frame in packet.decode():
                return round(frame.rotation / 90) * 90 % 360, frame.time
        except av.error.FFmpegError:
            pass  # `pipeline.media.corruption` judges what can be decoded
        if count >= _PACKETS_TO_FIRST_PICTURE:
            break
    return 0, None


def packets(container: InputContainer, video: Any) -> Iterator[Packet]:
    """The stream's packets until the file, or what can be read of it, ends."""
    import av

    rest = container.demux(video)
    while True:
        try:
            yield next(rest)
        except (StopIteration, av.error.FFmpegError, IndexError):  # IndexError: of a stream begun midway
            return


def _duration(container: InputContainer, video: Any) -> tuple[float | None, bool]:
    """Seconds, and whether they are the video stream's own."""
    if video.duration:
        return round(float(video.duration * video.time_base), 6), True
    tag = video.metadata.get("DURATION", "")  # matroska: hours:minutes:seconds
    try:
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + round(float(seconds), 6), True
    except ValueError:
        return (round(container.duration / 1e6, 6), False) if container.duration else (None, False)


def _end(container: str, video: Any, start: float, duration: float | None, origin: float) -> float | None:
    if duration is None or container == "matroska":
        return duration
    first = float(video.start_time * video.time_base) if video.start_time is not None else start
    if container == "mpeg" and video.average_rate:
        duration += float(2 / video.average_rate)  # it is made of stamps, up to the last or last but one
    return round(first + duration - origin, 6)
