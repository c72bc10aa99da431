"""Tells a source that ends early from one that is damaged, by ffmpeg's frames and its log.

ffmpeg's exit status says nothing (a damaged file exits 0), and its fps filter fills a lost picture by
repeating the last: so frames are held against the length that the header promises, and where the
decoder complained, the section's pictures are counted one by one.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.media.probe import SEEKABLE, SourceInfo, main_video, packets, reader_options
from pipeline.outcome import Failed, FailureClass

MIN_SECONDS = 1.0
_MAX_DAMAGED = 0.02  # of the section's pictures; beyond it the clip is not worth training on
_SLACK = 0.5  # s that a header may promise too much where something else is wrong too
_BROKEN_PROMISE = 1.0  # s that the video stream's own header may promise too much at all
_MIN_DENSITY = 0.8  # of the stated rate, where the container is damaged: else pictures were lost with it

_PICTURES = re.compile(
    r"corrupt decoded frame|Error submitting packet to decoder|Error while decoding stream"
)
_CONTAINER = re.compile(
    r"partial file|File ended prematurely|[Tt]runcated|[Pp]acket corrupt|corrupt input packet"
    r"|invalid as first byte|EBML.*(invalid|exceeds|length)|Element.*(exceeds|invalid)"
)


@dataclass(frozen=True)
class Damage:
    """The section's pictures: whole or not decoded in full, and packets that gave none."""

    decoded: int
    concealed: int = 0
    lost: int = 0

    @property
    def pictures(self) -> int:
        return self.decoded + self.lost

    @property
    def damaged(self) -> int:
        return self.concealed + self.lost


NO_DAMAGE = Damage(0)


def find_complaint(stderr: str, path: str) -> str | None:
    """The log's first line about damage, those about the container before others, without addresses.

    `path` is taken out first, since a file may be named after its damage. A complaint is only
    a reason to look: ffmpeg reads on for a while behind the section's end.
    """
    lines = [line for line in stderr.replace(path, "").splitlines() if line.startswith("[")]
    for mark in (_CONTAINER, _PICTURES):
        for line in lines:
            if mark.search(line):
                return re.sub(r"^(\[[^]]*\] ?)+", "", line).strip()
    return None


def examine(path: Path, info: SourceInfo, start: float, end: float, timeout: float) -> Damage:
    """Decode the section [start, end) once more and count its pictures: the same count every time.

    Raises Failed: TOO_LARGE past `timeout` seconds, CORRUPT where it cannot be opened again.
    """
    import av

    try:
        return _count(path, info, start, end, timeout)
    except av.error.FFmpegError as error:
        raise Failed(FailureClass.CORRUPT, f"the source cannot be read: {error.strerror}") from error


def _count(path: Path, info: SourceInfo, start: float, end: float, timeout: float) -> Damage:
    import av

    deadline = time.monotonic() + timeout
    first, last = start + info.origin, end + info.origin
    decoded = concealed = lost = 0
    with av.open(f"file:{Path(path).absolute()}", options=reader_options(), timeout=timeout) as container:
        video = main_video(container)
        video.codec_context.thread_count = 1
        if info.container in SEEKABLE:
            with contextlib.suppress(av.error.FFmpegError):  # then from the beginning
                container.seek(round(first / video.time_base), stream=video, backward=True, any_frame=False)
        for packet in packets(container, video):
            if time.monotonic() > deadline:
                raise Failed(FailureClass.TOO_LARGE, f"the damaged source was not read within {timeout:g} s")
            stamp = packet.pts if packet.pts is not None else packet.dts
            try:
                pictures = packet.decode()
            except av.error.FFmpegError:
                lost += stamp is None or first <= stamp * video.time_base < last
                continue
            inside = [p for p in pictures if p.time is not None and first <= p.time < last]
            decoded += len(inside)
            concealed += sum(1 for p in inside if p.is_corrupt)
            if any(p.time is not None and p.time >= last for p in pictures):
                break
    return Damage(decoded, concealed, lost)


def judge(
    info: SourceInfo,
    start: float,
    wanted: int,
    got: int,
    rate: int,
    complaint: str | None = None,
    damage: Damage = NO_DAMAGE,
    least: int | None = None,
) -> str | None:
    """The note on a clip that may stand: why it has fewer frames than wanted, or what is damaged in it.

    Args:
        start: seconds, by the clip's clock.
        wanted: frames of the whole section, at `rate` a second.
        got: frames that came (one more than `wanted` where the source goes on).
        complaint, damage: from `find_complaint`, and from `examine` where there was one.
        least: frames that the source itself must show; default a second's.

    Raises:
        Failed: CORRUPT for too many damaged pictures or fewer frames than the header promises, SHORT for
            a source that has less than `least` inside the section: it ends too early, or begins too late.
    """
    said = f" ({complaint})" if complaint else ""
    got = min(got, wanted)
    promised = wanted if info.end is None else max(0, min(wanted, int((info.end - start) * rate)))
    if damage.damaged > _MAX_DAMAGED * damage.pictures:
        text = f"{damage.damaged} of the section's {damage.pictures} pictures are damaged{said}"
        raise Failed(FailureClass.CORRUPT, text)
    unkept = _SLACK if complaint else _BROKEN_PROMISE if info.end_is_video else float("inf")
    if (promised - got) / rate > unkept and (info.end is not None or complaint):
        raise Failed(FailureClass.CORRUPT, f"{got} of the {promised} frames that the source promises{said}")
    if complaint and _CONTAINER.search(complaint) and damage.decoded < _MIN_DENSITY * info.rate * got / rate:
        raise Failed(FailureClass.CORRUPT, f"pictures are missing inside the section{said}")
    needed, there = MIN_SECONDS * rate, "less than a second"
    if least is not None:
        needed, there = least, f"less than {least / rate:g} s"
    if got < needed:
        where = "ends before the section starts" if got == 0 else f"ends {got / rate:g} s after its start"
        raise Failed(FailureClass.SHORT, f"the source {where}: {there} is there")
    notes = []
    late = 0.0 if info.first is None else info.first - start
    if late > max(1 / rate, 1 / info.rate if info.rate else 0):
        nothing = f"the source shows nothing before {info.first:g} s"
        if got - int(late * rate + 1e-6) < needed:
            raise Failed(FailureClass.SHORT, f"{nothing}: {there} is inside the section")
        notes.append(f"{nothing}: its first picture stands in")
    if got < wanted:
        notes.append(f"the source ends at {start + got / rate:g} s: {got} of {wanted} frames")
    if damage.damaged:
        notes.append(f"{damage.damaged} of the section's {damage.pictures} pictures are damaged")
    return "; ".join(notes) or None
