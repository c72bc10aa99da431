"""Promises of inflation: the image network's answers, wherever no kernel reaches beyond the clip."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import pytest
import tiny_dataset
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import checkpoint as checkpoints
from trainer import configuration, networks, stream_models, weights
from trainer import train as training
from trainer.networks.layers import Conv3dSame, MaxPool3dSame, same_padding
from trainer.weights import WeightsError

images = pytest.importorskip("torchvision.models", reason="torchvision is not installed")


def shaken(network: nn.Module) -> nn.Module:
    """Random statistics and scales, some of them below zero, as training leaves them; ready to evaluate."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, -0.2, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network.eval()


@pytest.fixture(scope="module")
def googlenet() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return shaken(images.googlenet(num_classes=11, init_weights=False, aux_logits=True))


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return shaken(images.resnet50(num_classes=11))


def inflated(name: str, image: nn.Module, classes: int = 11, channels: int = 3, **options) -> nn.Module:
    network = networks.build(name, classes, in_channels=channels, **options).eval()
    network.load_state_dict(weights.inflate(image.state_dict(), network))
    return network


def constant(frame: Tensor, frames: int) -> Tensor:
    """(N, C, H, W) -> (N, C, T, H, W), the frame again and again."""
    return frame[:, :, None].expand(-1, -1, frames, -1, -1)


def close(found: Tensor, wanted: Tensor) -> bool:
    """To 1e-4 of the scale of what is wanted, which is more than nothing."""
    scale = wanted.abs().max()
    return bool(scale > 0.01) and bool((found - wanted).abs().max() <= 1e-4 * scale)


def replicated(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on convolutions pad time with its first and last frame; space stays as it is."""

    def same(self: Conv3dSame, x: Tensor) -> Tensor:
        pads = same_padding(x.shape[2:], self.kernel, self.steps)
        return F.conv3d(_padded(x, pads), self.weight, self.bias, self.stride)

    def plain(self: nn.Conv3d, x: Tensor) -> Tensor:
        t, h, w = self.padding
        return F.conv3d(_padded(x, [w, w, h, h, t, t]), self.weight, self.bias, self.stride)

    monkeypatch.setattr(nn.Conv3d, "forward", plain)
    monkeypatch.setattr(Conv3dSame, "forward", same)


def _padded(x: Tensor, pads: list[int]) -> Tensor:
    return F.pad(F.pad(x, [0, 0, 0, 0, *pads[4:]], mode="replicate"), pads[:4])


@pytest.mark.parametrize("scaled", [pytest.param(True, marks=pytest.mark.slow), False])
def test_each_layer_gives_inside_a_still_clip_what_the_image_layer_gives(googlenet, scaled):
    network = inflated("i3d", googlenet, bn_scale=scaled)
    units = [m for m in network.modules() if type(m).__name__ == "Unit"]
    theirs = [m for m in googlenet.modules() if type(m).__name__ == "BasicConv2d"][: len(units)]
    assert len(units) == 57
    for ours, image in zip(units, theirs, strict=True):
        frame = torch.randn(1, image.conv.in_channels, 9, 9)
        clip = constant(frame, 11)
        with torch.no_grad():
            found, wanted = ours(clip), image(frame)  # 9 pixels: SAME pads both sides alike
        steps = found.shape[2]
        reach = (ours.conv.kernel[0] // 2 + ours.conv.steps[0] - 1) // ours.conv.steps[0]
        for step in range(reach, steps - reach):
            assert close(found[:, :, step], wanted)
        if reach:
            assert not close(found[:, :, 0], wanted)
            assert not close(found[:, :, -1], wanted)


def seen_by_torchvision(frame: Tensor) -> Tensor:
    """The frame moved up and left by a pixel: torchvision's first layer pads three in front, SAME two."""
    return F.pad(frame[:, :, 1:, 1:], [0, 1, 0, 1])


def picture(size: int) -> Tensor:
    """A smooth random picture in [-1, 1] whose first row and column are zero."""
    torch.manual_seed(2)
    smooth = F.interpolate(torch.rand(1, 3, 9, 9) * 2 - 1, size=(size, size), mode="bilinear")
    smooth[:, :, 0], smooth[:, :, :, 0] = 0, 0
    return smooth


def test_i3d_on_a_still_clip_is_googlenet_on_the_frame_where_time_is_padded_with_itself(
    googlenet, monkeypatch
):
    frame = picture(224)
    network = inflated("i3d", googlenet)
    with torch.no_grad():
        wanted = googlenet(seen_by_torchvision(frame))
        zeros = network.logits_over_time(constant(frame, 17))
        replicated(monkeypatch)
        found = network.logits_over_time(constant(frame, 17))
    assert found.shape[1] == 2
    assert all(close(found[:, step], wanted) for step in range(found.shape[1]))
    assert not close(zeros[:, 0], wanted)


def test_the_pools_of_i3d_are_googlenets(googlenet):
    for size in (28, 56, 112):
        x = torch.rand(1, 2, size, size)
        ours = MaxPool3dSame((1, 3, 3), (1, 2, 2))(x[:, :, None])[:, :, 0]
        assert torch.equal(ours, googlenet.maxpool1(x))


@pytest.mark.parametrize(
    "name",
    [
        "tsm-r50",
        "i3d-r50-nl5",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("i3d-r50", "smallbig-r50")),
    ],
)
def test_a_residual_network_on_a_still_clip_is_resnet50_on_the_frame(resnet50, name, monkeypatch):
    frame = picture(64)
    network = inflated(name, resnet50, **({"padding": "circulant"} if name == "tsm-r50" else {}))
    with torch.no_grad():
        wanted = resnet50(frame)
        replicated(monkeypatch)
        assert close(network(constant(frame, 8)), wanted)


