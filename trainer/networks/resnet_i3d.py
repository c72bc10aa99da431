"""I3D on a residual network, and non-local blocks in it.

X. Wang, R. Girshick, A. Gupta, K. He, "Non-local Neural Networks", CVPR 2018; where the paper is silent,
github.com/facebookresearch/SlowFast (configurations I3D_8x8_R50 and I3D_NLN_8x8_R50) decides.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.networks.layers import Norm
from trainer.networks.registry import register
from trainer.networks.residual import (
    WIDTHS,
    ResidualNetwork,
    activated,
    bottleneck,
    convolution,
    initialise,
    stages,
)

SOURCE = "Wang et al., CVPR 2018, arXiv:1711.07971; github.com/facebookresearch/SlowFast"

BLOCKS = {0: ((), ()), 1: ((), (4,)), 5: ((1, 3), (1, 3, 5)), 10: ((0, 1, 2, 3), (0, 1, 2, 3, 4, 5))}
"""After which residual blocks of res3 and res4 the non-local ones stand, by their number (section 4.1)."""


class NonLocal(nn.Module):
    """A non-local block: each place gets a mean over all places, weighed by similarity (section 3).

    (N, C, T, H, W) -> the same shape: x + BN(W y), y_i the mean of g(x_j) by f(x_i, x_j). The last
    normalisation's scale starts at zero, so that a block put into a trained network changes nothing.

    Args:
        kind: of f (section 3.2): "embedded-gaussian", exp(theta(x_i) . phi(x_j)) with the product divided by
            the root of its length, as in the paper's code; "gaussian", exp(x_i . x_j); "dot-product";
            "concatenation", ReLU(w . [theta(x_i), phi(x_j)]). The first two are normalised by a softmax, the
            others by the number of places.
        pool: where a maximum of 2x2 in space subsamples: "after" phi and g (section 3.3), "before" them as in
            the published code, or None for nowhere.
    """

    KINDS = ("embedded-gaussian", "gaussian", "dot-product", "concatenation")

    def __init__(
        self, norm: Norm, channels: int, kind: str = "embedded-gaussian", pool: str | None = "after"
    ):
        super().__init__()
        if kind not in self.KINDS:
            raise ValueError(f"there is no non-local block {kind!r}: choose one of {', '.join(self.KINDS)}")
        if pool not in ("after", "before", None):
            raise ValueError(f"there is no pool {pool!r} of non-local blocks: choose after or before")
        self.kind, self.inner, self.first = kind, channels // 2, pool == "before"
        if kind != "gaussian":
            self.theta = nn.Conv3d(channels, self.inner, 1)
            self.phi = nn.Conv3d(channels, self.inner, 1)
        if kind == "concatenation":
            self.weigh = nn.Conv3d(2 * self.inner, 1, 1, bias=False)
        self.g = nn.Conv3d(channels, self.inner, 1)
        self.out = nn.Conv3d(self.inner, channels, 1)
        self.norm = norm(channels)
        nn.init.zeros_(self.norm.weight)
        self.pool = nn.MaxPool3d((1, 2, 2)) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        values = self._pooled(self.g, x).flatten(2)
        y = torch.bmm(values, self.weights(x).transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.norm(self.out(y))

    def weights(self, x: Tensor) -> Tensor:
        """(N, all places, places left by the pool): f, normalised over the latter."""
        if self.kind == "gaussian":
            return torch.bmm(x.flatten(2).transpose(1, 2), self.pool(x).flatten(2)).softmax(dim=2)
        theta, phi = self.theta(x), self._pooled(self.phi, x)
        if self.kind == "concatenation":
            first, second = self.weigh.weight.split(self.inner, dim=1)
            ours = F.conv3d(theta, first).flatten(2).transpose(1, 2)
            products = F.relu(ours + F.conv3d(phi, second).flatten(2))
        else:
            products = torch.bmm(theta.flatten(2).transpose(1, 2), phi.flatten(2))
        if self.kind == "embedded-gaussian":
            return (products * self.inner**-0.5).softmax(dim=2)
        return products / products.shape[2]

    def _pooled(self, layer: nn.Module, x: Tensor) -> Tensor:
        return layer(self.pool(x)) if self.first else self.pool(layer(x))


class ResNetI3D(ResidualNetwork):
    """I3D on ResNet-50: kernels of 3x1x1 in every second block (table 1), with or without non-local blocks.

    Takes (N, `in_channels`, T, H, W) float, T at least 2 `time_stride`^2. Published on Kinetics-400, top-1
    over 30 views of 256x256: 8 frames, 8 apart, without non-local blocks 73.5, with five 74.0 %; 32 frames,
    2 apart, 73.3 and 74.9 %.

    Args:
        time_stride: of the stem and of the first pool: 1 for 8 frames, 2 (as in the paper) for 32, which
            leaves maps of the same size. The second pool halves time in either.
        nonlocal_blocks: 0, 1, 5 or 10, in res3 and res4.
        nonlocal_kind: one of `NonLocal.KINDS`.
        nonlocal_pool: "after" or "before", see `NonLocal`; the weights of the published code want "before".
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        norm: Norm,
        *,
        time_stride: int = 1,
        nonlocal_blocks: int = 0,
        nonlocal_kind: str = "embedded-gaussian",
        nonlocal_pool: str = "after",
        dropout: float = 0.5,
    ):
        if nonlocal_blocks not in BLOCKS:
            raise ValueError(f"nonlocal_blocks is {nonlocal_blocks}: choose one of {list(BLOCKS)}")
        frames = ((3, 3), (3, 1), (3, 1), (1, 3))  # of even and odd blocks, by stage
        blocks = [bottleneck(norm, w, frames=f) for w, f in zip(WIDTHS, frames, strict=True)]
        layers = stages(blocks, 50)
        layers[0].append(nn.MaxPool3d((2, 1, 1)))
        for layer, width, places in zip(layers[1:3], WIDTHS[1:3], BLOCKS[nonlocal_blocks], strict=True):
            for place in reversed(places):
                layer.insert(place + 1, NonLocal(norm, 4 * width, nonlocal_kind, nonlocal_pool))
        span = 1 if time_stride == 1 else 3
        stem = nn.Sequential(
            *activated(convolution(in_channels, 64, (5, 7, 7), (time_stride, 2, 2)), norm(64)),
            nn.MaxPool3d((span, 3, 3), (time_stride, 2, 2), padding=(span // 2, 1, 1)),
        )
        super().__init__(stem, layers, num_classes, dropout)
        initialise(self, zero_last=True)


_register = partial(register, source=SOURCE)
_register("i3d-r50", ResNetI3D, configuration="i3d-r50", sizes=(8, 256, 256), accuracy=73.5)
_nl5 = partial(ResNetI3D, nonlocal_blocks=5, time_stride=2)
_register("i3d-r50-nl5", _nl5, configuration="i3d-r50-nl5", sizes=(32, 256, 256), accuracy=74.9)
