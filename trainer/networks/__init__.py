"""Networks by name: `names`, `build`, `describe`. Each family has a file, which registers its networks."""

from __future__ import annotations

import importlib
import json
import pkgutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.networks.registry import Entry, entry, names

__all__ = ["CHANNELS", "Description", "Entry", "build", "describe", "entry", "multiply_adds", "names"]

CHANNELS = {"rgb": 3, "flow": 2}
"""Channels of one frame of a stream."""

for _file in pkgutil.iter_modules(__path__):  # each registers its networks
    importlib.import_module(f"{__name__}.{_file.name}")


@dataclass(frozen=True)
class Description:
    """A row of the table that the command ``networks`` prints.

    `input` is (channels of all inputs, frames of the longest, height, width), `gmacs` in 1e9 multiply-adds.
    """

    name: str
    stream: str
    input: tuple[int, int, int, int]
    parameters: int
    gmacs: float
    accuracy: float | None
    source: str


def build(
    name: str,
    num_classes: int = 400,
    in_channels: int = 3,
    *,
    bn_momentum: float | None = None,
    bn_frozen: bool = False,
    **options: Any,
) -> nn.Module:
    """Build the network called `name`, freshly initialised.

    Its forward takes (N, C, T, H, W) and gives logits (N, num_classes).

    Args:
        bn_momentum: of the running statistics, in torch's sense; None: as published. A short training needs
            more than I3D's .001, else the statistics do not follow.
        bn_frozen: running statistics are used and kept as they are in training too (for fine-tuning).
        options: of the network: its class documents them.

    Raises:
        KeyError: there is no such network; the message names those there are.
        TypeError: the network does not have that option.
    """
    known = entry(name)
    momentum = known.norm.momentum if bn_momentum is None else bn_momentum
    norm = replace(known.norm, momentum=momentum, frozen=bn_frozen)
    return known.build(num_classes=num_classes, in_channels=in_channels, norm=norm, **options)


def describe(name: str, num_classes: int = 400) -> list[Description]:
    """Describe the size, cost and published accuracy of a network, one row a stream; allocates no weights."""
    known = entry(name)
    rows: list[Description] = []
    for stream in (stream for stream in ("rgb", "flow", "both") if stream in known.streams):
        inputs = known.inputs(stream)
        if stream == "both" and known.separate_streams:
            parameters, gmacs = sum(row.parameters for row in rows), sum(row.gmacs for row in rows)
        else:
            with torch.device("meta"):
                network = build(name, num_classes, CHANNELS.get(stream, 3))
            parameters = sum(p.numel() for p in network.parameters())
            gmacs = multiply_adds(network, *inputs) / 1e9
        size = sum(size[0] for size in inputs), max(size[1] for size in inputs), *inputs[0][2:]
        accuracy = known.accuracy.get(stream)
        rows.append(Description(name, stream, size, parameters, gmacs, accuracy, known.source))
    return rows


def write_table(path: Path) -> None:
    """Write the descriptions of all networks, from which the command ``networks`` reads."""
    rows = [json.dumps(asdict(row)) for name in names() for row in describe(name)]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def multiply_adds(network: nn.Module, *sizes: tuple[int, ...]) -> int:
    """Count the multiply-adds of convolutions, linear layers and matrix products for one sample.

    `sizes` are (C, T, H, W) of each input. On the meta device nothing is computed.
    """
    device = next(network.parameters()).device
    was_training = network.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(*(torch.empty(1, *size, device=device) for size in sizes))
    network.train(was_training)
    return counter.get_total_flops() // 2
