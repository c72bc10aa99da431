"""Networks by name: `names`, `build`, `describe`. One file a family; every family enters `registry`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.networks import i3d  # noqa: F401  (registers its networks)
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
    for stream in (s for s in CHANNELS if s in known.streams):
        with torch.device("meta"):
            network = build(name, num_classes, CHANNELS[stream])
        size = (CHANNELS[stream], *known.sizes)
        parameters = sum(p.numel() for p in network.parameters())
        gmacs = multiply_adds(network, size) / 1e9
        rows.append(
            Description(name, stream, size, parameters, gmacs, known.accuracy.get(stream), known.source)
        )
    if known.two_towers:
        both = (sum(r.parameters for r in rows), sum(r.gmacs for r in rows), known.accuracy.get("both"))
        rows.append(Description(name, "both", (5, *known.sizes), *both, known.source))
    return rows


def multiply_adds(network: nn.Module, size: tuple[int, ...]) -> int:
    """Multiply-adds of convolutions, linear layers and matrix products for one sample of `size` (C, T, H, W).

    The network's parameters may be on the meta device, where nothing is computed.
    """
    device = next(network.parameters()).device
    was_training = network.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, *size, device=device))
    network.train(was_training)
    return counter.get_total_flops() // 2
