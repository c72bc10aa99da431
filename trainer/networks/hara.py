"""3D-ResNets of Hara et al.: 3x3x3 kernels throughout, time pooled early.

K. Hara, H. Kataoka, Y. Satoh, "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?",
CVPR 2018, section 3.2; where the paper is silent, github.com/kenshohara/3D-ResNets-PyTorch decides.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Norm, Triple
from trainer.networks.registry import register
from trainer.networks.residual import (
    DEPTHS,
    WIDTHS,
    BasicBlock,
    Block,
    Bottleneck,
    ResidualNetwork,
    activated,
    convolution,
    projection,
    stages,
)

SOURCE = "Hara et al., CVPR 2018, arXiv:1711.09577; github.com/kenshohara/3D-ResNets-PyTorch"


class Padded(nn.Module):
    """Shortcut A: every `stride`-th place, and zeros for the channels that are not there; no parameters."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        s = self.stride
        return F.pad(x[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]))


def cubic(norm: Norm, channels: int, shortcut: str, deep: bool) -> Block:
    """Blocks of 3x3x3 convolutions: basic, or bottlenecks where `deep`."""

    def block(in_channels: int, stride: int, number: int) -> nn.Module:
        steps: Triple = (stride, stride, stride)
        out = 4 * channels if deep else channels
        past = projection(norm, in_channels, out, steps)
        if shortcut == "A" and not isinstance(past, nn.Identity):
            past = Padded(out, stride)
        if deep:
            second = convolution(channels, channels, (3, 3, 3), steps)
            return Bottleneck(norm, channels, convolution(in_channels, channels, (1, 1, 1)), second, past)
        first = convolution(in_channels, channels, (3, 3, 3), steps)
        return BasicBlock(norm, channels, first, convolution(channels, channels, (3, 3, 3)), past)

    return block


class HaraResNet(ResidualNetwork):
    """A 3D-ResNet whose stem is 7x7x7 and whose first pool halves time too (table 1).

    Takes (N, `in_channels`, T, H, W) float; 16 frames of 112x112 as published. Published on Kinetics-400,
    top-1 of the validation split, with shortcut A for 18 and 34 layers and B for more: 18 layers
    54.2, 34 60.1, 50 61.3, 101 62.8, 152 63.0 %.

    Args:
        layers: 18 or 34 of basic blocks; 50, 101 or 152 of bottlenecks.
        shortcut: "A", padding with zeros, or "B", a projection, where the shape changes.
        dropout: probability before the last layer; none as published.
        bn_momentum: of the running statistics, in torch's sense.
        bn_frozen: running statistics are used and left as they are in training too (for fine-tuning).
    """

    def __init__(
        self,
        num_classes: int = 400,
        in_channels: int = 3,
        *,
        layers: int,
        shortcut: str = "B",
        dropout: float = 0.0,
        bn_momentum: float = 0.1,
        bn_frozen: bool = False,
    ):
        if shortcut not in ("A", "B"):
            raise ValueError(f"there is no shortcut {shortcut!r}: choose A or B")
        norm = Norm(momentum=bn_momentum, frozen=bn_frozen)
        deep = layers >= 50
        stem = nn.Sequential(
            *activated(convolution(in_channels, 64, (7, 7, 7), (1, 2, 2)), norm(64)),
            nn.MaxPool3d(3, 2, padding=1),
        )
        blocks = [cubic(norm, channels, shortcut, deep) for channels in WIDTHS]
        expansion = 4 if deep else 1
        super().__init__(
            stem, stages(blocks, DEPTHS[layers], expansion), expansion * WIDTHS[-1], num_classes, dropout
        )


for _layers, _accuracy in ((18, 54.2), (34, 60.1)):
    register(
        f"hara-r3d-{_layers}",
        streams=("rgb", "flow"),
        configuration="hara",
        sizes=(16, 112, 112),
        accuracy={"rgb": _accuracy},
        source=f"{SOURCE}; accuracy with shortcut A",
    )(partial(HaraResNet, layers=_layers))
