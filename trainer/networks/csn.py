"""Channel-separated networks: residual bottlenecks whose 3x3x3 convolution is depthwise.

D. Tran, H. Wang, L. Torresani, M. Feiszli, "Video Classification with Channel-Separated Convolutional
Networks", ICCV 2019, section 3.3; where the paper is silent, github.com/facebookresearch/VMZ decides.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from trainer.networks.layers import Norm
from trainer.networks.registry import register
from trainer.networks.residual import (
    WIDTHS,
    Bottleneck,
    ResidualNetwork,
    bottleneck,
    convolution,
    stages,
    stem,
)

SOURCE = "Tran et al., ICCV 2019, arXiv:1904.02811; github.com/facebookresearch/VMZ"


def preserved_bottleneck(
    norm: Norm, inner: int, first: nn.Module, depthwise: nn.Module, shortcut: nn.Module
) -> Bottleneck:
    """A bottleneck with a 1x1x1 convolution before its depthwise one (figure 1)."""
    second = nn.Sequential(convolution(inner, inner, (1, 1, 1)), norm(inner), depthwise)
    return Bottleneck(norm, inner, first, second, shortcut)


class CSN(ResidualNetwork):
    """ir-CSN or ip-CSN.

    Takes (N, `in_channels`, T, H, W) float; 32 frames of 224x224 as published. Published on Kinetics-400,
    top-1 over 30 views after training from scratch (table 6): ir-CSN-152 76.5, ip-CSN-152 77.8 %.

    Args:
        layers: 50, 101 or 152.
        preserved: channels interact in a 1x1x1 convolution before the depthwise one (ip), and not only in
            the first 1x1x1 convolution (ir).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        norm: Norm,
        *,
        layers: int,
        preserved: bool = False,
        dropout: float = 0.0,
    ):
        kind = preserved_bottleneck if preserved else Bottleneck
        blocks = [bottleneck(norm, inner, (3, 3, 3), groups=inner, kind=kind) for inner in WIDTHS]
        super().__init__(stem(norm, in_channels, frames=3), stages(blocks, layers), num_classes, dropout)


_register = partial(register, configuration="csn", sizes=(32, 224, 224), source=SOURCE, norm=Norm(1e-3))
_register("ir-csn-50", partial(CSN, layers=50))
_register("ir-csn-101", partial(CSN, layers=101))
_register("ir-csn-152", partial(CSN, layers=152), accuracy=76.5)
_register("ip-csn-152", partial(CSN, layers=152, preserved=True), accuracy=77.8)
