"""The encode stage's parameters: every one that changes a clip's bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncodeRecipe:
    """The clip that `pipeline.media.clip.cut` makes."""

    rate: int = 25  # frames a second
    short_side: int = 256  # pixels
    crf: int = 18
    preset: str = "fast"
    keyframe_interval: int = 16  # frames
    encoder: str = ""  # first line of `ffmpeg -version`; filled in by `pipeline.media.clip.encoder_version`
