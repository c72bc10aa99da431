"""Reads networks of torchvision.models.video, and VMZ's, which are made of their parts.

torchvision's r3d_18, mc3_18, r2plus1d_18 and s3d are published for Kinetics-400 at 15 frames a second: of
ours at 25, every second comes nearest. VMZ (github.com/facebookresearch/VMZ, pt/vmz/models) publishes
r2plus1d_34, ir_csn_152 and ip_csn_152. Both are fed with pictures normalised by Kinetics' mean and std.
"""

from __future__ import annotations

import re

from trainer.weights.keys import Converted, Description, State, WeightsError, ends, fitted

NAMES = {"r3d-18": "r3d_18", "mc3-18": "mc3_18", "r2plus1d-18": "r2plus1d_18", "s3d": "s3d"}
"""Our networks that torchvision has, and what it calls them."""

VMZ = {"r2plus1d-34": "r2plus1d_34", "ir-csn-152": "ir_csn_152", "ip-csn-152": "ip_csn_152"}
"""Our networks that VMZ has, and what it calls them."""

PIXELS = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}
"""torchvision.transforms._presets.VideoClassification; pt/vmz/func/test.py."""


def matches(state: State) -> bool:
    residual = "layer1.0.conv1.0.weight" in state or "layer1.0.conv1.0.0.weight" in state
    return "features.0.0.0.weight" in state or ("stem.0.weight" in state and residual)


def convert(state: State, network: str | None = None) -> Converted:
    """Rename to our networks': the residual networks' names are the same, S3D's layers differ.

    Args:
        network: one of `NAMES` and `VMZ`, or None for the one whose names and shapes are those of `state`.

    Raises WeightsError for another network, and for a key that is missing or unknown.
    """
    known = NAMES | VMZ
    if network is not None and network not in known:
        raise WeightsError(f"torchvision and VMZ have no {network}: name one of {', '.join(known)}")
    separable = "features.0.0.0.weight" in state
    names = ("features.0.0.0.weight", "classifier.1.weight") if separable else ("stem.0.weight", "fc.weight")
    stream, classes = ends(state, *names)
    bottlenecks = "layer1.0.conv3.0.weight" in state
    alike = [n for n in known if n != "s3d" and n.endswith("csn-152") == bottlenecks]
    described = [
        Description("vmz", name, {}, stream, classes, PIXELS)
        if name in VMZ
        else Description("torchvision", name, {}, stream, classes, {**PIXELS, "stride": 2})
        for name in ([network] if network else ["s3d"] if separable else alike)
    ]
    return fitted(state, described, lambda ours: re.sub(r"^layers\.", "features.", ours))
