"""How much of a data set the report shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits how much is shown: contact sheets and playing clips (classes take turns)."""

    classes: int = 1000
    frames_a_class: int = 6
    clips_a_class: int = 3
    clips: int = 48
