"""State dicts of torchvision.models.video: r3d_18, mc3_18, r2plus1d_18 and s3d."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

NAMES = {"r3d-18": "r3d_18", "mc3-18": "mc3_18", "r2plus1d-18": "r2plus1d_18", "s3d": "s3d"}
"""Our networks that torchvision has, and what it calls them."""


def convert(network: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's state dict of `network` for ours: the residual networks' is the same, S3D's is renamed.

    Raises KeyError for a network that torchvision has not.
    """
    if NAMES[network] != "s3d":
        return dict(state_dict)
    return {
        f"layers.{key.removeprefix('features.')}" if key.startswith("features.") else key: value
        for key, value in state_dict.items()
    }
