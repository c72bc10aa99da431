"""Cuts clips: one ffmpeg pass gives a clip's mp4 and the luma planes for its flow; and decodes our own clips.

`pipeline.media.probe` decides what may be opened, `pipeline.media.corruption` whether the frames are good.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import re
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.media import subprocesses
from pipeline.media.corruption import MIN_SECONDS, NO_DAMAGE, examine, find_complaint, judge
from pipeline.media.probe import SEEKABLE, SourceInfo, reader_options
from pipeline.media.probe import probe as probe
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import Failed, FailureClass
from pipeline.storage import Sync, replacing

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from pipeline.flow.recipe import FlowCoding

GENERAL = "-nostdin -hide_banner -y -v repeat+verbose -nostats -filter_complex_threads 1".split()  # noqa: SIM905
"""The first options of every ffmpeg call on a source."""

_PREROLL = 2.0  # s decoded before the start, so that the picture on screen there is known
_MAX_PLANE_BYTES = 2 << 30
_UNTAGGED_HD = 720  # lines: an untagged source of so many is taken for BT.709, as players do

_GRAY = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class ClipFrames:
    """The frames that one pass made.

    `planes` is uint8 (frames + 1 or frames, height, width), read-only: the clip's luma before encoding,
    limited range, one more than `frames` where the source goes on. `note` says why there are fewer frames
    than `wanted`, or that some of the source was damaged.
    """

    frames: int
    wanted: int
    width: int
    height: int
    planes: np.ndarray
    source: SourceInfo
    note: str | None


def ffmpeg_binary(path: str | None = None) -> str:
    """`path`, or the reference encoder that imageio-ffmpeg carries."""
    if path is not None:
        return path
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def encoder_version(binary: str) -> str:
    """First line of ``ffmpeg -version``. Raises Failed(ENVIRONMENT) where that cannot be had."""
    try:
        finished = subprocesses.run([binary, "-version"], timeout=30)
    except (OSError, subprocesses.ChildTimeout) as error:
        raise Failed(
            FailureClass.ENVIRONMENT, f"{binary} does not run ({error}); name an ffmpeg with --ffmpeg"
        ) from error
    lines = finished.stdout.decode("utf-8", "replace").splitlines()
    if finished.returncode or not lines or not lines[0].startswith("ffmpeg version"):
        raise Failed(FailureClass.ENVIRONMENT, f"{binary} is no ffmpeg; name one with --ffmpeg")
    return lines[0].strip()


def cut(
    source: Path,
    start: float,
    end: float,
    recipe: EncodeRecipe,
    out: Path | None,
    *,
    ffmpeg: str,
    timeout: float,
    trimmed: bool = False,
) -> ClipFrames:
    """Bring seconds [start, end) of `source` to the recipe's rate and size, in one pass.

    Frame i shows what is on screen at start + i / rate, by the clock of the file (from its first time
    stamp on for mpegts, mpeg and what is `trimmed`), within one source frame (within 20 ms, where the source
    has more than 50 a second).
    `out` (None: none is wanted) appears whole or not at all.

    Raises:
        Failed: SHORT with less than a second inside the source, CORRUPT for an undecodable source or
            one with too few frames for its length, FORMAT and TOO_LARGE as `probe` says (TOO_LARGE also
            past `timeout` seconds), STORAGE where `out` cannot be written, ENVIRONMENT without ffmpeg.
    """
    info = probe(source, trimmed)
    wanted = round(recipe.rate * (end - start))
    if wanted < MIN_SECONDS * recipe.rate:
        raise Failed(FailureClass.SHORT, f"the section is {end - start:g} s long: less than a second")
    width, height = info.output_size(recipe.short_side)
    if (wanted + 1) * width * height > _MAX_PLANE_BYTES:
        text = f"{end - start:g} s are too long to hold: ask for less at a time"
        raise Failed(FailureClass.TOO_LARGE, text)
    with contextlib.nullcontext() if out is None else written(out, "the clip") as temporary:
        argv = command(source, info, start, wanted, recipe, temporary, ffmpeg)
        finished = _run(argv, timeout, (wanted + 1) * width * height)
        planes = np.frombuffer(finished.stdout, np.uint8)
        planes = planes[: planes.size // (width * height) * (width * height)].reshape(-1, height, width)
        complaint = find_complaint(finished.stderr, str(Path(source).absolute()))
        damage = examine(source, info, start, end, timeout) if complaint else NO_DAMAGE
        note = judge(info, start, wanted, len(planes), recipe.rate, complaint, damage)
        if temporary is not None:
            _check_end(finished, min(len(planes), wanted))
    return ClipFrames(min(len(planes), wanted), wanted, width, height, planes, info, note)


def command(
    source: Path,
    info: SourceInfo,
    start: float,
    wanted: int,
    recipe: EncodeRecipe,
    out: Path | int | None,
    ffmpeg: str,
) -> list[str]:
    """The argument list of the one pass: `wanted` frames to `out`, wanted + 1 luma planes to a pipe.

    `out` is the mp4, or the descriptor of a pipe for the same pictures as they come (in nut), or nothing.

    Every option is there for a reason that was measured: -copyts and setpts keep the source's clock
    (PTS-STARTPTS shifts by up to a frame); the pre-roll and noaccurate_seek keep the picture that was
    on screen before a hole; no -t, whose end would cut a hole short; explicit sizes and reinit_filter=0
    hold when the picture size changes; one thread, mbtree=0, accurate_rnd and bitexact make the bytes
    the same on every x86-64 machine.
    """
    import ffmpeg as ffmpeg_python

    frames, clips = frame_graph(source, info, start, wanted, recipe), []
    if out is not None:
        both = frames.filter_multi_output("split")
        clips, frames = [h264_output(both[0].filter("trim", end_frame=wanted), recipe, out)], both[1]
    planes = ffmpeg_python.output(frames.filter("extractplanes", "y"), "pipe:1", f="rawvideo", pix_fmt="gray")
    return [ffmpeg, *GENERAL, *ffmpeg_python.merge_outputs(*clips, planes).get_args()]


def frame_graph(source: Path, info: SourceInfo, start: float, wanted: int, recipe: EncodeRecipe) -> Any:
    """ffmpeg-python's stream of the wanted + 1 frames of `command`, from the opening of `source` on.

    They have the clip's rate and size, and are upright, square, yuv420p, limited range.
    """
    import ffmpeg as ffmpeg_python

    preroll = max(0, math.floor(min(_PREROLL, start) * recipe.rate + 1e-9))
    options: dict[str, object] = dict(reader_options()) | {"copyts": None, "reinit_filter": 0}
    seek = start - preroll / recipe.rate
    if info.container in SEEKABLE and seek > 0:
        options |= {"noaccurate_seek": None, "seek_timestamp": 1, "ss": f"{seek + info.origin:.6f}"}
    video = ffmpeg_python.input(f"file:{Path(source).absolute()}", **options)["V:0"]
    width, height = info.output_size(recipe.short_side)
    video = (
        video.filter("setpts", f"PTS-{start + info.origin:.6f}/TB")
        .filter("fps", recipe.rate, start_time=f"{-preroll / recipe.rate:.6f}")
        .filter("trim", start_frame=preroll, end_frame=preroll + wanted + 1)
        .filter("setpts", f"N/{recipe.rate}/TB")
        .filter("scale", width, height, flags="bicubic+accurate_rnd+bitexact", out_range="tv")
    )
    if info.is_hdr:
        matrix = "2020_ncl" if info.matrix in (None, "bt2020nc") else "input"
        video = (
            video.filter("zscale", tin=info.transfer, min=matrix, pin="2020", rin="tv", t="linear", npl=100)
            .filter("format", "gbrpf32le")
            .filter("zscale", p="bt709")
            .filter("tonemap", "hable", desat=0)
            .filter("zscale", t="bt709", m="bt709", r="tv")
        )
    video = video.filter("setsar", 1).filter("format", "yuv420p")
    if info.matrix is None and min(info.width, info.height) >= _UNTAGGED_HD:
        video = video.filter("setparams", colorspace="bt709")
    return video


def h264_output(
    frames: Any, coding: EncodeRecipe | FlowCoding, out: Path | int, x264: str = "", **options: object
) -> Any:
    """ffmpeg-python's output of `frames`: an mp4, or nut into the pipe of that descriptor.

    `x264` (such as ``:bframes=0``) and `options` are further parameters; an option replaces its namesake.
    """
    import ffmpeg as ffmpeg_python

    options = {
        "c:v": "libx264",
        "preset": coding.preset,
        "crf": coding.crf,
        "g": coding.keyframe_interval,
        "threads": 1,
        "x264-params": f"threads=1:lookahead-threads=1:mbtree=0{x264}",
        "bsf:v": "filter_units=remove_types=6",  # the SEI that names the encoder's build
        "flags:v": "+bitexact",
        "fflags": "+bitexact",
        "map_metadata": -1,
        "map_chapters": -1,
        "color_range": "tv",
    } | options
    if isinstance(out, int):
        return ffmpeg_python.output(frames, f"pipe:{out}", f="nut", flush_packets=1, **options)
    options |= {"write_btrt": 0, "movflags": "+faststart"}
    return ffmpeg_python.output(frames, f"file:{out.absolute()}", f="mp4", **options)


def run_ffmpeg(argv: list[str], timeout: float, late: str, **limits: Any) -> subprocesses.Finished:
    """`subprocesses.run` for ffmpeg.

    Raises:
        Failed: TOO_LARGE past `timeout` seconds, with `late` as its sentence; ENVIRONMENT without ffmpeg.
        ChildOutputTooLarge: as `subprocesses.run` does.
    """
    try:
        return subprocesses.run(argv, timeout=timeout, **limits)
    except subprocesses.ChildTimeout as error:
        raise Failed(FailureClass.TOO_LARGE, f"{late} within {timeout:g} s") from error
    except OSError as error:
        raise Failed(FailureClass.ENVIRONMENT, f"{argv[0]} does not run: {error.strerror}") from error


def _run(argv: list[str], timeout: float, plane_bytes: int) -> subprocesses.Finished:
    try:
        finished = run_ffmpeg(argv, timeout, "ffmpeg did not read the source", max_stdout=plane_bytes)
    except subprocesses.ChildOutputTooLarge as error:
        raise Failed(FailureClass.CORRUPT, "the source gave more pictures than were asked for") from error
    code, said = finished.returncode, finished.stderr
    if code in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
        name = signal.Signals(-code).name
        raise Failed(FailureClass.ENVIRONMENT, f"ffmpeg was ended from outside by {name}")
    full = _UNWRITABLE.search(said)
    if code == -signal.SIGXFSZ or (code and full):
        why = full.group(0) if full else "File too large"
        raise Failed(FailureClass.STORAGE, f"the clip cannot be written: {why}")
    if code and (lacking := _LACKING.search(said)):
        raise Failed(FailureClass.ENVIRONMENT, f"this ffmpeg cannot make clips: {lacking.group(0)}")
    return finished


_UNWRITABLE = re.compile(
    r"No space left on device|Read-only file system|Permission denied|File too large|quota"
)
_LACKING = re.compile(
    r"Unknown encoder '\w+'|No such filter: '\w+'|Unrecognized option '\w+'|Unknown bitstream filter.*"
)
_ENCODED = re.compile(r"(\d+) frames encoded; (\d+) packets muxed")


def _check_end(finished: subprocesses.Finished, frames: int) -> None:
    """Raise where ffmpeg gave the planes but not the whole file."""
    if finished.returncode < 0:
        name = signal.Signals(-finished.returncode).name
        raise Failed(FailureClass.CORRUPT, f"ffmpeg crashed on the source ({name})")
    encoded = _ENCODED.search(finished.stderr)
    if finished.returncode or (encoded and int(encoded.group(2)) != frames):
        last = next((line for line in reversed(finished.stderr.splitlines()) if line.startswith("[")), "")
        text = f"ffmpeg did not finish the clip ({finished.returncode}): {last}"
        raise Failed(FailureClass.ENVIRONMENT, text)


@contextlib.contextmanager
def written(out: Path, what: str) -> Iterator[Path]:
    """A temporary file for ffmpeg to write, which becomes `out` when the block ends without an exception.

    Raises Failed of class storage, with `what` as the subject of its sentence.
    """
    if not out.absolute().parent.is_dir():
        raise Failed(FailureClass.STORAGE, f"{what} cannot be written: its folder is not there")
    try:
        with replacing(out, Sync.CONTENT) as temporary:
            yield temporary
    except OSError as error:
        raise Failed(FailureClass.STORAGE, f"{what} cannot be written: {error.strerror}") from error


def gray(planes: np.ndarray) -> np.ndarray:
    """Limited-range luma to full range: clip(rint((Y - 16) * 255 / 219), 0, 255), uint8, same shape."""
    return _GRAY[planes]


def read(
    path: Path,
    start: float | None = None,
    end: float | None = None,
    recipe: EncodeRecipe | None = None,
    ffmpeg: str | None = None,
    timeout: float = 3600.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Frames and gray planes of a raw video, the very same way as a prepared clip's. Raises as `cut`.

    Args:
        start, end: seconds by the file's clock; default its first time stamp and its end.

    Returns:
        rgb uint8 (T, H, W, 3), as decoded from the encoded clip, and gray uint8 (T or T + 1, H, W) for
        the flow, full range. Memory is proportional to the length.
    """
    recipe = recipe or EncodeRecipe()
    info = probe(path)
    start = info.start - info.origin if start is None else start
    if end is None:
        if info.end is None:
            raise Failed(FailureClass.FORMAT, "the video does not say how long it is; name an end in seconds")
        end = info.end
    with tempfile.TemporaryDirectory(prefix="quovadis-") as folder:
        out = Path(folder) / "clip.mp4"
        piece = cut(Path(path), start, end, recipe, out, ffmpeg=ffmpeg_binary(ffmpeg), timeout=timeout)
        return decode(out), gray(piece.planes)


