"""Promises of the readers of PySlowFast's, pytorchvideo's and the 3D-ResNets' weights.

Each network is stated here a second time, by the published names, which makes its weights as it goes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import checkpoint as checkpoints
from trainer import networks, weights
from trainer.__main__ import main
from trainer.weights import WeightsError

DEPTHS = (3, 4, 6, 3)
CLASSES = 7


class Stated:
    """Layers by name, whose weights are drawn when they are first asked for, under a format's suffixes."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}

    def conv(self, name: str, x: Tensor, out: int, kernel, stride=(1, 1, 1), bias: bool = False) -> Tensor:
        shape = (out, x.shape[1], *kernel)
        weight = torch.randn(shape) * (2 / (x.shape[1] * np.prod(kernel))) ** 0.5
        self.state[f"{name}.weight"] = weight
        if bias:
            self.state[f"{name}.bias"] = torch.randn(out)
        offset = self.state[f"{name}.bias"] if bias else None
        return F.conv3d(x, weight, offset, stride, [k // 2 for k in kernel])

    def norm(self, name: str, x: Tensor) -> Tensor:
        count = x.shape[1]
        drawn = (
            torch.rand(count) / 2 + 0.2,
            torch.randn(count) / 5,
            torch.randn(count) / 5,
            torch.rand(count) + 0.5,
        )
        ends = ("weight", "bias", "running_mean", "running_var")
        self.state |= {f"{name}.{end}": value for end, value in zip(ends, drawn, strict=True)}
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(9)
        scale, offset, mean, variance = drawn
        return F.batch_norm(x, mean, variance, scale, offset)

    def linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = torch.randn(CLASSES, x.shape[1]), torch.randn(CLASSES)
        self.state |= {f"{name}.weight": weight, f"{name}.bias": bias}
        return F.linear(x, weight, bias)


def pyslowfast(kind: str, stage: int, pathway: int = 0, number: int = 0, unit: str = "") -> tuple[str, str]:
    """The names of a convolution and of its normalisation."""
    at = f"s{stage}.pathway{pathway}"
    return {
        "stem": (f"{at}_stem.conv", f"{at}_stem.bn"),
        "lateral": (f"s{stage}_fuse.conv_f2s", f"s{stage}_fuse.bn"),
        "branch2": (f"{at}_res{number}.branch2.{unit}", f"{at}_res{number}.branch2.{unit}_bn"),
        "branch1": (f"{at}_res{number}.branch1", f"{at}_res{number}.branch1_bn"),
        "nonlocal": (f"{at}_nonlocal{number}.conv_{unit}", f"{at}_nonlocal{number}.bn"),
        "last": ("head.projection", ""),
    }[kind]


def pytorchvideo(kind: str, stage: int, pathway: int = 0, number: int = 0, unit: str = "") -> tuple[str, str]:
    """Of SlowFast, whose pathways are from 0; of I3D those names that differ are put right by `i3d`."""
    at = f"blocks.{stage - 1}.multipathway_blocks.{pathway}"
    fusion, block = f"blocks.{stage - 1}.multipathway_fusion", f"{at}.res_blocks.{number}"
    return {
        "stem": (f"{at}.conv", f"{at}.norm"),
        "lateral": (f"{fusion}.conv_fast_to_slow", f"{fusion}.norm"),
        "branch2": (f"{block}.branch2.conv_{unit}", f"{block}.branch2.norm_{unit}"),
        "branch1": (f"{block}.branch1_conv", f"{block}.branch1_norm"),
        "last": ("blocks.6.proj", ""),
    }[kind]


def pytorchvideo_i3d(kind: str, stage: int, *arguments, **options) -> tuple[str, str]:
    number = {1: 0, 2: 1, 3: 3, 4: 4, 5: 5, 6: 6}[stage]
    both = pytorchvideo(kind, stage, *arguments, **options)
    return tuple(
        name.replace(f"blocks.{stage - 1}.multipathway_blocks.0", f"blocks.{number}") for name in both
    )


def stem(net: Stated, names: Callable, x: Tensor, pathway: int, out: int, frames: int) -> Tensor:
    conv, norm = names("stem", 1, pathway)
    x = net.norm(norm, net.conv(conv, x, out, (frames, 7, 7), (1, 2, 2))).relu()
    return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))


def residual(
    net: Stated, names: Callable, x: Tensor, at: dict, inner: int, frames: int, stride: int
) -> Tensor:
    past, y = x, x
    for unit, out, kernel in (
        ("a", inner, (frames, 1, 1)),
        ("b", inner, (1, 3, 3)),
        ("c", 4 * inner, (1, 1, 1)),
    ):
        conv, norm = names("branch2", unit=unit, **at)
        y = net.norm(norm, net.conv(conv, y, out, kernel, (1, stride, stride) if unit == "b" else (1, 1, 1)))
        y = y.relu() if unit != "c" else y
    if at["number"] == 0:
        conv, norm = names("branch1", **at)
        past = net.norm(norm, net.conv(conv, x, 4 * inner, (1, 1, 1), (1, stride, stride)))
    return (past + y).relu()


