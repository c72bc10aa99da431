"""Shared by the readers of I3D's weights: our names of its units, and the conversion of a file."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch

from trainer.networks.i3d import MIXED
from trainer.weights.keys import Converted, Description, State, WeightsError, rename, stream_of

BRANCHES = ("branch_0", "branch_1.0", "branch_1.1", "branch_2.0", "branch_2.1", "branch_3.1")
"""Units of an Inception module."""

UNITS = (
    "conv_1a",
    "conv_2b",
    "conv_2c",
    *(f"mixed_{name}.{branch}" for name in MIXED for branch in BRANCHES),
)
"""Units of the network: convolution, normalisation, ReLU."""

STEM = {"conv_1a": "Conv3d_1a_7x7", "conv_2b": "Conv3d_2b_1x1", "conv_2c": "Conv3d_2c_3x3"}
"""DeepMind's names of the units outside the modules."""

PARTS = ("conv.weight", "norm.bias", "norm.running_mean", "norm.running_var")
"""Weights of a unit that every file has."""


def torch_parts(conv: str, norm: str) -> dict[str, str]:
    """Our names of a unit's weights -> those of an implementation in torch, by its names of both layers."""
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {"conv.weight": f"{conv}.weight"} | {f"norm.{part}": f"{norm}.{part}" for part in parts}


def convert(
    state: State,
    unit: Callable[[str], str],
    parts: Mapping[str, str],
    head: Mapping[str, str],
    format: str,
    ignored: Collection[str] = (),
) -> Converted:
    """Rename the weights of another I3D to ours.

    Scales of batch normalisation are kept, which takes the option `bn_scale`; where all of them are one, they
    are left out, as in the published network.

    Args:
        unit: our name of a unit -> theirs.
        parts: our name of a unit's weight, of `PARTS` and "norm.weight" -> theirs; and
            "norm.num_batches_tracked" where torch writes such counters, as newer versions do.
        head: theirs -> our names of the last layer's weights.
        ignored: their names of weights that we do not use.

    Raises WeightsError for a key that is missing, unknown, or of another shape.
    """
    keys = {unit(u) + parts[part]: f"{u}.{part}" for u in UNITS for part in PARTS} | dict(head)
    scales = {unit(u) + parts["norm.weight"]: f"{u}.norm.weight" for u in UNITS}
    if counter := parts.get("norm.num_batches_tracked"):
        ignored = {*ignored, *(unit(u) + counter for u in UNITS)}
    scaled = any(name in state for name in scales)
    renamed = rename(state, keys | scales if scaled else keys, ignored)
    if scaled and all(bool((renamed[ours] == 1).all()) for ours in scales.values()):
        renamed = {name: value for name, value in renamed.items() if name not in scales.values()}
        scaled = False
    first, last = renamed["conv_1a.conv.weight"], renamed["logits.weight"]
    if first.ndim != 5 or last.ndim != 5:
        raise WeightsError("its convolutions are not three-dimensional: name the network it is of")
    options = {"bn_scale": True} if scaled else {}
    stream = stream_of(first.shape[1])
    renamed |= {f"{u}.norm.num_batches_tracked": torch.tensor(0) for u in UNITS}
    return renamed, Description(format, "i3d", options, stream, last.shape[0])