def test_the_ends_of_i3d_on_resnet50_differ_with_zeros_around_them(resnet50):
    frame = picture(64)
    with torch.no_grad():
        maps = inflated("i3d-r50", resnet50).stem(constant(frame, 8))
        wanted = resnet50.maxpool(resnet50.relu(resnet50.bn1(resnet50.conv1(frame))))
    assert all(close(maps[:, :, step], wanted) for step in range(2, 6))
    assert not any(close(maps[:, :, step], wanted) for step in (0, 1, 6, 7))


@pytest.mark.parametrize(("name", "layer"), [("i3d", "conv_1a.conv"), ("tsm-r50", "stem.0")])
def test_flow_begins_with_the_mean_of_rgbs_kernels(googlenet, resnet50, name, layer):
    image = googlenet if name == "i3d" else resnet50
    first = image.conv1.conv.weight if name == "i3d" else image.conv1.weight
    kernel = inflated(name, image, channels=2, **({"bn_scale": True} if name == "i3d" else {}))
    kernel = kernel.get_submodule(layer).weight
    frames = kernel.shape[2]
    for channel in range(2):
        for frame in range(frames):
            torch.testing.assert_close(kernel[:, channel, frame], first.mean(dim=1) / frames)


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("i3d", {"logits"}),
        ("i3d-top-heavy", {"logits"}),
        ("i3d-bottom-heavy", {"logits"}),
        ("convnet-lstm", {"logits", "lstm"}),
        ("two-stream", {"logits_rgb", "logits_flow"}),
        ("fused-3d", {"logits", "fusion"}),
    ],
)
def test_what_is_made_of_inception_v1_begins_with_it_and_the_rest_stays_fresh(googlenet, name, heads):
    network = without_values(name)
    found = weights.inflate(googlenet.state_dict(), network)
    assert found.keys() == network.state_dict().keys()
    fresh = {key.split(".")[0] for key, value in found.items() if value.is_meta and "tracked" not in key}
    assert fresh == heads
    biases = [value for key, value in found.items() if key.endswith("norm.bias") and not value.is_meta]
    last = googlenet.inception5b.branch4[1].bn.bias
    assert torch.equal(biases[-1], last)
    assert len(biases) == (114 if len(heads & {"logits_rgb", "fusion"}) else 57)


