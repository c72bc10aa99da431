"""Inflation: an image network as the start of a video network (Carreira, Zisserman, CVPR 2017, section 2.4).

The image networks are torchvision's GoogLeNet and ResNet-50.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainer.networks.i3d import Unit
from trainer.networks.layers import BatchNorm3d
from trainer.networks.residual import Bottleneck, ResidualNetwork
from trainer.networks.resnet_i3d import ResNetI3D
from trainer.networks.smallbig import SmallBigNet
from trainer.networks.tsm import TSM
from trainer.weights.files import read_torch
from trainer.weights.keys import WeightsError, rename

GOOGLENET = (
    "conv1",
    "conv2",
    "conv3",
    *(
        f"inception{module}.branch{branch}"
        for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
        for branch in ("1", "2.0", "2.1", "3.0", "3.1", "4.1")
    ),
)
"""Units of torchvision's GoogLeNet, in the order of I3D's. Its "5x5" branch is 3x3, as in I3D."""

_HEADS = ("logits", "fc")
_NORM = ("weight", "bias", "running_mean", "running_var")
_COUNTER = "num_batches_tracked"
_AUXILIARY = rf"aux[12]\.(conv\.conv\.weight|conv\.bn\.({'|'.join(_NORM)}|{_COUNTER})|fc[12]\.(weight|bias))"
_UNUSED = re.compile(rf"fc\.(weight|bias)|{_AUXILIARY}")
"""Weights that are not used: the last layer's, and GoogLeNet's auxiliary ones."""


def inflate(state_dict_2d: Mapping[str, Tensor], module_3d: nn.Module) -> dict[str, Tensor]:
    """The state dict of `module_3d` with the weights of an image network in it.

    Each 2D kernel is repeated over the frames that the 3D one spans and divided by their number: a video that
    repeats one frame gives the same maps as the image, except at its ends, where I3D pads time with zeros.
    Where the input has not three channels, as flow, the first kernel is the mean of RGB's for each of them.

    GoogLeNet's normalisation has scales. A module with scales (I3D's option `bn_scale`) keeps them; for one
    without they go into kernel and running mean, which is the same with running statistics only: batch
    statistics undo it. torchvision's first convolution pads three pixels in front, I3D at 224x224 two, so
    that I3D sees what GoogLeNet sees of the picture moved up and left by one.

    Args:
        state_dict_2d: of torchvision's googlenet (for what is made of Inception-v1) or resnet50 (for I3D on
            ResNet-50, TSM, SmallBigNet), fed in [-1, 1] or by ImageNet's mean and deviation as they were.
        module_3d: keeps its own weights where the image network has none, and a last layer of another number
            of classes.

    Raises WeightsError for a module that no image network is known for, and a key missing or unknown.
    """
    return module_3d.state_dict() | _inflated(state_dict_2d, module_3d)


def initialise(networks: Iterable[nn.Module], path: str | Path) -> list[str]:
    """Start `networks` from the image network in the file `path`; return sentences to show to the user.

    Raises WeightsError.
    """
    state = read_torch(Path(path))
    fresh: dict[str, None] = {}  # in its order
    folded = False
    for network in networks:
        try:
            inflated = _inflated(state, network)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        own = network.state_dict()
        network.load_state_dict(own | inflated)
        fresh |= dict.fromkeys(name for name in own if name not in inflated and not name.endswith(_COUNTER))
        folded |= any(isinstance(m, BatchNorm3d) and not (m.scale or m.frozen) for m in network.modules())
    told = [f"left fresh, the image network not having them: {', '.join(fresh)}"] if fresh else []
    if folded:
        told.append(
            "scales of normalisation went into the kernels, where statistics of batches undo them: set "
            "bn_scale = true in [network] to keep them"
        )
    return told


def _inflated(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The weights that `module` gets, by our names."""
    layers = _layers(module)
    own = module.state_dict()
    wanted = {f"{layer.conv}.weight" for layer in layers}
    wanted |= {f"{layer.norm}.{part}" for layer in layers for part in _NORM}
    unused = {f"{layer.norm}.{_COUNTER}" for layer in layers} | {n for n in state if _UNUSED.fullmatch(n)}
    found = rename(state, {name: name for name in sorted(wanted)}, unused)
    result: dict[str, Tensor] = {}
    for layer in layers:
        kernel = _repeated(found[f"{layer.conv}.weight"], own[f"{layer.our_conv}.weight"].shape, layer.conv)
        scale, bias, mean, variance = (found[f"{layer.norm}.{part}"] for part in _NORM)
        if f"{layer.our_norm}.weight" in own:
            result[f"{layer.our_norm}.weight"] = scale
        else:
            kernel, mean = kernel * scale[:, None, None, None, None], mean * scale
        result[f"{layer.our_conv}.weight"] = kernel
        for part, value in zip(_NORM[1:], (bias, mean, variance), strict=True):
            result[f"{layer.our_norm}.{part}"] = value
    for part in ("weight", "bias"):  # the last layer, where it tells as many classes apart
        ours = next((f"{head}.{part}" for head in _HEADS if f"{head}.{part}" in own), None)
        last = state.get(f"fc.{part}")
        if ours and last is not None and own[ours].numel() == last.numel():
            result[ours] = last.view(own[ours].shape)
    if wrong := [name for name, value in result.items() if value.shape != own[name].shape]:
        raise WeightsError(
            f"{wrong[0]} would be {tuple(result[wrong[0]].shape)} and not {tuple(own[wrong[0]].shape)}: take "
            "the file of torchvision's network as it was published"
        )
    return result