def nonlocal_block(net: Stated, names: Callable, x: Tensor, stage: int, number: int) -> Tensor:
    at, inner = {"stage": stage, "number": number}, x.shape[1] // 2
    pooled = F.max_pool3d(x, (1, 2, 2))
    theta = net.conv(names("nonlocal", unit="theta", **at)[0], x, inner, (1, 1, 1), bias=True)
    phi = net.conv(names("nonlocal", unit="phi", **at)[0], pooled, inner, (1, 1, 1), bias=True)
    g = net.conv(names("nonlocal", unit="g", **at)[0], pooled, inner, (1, 1, 1), bias=True)
    alike = torch.einsum("nctp,ncs->ntps", theta.flatten(3), phi.flatten(2)) * inner**-0.5
    y = torch.einsum("ntps,ncs->nctp", alike.softmax(dim=-1), g.flatten(2)).view(theta.shape)
    y = net.conv(names("nonlocal", unit="out", **at)[0], y, x.shape[1], (1, 1, 1), bias=True)
    return x + net.norm(names("nonlocal", **at)[1], y)


def i3d(net: Stated, names: Callable, x: Tensor, nonlocals: bool) -> Tensor:
    x = stem(net, names, x, 0, 64, 5)
    for stage, depth in enumerate(DEPTHS, start=2):
        for number in range(depth):
            frames = 3 if stage == 2 or number % 2 == (stage == 5) else 1
            at = {"stage": stage, "pathway": 0, "number": number}
            stride = 2 if stage > 2 and number == 0 else 1
            x = residual(net, names, x, at, 16 * 2**stage, frames, stride)
            if nonlocals and (stage, number) in ((3, 1), (3, 3), (4, 1), (4, 3), (4, 5)):
                x = nonlocal_block(net, names, x, stage, number)
        x = F.max_pool3d(x, (2, 1, 1)) if stage == 2 else x
    return net.linear(names("last", 6)[0], x.mean(dim=(2, 3, 4)))


