"""The options of planning. Imports nothing heavy, for the command line is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.command_line import natural, option


@dataclass(frozen=True)
class PlanOptions:
    """How rows are chosen and distributed.

    Attributes:
        unique: ``video``, at most one clip of a video in the data set, or ``clip``.
        limit: rows after so many valid ones are left out of the plan and have no outcome.
        classes: the label map; None takes the sorted distinct labels of all valid rows.
    """

    unique: Literal["video", "clip"] = option(
        "keep at most one clip a video, or all clips", "video", group="what is prepared"
    )
    limit: int | None = option(
        "take only the first N valid rows", None, "N", "what is prepared", shown="all rows", parse=natural
    )
    shard_size: int = option(
        "most clips in a shard", 512, "clips", "what is kept", shown="512 clips, about 1 GB", parse=natural
    )
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.unique not in ("video", "clip"):
            raise ValueError(f"--unique is video or clip, not {self.unique!r}.")
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"--limit is a number of rows, not {self.limit}.")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError("--classes names a class twice; remove one of the two lines.")
        if self.shard_size < 1:
            raise ValueError(f"--shard-size is at least 1, not {self.shard_size}.")
