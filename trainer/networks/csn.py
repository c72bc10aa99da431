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
    DEPTHS,
    WIDTHS,
    Block,
    Bottleneck,
    ResidualNetwork,
    activated,
    convolution,
    projection,
    stages,
)

SOURCE = "Tran et al., ICCV 2019, arXiv:1904.02811; github.com/facebookresearch/VMZ"


def separated(norm: Norm, inner: int, preserved: bool) -> Block:
    """Bottlenecks whose convolution is channel-separated, interaction reduced or preserved (figure 1)."""

    def block(in_channels: int, stride: int, number: int) -> Bottleneck:
        steps = (stride, stride, stride)
        depthwise: nn.Module = convolution(inner, inner, (3, 3, 3), steps, groups=inner)
        if preserved:
            depthwise = nn.Sequential(convolution(inner, inner, (1, 1, 1)), norm(inner), depthwise)
        return Bottleneck(
            norm,
            inner,
            convolution(in_channels, inner, (1, 1, 1)),
            depthwise,
            projection(norm, in_channels, 4 * inner, steps),
        )

    return block


class CSN(ResidualNetwork):
    """ir-CSN or ip-CSN.

    Takes (N, `in_channels`, T, H, W) float; 32 frames of 224x224 as published. Published on Kinetics-400,
    top-1 over 30 views after training from scratch (table 6): ir-CSN-152 76.5, ip-CSN-152 77.8 %.

    Args:
        layers: 50, 101 or 152.
        preserved: a 1x1x1 convolution before the depthwise one keeps the interaction of the channels (ip),
            which else the first 1x1x1 convolution has to bring (ir).
        dropout: probability before the last layer.
        bn_momentum: of the running statistics, in torch's sense.
        bn_frozen: running statistics are used and left as they are in training too (for fine-tuning).
    """

    def __init__(
        self,
        num_classes: int = 400,
        in_channels: int = 3,
        *,
        layers: int,
        preserved: bool = False,
        dropout: float = 0.0,
        bn_momentum: float = 0.1,
        bn_frozen: bool = False,
    ):
        norm = Norm(1e-3, bn_momentum, frozen=bn_frozen)
        stem = nn.Sequential(
            *activated(convolution(in_channels, 64, (3, 7, 7), (1, 2, 2)), norm(64)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
        )
        blocks = [separated(norm, inner, preserved) for inner in WIDTHS]
        super().__init__(
            stem, stages(blocks, DEPTHS[layers], expansion=4), 4 * WIDTHS[-1], num_classes, dropout
        )


def _enter(name: str, layers: int, preserved: bool, accuracy: float | None = None) -> None:
    register(
        name,
        streams=("rgb", "flow"),
        configuration="csn",
        sizes=(32, 224, 224),
        accuracy={} if accuracy is None else {"rgb": accuracy},
        source=SOURCE,
    )(partial(CSN, layers=layers, preserved=preserved))


_enter("ir-csn-50", 50, False)
_enter("ir-csn-101", 101, False)
_enter("ir-csn-152", 152, False, 76.5)
_enter("ip-csn-152", 152, True, 77.8)
