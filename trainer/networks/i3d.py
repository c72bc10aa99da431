"""I3D: Inception-v1 inflated to three dimensions.

J. Carreira, A. Zisserman, "Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset", CVPR 2017,
section 2.4 and figure 3; where the paper is silent, DeepMind's kinetics-i3d (i3d.py) decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Conv3dSame, Dropout, MaxPool3dSame, Norm, Triple
from trainer.networks.registry import register

MIXED = {  # 1x1; 1x1 then 3x3 (two numbers); the like again; after the pool
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
"""Output channels of the branches of each Inception module."""

CHANNELS = 1024
"""Of the last module's output."""

ONE = (1, 1, 1)
SHORTEST = 9  # frames: fewer leave less than the two steps of the last pool


class Unit(nn.Module):
    """Convolution without bias, 1x1x1 unless a `kernel` is given, batch normalisation, ReLU."""

    def __init__(
        self, norm: Norm, in_channels: int, out_channels: int, kernel: Triple = ONE, stride: Triple = ONE
    ):
        super().__init__()
        self.conv = Conv3dSame(in_channels, out_channels, kernel, stride)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """An Inception module: four branches, concatenated. (N, C, T, H, W) -> (N, sum of their widths, T, H, W).

    `kernel` is that of the two larger convolutions and of the maximum.
    """

    def __init__(self, norm: Norm, in_channels: int, widths: tuple[int, ...], kernel: Triple):
        super().__init__()
        one, before, after, before_2, after_2, pooled = widths
        self.branch_0 = Unit(norm, in_channels, one)
        self.branch_1 = nn.Sequential(Unit(norm, in_channels, before), Unit(norm, before, after, kernel))
        self.branch_2 = nn.Sequential(
            Unit(norm, in_channels, before_2), Unit(norm, before_2, after_2, kernel)
        )
        self.branch_3 = nn.Sequential(MaxPool3dSame(kernel, ONE), Unit(norm, in_channels, pooled))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(x)], dim=1)


def inception_v1(
    norm: Norm, in_channels: int, kernel: Triple, stride: Triple, time: bool
) -> Iterator[tuple[str, nn.Module]]:
    """The layers of Inception-v1 below its last pool, and their names in I3D.

    (N, C, T, H, W) -> (N, `CHANNELS`, t, h, w). `kernel` and `stride` are of the first convolution. Without
    `time` the others see one frame at a time.
    """
    three, two = ((3, 3, 3), (2, 2, 2)) if time else ((1, 3, 3), (1, 2, 2))
    yield "conv_1a", Unit(norm, in_channels, 64, kernel, stride)
    yield "pool_2a", MaxPool3dSame((1, 3, 3), (1, 2, 2))
    yield "conv_2b", Unit(norm, 64, 64)
    yield "conv_2c", Unit(norm, 64, 192, three)
    yield "pool_3a", MaxPool3dSame((1, 3, 3), (1, 2, 2))
    channels = 192
    for name, widths in MIXED.items():
        if name == "4b":
            yield "pool_4a", MaxPool3dSame(three, two)
        if name == "5b":
            yield "pool_5a", MaxPool3dSame(two, two)
        yield f"mixed_{name}", Mixed(norm, channels, widths, three)
        channels = sum(widths[i] for i in (0, 2, 4, 5))


class I3D(nn.Module):
    """One stream of the Two-Stream Inflated 3D ConvNet.

    Takes (N, `in_channels`, T, H, W) float in [-1, 1], 3 channels for RGB and 2 for flow, T >= 9 at 25 frames
    a second; 224x224 as published, other crops by a last pool of (2, min(7, h), min(7, w)).
    Published on Kinetics-400 (table 3 and the checkpoints' page): RGB 71.1, flow 63.4, joint 74.2 % top-1.
    With 400 classes 12,689,984 parameters for RGB and 12,668,032 for flow; 7,280 more with `bn_scale`.

    Args:
        bn_scale: batch normalisation with a learned scale; the published network has none, some published
            checkpoints of other implementations do.
    """

    def __init__(
        self, num_classes: int, in_channels: int, norm: Norm, dropout: float = 0.5, bn_scale: bool = False
    ):
        super().__init__()
        norm = replace(norm, scale=bn_scale)
        layers = dict(inception_v1(norm, in_channels, (7, 7, 7), (2, 2, 2), time=True))
        self.layers = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.dropout = Dropout(dropout)
        self.logits = nn.Conv3d(CHANNELS, num_classes, 1)
        self.apply(initialise)

    def pooled(self, x: Tensor) -> Tensor:
        """The last average pool: (N, C, T, H, W) -> (N, 1024, S, h, w), S = ceil(T / 8) - 1, 1x1 at 224."""
        if x.shape[2] < SHORTEST:
            raise ValueError(f"I3D needs at least {SHORTEST} frames, not {x.shape[2]}")
        for name in self.layers:
            x = self.get_submodule(name)(x)
        return F.avg_pool3d(x, (2, min(7, x.shape[3]), min(7, x.shape[4])), stride=1)

    def logits_over_time(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, S, num_classes): 7 steps for 64 frames, 9 for 79, 31 for 250."""
        return self.logits(self.dropout(self.pooled(x))).mean(dim=(3, 4)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits_over_time(x).mean(dim=1)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, 1024): the last average pool, averaged over time and what space is left."""
        return self.pooled(x).mean(dim=(2, 3, 4))


def initialise(module: nn.Module) -> None:
    """Initialise by Sonnet 1's default: a normal of std 1/sqrt(fan in), cut at two std; biases zero."""
    if isinstance(module, nn.Conv3d):
        std = module.weight[0].numel() ** -0.5
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


register(
    "i3d",
    I3D,  # of one stream; Two-Stream I3D is one for each stream, trained separately, whose logits are added
    configuration="i3d",
    sizes=(64, 224, 224),
    source="Carreira and Zisserman, CVPR 2017, arXiv:1705.07750; github.com/google-deepmind/kinetics-i3d",
    streams=("both", "rgb", "flow"),
    accuracy={"rgb": 71.1, "flow": 63.4, "both": 74.2},
    norm=Norm(1e-3, 0.001),
    separate_streams=True,
)