def without_values(name: str) -> nn.Module:
    with torch.device("meta"):
        return networks.build(name, 5)


def lacking(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name != "inception4c.branch3.1.bn.running_var"}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("i3d", lacking, "it has no inception4c.branch3.1.bn.running_var"),
        ("i3d", lambda s: {**s, "inception4c.branch3.2.conv.weight": torch.zeros(1)}, "stands for no weight"),
        ("i3d", lambda s: {**s, "conv2.conv.weight": torch.zeros(64, 65, 1, 1)}, "published"),
        ("i3d", lambda s: {**s, "conv2.conv.weight": torch.zeros(64)}, "dimensions"),
        ("i3d-r50", dict, "it has no bn1.bias"),
        ("slowfast-4x16-r50", dict, "no image network is known that SlowFast could start from"),
        ("c3d-bn", dict, "no image network is known that C3D could start from"),
    ],
)
def test_what_cannot_be_inflated_is_refused_in_a_sentence(googlenet, name, change: Callable, said):
    network = without_values(name)
    with pytest.raises(WeightsError, match=said) as caught:
        weights.inflate(change(googlenet.state_dict()), network)
    assert "\n" not in str(caught.value)


def test_init_says_what_it_left_fresh_and_where_scales_went(googlenet, tmp_path):
    torch.save(googlenet.state_dict(), tmp_path / "googlenet.pth")
    built = stream_models.build("i3d", {"bn_scale": True}, ("rgb", "flow"), 5)
    told = weights.initialise((t.network for t in built.values()), tmp_path / "googlenet.pth")
    assert told == ["left fresh, the image network not having them: logits.weight, logits.bias"]
    kernel = built["flow"].network.get_submodule("conv_1a.conv").weight
    torch.testing.assert_close(kernel[:, 1, 3], googlenet.conv1.conv.weight.mean(dim=1) / 7)
    built = stream_models.build("i3d", {}, ("rgb",), 5)
    told = weights.initialise((t.network for t in built.values()), tmp_path / "googlenet.pth")
    assert "set bn_scale = true" in told[1]
    (tmp_path / "googlenet.pth").write_bytes(b"PK")
    with pytest.raises(WeightsError, match=r"googlenet\.pth is damaged"):
        weights.initialise([built["rgb"].network], tmp_path / "googlenet.pth")


@pytest.mark.slow
def test_training_begins_with_an_image_network(googlenet, tmp_path, capsys):
    torch.save(googlenet.state_dict(), tmp_path / "googlenet.pth")
    root = tiny_dataset.publish(tmp_path / "root", {"train": 2}, frames=(12,))
    sections = {
        "network": {"name": "i3d", "bn_scale": True, "bn_frozen": True, "dropout": 0.0},
        "input": {"frames": 9, "short_side": 64, "crop": 64},
        "optimisation": {"lr": 1e-30, "weight_decay": 0.0},
        "run": {"batch_size": 2, "steps": 1, "workers": 0},
    }
    init = f"imagenet:{tmp_path / 'googlenet.pth'}"
    job = training.TrainOptions(
        configuration.resolve("quick", sections), (str(root),), tmp_path / "run", init=init
    )
    found = checkpoints.load(training.train(job)).weights
    assert "--init: left fresh, the image network not having them: logits.weight" in capsys.readouterr().err
    first = googlenet.conv1.conv.weight
    for stream, image in (("rgb", first), ("flow", first.mean(dim=1, keepdim=True).expand(-1, 2, -1, -1))):
        assert torch.allclose(found[stream]["conv_1a.conv.weight"][:, :, 4], image / 7, atol=1e-7)
