"""Reads TSM of github.com/mit-han-lab/temporal-shift-module: ResNet-50, shifted on its residual branches.

In its file TSM_kinetics_RGB_resnet50_shift8_blockres_avg_segment8_e50.pth the weights are torchvision's
ResNet-50's, the first convolution of each block below `net`, the last layer `new_fc` (ops/models.py,
ops/temporal_shift.py), trained with ImageNet's mean and deviation on one frame from each eighth of a clip
(71.2 % on Kinetics-400). ..._e100_dense.pth has the same names and was trained on 8 frames, 8 apart (74.1 %):
nothing in it says so, import it with --config tsm-dense.
"""

from __future__ import annotations

from trainer.weights.keys import Converted, Description, State, ends, fitted, resnet_name

PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def matches(state: State) -> bool:
    return "base_model.layer1.0.conv1.net.weight" in state


def convert(state: State, network: str | None = None) -> Converted:
    """Rename to our tsm-r50's. Raises WeightsError for a key that is missing or unknown."""
    stream, classes = ends(state, "base_model.conv1.weight", "new_fc.weight", ndim=4)
    flat = {name: value[:, :, None] if value.ndim == 4 else value for name, value in state.items()}
    described = Description("tsm", "tsm-r50", {}, stream, classes, PIXELS)
    return fitted(flat, [described], _theirs)


def _theirs(ours: str) -> str:
    """Their name of one of our weights."""
    name = resnet_name(ours)
    if name.startswith("fc."):
        return f"new_{name}"
    return f"base_model.{name.replace('.conv1.', '.conv1.net.')}"
