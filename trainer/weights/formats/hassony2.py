"""Reads I3D of github.com/hassony2/kinetics_i3d_pytorch (src/i3dpt.py): model_rgb.pth and model_flow.pth.

They were converted from DeepMind's, with scales of batch normalisation of one. Its network pads in
space as if height and width were even: its logits equal the others' for even sizes such as 224x224.
"""

from __future__ import annotations

from trainer.weights import i3d
from trainer.weights.keys import Converted, State

_STEM = {"conv_1a": "conv3d_1a_7x7", "conv_2b": "conv3d_2b_1x1", "conv_2c": "conv3d_2c_3x3"}
_PARTS = i3d.torch_parts(".conv3d", ".batch3d")
_HEAD = {"conv3d_0c_1x1.conv3d.weight": "logits.weight", "conv3d_0c_1x1.conv3d.bias": "logits.bias"}


def unit(ours: str) -> str:
    """Their name of a unit."""
    return _STEM.get(ours, ours)


def matches(state: State) -> bool:
    return "conv3d_1a_7x7.conv3d.weight" in state


def convert(state: State, network: str | None = None) -> Converted:
    """Rename to our I3D's. Raises WeightsError for a key that is missing or unknown."""
    return i3d.convert(state, unit, _PARTS, _HEAD, "hassony2")
