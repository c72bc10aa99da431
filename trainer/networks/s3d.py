"""S3D and S3D-G: Inception-v1 with separable 3D convolutions; and the study's I3D with time in one half only.

S. Xie, C. Sun, J. Huang, Z. Tu, K. Murphy, "Rethinking Spatiotemporal Feature Learning: Speed-Accuracy
Trade-offs in Video Classification", ECCV 2018. S3D has the padding of torchvision's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.i3d import I3D, MIXED, Unit, initialise
from trainer.networks.layers import Conv3dSame, Dropout, Norm, Triple
from trainer.networks.registry import register
from trainer.networks.residual import activated, convolution

SOURCE = "Xie et al., ECCV 2018, arXiv:1712.04851"

LAYERS = ("1a", "2c", *MIXED)
"""Layers of I3D whose convolutions span time, from the lowest up."""


def separable(norm: Norm, in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution in space, then one in time, each with normalisation and ReLU (section 4.2)."""
    space, time = (1, size, size), (size, 1, 1)
    return nn.Sequential(
        activated(convolution(in_channels, out_channels, space, (1, stride, stride)), norm(out_channels)),
        activated(convolution(out_channels, out_channels, time, (stride, 1, 1)), norm(out_channels)),
    )


def pointwise(norm: Norm, in_channels: int, out_channels: int) -> nn.Sequential:
    """A 1x1x1 convolution with normalisation and ReLU."""
    return activated(convolution(in_channels, out_channels, (1, 1, 1)), norm(out_channels))


class Gate(nn.Module):
    """Feature gating: channels weighed by what all of the clip holds (section 4.4). Keeps the shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean(dim=(2, 3, 4))))[:, :, None, None, None]


class SeparableMixed(nn.Module):
    """An Inception module of separable convolutions. (N, C, T, H, W) -> (N, `channels`, T, H, W)."""

    def __init__(self, norm: Norm, in_channels: int, widths: tuple[int, ...], gated: bool):
        super().__init__()
        one, before, after, before_2, after_2, pooled = widths
        self.branch0 = pointwise(norm, in_channels, one)
        self.branch1 = nn.Sequential(pointwise(norm, in_channels, before), separable(norm, before, after, 3))
        self.branch2 = nn.Sequential(
            pointwise(norm, in_channels, before_2), separable(norm, before_2, after_2, 3)
        )
        self.branch3 = nn.Sequential(nn.MaxPool3d(3, 1, padding=1), pointwise(norm, in_channels, pooled))
        outs = (one, after, after_2, pooled)
        self.gates = nn.ModuleList(Gate(width) if gated else nn.Identity() for width in outs)
        self.channels = sum(outs)

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.branch0, self.branch1, self.branch2, self.branch3)
        return torch.cat([gate(branch(x)) for gate, branch in zip(self.gates, branches, strict=True)], dim=1)


class S3D(nn.Module):
    """Separable 3D Inception-v1; gated, it is S3D-G (figures 6 and 7).

    Takes (N, `in_channels`, T, H, W) float, T >= 5; 64 frames of 224x224 as published. Published on
    Kinetics-400 (table 2): S3D 72.2, S3D-G 74.7 % top-1. The latter is that of the paper's placement of the
    gates, after the temporal convolutions (section 4.4); here one follows each branch of each module, with a
    temporal convolution or without, and none the first layers. The last pool is (2, min(7, h), min(7, w)),
    7x7 at 224.

    Args:
        gated: with feature gating.
    """

    def __init__(
        self, num_classes: int, in_channels: int, norm: Norm, gated: bool = False, dropout: float = 0.2
    ):
        super().__init__()
        layers: list[nn.Module] = [
            separable(norm, in_channels, 64, 7, stride=2),
            _pool((1, 3, 3), (1, 2, 2)),
            pointwise(norm, 64, 64),
            separable(norm, 64, 192, 3),
            _pool((1, 3, 3), (1, 2, 2)),
        ]
        channels = 192
        for name, widths in MIXED.items():
            if name == "4b":
                layers.append(_pool((3, 3, 3), (2, 2, 2)))
            if name == "5b":
                layers.append(nn.MaxPool3d((2, 2, 2), (2, 2, 2)))
            layers.append(SeparableMixed(norm, channels, widths, gated))
            channels = sum(widths[i] for i in (0, 2, 4, 5))
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Sequential(Dropout(dropout), nn.Conv3d(channels, num_classes, 1))
        self.apply(_initialise)

    def pooled(self, x: Tensor) -> Tensor:
        """The last average pool: (N, C, T, H, W) -> (N, 1024, S, h, w)."""
        x = self.layers(x)
        return F.avg_pool3d(x, (min(2, x.shape[2]), min(7, x.shape[3]), min(7, x.shape[4])), stride=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pooled(x)).mean(dim=(2, 3, 4))

    def features(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, 1024)."""
        return self.pooled(x).mean(dim=(2, 3, 4))


class HalfI3D(I3D):
    """I3D whose convolutions span time on one side of a cut only, and are 2D on the other (section 4.1).

    "Bottom-heavy" has time below the cut, "top-heavy" from it on, which is faster and more accurate on
    Kinetics-400 (figure 4). Pools and strides stay as in I3D, so that every layer sees as many frames.

    Args:
        heavy: "bottom" or "top".
        cut: the first layer of the upper side, one of `LAYERS`; the study tries all.
        options: as I3D has them.
    """

    def __init__(
        self, num_classes: int, in_channels: int, norm: Norm, *, heavy: str, cut: str = "4b", **options: Any
    ):
        if cut not in LAYERS:
            raise ValueError(f"there is no layer {cut!r} to cut at: choose one of {', '.join(LAYERS)}")
        super().__init__(num_classes, in_channels, norm, **options)
        at = LAYERS.index(cut)
        for name in LAYERS[:at] if heavy == "top" else LAYERS[at:]:
            for unit in self.get_submodule(f"mixed_{name}" if name in MIXED else f"conv_{name}").modules():
                if isinstance(unit, Unit) and unit.conv.kernel[0] > 1:
                    old, flat = unit.conv, (1, *unit.conv.kernel[1:])
                    unit.conv = Conv3dSame(old.in_channels, old.out_channels, flat, old.steps)
                    initialise(unit.conv)


def _pool(kernel: Triple, stride: Triple) -> nn.MaxPool3d:
    return nn.MaxPool3d(kernel, stride, padding=tuple(k // 2 for k in kernel))


def _initialise(module: nn.Module) -> None:
    """A normal of deviation .01, cut at two deviations, as the study's code has it; biases zero."""
    if isinstance(module, nn.Conv3d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_register = partial(
    register, configuration="s3d", sizes=(64, 224, 224), source=SOURCE, norm=Norm(1e-3, 0.001)
)
_register("s3d", S3D, accuracy=72.2)
_register("s3d-g", partial(S3D, gated=True), accuracy=74.7)
_register("i3d-bottom-heavy", partial(HalfI3D, heavy="bottom"))
_register("i3d-top-heavy", partial(HalfI3D, heavy="top"))
