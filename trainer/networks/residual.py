"""Residual networks in three dimensions: the blocks, and the network that several families make of them.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. Modules are
named as in torchvision's video networks, so that its state dicts, and those of VMZ, fit as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Conv3d, Dropout, Norm, Triple

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks in each of the four stages, by the number of layers."""

WIDTHS = (64, 128, 256, 512)
"""Channels inside the blocks of each stage; a bottleneck gives out four times as many."""

Block = Callable[[int, int, int], nn.Module]
"""(input channels, spatial stride, number in its stage) -> a residual block."""


def convolution(
    in_channels: int,
    out_channels: int,
    kernel: Triple,
    stride: int | Triple = 1,
    groups: int = 1,
    bias: bool = False,
) -> Conv3d:
    """A 3D convolution, padded on both sides by half of its kernel."""
    t, h, w = kernel
    padding = (t // 2, h // 2, w // 2)
    return Conv3d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)


def activated(layer: nn.Module, norm: nn.Module) -> nn.Sequential:
    """A layer, its normalisation, ReLU."""
    return nn.Sequential(layer, norm, nn.ReLU(inplace=True))


def stem(norm: Norm, in_channels: int, channels: int = 64, frames: int = 1) -> nn.Sequential:
    """A convolution of `frames` x 7x7 and a pool of 3x3, each of which halves height and width."""
    return nn.Sequential(
        *activated(convolution(in_channels, channels, (frames, 7, 7), (1, 2, 2)), norm(channels)),
        nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)),
    )


def projection(norm: Norm, in_channels: int, out_channels: int, stride: Triple) -> nn.Module:
    """Shortcut B: a 1x1x1 convolution where the shape changes, else the identity."""
    if in_channels == out_channels and stride == (1, 1, 1):
        return nn.Identity()
    return nn.Sequential(convolution(in_channels, out_channels, (1, 1, 1), stride), norm(out_channels))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, added before the last ReLU (figure 2 of the paper)."""

    def __init__(self, norm: Norm, channels: int, first: nn.Module, second: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.conv1 = activated(first, norm(channels))
        self.conv2 = nn.Sequential(second, norm(channels))
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """A convolution to `inner` channels, one among them, one to four times as many (the paper's figure 5)."""

    def __init__(self, norm: Norm, inner: int, first: nn.Module, second: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.conv1 = activated(first, norm(inner))
        self.conv2 = activated(second, norm(inner))
        self.conv3 = nn.Sequential(convolution(inner, 4 * inner, (1, 1, 1)), norm(4 * inner))
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.downsample(x), inplace=True)


def bottleneck(
    norm: Norm,
    inner: int,
    kernel: Triple = (1, 3, 3),
    frames: tuple[int, int] = (1, 1),
    groups: int = 1,
    kind: Callable[..., Bottleneck] = Bottleneck,
) -> Block:
    """Bottlenecks whose first convolution spans `frames`, the second `kernel` in so many `groups`.

    `frames` are of blocks of even and of odd number. A block strides time where `kernel` spans it. `kind`
    takes the arguments of `Bottleneck`.
    """

    def block(in_channels: int, stride: int, number: int) -> Bottleneck:
        strides = (stride if kernel[0] > 1 else 1, stride, stride)
        return kind(
            norm,
            inner,
            convolution(in_channels, inner, (frames[number % 2], 1, 1)),
            convolution(inner, inner, kernel, strides, groups),
            projection(norm, in_channels, 4 * inner, strides),
        )

    return block


def stage(block: Block, depth: int, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """`depth` blocks, of which the first strides and changes the number of channels."""
    later = (block(out_channels, 1, number) for number in range(1, depth))
    return nn.Sequential(block(in_channels, stride, 0), *later)


def stages(blocks: Sequence[Block], layers: int, expansion: int = 4) -> list[nn.Sequential]:
    """The four stages of a network of so many `layers`, a key of `DEPTHS`; the last three have stride 2.

    Each of `blocks` has its stage's width times `expansion` output channels.
    """
    outs = [width * expansion for width in WIDTHS]
    return list(map(stage, blocks, DEPTHS[layers], [WIDTHS[0], *outs[:3]], outs, (1, 2, 2, 2)))


class ResidualNetwork(nn.Module):
    """A stem, four stages, the mean over time and space, dropout and a linear layer.

    Takes (N, C, T, H, W) float; any T, H and W that leave something to average. `stages` and `expansion` are
    as the function `stages` has them.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        num_classes: int,
        dropout: float,
        expansion: int = 4,
    ):
        super().__init__()
        self.stem = stem
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.dropout = Dropout(dropout)
        self.fc = nn.Linear(WIDTHS[-1] * expansion, num_classes)
        initialise(self)

    def maps(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> the last stage's feature maps, (N, channels, t, h, w)."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))

    def features(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) -> (N, channels)."""
        return self.maps(x).mean(dim=(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(x)))


def initialise(network: nn.Module, zero_last: bool = False) -> None:
    """Initialise as He does, normally by fan out; the linear layer with std .01; biases with zero.

    With `zero_last` the last normalisation of each residual branch has scale zero, so that the branch adds
    nothing at first (P. Goyal et al., arXiv:1706.02677, section 5.1).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif zero_last and isinstance(module, Bottleneck):
            nn.init.zeros_(dict(module.conv3.named_parameters())["1.weight"])
