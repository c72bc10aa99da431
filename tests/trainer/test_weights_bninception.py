"""Promises of the reader of BN-Inception: TSN's weights, and the image network that it begins with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import checkpoint as checkpoints
from trainer import networks, stream_models, weights
from trainer.__main__ import main
from trainer.weights import WeightsError

WIDTHS = {  # 1x1; 3x3 reduced, 3x3; double reduced, its two; projection (the image network's definition)
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, 0),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, 0),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}


def unit(state: dict[str, Tensor], name: str, x: Tensor, out: int, size: int, stride: int = 1) -> Tensor:
    """Convolution, normalisation, ReLU; the weights, by their published names, are drawn as it goes."""
    state[f"{name}.weight"] = torch.randn(out, x.shape[1], size, size) * (2 / (x.shape[1] * size**2)) ** 0.5
    state[f"{name}.bias"] = torch.randn(out) / 5
    norm = {"running_mean": torch.randn(out) / 5, "running_var": torch.rand(out) + 0.5}
    norm |= {"weight": torch.rand(out) + 0.5, "bias": torch.randn(out) / 5}
    state |= {f"{name}_bn.{part}": value for part, value in norm.items()}
    y = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride, size // 2)
    return F.batch_norm(y, *norm.values()).relu()


def bninception(state: dict[str, Tensor], x: Tensor, prefix: str, head: str, classes: int) -> Tensor:
    """The published network: (N, C, H, W), 0 to 255 in the order BGR less the mean -> logits."""
    x = F.max_pool2d(unit(state, f"{prefix}conv1_7x7_s2", x, 64, 7, 2), 3, 2, ceil_mode=True)
    x = unit(state, f"{prefix}conv2_3x3_reduce", x, 64, 1)
    x = F.max_pool2d(unit(state, f"{prefix}conv2_3x3", x, 192, 3), 3, 2, ceil_mode=True)
    for name, (one, reduced, three, reduced_double, double, projected) in WIDTHS.items():
        at, stride = f"{prefix}inception_{name}_", 1 if one else 2
        outs = [unit(state, f"{at}1x1", x, one, 1)] if one else []
        y = unit(state, f"{at}3x3_reduce", x, reduced, 1)
        outs.append(unit(state, f"{at}3x3", y, three, 3, stride))
        y = unit(state, f"{at}double_3x3_reduce", x, reduced_double, 1)
        y = unit(state, f"{at}double_3x3_1", y, double, 3)
        outs.append(unit(state, f"{at}double_3x3_2", y, double, 3, stride))
        if one:
            pooled = F.max_pool2d(x, 3, 1, 1) if name == "5b" else F.avg_pool2d(x, 3, 1, 1)
            outs.append(unit(state, f"{at}pool_proj", pooled, projected, 1))
        else:
            outs.append(F.max_pool2d(x, 3, 2, ceil_mode=True))
        x = torch.cat(outs, dim=1)
    state |= {f"{head}.weight": torch.randn(classes, 1024), f"{head}.bias": torch.randn(classes)}
    return F.linear(x.mean(dim=(2, 3)), state[f"{head}.weight"], state[f"{head}.bias"])


@pytest.mark.parametrize(
    ("stream", "trained"),
    [("rgb", False), *(pytest.param(s, True, marks=pytest.mark.slow) for s in ("rgb", "flow"))],
)
def test_tsn_answers_as_the_published_network(tmp_path, stream, trained):
    torch.manual_seed(0)
    state: dict[str, Tensor] = {}
    prefix, head = ("base_model.", "new_fc") if trained else ("", "last_linear")
    path = tmp_path / "weights.pth"
    coded = torch.randint(1, 256, (2, networks.CHANNELS[stream], 5, 64, 64))  # RGB or flow, 0 to 255
    if stream == "rgb":
        seen = coded[:, :, 0].flip(1) - torch.tensor([104.0, 117, 128])[:, None, None]
        pictures = (coded / 127.5 - 1, None)
    else:
        seen = coded.transpose(1, 2).flatten(1, 2) - 128.0  # u and v of each frame in turn
        pictures = (None, (coded - 128) / 127)
    wanted = bninception(state, seen, prefix, head, 7)
    torch.save({"state_dict": {f"module.{n}": v for n, v in state.items()}} if trained else state, path)
    assert main(["import", str(path), "--output", str(tmp_path / "c.pt")]) == 0
    known = checkpoints.load(tmp_path / "c.pt")
    assert (known.network, known.input.stream, len(known.classes)) == ("tsn-bninception", stream, 7)
    (model,) = stream_models.restore(known).values()
    with torch.no_grad():
        assert (model(pictures) - wanted).abs().max() <= 1e-3 * wanted.abs().max()


def test_every_key_is_consumed(tmp_path):
    state: dict[str, Tensor] = {}
    bninception(state, torch.rand(1, 3, 32, 32), "", "last_linear", 7)
    path, some = tmp_path / "weights.pth", "inception_4e_double_3x3_2_bn.running_var"
    for changed, said in (
        ({name: value for name, value in state.items() if name != some}, f"it has no {some}"),
        ({**state, f"{some}.more": torch.zeros(1)}, "stands for no weight"),
        ({**state, "conv1_7x7_s2.weight": torch.zeros(64, 4, 7, 7)}, "of one stream"),
        ({**state, "last_linear.weight": torch.zeros(7)}, r"its fc.weight is \(7,\)|first or its last"),
    ):
        torch.save(changed, path)
        with pytest.raises(WeightsError, match=said):
            weights.load(path)
