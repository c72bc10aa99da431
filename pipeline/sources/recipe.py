"""The fetch stage's parameters: every one that changes its bytes."""

from __future__ import annotations

from dataclasses import dataclass

FORMATS = (256, 360, 480, 720, 1080, 1440, 2160)
"""Short sides, in pixels, that sites are asked for: those of their formats, and the first version's."""


@dataclass(frozen=True)
class FetchRecipe:
    """The format asked of a site, and how much of the video round a clip."""

    short_side: int = 256  # pixels; the smallest format that has at least this is asked for
    codec: str = "h264"  # preferred, not required
    before: float = 3.0  # seconds kept before the section: room for the encode's pre-roll
    after: float = 1.0  # seconds kept after it: the frame that follows the last

    @classmethod
    def of(cls, short_side: int) -> FetchRecipe:
        """The smallest format that clips of this short side can be made of."""
        return cls(short_side=next((side for side in FORMATS if side >= short_side), short_side))
