"""Promises of `import`: others' files become checkpoints that stand alone and answer as theirs do."""

from __future__ import annotations

from pathlib import Path

import published_i3d
import pytest
import tensorflow_bundle
import torch
from torch import Tensor, nn

from trainer import checkpoint as checkpoints
from trainer import configuration, networks, stream_models, weights
from trainer.__main__ import main
from trainer.weights import WeightsError
from trainer.weights.formats import torchvision as from_torchvision

LABELS = Path(__file__).parents[2] / "manifests"


def shaken(network: nn.Module) -> nn.Module:
    """Random statistics and scales, as training leaves them; ready to evaluate."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def bundled(folder: Path, stream: str, classes: int) -> Path:
    """A checkpoint of DeepMind's for `stream`."""
    given = published_i3d.variables({"rgb": 3, "flow": 2}[stream], classes)
    prefix = {"rgb": "RGB", "flow": "Flow"}[stream]
    tensorflow_bundle.write(
        folder / stream / "model.ckpt", {f"{prefix}/inception_i3d/{name}": v for name, v in given.items()}
    )
    return folder / stream / "model.ckpt"


@pytest.fixture(scope="module")
def deepmind(tmp_path_factory) -> Path:
    """A folder of both streams' checkpoints, of 400 classes."""
    folder = tmp_path_factory.mktemp("deepmind")
    for stream in ("rgb", "flow"):
        bundled(folder, stream, 400)
    return folder


def imported(capsys, *arguments: object) -> str:
    assert main(["import", *map(str, arguments)]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_both_streams_become_one_checkpoint_that_stands_alone(deepmind, tmp_path, capsys):
    output = tmp_path / "models" / "i3d.pt"
    said = imported(capsys, deepmind / "flow", deepmind / "rgb" / "model.ckpt.index", "--output", output)
    assert "flow from deepmind's weights, rgb from deepmind's weights" in said
    assert "taken to be Kinetics-400's" in said
    found = checkpoints.load(output)
    assert (found.network, found.input) == ("i3d", configuration.resolve(None, {}).input)
    assert list(found.weights) == ["rgb", "flow"]
    assert list(found.classes) == (LABELS / "kinetics-400_label_map.txt").read_text().splitlines()
    for stream, model in found.weights.items():
        state, _ = weights.load(deepmind / stream)
        assert model.keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in model.items())
    flow = stream_models.restore(found, "flow")["flow"]
    with torch.no_grad():
        assert flow((torch.rand(1, 3, 9, 32, 32), torch.rand(1, 2, 9, 32, 32))).shape == (1, 400)
    assert stream_models.initialise({"flow": flow}, found, found.classes) == []


def test_one_stream_is_imported_with_what_is_said_of_it(deepmind, tmp_path, capsys):
    options = ["--network", "i3d", "--stream", "rgb", "--format", "deepmind", "--output", tmp_path / "rgb.pt"]
    imported(capsys, deepmind / "rgb", *options)
    found = checkpoints.load(tmp_path / "rgb.pt")
    assert found.input.stream == "rgb"
    assert list(found.weights) == ["rgb"]


def test_classes_that_are_not_known_are_said_and_can_be_given(tmp_path, capsys):
    torch.save(published_i3d.piergiaj(published_i3d.variables(3, 3)), tmp_path / "rgb_three.pt")
    said = imported(capsys, tmp_path / "rgb_three.pt", "--output", tmp_path / "a.pt")
    assert "the names of its 3 classes are not known: give them with --classes FILE" in said
    assert checkpoints.load(tmp_path / "a.pt").classes == ("class 0", "class 1", "class 2")
    (tmp_path / "names").write_text("jump\nrun\nsit\n")
    imported(
        capsys, tmp_path / "rgb_three.pt", "--classes", tmp_path / "names", "--output", tmp_path / "b.pt"
    )
    assert checkpoints.load(tmp_path / "b.pt").classes == ("jump", "run", "sit")
    (tmp_path / "names").write_text("jump\nrun\nrun\n")
    for names in (tmp_path / "names", tmp_path / "none"):
        call = ["import", tmp_path / "rgb_three.pt", "--classes", names, "--output", tmp_path / "c.pt"]
        assert main([str(part) for part in call]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "c.pt").exists()


