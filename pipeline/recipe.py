"""Every parameter that changes bytes, and its hash by stage.

A stage's files are keyed by the hash of its own part alone, so that another flow parameter fetches
nothing and another encoder setting fetches nothing. No location, host or time stands in a recipe.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field

from pipeline.flow.parameters import TVL1, FlowCoding


@dataclass(frozen=True)
class FetchRecipe:
    """What is asked of a site: which format, and how much round the section."""

    short_side: int = 256  # pixels; the smallest format that has at least this is asked for
    codec: str = "h264"  # preferred, not required
    before: float = 3.0  # seconds kept before the section: room for the encode's pre-roll
    after: float = 1.0  # seconds kept after it: the frame that follows the last


@dataclass(frozen=True)
class EncodeRecipe:
    """The clip: see facts of the one ffmpeg pass in `pipeline.clip`."""

    rate: int = 25  # frames a second
    short_side: int = 256  # pixels
    crf: int = 18
    preset: str = "fast"
    keyframe_interval: int = 16  # frames
    encoder: str = ""  # first line of `ffmpeg -version`; filled in by `pipeline.clip.encoder_version`


@dataclass(frozen=True)
class FlowRecipe:
    """The flow: its solver, its coding as video, and the kind of machine that computes it."""

    solver: TVL1 = field(default_factory=TVL1)
    coding: FlowCoding = field(default_factory=FlowCoding)
    device: str = "x86-64-v3"  # x86-64-v3 | cuda | other: machines of one class give the same bytes
    encoder: str = ""


@dataclass(frozen=True)
class Recipe:
    """All three parts; `flow` is None with ``--flow none``."""

    fetch: FetchRecipe
    encode: EncodeRecipe
    flow: FlowRecipe | None

    def as_dict(self) -> dict:
        """Nested plain values, as they stand in dataset.json."""
        return asdict(self)


def stage_hash(*parts: object) -> str:
    """16 hex digits over frozen dataclasses (or None), the same in every process and on every machine."""
    plain = [None if p is None else {"part": type(p).__name__, **asdict(p)} for p in parts]  # type: ignore[call-overload]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
