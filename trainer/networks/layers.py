"""Layers that the published networks need and torch lacks.

TensorFlow's SAME padding, batch normalisation without a scale, and dropout whose masks depend on the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[int, int, int]


def same_padding(sizes: Sequence[int], kernel: Triple, stride: Triple) -> list[int]:
    """The padding of TensorFlow's SAME, in `F.pad`'s order (last dimension first, front then end).

    A dimension of size n has ceil(n / stride) outputs; half of the padding, rounded down, goes in front, the
    rest to the end. Source: tensorflow/core/framework/common_shape_fns.cc.
    """
    padding: list[int] = []
    for size, k, s in zip(reversed(sizes), reversed(kernel), reversed(stride), strict=True):
        total = ((size + s - 1) // s - 1) * s + k - size
        if k < s:  # else it is never negative, and a maximum would fix the size of an exported network
            total = max(0, total)
        padding += [total // 2, total - total // 2]
    return padding


class Conv3d(nn.Conv3d):
    """torch's 3D convolution, with correct gradients for clips shorter than the kernel."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") and x.device.type == "cpu" and x.shape[2] < self.kernel_size[0]:
            # torch 2.13 reads uninitialised memory for the bfloat16 weight gradient of a clip with fewer
            # frames than the kernel (16 become 2 in the last modules): pad it first.
            t, h, w = (int(p) for p in self.padding)
            x = F.pad(x, (0, 0, 0, 0, t, t))
            return F.conv3d(x, self.weight, self.bias, self.stride, (0, h, w), self.dilation, self.groups)
        return super().forward(x)


class Conv3dSame(Conv3d):
    """A 3D convolution without bias, padded with zeros as TensorFlow's SAME.

    (N, C, T, H, W) -> (N, C', T/s, H/s, W/s).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Triple, stride: Triple = (1, 1, 1)):
        # With stride 1 SAME is symmetric and needs no copy; with a larger one it depends on the size.
        t, h, w = kernel if stride == (1, 1, 1) else (1, 1, 1)
        padding = (t // 2, h // 2, w // 2)
        super().__init__(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.kernel, self.steps = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.steps != (1, 1, 1):
            x = F.pad(x, same_padding(x.shape[2:], self.kernel, self.steps))
        return super().forward(x)


class MaxPool3dSame(nn.Module):
    """A 3D maximum pool padded as TensorFlow's SAME, with minus infinity."""

    def __init__(self, kernel: Triple, stride: Triple):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == (1, 1, 1):
            return F.max_pool3d(x, self.kernel, 1, padding=[k // 2 for k in self.kernel])
        padding = same_padding(x.shape[2:], self.kernel, self.stride)
        return F.max_pool3d(F.pad(x, padding, value=float("-inf")), self.kernel, self.stride)


class BatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation whose scale (gamma) may be fixed at one, as in DeepMind's I3D.

    Without a scale, `weight` is a constant, neither in `parameters()` nor in the state dict. A frozen layer
    normalises by its running statistics in training too, and keeps them as they are.
    """

    def __init__(self, channels: int, eps: float, momentum: float, scale: bool, frozen: bool = False):
        super().__init__(channels, eps=eps, momentum=momentum)
        self.scale, self.frozen = scale, frozen
        if not scale:
            del self.weight
            self.register_buffer("weight", torch.ones(channels), persistent=False)
        self.train()

    def train(self, mode: bool = True) -> BatchNorm3d:
        return super().train(mode and not self.frozen)


@dataclass(frozen=True)
class Norm:
    """The settings of a network's batch normalisation; called with a number of channels, it makes a layer."""

    eps: float = 1e-5
    momentum: float = 0.1  # of the running statistics, in torch's sense
    scale: bool = True
    frozen: bool = False

    def __call__(self, channels: int) -> BatchNorm3d:
        return BatchNorm3d(channels, self.eps, self.momentum, self.scale, self.frozen)


class Dropout(nn.Module):
    """Dropout whose mask is a pure function of (`seeds`, position), for any device, rank and batch split.

    `seed_dropout` sets `seeds`, (N,) int64, one for each sample of the next batch; while they are None,
    torch's own generator draws.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability
        self.seeds: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        if self.seeds is None:
            return F.dropout(x, self.probability)
        keep = uniform(self.seeds.to(x.device), x[0].numel()) >= self.probability
        return x * keep.view(x.shape) / (1 - self.probability)


def seed_dropout(module: nn.Module, seeds: Tensor | None) -> None:
    """Give every `Dropout` in `module` its seeds, (N,) int64, different for each layer."""
    for number, layer in enumerate(m for m in module.modules() if isinstance(m, Dropout)):
        layer.seeds = None if seeds is None else seeds + number


def uniform(seeds: Tensor, count: int) -> Tensor:
    """Draw numbers in [0, 1), row i from seeds[i] alone: (N,) int64 -> (N, count) float64.

    A counter-based generator: the finaliser of MurmurHash3 (A. Appleby, public domain) over seed and counter.
    """
    counter = torch.arange(count, device=seeds.device, dtype=torch.int64)
    rows = _mix(_mix(seeds & _WORD) ^ (seeds >> 32 & _WORD))
    return _mix(rows[:, None] ^ _mix(counter + 1)).double() / 2**32


_WORD = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """Scramble 32-bit words, held in int64, one to one; products wrap."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _WORD
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _WORD
    return x ^ (x >> 16)