def test_the_names_of_kinetics_are_those_of_the_lists():
    folder = Path(weights.__file__).parent
    for count in (400, 600):
        names = (folder / f"kinetics-{count}.txt").read_text()
        assert names == (LABELS / f"kinetics-{count}_label_map.txt").read_text()
        assert len(set(names.splitlines())) == count
    theirs = pytest.importorskip("torchvision.models.video", reason="torchvision is not installed")
    names = theirs.R3D_18_Weights.KINETICS400_V1.meta["categories"]
    assert names == (folder / "kinetics-400.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["rgb", "--stream", "flow"], 2, "is of rgb: leave out --stream flow"),
        (["rgb", "rgb"], 2, "are both of rgb"),
        (["rgb", "few"], 2, "are of different networks"),
        (["rgb", "--network", "s3d"], 1, "it is of i3d"),
        (["rgb", "--format", "hassony2"], 1, "it has no conv3d_1a_7x7.conv3d.weight"),
        (["none"], 2, "is no file"),
    ],
)
def test_what_cannot_be_imported_is_a_sentence(deepmind, tmp_path, capsys, arguments, code, said):
    if "few" in arguments:
        bundled(tmp_path, "flow", 5).parent.rename(deepmind / "few")
    files = [str(deepmind / a) if a in ("rgb", "few", "none") else a for a in arguments]
    assert main(["import", *files, "--output", str(tmp_path / "out.pt")]) == code
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out.pt").exists()


def test_of_three_files_the_two_of_one_stream_are_named(deepmind, tmp_path, capsys):
    files = [str(deepmind / stream) for stream in ("flow", "rgb", "rgb")]
    assert main(["import", *files, "--output", str(tmp_path / "out.pt")]) == 2
    assert f"{files[1]} and {files[2]} are both of rgb" in capsys.readouterr().err


