"""Residual networks over 2D, 3D, mixed and (2+1)D convolutions: R2D, f-R2D, MCx, rMCx, R3D, R(2+1)D.

D. Tran, H. Wang, L. Torresani, J. Ray, Y. LeCun, M. Paluri, "A Closer Look at Spatiotemporal Convolutions for
Action Recognition", CVPR 2018, section 3; where the paper is silent, torchvision.models.video (18 layers) and
github.com/facebookresearch/VMZ (34 layers, width "vmz") decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from trainer.networks.layers import Norm, Triple
from trainer.networks.registry import register
from trainer.networks.residual import (
    WIDTHS,
    BasicBlock,
    Block,
    ResidualNetwork,
    activated,
    convolution,
    projection,
    stages,
)

SOURCE = "Tran et al., CVPR 2018, arXiv:1711.11248"


def middle(in_channels: int, out_channels: int) -> int:
    """Channels between the halves of a (2+1)D convolution that has as many parameters as the 3D one it stands
    for (section 3.5): t d^2 N_in N_out / (d^2 N_in + t N_out), with t = d = 3."""
    return 27 * in_channels * out_channels // (9 * in_channels + 3 * out_channels)


def convolve(
    kind: str, norm: Norm, in_channels: int, out_channels: int, stride: Triple, between: int
) -> nn.Module:
    """A convolution of 3x3 in space: "2d", "3d" or "2+1d", the last with `between` channels in its middle."""
    if kind == "2+1d":
        return nn.Sequential(
            *activated(convolution(in_channels, between, (1, 3, 3), (1, *stride[1:])), norm(between)),
            convolution(between, out_channels, (3, 1, 1), (stride[0], 1, 1)),
        )
    return convolution(in_channels, out_channels, (3 if kind == "3d" else 1, 3, 3), stride)


def basic(norm: Norm, kind: str, channels: int, width: str = "torchvision") -> Block:
    """Blocks of `channels` whose convolutions are of `kind`; 2D ones do not stride time."""

    def block(in_channels: int, stride: int, number: int) -> BasicBlock:
        steps = (1 if kind == "2d" else stride, stride, stride)
        first, second = middle(in_channels, channels), middle(channels, channels)
        return BasicBlock(
            norm,
            channels,
            convolve(kind, norm, in_channels, channels, steps, first),
            convolve(kind, norm, channels, channels, (1, 1, 1), second if width == "vmz" else first),
            projection(norm, in_channels, channels, steps),
        )

    return block


def stem(norm: Norm, kind: str, in_channels: int, frames: int) -> nn.Sequential:
    """The first convolution, 7x7 with stride 2 in space; kind "frames" takes `frames` frames as channels."""
    if kind == "2+1d":
        return nn.Sequential(
            *activated(convolution(in_channels, 45, (1, 7, 7), (1, 2, 2)), norm(45)),
            *activated(convolution(45, 64, (3, 1, 1)), norm(64)),
        )
    if kind == "frames":
        first = nn.Conv3d(in_channels, 64, (frames, 7, 7), (frames, 2, 2), padding=(0, 3, 3), bias=False)
        return activated(first, norm(64))
    return activated(convolution(in_channels, 64, (3 if kind == "3d" else 1, 7, 7), (1, 2, 2)), norm(64))


class ResNet3d(ResidualNetwork):
    """A residual network of basic blocks whose groups of layers may be 2D, 3D or (2+1)D (table 1).

    Takes (N, `in_channels`, T, H, W) float; 16 frames of 112x112 as published. Published on Kinetics-400,
    top-1 of whole videos after training from scratch, 18 layers, 16 frames (table 2): f-R2D 60.9, MC2 to MC5
    64.8, 65.2, 65.6, 65.6, rMC2 to rMC5 65.4, 65.5, 65.6, 63.5, R3D 64.7, R(2+1)D 68.5 %; with 34 layers and
    32 frames R(2+1)D 72.4 %.

    Args:
        kinds: of the five groups, the stem first: "2d", "3d" or "2+1d"; the stem of R2D "frames".
        layers: 18 or 34.
        width: of (2+1)D convolutions. "torchvision" computes a block's from its first convolution alone,
            "vmz" each convolution's own, with that code's epsilon of .001.
        frames: frames that a "frames" stem takes as channels; the features of a longer clip's pieces are
            averaged.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        norm: Norm,
        *,
        kinds: Sequence[str],
        layers: int = 18,
        width: str = "torchvision",
        frames: int = 8,
        dropout: float = 0.0,
    ):
        if width not in ("torchvision", "vmz"):
            raise ValueError(f"there is no width {width!r}: choose torchvision or vmz")
        if width == "vmz":
            norm = replace(norm, eps=1e-3)
        blocks = [basic(norm, kind, inner, width) for kind, inner in zip(kinds[1:], WIDTHS, strict=True)]
        first = stem(norm, kinds[0], in_channels, frames)
        super().__init__(first, stages(blocks, layers, 1), num_classes, dropout, expansion=1)
        self.least = frames if kinds[0] == "frames" else 1

    def maps(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, 512, t, h, w); raises ValueError for less frames than the stem takes."""
        if x.shape[2] < self.least:
            raise ValueError(f"this R2D takes {self.least} frames as channels, not {x.shape[2]}")
        return super().maps(x)


_register = partial(register, configuration="resnet3d", sizes=(16, 112, 112), source=SOURCE)
_r2d = partial(ResNet3d, kinds=["frames", *["2d"] * 4])
_register("r2d-18", _r2d, configuration="r2d", sizes=(8, 112, 112))
_register("f-r2d-18", partial(ResNet3d, kinds=["2d"] * 5), accuracy=60.9)
for _x, _accuracy in enumerate((64.8, 65.2, 65.6, 65.6), 2):
    _kinds = ["3d"] * (_x - 1) + ["2d"] * (6 - _x)
    _register(f"mc{_x}-18", partial(ResNet3d, kinds=_kinds), accuracy=_accuracy)
for _x, _accuracy in enumerate((65.4, 65.5, 65.6, 63.5), 2):
    _kinds = ["2d"] * (_x - 1) + ["3d"] * (6 - _x)
    _register(f"rmc{_x}-18", partial(ResNet3d, kinds=_kinds), accuracy=_accuracy)
_register("r3d-18", partial(ResNet3d, kinds=["3d"] * 5), accuracy=64.7)
_r2plus1d = partial(ResNet3d, kinds=["2+1d"] * 5)
_register("r2plus1d-18", _r2plus1d, accuracy=68.5)
_deeper = partial(_r2plus1d, layers=34, width="vmz")
_register("r2plus1d-34", _deeper, configuration="r2plus1d-34", sizes=(32, 112, 112), accuracy=72.4)
