"""3D-ResNets of Hara et al.: 3x3x3 kernels throughout, time pooled early.

K. Hara, H. Kataoka, Y. Satoh, "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?",
CVPR 2018, section 3.2; where the paper is silent, github.com/kenshohara/3D-ResNets-PyTorch decides.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Norm
from trainer.networks.registry import register
from trainer.networks.residual import (
    WIDTHS,
    Block,
    ResidualNetwork,
    activated,
    bottleneck,
    convolution,
    stages,
)
from trainer.networks.resnet3d import basic

SOURCE = (
    "Hara et al., CVPR 2018, arXiv:1711.09577; github.com/kenshohara/3D-ResNets-PyTorch; "
    "accuracy with shortcut A"
)


class Padded(nn.Module):
    """Shortcut A: every `stride`-th place, and zeros for missing channels; no parameters."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        s = self.stride
        return F.pad(x[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]))


def padded(block: Block, out_channels: int) -> Block:
    """The same blocks with shortcut A instead of a projection."""

    def block_a(in_channels: int, stride: int, number: int) -> nn.Module:
        made = block(in_channels, stride, number)
        if not isinstance(made.downsample, nn.Identity):
            made.downsample = Padded(out_channels, stride)
        return made

    return block_a


class HaraResNet(ResidualNetwork):
    """A 3D-ResNet whose stem is 7x7x7 and whose first pool halves time too (table 1).

    Takes (N, `in_channels`, T, H, W) float; 16 frames of 112x112 as published. Published on Kinetics-400,
    top-1 of the validation split, with shortcut A for 18 and 34 layers and B for more: 18 layers
    54.2, 34 60.1, 50 61.3, 101 62.8, 152 63.0 %.

    Args:
        layers: 18 or 34 of basic blocks; 50, 101 or 152 of bottlenecks.
        shortcut: "A", padding with zeros, or "B", a projection, where the shape changes.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        norm: Norm,
        *,
        layers: int,
        shortcut: str = "B",
        dropout: float = 0.0,
    ):
        if shortcut not in ("A", "B"):
            raise ValueError(f"there is no shortcut {shortcut!r}: choose A or B")
        expansion = 4 if layers >= 50 else 1
        stem = nn.Sequential(
            *activated(convolution(in_channels, 64, (7, 7, 7), (1, 2, 2)), norm(64)),
            nn.MaxPool3d(3, 2, padding=1),
        )
        blocks = [bottleneck(norm, w, (3, 3, 3)) if layers >= 50 else basic(norm, "3d", w) for w in WIDTHS]
        if shortcut == "A":
            blocks = [padded(block, expansion * w) for block, w in zip(blocks, WIDTHS, strict=True)]
        super().__init__(stem, stages(blocks, layers, expansion), num_classes, dropout, expansion)


_register = partial(register, configuration="hara", sizes=(16, 112, 112), source=SOURCE)
_register("hara-r3d-18", partial(HaraResNet, layers=18), accuracy=54.2)
_register("hara-r3d-34", partial(HaraResNet, layers=34), accuracy=60.1)