def saved(path: Path, network: nn.Module) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize(
    "name", ["mc3-18", *(pytest.param(n, marks=pytest.mark.slow) for n in ("r3d-18", "r2plus1d-18", "s3d"))]
)
def test_torchvisions_networks_answer_as_torchvision_does(name, tmp_path, capsys):
    """Pictures in [-1, 1] go in, torchvision's own preset prepares the same ones for theirs."""
    video = pytest.importorskip("torchvision.models.video", reason="torchvision is not installed")
    from torchvision.transforms._presets import VideoClassification

    torch.manual_seed(0)
    theirs = shaken(getattr(video, from_torchvision.NAMES[name])(num_classes=400))
    said = imported(capsys, saved(tmp_path / "weights.pth", theirs), "--output", tmp_path / "c.pt")
    assert f"{name}, rgb from torchvision's weights" in said
    found = checkpoints.load(tmp_path / "c.pt")
    size = 224 if name == "s3d" else 40
    pixels = torch.randint(0, 256, (1, 16, 3, size, size), dtype=torch.uint8)
    prepare = VideoClassification(crop_size=(size, size), resize_size=(size, size))
    with torch.no_grad():
        wanted = theirs(prepare(pixels))
        answer = stream_models.restore(found)["rgb"]((pixels.transpose(1, 2).float() / 127.5 - 1, None))
    assert (answer - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert found.input.stride == 2


class Separate(nn.Sequential):
    """VMZ's convolutions (pt/vmz/models/utils.py): of r2plus1d_34, ir_csn_152 and ip_csn_152."""

    def __init__(self, kind: str, ins: int, outs: int, stride: int):
        def conv(i, o, kernel, steps, **options):
            return nn.Conv3d(i, o, kernel, steps, [k // 2 for k in kernel], bias=False, **options)

        if kind == "r2plus1d-34":
            between = ins * outs * 27 // (ins * 9 + 3 * outs)
            first = conv(ins, between, (1, 3, 3), (1, stride, stride))
            last = conv(between, outs, (3, 1, 1), (stride, 1, 1))
            super().__init__(first, nn.BatchNorm3d(between), nn.ReLU(), last)
        else:
            depthwise = conv(outs, outs, (3, 3, 3), stride, groups=outs)
            super().__init__(conv(ins, outs, (1, 1, 1), 1), nn.BatchNorm3d(outs), depthwise)


def of_vmz(name: str) -> nn.Module:
    """VMZ's network, made as it makes it, of torchvision's parts."""
    resnet = pytest.importorskip("torchvision.models.video.resnet", reason="torchvision is not installed")

    def maker(ins: int, outs: int, midplanes: int, stride: int = 1, padding: int = 1) -> nn.Module:
        if name == "ir-csn-152":
            return nn.Conv3d(outs, outs, 3, stride, 1, groups=outs, bias=False)
        return Separate(name, ins, outs, stride)

    maker.get_downsample_stride = lambda stride: (stride, stride, stride)  # type: ignore[attr-defined]

    def stem() -> nn.Module:
        first = nn.Conv3d(3, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        return nn.Sequential(
            first, nn.BatchNorm3d(64), nn.ReLU(), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        )

    csn = name != "r2plus1d-34"
    network = resnet.VideoResNet(
        block=resnet.Bottleneck if csn else resnet.BasicBlock,
        conv_makers=[maker] * 4,
        layers=[3, 8, 36, 3] if csn else [3, 4, 6, 3],
        stem=stem if csn else resnet.R2Plus1dStem,
        num_classes=400,
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = 1e-3
    return shaken(network)


@pytest.mark.slow
@pytest.mark.parametrize("name", from_torchvision.VMZ)
def test_vmzs_networks_answer_as_vmz_does(name, tmp_path):
    torch.manual_seed(0)
    theirs = of_vmz(name)
    state, description = weights.load(saved(tmp_path / "weights.pth", theirs))
    assert (description.format, description.network) == ("vmz", name)
    ours = networks.build(name, 400).eval()
    ours.load_state_dict(state)
    clip = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        wanted = theirs(clip)
        assert (ours(clip) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


class Shifted(nn.Module):
    """TSM's convolution after a shift of an eighth of the channels each way, for (N T, C, H, W)."""

    def __init__(self, net: nn.Module, frames: int):
        super().__init__()
        self.net, self.frames = net, frames

    def forward(self, x: Tensor) -> Tensor:
        clips = x.unflatten(0, (-1, self.frames))
        eighth = clips.shape[2] // 8
        moved = clips.clone()
        moved[:, :, : 2 * eighth] = 0
        moved[:, :-1, :eighth] = clips[:, 1:, :eighth]
        moved[:, 1:, eighth : 2 * eighth] = clips[:, :-1, eighth : 2 * eighth]
        return self.net(moved.flatten(0, 1))


def test_tsms_network_answers_as_tsm_does(tmp_path):
    images = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    torch.manual_seed(0)
    theirs = shaken(images.resnet50(num_classes=400))
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        for block in stage:
            block.conv1 = Shifted(block.conv1, 8)
    state = {f"module.base_model.{name}": value for name, value in theirs.state_dict().items()}
    state = {name.replace("base_model.fc", "new_fc"): value for name, value in state.items()}
    torch.save(
        {"epoch": 50, "arch": "resnet50", "state_dict": state, "best_prec1": 74.1}, tmp_path / "tsm.pth"
    )
    converted, description = weights.load(tmp_path / "tsm.pth")
    assert (description.format, description.network) == ("tsm", "tsm-r50")
    assert description.input["mean"] == (0.485, 0.456, 0.406)
    ours = networks.build("tsm-r50", 400).eval()
    ours.load_state_dict(converted)
    clip = torch.randn(2, 3, 8, 40, 40)
    with torch.no_grad():
        wanted = theirs(clip.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 8)).mean(dim=1)
        assert (ours(clip) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    call = ["import", str(tmp_path / "tsm.pth"), "--output", str(tmp_path / "c.pt")]
    for more, sampling in (([], (8, 1)), (["--config", "tsm-dense"], (0, 8))):
        assert main([*call, *more]) == 0
        fed = checkpoints.load(tmp_path / "c.pt").input
        assert (fed.segments, fed.stride) == sampling
        assert fed.mean == description.input["mean"]


def test_every_key_of_a_residual_network_is_consumed(tmp_path):
    video = pytest.importorskip("torchvision.models.video", reason="torchvision is not installed")
    state = video.mc3_18(num_classes=5).state_dict()
    for changed, said in (
        (
            {**state, "layer5.0.conv1.0.weight": torch.zeros(1)},
            "layer5.0.conv1.0.weight, which stands for no",
        ),
        (
            {k: v for k, v in state.items() if k != "layer4.1.conv2.1.running_var"},
            "it has no layer4.1.conv2.1",
        ),
        (
            {**state, "layer4.1.conv2.1.running_var": torch.zeros(3)},
            r"layer4.1.conv2.1.running_var is \(3,\)",
        ),
    ):
        torch.save(changed, tmp_path / "weights.pth")
        with pytest.raises(WeightsError, match=said):
            weights.load(tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="that of r3d-18"):
        weights.load(tmp_path / "weights.pth", network="r3d-18")
    with pytest.raises(WeightsError, match="torchvision and VMZ have no i3d"):
        weights.load(tmp_path / "weights.pth", network="i3d")
    assert weights.load(tmp_path / "weights.pth")[1].network == "mc3-18"
