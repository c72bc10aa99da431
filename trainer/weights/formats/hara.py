"""Reads 3D-ResNets of github.com/kenshohara/3D-ResNets-PyTorch (models/resnet.py).

Those of 2018 (resnet-18-kinetics.pth and the like: 400 classes, and 101 or 51 after fine-tuning),
which are fed with 0 to 255 less ActivityNet's mean, and those of 2020 (r3d18_K_200ep.pth), with Kinetics'
mean and std. The former, of 18 and 34 layers, have shortcut A, which has no weights.
"""

from __future__ import annotations

from trainer.weights.keys import Converted, Description, State, ends, fitted, resnet_name

OLD = {"mean": (114.7748 / 255, 107.7354 / 255, 99.4750 / 255), "std": (1 / 255,) * 3}
NEW = {"mean": (0.4345, 0.4051, 0.3775), "std": (0.2768, 0.2713, 0.2737)}
"""mean.py in the branch CVPR2018, with norm_value 1 and without std_norm; mean.py since."""


def matches(state: State) -> bool:
    first = state.get("conv1.weight")  # a 2D network has the same names
    return first is not None and first.ndim == 5 and "layer1.0.conv1.weight" in state


def convert(state: State, network: str | None = None) -> Converted:
    """Rename to our 3D-ResNet's. Raises WeightsError for a key that is missing or unknown."""
    stream, classes = ends(state, "conv1.weight", "fc.weight")
    padded = not any(".downsample." in name for name in state)
    shortcut = {"shortcut": "A"} if padded else {}
    pixels = OLD if padded or classes in (400, 101, 51) else NEW
    depths: list[tuple[str, dict]] = [("hara-r3d-18", {}), ("hara-r3d-34", {})]
    if "layer1.0.conv3.weight" in state:
        depths = [("hara-r3d-34", {"layers": layers}) for layers in (50, 101, 152)]
    described = [
        Description("hara", name, options | shortcut, stream, classes, pixels) for name, options in depths
    ]
    return fitted(state, described, resnet_name)
