"""SmallBigNet: each convolution sees the place itself and, with the same weights, what surrounds it.

X. Li, Y. Wang, Z. Zhou, Y. Qiao, "SmallBigNet: Integrating Core and Contextual Views for Video
Classification", CVPR 2020, section 3; where the paper is silent, github.com/xhl-video/SmallBigNet
(smallbig50_no_extra) decides.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Norm
from trainer.networks.registry import register
from trainer.networks.residual import WIDTHS, Bottleneck, ResidualNetwork, bottleneck, stages, stem

SOURCE = "Li et al., CVPR 2020, arXiv:2006.14582; github.com/xhl-video/SmallBigNet"


class SmallBigBottleneck(Bottleneck):
    """A bottleneck of small and big views: BN(conv(x)) + BN'(conv(maximum around x)), each conv shared.

    The maximum is over 3x3x3 for the first two convolutions, over all of time and 3x3 for the last (table 1).
    The big views' normalisations start at zero, so that the block starts as the 2D one.
    """

    def __init__(self, norm: Norm, inner: int, first: nn.Module, second: nn.Module, shortcut: nn.Module):
        super().__init__(norm, inner, first, second, shortcut)
        self.big = nn.ModuleList(norm(channels) for channels in (inner, inner, 4 * inner))
        for parameter in self.big.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self._views(0, self.conv1, x, F.max_pool3d(x, 3, 1, padding=1)), inplace=True)
        y = F.relu(self._views(1, self.conv2, y, F.max_pool3d(y, 3, 1, padding=1)), inplace=True)
        around = F.max_pool3d(y.amax(dim=2, keepdim=True), (1, 3, 3), 1, padding=(0, 1, 1))
        return F.relu(self._views(2, self.conv3, y, around) + self.downsample(x), inplace=True)

    def _views(self, number: int, layer: nn.Sequential, x: Tensor, around: Tensor) -> Tensor:
        return layer[1](layer[0](x)) + self.big[number](layer[0](around))


class SmallBigNet(ResidualNetwork):
    """SmallBigNet on ResNet-50: 2D in res2, small and big views from res3 on.

    Takes (N, `in_channels`, T, H, W) float; 8 frames, 8 apart, of 224x224 as published. Published on
    Kinetics-400, top-1: 76.3 %.
    """

    def __init__(self, num_classes: int, in_channels: int, norm: Norm, dropout: float = 0.0):
        kinds = (Bottleneck, *[SmallBigBottleneck] * 3)
        blocks = [bottleneck(norm, inner, kind=kind) for inner, kind in zip(WIDTHS, kinds, strict=True)]
        super().__init__(stem(norm, in_channels), stages(blocks, 50), num_classes, dropout)


register(
    "smallbig-r50", SmallBigNet, configuration="smallbig", sizes=(8, 224, 224), accuracy=76.3, source=SOURCE
)