class _Layer(NamedTuple):
    """A convolution with its normalisation: torchvision's names, and ours."""

    conv: str
    norm: str
    our_conv: str
    our_norm: str


def _layers(module: nn.Module) -> list[_Layer]:
    """The layers of the image network that `module` starts from, once for each stream made of it."""
    units = [name for name, unit in module.named_modules() if isinstance(unit, Unit)]
    if units and len(units) % len(GOOGLENET) == 0:
        theirs = GOOGLENET * (len(units) // len(GOOGLENET))
        pairs = zip(theirs, units, strict=True)
        return [_Layer(f"{name}.conv", f"{name}.bn", f"{unit}.conv", f"{unit}.norm") for name, unit in pairs]
    if isinstance(module, ResNetI3D | TSM | SmallBigNet):
        return _resnet50(module)
    raise WeightsError(
        f"no image network is known that {type(module).__name__} could start from: i3d, its halves, "
        "convnet-lstm, two-stream and fused-3d start from torchvision's googlenet, i3d-r50, tsm-r50 and "
        "smallbig-r50 from its resnet50"
    )


def _resnet50(module: ResidualNetwork) -> list[_Layer]:
    """Layers of torchvision's resnet50: the n-th block of a stage is our n-th residual block."""
    layers = [_Layer("conv1", "bn1", "stem.0", "stem.1")]
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        inside = module.get_submodule(stage).named_children()
        blocks = [f"{stage}.{name}" for name, block in inside if isinstance(block, Bottleneck)]
        for number, ours in enumerate(blocks):
            parts = [(f"conv{i}", f"bn{i}", f"conv{i}") for i in (1, 2, 3)]
            if number == 0:
                parts.append(("downsample.0", "downsample.1", "downsample"))
            theirs = f"{stage}.{number}"
            layers += [
                _Layer(f"{theirs}.{conv}", f"{theirs}.{norm}", f"{ours}.{part}.0", f"{ours}.{part}.1")
                for conv, norm, part in parts
            ]
    return layers


def _repeated(kernel: Tensor, shape: torch.Size, name: str) -> Tensor:
    """(O, I, h, w) -> (O, I', t, h, w): a t-th of it in each frame; other channels get the mean of RGB's."""
    if kernel.ndim != 4:
        raise WeightsError(f"{name} has {kernel.ndim} dimensions and not 4: take an image network's weights")
    if shape[1] != kernel.shape[1] == 3:
        kernel = kernel.mean(dim=1, keepdim=True).expand(-1, shape[1], -1, -1)
    return kernel[:, :, None].expand(-1, -1, shape[2], -1, -1) / shape[2]
