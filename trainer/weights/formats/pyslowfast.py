"""Reads SlowFast and I3D on ResNet-50 of github.com/facebookresearch/SlowFast.

Its training writes files of torch (checkpoint_epoch_00196.pyth), by the names of its modules
(slowfast/models). Its model zoo has pickles of Caffe2, which are not read; pytorchvideo's has files of torch.
The networks are SLOWFAST_4x16_R50, SLOWFAST_8x8_R50, I3D_8x8_R50 and I3D_NLN_8x8_R50.
"""

from __future__ import annotations

from trainer.weights import pathways
from trainer.weights.keys import Converted, State
from trainer.weights.pathways import Place

_BRANCHES = {"a": "branch2.a", "b": "branch2.b", "c": "branch2.c", "shortcut": "branch1"}


def theirs(place: Place) -> str:
    """Their name of the weight there."""
    at = f"s{place.stage}.pathway{place.pathway}"
    if place.kind == "last":
        layer = "head.projection"
    elif place.kind == "lateral":
        layer = f"s{place.stage}_fuse.{ {'conv': 'conv_f2s', 'norm': 'bn'}[place.unit] }"
    elif place.kind == "stem":
        layer = f"{at}_stem.{ {'conv': 'conv', 'norm': 'bn'}[place.unit] }"
    elif place.kind == "nonlocal":
        layer = f"{at}_nonlocal{place.number}.{'bn' if place.unit == 'norm' else f'conv_{place.unit}'}"
    else:
        unit, norm, _ = place.unit.partition("_norm")
        layer = f"{at}_res{place.number}.{_BRANCHES[unit]}{'_bn' if norm else ''}"
    return f"{layer}.{place.part}"


def matches(state: State) -> bool:
    return "s1.pathway0_stem.conv.weight" in state


def convert(state: State, network: str | None = None) -> Converted:
    """Rename to our network's. Raises WeightsError for a key that is missing or unknown."""
    nonlocals = 5 if any("_nonlocal" in name for name in state) else 0
    return pathways.convert("pyslowfast", state, theirs, "s1.pathway1_stem.conv.weight" in state, nonlocals)
