"""Reads BN-Inception of github.com/yjxiong/tsn-pytorch: TSN, and the image network that it starts from.

TSN's are below `base_model`, the last layer `new_fc`; the image network, also in
github.com/Cadene/pretrained-models.pytorch (bn_inception-52deb4733.pth), becomes a TSN of ImageNet's classes
for `train --init`. Both are fed with 0 to 255 in the order BGR less a mean, flow with 0 to 255 less 128, u
and v of each frame in turn (transforms.py, dataset.py); our first kernel is scaled and ordered for our input.
"""

from __future__ import annotations

from trainer.networks.tsn import MODULES, SNIPPET
from trainer.weights.keys import Converted, Description, State, WeightsError, fitted

PIXELS = {"mean": (128 / 255, 117 / 255, 104 / 255), "std": (0.5, 0.5, 0.5)}
"""The mean is theirs (models.py), of R, G and B here."""

_STEM = {"0": "conv1_7x7_s2", "2": "conv2_3x3_reduce", "3": "conv2_3x3"}
_BRANCHES = (
    ("1x1",),
    ("3x3_reduce", "3x3"),
    ("double_3x3_reduce", "double_3x3_1", "double_3x3_2"),
    ("", "pool_proj"),
)
_FIRST = "conv1_7x7_s2.weight"


def matches(state: State) -> bool:
    return _FIRST in state or f"base_model.{_FIRST}" in state


def convert(state: State, network: str | None = None) -> Converted:
    """Rename to our TSN's. Raises WeightsError for a key that is missing or unknown."""
    trained = f"base_model.{_FIRST}" in state
    prefix = "base_model." if trained else ""
    head = "new_fc" if trained else "last_linear" if "last_linear.weight" in state else "fc"
    first, last = state.get(prefix + _FIRST), state.get(f"{head}.weight")
    if first is None or last is None or first.shape[1:] not in ((3, 7, 7), (2 * SNIPPET, 7, 7)):
        raise WeightsError(
            "its first or its last layer is missing or another: take the whole file of one stream"
        )
    flat = {name: value[:, :, None] if value.ndim == 4 else value for name, value in state.items()}
    if first.shape[1] == 3:
        stream, flat[prefix + _FIRST] = "rgb", first.flip(1)[:, :, None] * (255 * PIXELS["std"][0])
    else:
        stream, flat[prefix + _FIRST] = "flow", first.unflatten(1, (SNIPPET, 2)).transpose(1, 2) * 127
    described = Description("bninception", "tsn-bninception", {}, stream, last.shape[0], PIXELS)

    def theirs(ours: str) -> str:
        layer, _, part = ours.rpartition(".")
        return f"{head}.{part}" if layer == "fc" else f"{prefix}{_layer(layer)}.{part}"

    return fitted(flat, [described], theirs)


def _layer(ours: str) -> str:
    """Their name of one of our layers: layers.<number>.(branches.<branch>.[<unit>.])<0 or 1>."""
    _, number, *inside, place = ours.split(".")
    if number in _STEM:
        name = _STEM[number]
    else:
        module = list(MODULES)[int(number) - 5]
        branch = int(inside[1]) + (not MODULES[module][0])  # those that stride have no 1x1
        name = f"inception_{module}_{_BRANCHES[branch][int(inside[2]) if branch else 0]}"
    return name if place == "0" else f"{name}_bn"