def slowfast(net: Stated, names: Callable, x: Tensor, alpha: int) -> Tensor:
    slow = x[:, :, torch.linspace(0, x.shape[2] - 1, x.shape[2] // alpha).long()]
    slow, fast = stem(net, names, slow, 0, 64, 1), stem(net, names, x, 1, 8, 5)
    for stage, depth in enumerate(DEPTHS, start=2):
        conv, norm = names("lateral", stage - 1)
        size = (5 if alpha == 8 else 7, 1, 1)
        brought = net.conv(conv, fast, 2 * fast.shape[1], size, (alpha, 1, 1))
        slow = torch.cat([slow, net.norm(norm, brought).relu()], dim=1)
        for number in range(depth):
            stride = 2 if stage > 2 and number == 0 else 1
            at = {"stage": stage, "number": number}
            slow = residual(
                net, names, slow, {**at, "pathway": 0}, 16 * 2**stage, 1 if stage < 4 else 3, stride
            )
            fast = residual(net, names, fast, {**at, "pathway": 1}, 2 * 2**stage, 3, stride)
    return net.linear(names("last", 6)[0], torch.cat([x.mean(dim=(2, 3, 4)) for x in (slow, fast)], dim=1))


def hara(net: Stated, x: Tensor, layers: int, shortcut: str) -> Tensor:
    deep, depths = layers >= 50, {18: (2, 2, 2, 2), 50: DEPTHS}[layers]
    x = net.norm("bn1", net.conv("conv1", x, 64, (7, 7, 7), (1, 2, 2))).relu()
    x = F.max_pool3d(x, 3, 2, 1)
    for stage, depth in enumerate(depths, start=1):
        for number in range(depth):
            at, inner = f"layer{stage}.{number}", 32 * 2**stage
            stride, out = (2 if stage > 1 and number == 0 else 1), inner * (4 if deep else 1)
            cube, point = (3, 3, 3), (1, 1, 1)
            units = [(inner, point), (inner, cube), (out, point)] if deep else [(inner, cube), (inner, cube)]
            y = x
            for place, (channels, kernel) in enumerate(units, start=1):
                steps = [stride if place == (2 if deep else 1) else 1] * 3
                y = net.norm(f"{at}.bn{place}", net.conv(f"{at}.conv{place}", y, channels, kernel, steps))
                y = y.relu() if place < len(units) else y
            if y.shape != x.shape and shortcut == "A":
                x = x[:, :, ::stride, ::stride, ::stride]
                x = torch.cat([x, torch.zeros(x.shape[0], out - x.shape[1], *x.shape[2:])], dim=1)
            elif y.shape != x.shape:
                past = net.conv(f"{at}.downsample.0", x, out, point, [stride] * 3)
                x = net.norm(f"{at}.downsample.1", past)
            x = (x + y).relu()
    return net.linear("fc", x.mean(dim=(2, 3, 4)))


def save(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"epoch": 195, "model_state": state, "cfg": "TRAIN: ..."}, path)


SLOWFAST_8X8 = ("slowfast-8x8-r50", {}, lambda net, names, x: slowfast(net, names, x, 4))
SLOWFAST_4X16 = ("slowfast-4x16-r50", {}, lambda net, names, x: slowfast(net, names, x, 8))
PLAIN = ("i3d-r50", {}, lambda net, names, x: i3d(net, names, x, False))
NONLOCAL = (
    "i3d-r50",
    {"nonlocal_blocks": 5, "nonlocal_pool": "before"},
    lambda net, names, x: i3d(net, names, x, True),
)


@pytest.mark.parametrize(
    ("format", "names", "which"),
    [
        ("pyslowfast", pyslowfast, SLOWFAST_8X8),
        ("pytorchvideo", pytorchvideo_i3d, PLAIN),
        pytest.param("pyslowfast", pyslowfast, SLOWFAST_4X16, marks=pytest.mark.slow),
        pytest.param("pyslowfast", pyslowfast, PLAIN, marks=pytest.mark.slow),
        pytest.param("pyslowfast", pyslowfast, NONLOCAL, marks=pytest.mark.slow),
        pytest.param("pytorchvideo", pytorchvideo, SLOWFAST_8X8, marks=pytest.mark.slow),
        pytest.param("pytorchvideo", pytorchvideo, SLOWFAST_4X16, marks=pytest.mark.slow),
    ],
)
def test_they_answer_as_theirs(tmp_path, format, names, which):
    torch.manual_seed(0)
    network, options, state_it = which
    net, clip = Stated(), torch.randn(2, 3, 16, 32, 32)
    wanted, path = state_it(net, names, clip), tmp_path / "weights"
    save(path, net.state)
    answers(path, (format, network, options), clip, wanted)


@pytest.mark.parametrize(
    ("format", "names"),
    [
        ("pytorchvideo", pytorchvideo_i3d),
        pytest.param("pyslowfast", pyslowfast, marks=pytest.mark.slow),
    ],
)
def test_every_key_is_consumed(tmp_path, format, names):
    net, path = Stated(), tmp_path / "weights"
    i3d(net, names, torch.randn(1, 3, 8, 32, 32), False)
    some = [name for name in net.state if "branch2" in name and name.endswith("weight")][-1]
    for state, said in (
        ({name: value for name, value in net.state.items() if name != some}, f"it has no {some}"),
        ({**net.state, f"{some}.more": torch.zeros(1)}, f"it has {some}.more, which stands for no weight"),
        ({**net.state, some: torch.zeros(3)}, r"is \(3,\), that of"),
    ):
        save(path, state)
        with pytest.raises(WeightsError, match=said):
            weights.load(path)


def answers(path: Path, described: tuple, clip: Tensor, wanted: Tensor) -> None:
    converted, description = weights.load(path)
    assert (description.format, description.network, description.options) == described
    assert (description.stream, description.classes) == ("rgb", CLASSES)
    ours = networks.build(description.network, CLASSES, **description.options).eval()
    ours.load_state_dict(converted)
    with torch.no_grad():
        assert (ours(clip) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize(
    ("layers", "shortcut", "network", "options"),
    [
        (18, "A", "hara-r3d-18", {"shortcut": "A"}),
        pytest.param(18, "B", "hara-r3d-18", {}, marks=pytest.mark.slow),
        pytest.param(50, "B", "hara-r3d-34", {"layers": 50}, marks=pytest.mark.slow),
    ],
)
def test_3d_resnets_answer_as_theirs(tmp_path, layers, shortcut, network, options):
    torch.manual_seed(0)
    net, clip = Stated(), torch.randn(2, 3, 16, 32, 32)
    wanted, path = hara(net, clip, layers, shortcut), tmp_path / "r3d.pth"
    torch.save(
        {"arch": f"resnet-{layers}", "state_dict": {f"module.{n}": v for n, v in net.state.items()}}, path
    )
    answers(path, ("hara", network, options), clip, wanted)
    assert main(["import", str(path), "--output", str(tmp_path / "c.pt")]) == 0
    std = checkpoints.load(tmp_path / "c.pt").input.std
    assert std == pytest.approx((1 / 255,) * 3 if shortcut == "A" else (0.2768, 0.2713, 0.2737))
