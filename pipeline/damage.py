"""Tells a source that ends early from one that is damaged, by what ffmpeg gave and what it said.

ffmpeg's exit status says nothing (a damaged file exits 0), and its fps filter fills a lost picture by
repeating the last: so frames are held against the length that the header promises, and pictures
against the decoder's complaints.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.outcome import Failed, FailureClass
from pipeline.probe import SourceInfo

MIN_SECONDS = 1.0
_MAX_DAMAGED = 0.02  # of the source's pictures; beyond it the clip is not worth training on
_SLACK = 0.5  # s that a header may promise too much where something else is wrong too
_BROKEN_PROMISE = 1.0  # s that the video stream's own header may promise too much at all
_MIN_DENSITY = 0.8  # of the stated rate, where the container is damaged: else data were lost inside

_SUMMARY = re.compile(r"Input stream #0:\d+ \(video\): (\d+) packets read .*?; (\d+) frames decoded;")
_CONCEALED = re.compile(r"corrupt decoded frame")
_LOST = re.compile(r"Error submitting packet to decoder|Error while decoding stream")
_CONTAINER = re.compile(
    r"partial file|File ended prematurely|[Tt]runcated|[Pp]acket corrupt|corrupt input packet"
    r"|invalid as first byte|EBML.*(invalid|exceeds|length)|Element.*(exceeds|invalid)|Unknown-sized element",
)


@dataclass(frozen=True)
class Reading:
    """Counts from ffmpeg's verbose log (``-v repeat+verbose``)."""

    decoded: int  # pictures
    concealed: int  # pictures decoded in part
    lost: int  # packets that gave none
    complaint: str | None  # the first line about damage, without addresses

    @property
    def damaged(self) -> float:
        """Share of the pictures that are lost or concealed."""
        return (self.concealed + self.lost) / max(1, self.decoded + self.lost)


def read_log(stderr: str, path: str) -> Reading:
    """Count what the log says; `path` is taken out first, since a file may be named after its damage."""
    lines = stderr.replace(path, "").splitlines()
    summary = _SUMMARY.search(stderr)
    concealed = sum(1 for line in lines if _CONCEALED.search(line))
    lost = sum(1 for line in lines if _LOST.search(line))
    marks = (_CONTAINER, _LOST, _CONCEALED)
    complaint = next(
        (line for mark in marks for line in lines if line.startswith("[") and mark.search(line)), None
    )
    if complaint is not None:
        complaint = re.sub(r"^(\[[^]]*\] ?)+", "", complaint).strip()
    return Reading(int(summary.group(2)) if summary else 0, concealed, lost, complaint)


def judge(info: SourceInfo, start: float, wanted: int, got: int, rate: int, reading: Reading) -> str | None:
    """The note on a clip that may stand: why it has fewer frames than wanted, or what is damaged in it.

    Args:
        start: seconds, by the clip's clock.
        wanted: frames of the whole section, at `rate` a second.
        got: frames that came (one more than `wanted` where the source goes on).

    Raises:
        Failed: CORRUPT for too many damaged pictures or fewer frames than the header promises, SHORT for
            a source that ends in the section's first second or before.
    """
    said = f" ({reading.complaint})" if reading.complaint else ""
    got = min(got, wanted)
    promised = wanted if info.end is None else max(0, min(wanted, int((info.end - start) * rate)))
    missing = (promised - got) / rate
    if not reading.decoded and promised:
        raise Failed(FailureClass.CORRUPT, f"no picture of the source can be decoded{said}")
    if reading.damaged > _MAX_DAMAGED:
        share = f"{reading.lost + reading.concealed} of {reading.decoded + reading.lost}"
        raise Failed(FailureClass.CORRUPT, f"{share} pictures of the source are damaged{said}")
    unkept = _SLACK if reading.complaint else _BROKEN_PROMISE if info.end_is_video else float("inf")
    if missing > unkept:
        raise Failed(FailureClass.CORRUPT, f"{got} of the {promised} frames that the source promises{said}")
    container_damaged = reading.complaint is not None and _CONTAINER.search(reading.complaint)
    if container_damaged and reading.decoded < _MIN_DENSITY * info.rate * got / rate:
        raise Failed(FailureClass.CORRUPT, f"the source lost pictures inside the section{said}")
    if got < MIN_SECONDS * rate:
        where = (
            "ends before the section starts"
            if got == 0
            else f"ends {got / rate:g} s after the section starts"
        )
        raise Failed(FailureClass.SHORT, f"the source {where}")
    notes = []
    if got < wanted:
        notes.append(f"the source ends at {start + got / rate:g} s: {got} of {wanted} frames")
    if reading.lost + reading.concealed:
        notes.append(f"{reading.lost + reading.concealed} of the source's pictures are damaged")
    return "; ".join(notes) or None
