"""Reads SlowFast and I3D on ResNet-50 of github.com/facebookresearch/SlowFast.

Its training writes files of torch (checkpoint_epoch_00196.pyth), by the names of its modules
(slowfast/models). Its model zoo has pickles of Caffe2, which are not read; pytorchvideo's has files of torch.
The networks are SLOWFAST_4x16_R50, SLOWFAST_8x8_R50, I3D_8x8_R50 and I3D_NLN_8x8_R50.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from trainer.weights import pathways
from trainer.weights.keys import Description
from trainer.weights.pathways import Place

_BLOCK = {
    letter + end: f"branch2.{letter}{bn}" for letter in "abc" for end, bn in (("", ""), ("_norm", "_bn"))
}
_BLOCK |= {"shortcut": "branch1", "shortcut_norm": "branch1_bn"}


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
        layer = f"{at}_res{place.number}.{_BLOCK[place.unit]}"
    return f"{layer}.{place.part}"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are this format's."""
    return "s1.pathway0_stem.conv.weight" in state


def convert(state: Mapping[str, Tensor], network: str | None = None) -> tuple[dict[str, Tensor], Description]:
    """Rename to our network's. Raises WeightsError for a key that is missing or unknown."""
    nonlocals = 5 if any("_nonlocal" in name for name in state) else 0
    return pathways.convert("pyslowfast", state, theirs, "s1.pathway1_stem.conv.weight" in state, nonlocals)
