"""TSN on BN-Inception: short snippets from all over a clip, each seen by a 2D network, and their consensus.

L. Wang et al., "Temporal Segment Networks: Towards Good Practices for Deep Action Recognition", ECCV 2016;
the network is of S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015 (figure 5), as in
github.com/yjxiong/tsn-pytorch.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Dropout, Norm
from trainer.networks.registry import register
from trainer.networks.residual import activated, convolution

SOURCE = "Wang et al., ECCV 2016, arXiv:1608.00859; github.com/yjxiong/tsn-pytorch"

MODULES = {  # 1x1 | 1x1, 3x3 | 1x1, 3x3 and 3x3 | after the pool; without the first and last, it strides by 2
    "3a": (64, (64, 64), (64, 96), 32),
    "3b": (64, (64, 96), (64, 96), 64),
    "3c": (0, (128, 160), (64, 96), 0),
    "4a": (224, (64, 96), (96, 128), 128),
    "4b": (192, (96, 128), (96, 128), 128),
    "4c": (160, (128, 160), (128, 160), 128),
    "4d": (96, (128, 192), (160, 192), 128),
    "4e": (0, (128, 192), (192, 256), 0),
    "5a": (352, (192, 320), (160, 224), 128),
    "5b": (352, (192, 320), (192, 224), 128),
}
"""Output channels of the branches of each Inception module."""

SNIPPET = 5
"""Consecutive frames of a snippet: flow sees all of them, RGB the first."""


def unit(norm: Norm, in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Sequential:
    """A 2D convolution with a bias, normalisation, ReLU."""
    conv = convolution(in_channels, out_channels, (1, size, size), (1, stride, stride), bias=True)
    return activated(conv, norm(out_channels))


class StridedPool(nn.Module):
    """The maximum of 3x3 at every second place, over the edge where need be: n places leave ceil(n / 2)."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[3:]
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2), value=float("-inf"))
        return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), ceil_mode=True)


def average_pool() -> nn.Sequential:
    """The mean of 3x3 at every place, zeros beyond the edge counted; torch's own padding minds 2x2 maps."""
    return nn.Sequential(nn.ZeroPad3d((1, 1, 1, 1, 0, 0)), nn.AvgPool3d((1, 3, 3), 1))


class Inception(nn.Module):
    """An Inception module of `MODULES`: (N, C, T, H, W) -> (N, `channels`, T, H, W), or half of H and W."""

    def __init__(self, norm: Norm, in_channels: int, name: str):
        super().__init__()
        one, (reduced, width), (reduced_2, width_2), pooled = MODULES[name]
        stride = 1 if one else 2
        branches: list[nn.Module] = [unit(norm, in_channels, one, 1)] if one else []
        first = unit(norm, in_channels, reduced, 1)
        branches.append(nn.Sequential(first, unit(norm, reduced, width, 3, stride)))
        first, second = unit(norm, in_channels, reduced_2, 1), unit(norm, reduced_2, width_2, 3)
        branches.append(nn.Sequential(first, second, unit(norm, width_2, width_2, 3, stride)))
        if stride == 2:
            branches.append(StridedPool())
        else:
            pool = nn.MaxPool3d((1, 3, 3), 1, padding=(0, 1, 1)) if name == "5b" else average_pool()
            branches.append(nn.Sequential(pool, unit(norm, in_channels, pooled, 1)))
        self.branches = nn.ModuleList(branches)
        self.channels = one + width + width_2 + (pooled or in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class TSN(nn.Module):
    """Temporal segment network on BN-Inception, of one stream.

    Takes (N, `in_channels`, 5 K, H, W) float, snippets of 5 consecutive frames from K segments: 3 in
    training, 25 in test, of 224x224 as published. RGB sees the first frame of each, flow (2 channels) all
    five stacked. The consensus is the mean of the segments' logits. Published on UCF-101 and HMDB-51,
    both streams and a third of warped flow: 94.2 and 69.4 %; not on Kinetics.

    Args:
        snippet: consecutive frames of a segment.
        dropout: probability before the last layer, segment by segment.
    """

    def __init__(
        self, num_classes: int, in_channels: int, norm: Norm, snippet: int = SNIPPET, dropout: float = 0.8
    ):
        super().__init__()
        self.snippet = snippet
        stacked = snippet if in_channels == 2 else 1
        first = nn.Conv3d(in_channels, 64, (stacked, 7, 7), (snippet, 2, 2), padding=(0, 3, 3))
        layers: list[nn.Module] = [
            activated(first, norm(64)),
            StridedPool(),
            unit(norm, 64, 64, 1),
            unit(norm, 64, 192, 3),
            StridedPool(),
        ]
        channels = 192
        for name in MODULES:
            module = Inception(norm, channels, name)
            layers.append(module)
            channels = module.channels
        self.layers = nn.Sequential(*layers)
        self.dropout = Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(_initialise)

    def over_time(self, x: Tensor) -> Tensor:
        """(N, C, 5 K, H, W) -> (N, K, 1024), the segments' average pools. ValueError for half a snippet."""
        if x.shape[2] < self.snippet:
            raise ValueError(f"TSN takes snippets of {self.snippet} frames, not {x.shape[2]}")
        return self.layers(x).mean(dim=(3, 4)).transpose(1, 2)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, 5 K, H, W) -> (N, 1024)."""
        return self.over_time(x).mean(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.over_time(x))).mean(dim=1)


def _initialise(module: nn.Module) -> None:
    """He's normal initialisation; the last layer by .001 as published; biases zero."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.001)
    if isinstance(module, nn.Conv3d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


_register = partial(register, streams=("rgb", "flow", "both"), separate_streams=True, source=SOURCE)
_register("tsn-bninception", TSN, configuration="tsn", sizes=(15, 224, 224))
