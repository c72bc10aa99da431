"""Reads SlowFast and I3D on ResNet-50 of github.com/facebookresearch/pytorchvideo.

Its model zoo's SLOWFAST_4x16_R50.pyth, SLOWFAST_8x8_R50.pyth and I3D_8x8_R50.pyth (75.34, 76.94 and 73.27 %
on Kinetics-400) were trained by PySlowFast; their names are those of pytorchvideo/models.
"""

from __future__ import annotations

from trainer.weights import pathways
from trainer.weights.keys import Converted, State
from trainer.weights.pathways import Place

_BLOCK = {letter: f"branch2.conv_{letter}" for letter in "abc"}
_BLOCK |= {f"{letter}_norm": f"branch2.norm_{letter}" for letter in "abc"}
_BLOCK |= {"shortcut": "branch1_conv", "shortcut_norm": "branch1_norm"}


def _of_two(place: Place) -> str:
    """Their name of a weight of SlowFast."""
    at = f"blocks.{place.stage - 1}.multipathway"
    if place.kind == "last":
        return f"blocks.6.proj.{place.part}"
    if place.kind == "lateral":
        unit = {"conv": "conv_fast_to_slow", "norm": "norm"}[place.unit]
        return f"{at}_fusion.{unit}.{place.part}"
    return f"{at}_blocks.{place.pathway}.{_inside(place)}.{place.part}"


def _of_one(place: Place) -> str:
    """Their name of a weight of I3D, which has a pool as its third block."""
    if place.kind == "last":
        return f"blocks.6.proj.{place.part}"
    return f"blocks.{place.stage - (place.stage < 3)}.{_inside(place)}.{place.part}"


def _inside(place: Place) -> str:
    return place.unit if place.kind == "stem" else f"res_blocks.{place.number}.{_BLOCK[place.unit]}"


def matches(state: State) -> bool:
    one = {"blocks.0.conv.weight", "blocks.1.res_blocks.0.branch2.conv_a.weight"}
    return _two(state) or one <= state.keys()


def convert(state: State, network: str | None = None) -> Converted:
    """Rename to our network's. Raises WeightsError for a key that is missing or unknown."""
    two = _two(state)
    return pathways.convert("pytorchvideo", state, _of_two if two else _of_one, two)


def _two(state: State) -> bool:
    return "blocks.0.multipathway_blocks.0.conv.weight" in state
