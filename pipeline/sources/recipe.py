"""The fetch stage's parameters: every one that changes its bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FetchRecipe:
    """The format asked of a site, and how much of the video round a clip."""

    short_side: int = 256  # pixels; the smallest format that has at least this is asked for
    codec: str = "h264"  # preferred, not required
    before: float = 3.0  # seconds kept before the section: room for the encode's pre-roll
    after: float = 1.0  # seconds kept after it: the frame that follows the last
