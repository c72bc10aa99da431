"""Networks by name: `names`, `build`, `describe`. One file a family; every family enters `registry`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.networks import (  # noqa: F401  (each registers its networks)
    artnet,
    baselines,
    csn,
    hara,
    i3d,
    resnet3d,
    resnet_i3d,
    s3d,
    slowfast,
    smallbig,
    tsm,
    tsn,
)
from trainer.networks.registry import Entry, entry, names

__all__ = ["CHANNELS", "Description", "Entry", "build", "describe", "entry", "multiply_adds", "names"]

CHANNELS = {"rgb": 3, "flow": 2}
"""Channels of one frame of a stream."""


@dataclass(frozen=True)
class Description:
    """A row of the table that ``python -m trainer networks`` prints; `gmacs` in 1e9 multiply-adds."""

    name: str
    stream: str
    input: tuple[int, int, int, int]
    parameters: int
    gmacs: float
    accuracy: float | None
    source: str


def build(name: str, num_classes: int = 400, in_channels: int = 3, **options) -> nn.Module:
    """The network called `name`, freshly initialised.

    Its forward takes (N, C, T, H, W) and gives logits (N, num_classes). Raises KeyError, with the names there
    are, for another name, and TypeError for an option that the network has not.
    """
    return entry(name).build(num_classes=num_classes, in_channels=in_channels, **options)


def describe(name: str, num_classes: int = 400) -> list[Description]:
    """What the network costs and what is published of it, one row a stream; builds no weights."""
    known = entry(name)
    rows = []
    for stream in ("rgb", "flow", "both"):
        if stream not in known.streams or (stream == "both" and known.separate_streams):
            continue
        channels = {} if stream == "both" else {"in_channels": CHANNELS[stream]}
        with torch.device("meta"):
            network = build(name, num_classes, **channels)
        inputs = known.inputs(stream)
        parameters = sum(p.numel() for p in network.parameters())
        gmacs = multiply_adds(network, *inputs) / 1e9
        rows.append(
            Description(
                name, stream, _shown(inputs), parameters, gmacs, known.accuracy.get(stream), known.source
            )
        )
    if known.separate_streams:
        both = (sum(r.parameters for r in rows), sum(r.gmacs for r in rows), known.accuracy.get("both"))
        rows.append(Description(name, "both", _shown(known.inputs("both")), *both, known.source))
    return rows


def multiply_adds(network: nn.Module, *sizes: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions, linear layers and matrix products for one sample.

    `sizes` are of its inputs, each (C, T, H, W). The network's parameters may be on the meta device, where
    nothing is computed.
    """
    device = next(network.parameters()).device
    was_training = network.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*(torch.empty(1, *size, device=device) for size in sizes))
    network.train(was_training)
    return counter.get_total_flops() // 2


def _shown(inputs: tuple[tuple[int, int, int, int], ...]) -> tuple[int, int, int, int]:
    """Channels of all inputs, the frames of the longest, and the picture."""
    return sum(size[0] for size in inputs), max(size[1] for size in inputs), *inputs[0][2:]
