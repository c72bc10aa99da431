"""Trained towers that look at the same videos: which, on what, and what they say together.

Owns what ``evaluate``, ``predict``, ``features`` and ``export`` ask of several checkpoints at once; a tower
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
from trainer.configuration import ConfigurationError
from trainer.data.batches import STREAMS, Batch, Input
from trainer.frame_stream import numbers
from trainer.stream_models import Pictures, Tower, autocast, build, restore

Named = Sequence[tuple[str, str | None]]
"""Checkpoints by path, each with the stream whose tower is wanted, or None for all it has."""

Clip = Mapping[str, np.ndarray]
"""A clip as the networks see it: "rgb" uint8 (3, T, side, side), "flow" uint8 (2, T, side, side)."""


@dataclass(frozen=True)
class Ensemble:
    """Towers by stream ("rgb", "flow" or "both"; RGB before flow), what each is fed, and where it is from."""

    towers: Mapping[str, Tower]
    inputs: Mapping[str, Input]
    digests: Mapping[str, str]  # of the files that they are from, sha256 in hex
    origins: Mapping[str, Checkpoint]
    classes: tuple[str, ...]

    @property
    def views(self) -> dict[str, Input]:
        """What is to be read: for "rgb" and "flow", as far as a tower wants them."""
        return {s: self.inputs[s if s in self.inputs else "both"] for s in self.streams}

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams to be read."""
        return tuple(s for s in STREAMS if s in self.towers or "both" in self.towers)

    @property
    def rate(self) -> int:
        """Frames a second."""
        return next(iter(self.inputs.values())).rate

    @property
    def span(self) -> int:
        """Frames at `rate` that a training clip covers, of the tower with the longest."""
        return max(input.frames * input.stride for input in self.inputs.values())

    def to(self, device: torch.device) -> Ensemble:
        """The same towers, moved."""
        for tower in self.towers.values():
            tower.to(device)
        return self

    def features(
        self, clips: Sequence[Clip], scale: np.ndarray, device: torch.device, precision: str
    ) -> np.ndarray:
        """Penultimate features of equally long clips, float32 (n, sum of the towers' widths), RGB first.

        Args:
            scale: float32 (n, 2), what each clip's u and v are multiplied by.
        """
        pictures = as_pictures(clips, scale, device)
        with torch.inference_mode(), autocast(device, precision):
            each = [tower.features(pictures) for tower in self.towers.values()]
        return torch.cat(each, dim=1).float().cpu().numpy()

    def logits(
        self, clips: Sequence[Clip], scale: np.ndarray, device: torch.device, precision: str
    ) -> np.ndarray:
        """The towers' logits of equally long clips, added: float32 (n, num_classes), as in `evaluate`."""
        pictures = as_pictures(clips, scale, device)
        with torch.inference_mode(), autocast(device, precision):
            each = [tower(pictures) for tower in self.towers.values()]
        return torch.stack(each).sum(0).float().cpu().numpy()

    def refusal(self, frames: int) -> str | None:
        """Why a network does not take a clip of `frames` at `rate`, in its own words; None where all do."""
        for stream, origin in self.origins.items():
            if why := refusal(origin, stream, frames):
                return f"{origin.network} does not take {frames} frames ({why})"
        return None


def load(named: Named) -> Ensemble:
    """The towers of checkpoints that are to say one thing together.

    Raises:
        UnfitError: one is absent or of another stream, or they differ in classes or rate.
        CheckpointError: one is damaged.
    """
    towers: dict[str, Tower] = {}
    inputs, files, digests, origins = {}, {}, {}, {}
    for path, wanted in checkpoints.resolve(named):
        checkpoint, digest = checkpoints.read(path)
        for stream, tower in restore(checkpoint, wanted).items():
            towers[stream], origins[stream] = tower, checkpoint
            inputs[stream] = replace(checkpoint.input, stream=stream)
            files[stream], digests[stream] = path, digest
    order = [s for s in (*STREAMS, "both") if s in towers]
    first = origins[order[0]]
    for stream in order[1:]:
        if origins[stream].classes != first.classes:
            raise UnfitError(
                f"{files[order[0]]} and {files[stream]} know different classes: name towers of one list"
            )
        if inputs[stream].rate != first.input.rate:
            raise UnfitError(
                f"{files[order[0]]} wants {first.input.rate} frames a second, {files[stream]} "
                f"{inputs[stream].rate}: name towers of one rate"
            )
    return Ensemble(
        {s: towers[s] for s in order},
        {s: inputs[s] for s in order},
        {s: digests[s] for s in order},
        {s: origins[s] for s in order},
        first.classes,
    )


def refusal(checkpoint: Checkpoint, stream: str, frames: int) -> str | None:
    """Why the network of a checkpoint's `stream` does not take `frames` source frames; None where it does."""
    input = checkpoint.input
    seen = len(numbers(input, frames))
    try:
        with torch.device("meta"), torch.no_grad():
            tower = build(
                checkpoint.network, checkpoint.options, [stream], len(checkpoint.classes), input=input
            )[stream].eval()
            rgb, flow = (torch.empty(1, networks.CHANNELS[s], seen, input.crop, input.crop) for s in STREAMS)
            tower((rgb, flow))
    except (ValueError, RuntimeError) as error:
        return str(error).split("\n")[0]
    return None


def require(ensemble: Ensemble, frames: int, remedy: str) -> None:
    """Raises ConfigurationError, with the remedy, unless all networks take clips of `frames`."""
    if why := ensemble.refusal(frames):
        raise ConfigurationError(f"{why}: {remedy}")


def as_pictures(clips: Sequence[Clip], scale: np.ndarray, device: torch.device) -> Pictures:
    """Clips of bytes as the towers take them, float32 in [-1, 1] on `device`."""
    stacked = {s: torch.from_numpy(np.stack([clip[s] for clip in clips])) for s in STREAMS if s in clips[0]}
    none = torch.empty(0)
    batch = Batch(
        epoch=0,
        step=0,
        keys=(),
        rgb=stacked.get("rgb"),
        flow=stacked.get("flow"),
        flow_scale=torch.from_numpy(scale),
        target=none,
        weight=none,
        total_weight=0.0,
    )
    return batch.inputs(device)