def decode(data: bytes | Path, frames: range | None = None, threads: int = 1) -> np.ndarray:
    """RGB of one of our clips, or of a contiguous range of its frames: uint8 (T, H, W, 3).

    Untagged colours are read as BT.601, tagged ones as tagged, by swscale's exact paths: the same bytes
    on every machine. Raises Failed and IndexError as `pictures`.
    """
    from av.video.reformatter import Interpolation, VideoReformatter

    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    reformat = functools.partial(VideoReformatter().reformat, format="rgb24", interpolation=exact, threads=1)
    return np.stack([reformat(picture).to_ndarray() for picture in pictures(data, frames, threads)])


def pictures(
    data: bytes | Path, frames: range | None = None, threads: int = 1, what: str = "the clip"
) -> Iterator[VideoFrame]:
    """Decodes one of our own videos, or a contiguous range of its frames from the keyframe before it.

    Raises:
        Failed: CORRUPT when `data` is no such video; `what` is its name in the sentence.
        IndexError: a frame of `frames` is not there.
    """
    import av

    source = io.BytesIO(data) if isinstance(data, bytes) else f"file:{Path(data).absolute()}"
    given = 0
    try:
        with av.open(source, "r", options=reader_options()) as container:
            stream: Any = container.streams.video[0]
            stream.codec_context.thread_count = threads
            tick = 1 / (stream.average_rate * stream.time_base)  # time stamps a frame
            if frames is not None and frames.start > 0:
                container.seek(round(frames.start * tick), stream=stream, backward=True, any_frame=False)
            for picture in container.decode(stream):
                index = round(picture.pts / tick)
                if frames is None or index in frames:
                    given += 1
                    yield picture
                if frames is not None and index >= frames.stop - 1:
                    break
    except (av.error.FFmpegError, StopIteration, IndexError) as error:
        raise Failed(FailureClass.CORRUPT, f"{what} cannot be decoded: {error}") from error
    if frames is not None and given != len(frames):
        raise IndexError(f"frames {frames.start} to {frames.stop} are not all in {what}")
