"""Trained models of several streams that are used together; their logits are added.

Owns what ``evaluate``, ``predict``, ``features`` and ``export`` ask of several checkpoints at once; a model
itself is `trainer.stream_models`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from trainer import checkpoint as checkpoints
from trainer import networks
from trainer.checkpoint import Checkpoint, UnfitError
from trainer.data.batches import STREAMS, Input, as_inputs
from trainer.frame_stream import numbers
from trainer.options import Named
from trainer.stream_models import Pictures, StreamModel, autocast, build, restore

Clip = Mapping[str, np.ndarray]
"""A clip as the networks see it: "rgb" uint8 (3, T, side, side), "flow" uint8 (2, T, side, side)."""


@dataclass(frozen=True)
class Member:
    """A trained model of one stream, how it is fed, and the checkpoint that it is from."""

    model: StreamModel
    input: Input
    checkpoint: Checkpoint
    sha256: str  # of the file, in hex
    path: str


@dataclass(frozen=True)
class Ensemble:
    """Trained models by stream ("rgb", "flow" or "both"; RGB before flow) whose logits are added."""

    members: Mapping[str, Member]
    classes: tuple[str, ...]

    @property
    def stream_inputs(self) -> dict[str, Input]:
        """How "rgb" and "flow" are fed, as far as a model wants them."""
        return {s: self.members[s if s in self.members else "both"].input for s in self.streams}

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams to be read."""
        return tuple(s for s in STREAMS if s in self.members or "both" in self.members)

    @property
    def rate(self) -> int:
        """Frames a second."""
        return next(iter(self.members.values())).input.rate

    @property
    def span(self) -> int:
        """Frames at `rate` that a training clip covers, of the model with the longest."""
        return max(m.input.frames * m.input.stride for m in self.members.values())

    def to(self, device: torch.device) -> Ensemble:
        """The same models, moved."""
        for member in self.members.values():
            member.model.to(device)
        return self

    def features(
        self, clips: Sequence[Clip], scale: np.ndarray, device: torch.device, precision: str
    ) -> np.ndarray:
        """Penultimate features of equally long clips, float32 (n, sum of the models' widths), RGB first.

        `scale` has the factors of each clip's u and v, float32 (n, 2).
        """
        pictures = as_pictures(clips, scale, device)
        with torch.inference_mode(), autocast(device, precision):
            each = [member.model.features(pictures) for member in self.members.values()]
        return torch.cat(each, dim=1).float().cpu().numpy()

    def logits(
        self, clips: Sequence[Clip], scale: np.ndarray, device: torch.device, precision: str
    ) -> np.ndarray:
        """The models' logits of equally long clips, added: float32 (n, num_classes), as in `evaluate`."""
        pictures = as_pictures(clips, scale, device)
        with torch.inference_mode(), autocast(device, precision):
            each = [member.model(pictures) for member in self.members.values()]
        return torch.stack(each).sum(0).float().cpu().numpy()

    def refusal(self, frames: int) -> str | None:
        """Why a network does not take a clip of `frames` at `rate`, in its own words; None where all do."""
        for stream, member in self.members.items():
            if why := refusal(member.checkpoint, stream, frames):
                return f"{member.checkpoint.network} does not take {frames} frames ({why})"
        return None


def load(named: Named) -> Ensemble:
    """Loads the models of checkpoints as one ensemble.

    Raises UnfitError where one is absent or of another stream, or they differ in classes, rate or short side;
    CheckpointError where one is damaged.
    """
    found: dict[str, Member] = {}
    for path, wanted in checkpoints.resolve(named):
        checkpoint, digest = checkpoints.read(path)
        for stream, model in restore(checkpoint, wanted).items():
            found[stream] = Member(model, replace(checkpoint.input, stream=stream), checkpoint, digest, path)
    members = {s: found[s] for s in (*STREAMS, "both") if s in found}
    first, *others = members.values()
    for other in others:
        if other.checkpoint.classes != first.checkpoint.classes:
            both = f"{first.path} and {other.path}"
            raise UnfitError(f"{both} know different classes: name checkpoints of the same classes")
        for name, unit in (("rate", "frames a second"), ("clip_side", "pixels of short side")):
            mine, theirs = getattr(first.input, name), getattr(other.input, name)
            if mine != theirs:
                wants = f"{first.path} wants clips of {mine} {unit}, {other.path} of {theirs}"
                raise UnfitError(f"{wants}: name checkpoints that were trained on the same clips")
    return Ensemble(members, first.checkpoint.classes)


def refusal(checkpoint: Checkpoint, stream: str, frames: int) -> str | None:
    """Why the network of a checkpoint's `stream` does not take `frames` source frames; None where it does."""
    input, classes = checkpoint.input, len(checkpoint.classes)
    size = (len(numbers(input, frames)), input.crop, input.crop)
    try:
        with torch.device("meta"), torch.no_grad():
            models = build(checkpoint.network, checkpoint.options, [stream], classes, input=input)
            rgb, flow = (torch.empty(1, networks.CHANNELS[s], *size) for s in STREAMS)
            models[stream].eval()((rgb, flow))
    except (ValueError, RuntimeError) as error:
        return str(error).split("\n")[0]
    return None


def as_pictures(clips: Sequence[Clip], scale: np.ndarray, device: torch.device) -> Pictures:
    """Clips of bytes as the models take them, float32 in [-1, 1] on `device`."""
    stacked = {s: torch.from_numpy(np.stack([clip[s] for clip in clips])) for s in STREAMS if s in clips[0]}
    return as_inputs(stacked.get("rgb"), stacked.get("flow"), torch.from_numpy(scale), device)
