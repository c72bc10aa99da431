"""Reads DeepMind's I3D: the TensorFlow checkpoints of github.com/google-deepmind/kinetics-i3d.

rgb_scratch, rgb_imagenet, flow_scratch and flow_imagenet have 230 variables below RGB/inception_i3d or
Flow/inception_i3d; rgb_scratch_kin600 has no such prefix, its normalisation is shaped (1, 1, 1, 1, C), and it
holds the optimiser's slots besides. None has scales of batch normalisation; Sonnet's name for them is gamma.
"""

from __future__ import annotations

from torch import Tensor

from trainer.weights import i3d
from trainer.weights.keys import Converted, State, WeightsError, stream_of

PREFIXES = {"RGB/inception_i3d/": "rgb", "Flow/inception_i3d/": "flow", "": None}

_BRANCHES = {
    "branch_0": "Branch_0/Conv3d_0a_1x1",
    "branch_1.0": "Branch_1/Conv3d_0a_1x1",
    "branch_1.1": "Branch_1/Conv3d_0b_3x3",
    "branch_2.0": "Branch_2/Conv3d_0a_1x1",
    "branch_2.1": "Branch_2/Conv3d_0b_3x3",
    "branch_3.1": "Branch_3/Conv3d_0b_1x1",
}
_PARTS = {
    "conv.weight": "/conv_3d/w",
    "norm.weight": "/batch_norm/gamma",
    "norm.bias": "/batch_norm/beta",
    "norm.running_mean": "/batch_norm/moving_mean",
    "norm.running_var": "/batch_norm/moving_variance",
}
_HEAD = {"Logits/Conv3d_0c_1x1/conv_3d/w": "logits.weight", "Logits/Conv3d_0c_1x1/conv_3d/b": "logits.bias"}


def unit(ours: str) -> str:
    """The published name of a unit, below the prefix."""
    if ours in i3d.STEM:
        return i3d.STEM[ours]
    if ours == "mixed_5b.branch_2.1":
        return "Mixed_5b/Branch_2/Conv3d_0a_3x3"  # so in i3d.py: a slip that the checkpoints keep
    module, _, branch = ours.partition(".")
    return f"{module.capitalize()}/{_BRANCHES[branch]}"


def matches(state: State) -> bool:
    return _prefix(state) is not None


def convert(state: State, network: str | None = None) -> Converted:
    """Rename to our I3D's, and transpose kernels from (T, H, W, in, out), vectors from (1, 1, 1, 1, C).

    Raises WeightsError for a variable that is missing, unknown, or of another shape.
    """
    prefix = _prefix(state)
    if prefix is None:
        raise WeightsError("it has no Conv3d_1a_7x7/conv_3d/w: take a checkpoint of DeepMind's I3D")
    below = {name.removeprefix(prefix): _turned(value) for name, value in state.items()}
    if len(below) != len(state):
        raise WeightsError("it has variables twice, with and without a prefix: take another copy")
    slots = {f"{name}/Momentum" for name in below}
    converted, description = i3d.convert(below, unit, _PARTS, _HEAD, "deepmind", ignored=slots)
    stream = PREFIXES[prefix]
    if stream not in (None, stream_of(converted["conv_1a.conv.weight"].shape[1])):
        raise WeightsError(f"it is called {prefix} and has another stream's channels: take another copy")
    return converted, description


def _prefix(state: State) -> str | None:
    return next((p for p in PREFIXES if f"{p}{i3d.STEM['conv_1a']}/conv_3d/w" in state), None)


def _turned(value: Tensor) -> Tensor:
    if value.ndim == 5 and value.shape[:4] != (1, 1, 1, 1):
        return value.permute(4, 3, 0, 1, 2).contiguous()
    return value.flatten()
