"""ARTNet: residual networks of SMART blocks, which see appearance and relation in two branches.

L. Wang, W. Li, W. Li, L. Van Gool, "Appearance-and-Relation Networks for Video Classification", CVPR 2018,
sections 3 and 4; where the paper is silent, github.com/wanglimin/ARTNet (112_artnet_resnet_18) decides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Dropout, Norm
from trainer.networks.registry import register
from trainer.networks.residual import WIDTHS, activated, convolution, initialise

SOURCE = "Wang et al., CVPR 2018, arXiv:1711.09125; github.com/wanglimin/ARTNet"


class Smart(nn.Module):
    """A SMART block: a 2D branch of appearance and a multiplicative 3D branch of relation (figure 3).

    The latter is squared and averaged over pairs of channels (cross-channel pooling with fixed weights): an
    energy, which depends on how frames relate and not on what they show. A 1x1x1 convolution reduces both.
    (N, C, T, H, W) -> (N, `channels`, T / stride, H / stride, W / stride).
    """

    def __init__(self, norm: Norm, in_channels: int, channels: int, size: int, stride: int, bias: bool):
        super().__init__()
        self.appearance = convolution(in_channels, channels, (1, size, size), stride, bias=bias)
        self.appearance_norm = norm(channels)
        self.relation = convolution(in_channels, channels, (3, size, size), stride, bias=bias)
        self.relation_norm = norm(channels)
        self.pool_norm = norm(channels // 2)
        self.reduction = convolution(channels + channels // 2, channels, (1, 1, 1), 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        appearance = self.appearance_norm(self.appearance(x))
        energy = self.relation_norm(self.relation(x)).square().unflatten(1, (-1, 2)).mean(dim=2)
        relation = self.pool_norm(energy)
        return self.reduction(F.relu(torch.cat([appearance, relation], dim=1), inplace=True))


class SmartBlock(nn.Module):
    """A residual block that normalises what comes in; its second layer is a SMART block up to res4.

    Where it strides, the shortcut is a 3x3x3 convolution of the normalised input, else the input as it is.
    """

    def __init__(self, norm: Norm, in_channels: int, channels: int, stride: int, smart: bool, bias: bool):
        super().__init__()
        self.before = norm(in_channels)
        self.first = activated(
            convolution(in_channels, channels, (3, 3, 3), stride, bias=bias), norm(channels)
        )
        if smart:
            self.second: nn.Module = Smart(norm, channels, channels, 3, 1, bias)
        else:
            self.second = convolution(channels, channels, (3, 3, 3), bias=bias)
        self.down = convolution(in_channels, channels, (3, 3, 3), stride, bias=bias) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.before(x))
        return self.second(self.first(y)) + (x if self.down is None else self.down(y))


class ARTNet(nn.Module):
    """ARTNet on 18 layers (table 1): SMART blocks in conv1 and res2 to res4, 3x3x3 convolutions in res5.

    Takes (N, `in_channels`, T, H, W) float; 16 frames of 112x112 as published. Published on Kinetics-400,
    top-1 over 25 clips after training from scratch (table 4): 69.2 %. 39,675,216 parameters, without the 960
    fixed weights of a half that the published file has for its averages.
    """

    def __init__(self, num_classes: int, in_channels: int, norm: Norm, dropout: float = 0.2):
        super().__init__()
        self.conv1 = Smart(norm, in_channels, WIDTHS[0], 7, 2, False)
        blocks, before = [], WIDTHS[0]
        for number, width in enumerate(WIDTHS):
            for stride in (1 if number == 0 else 2, 1):
                blocks.append(SmartBlock(norm, before, width, stride, smart=number < 3, bias=number > 0))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = norm(before)
        self.dropout = Dropout(dropout)
        self.fc = nn.Linear(before, num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, 512)."""
        return F.relu(self.norm(self.blocks(self.conv1(x)))).mean(dim=(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(x)))


register("artnet-18", ARTNet, configuration="artnet", sizes=(16, 112, 112), accuracy=69.2, source=SOURCE)
