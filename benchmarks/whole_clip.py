"""Measures a clip from its source to both videos, without the job: for `flow.py` and `scale.py`."""

from __future__ import annotations

import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.flow import coding, tvl1_pairs
from pipeline.media import clip
from pipeline.media.recipe import EncodeRecipe

SECONDS = 10.0  # of a clip


@dataclass(frozen=True)
class Spent:
    """Core seconds, all processes together, and what they were spent on."""

    core_seconds: float
    frames: int
    planes: int  # one more than frames where the source goes on
    width: int
    height: int


def measure(path: Path) -> Spent:
    """Cut, encode, solve and encode the flow of a video's first ten seconds, in this process and ffmpeg's."""
    with tempfile.TemporaryDirectory() as folder:
        info = clip.probe(path)
        start = info.start - info.origin
        end = min(start + SECONDS, info.end or start + SECONDS)
        before, begun = children_seconds(), time.process_time()
        binary = clip.ffmpeg_binary()
        out = Path(folder) / "clip.mp4"
        cut = clip.cut(path, start, end, EncodeRecipe(), out, ffmpeg=binary, timeout=600)
        flows = tvl1_pairs(clip.gray(cut.planes))
        coding.encode(flows, Path(folder) / "flow.mp4", ffmpeg=binary, timeout=600)
        spent = time.process_time() - begun + children_seconds() - before
    return Spent(spent, cut.frames, len(cut.planes), cut.width, cut.height)


def children_seconds() -> float:
    """Core seconds of all processes that this one has started and seen end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
