"""The weights that ``--init`` names, recorded in RUN so that a resume cannot have others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer import checkpoint as checkpoints
from trainer.checkpoint import UnfitError

IMAGE = "imagenet:"
"""Prefix of an image network's file; without it, the name is of a checkpoint or a run."""


@dataclass(frozen=True)
class InitialWeights:
    """A file of weights, as the call names it and where it lies."""

    name: str
    file: Path
    sha256: str

    @property
    def image(self) -> bool:
        """Whether an image network's weights are in it."""
        return self.name.startswith(IMAGE)

    def as_dict(self) -> dict[str, str]:
        """The record in RUN/configuration.json and the run's checkpoints."""
        return {"name": self.name, "sha256": self.sha256}


def find(name: str) -> InitialWeights:
    """The file that `name` means now. Raises UnfitError."""
    image = name.removeprefix(IMAGE)
    file = checkpoints.find(name) if image == name else Path(image)
    if not file.is_file():
        raise UnfitError(f"{file} is no file: name one of an image network's weights")
    with file.open("rb") as stream:
        return InitialWeights(name, file, hashlib.file_digest(stream, "sha256").hexdigest())


def difference(name: str | None, theirs: Mapping[str, str]) -> str | None:
    """How `name` differs from a run's initial weights, as a phrase; None where it does not.

    `theirs` is `InitialWeights.as_dict`, empty for a run without. A resume reads its own checkpoint, so it
    need not name one. A run that was trained on since, or a file that is gone, is the same by its name.
    """
    kept = theirs.get("name")
    if name is None or (name == kept and not Path(name.removeprefix(IMAGE)).is_file()):
        return None
    if kept and find(name).sha256 == theirs["sha256"]:
        return None
    if name == kept:
        return f"what --init {name} names has changed since"
    return f"it was started {f'with --init {kept}' if kept else 'without --init'}"
