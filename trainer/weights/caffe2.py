"""Files of Caffe2: the model zoo of github.com/facebookresearch/SlowFast (SLOWFAST_8x8_R50.pkl).

A pickle of {"blobs": {name: array}} that Python 2 wrote. The names are those that PySlowFast turns into its
own (slowfast/utils/c2_model_loading.py); momenta, rate and counter of steps are left out, as there.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.networks.residual import DEPTHS
from trainer.weights import pathways
from trainer.weights.keys import Description, WeightsError
from trainer.weights.pathways import Place

_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""What files of old torch begin with, which are pickles too."""

_NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
_CONV = {"weight": "w", "bias": "b"}


def is_one(path: Path) -> bool:
    """Whether a file may be one: a pickle that torch did not write."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(len(_TORCH))
    return head != _TORCH and head.startswith((b"\x80", b"(d", b"}"))


def read(path: Path) -> dict[str, Tensor]:
    """The blobs of a file. Nothing in it is run.

    Raises WeightsError for what is damaged or holds more than arrays.
    """
    try:
        with path.open("rb") as stream:
            found = _Arrays(stream, encoding="latin1").load()
    except Exception as error:  # whatever a damaged or hostile file makes pickle and numpy raise
        said = str(error).strip().split("\n")[0][:120]
        raise WeightsError(
            f"{path} is damaged or holds more than weights ({type(error).__name__}: {said}): copy it anew"
        ) from None
    blobs = found.get("blobs") if isinstance(found, dict) else None
    if not isinstance(blobs, dict) or not blobs:
        raise WeightsError(f"{path} holds no state dict: take the file of weights")
    result = {}
    for name, value in blobs.items():
        if any(word in str(name) for word in ("momentum", "lr", "model_iter")):
            continue
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise WeightsError(
                f"{path}: its {name} holds no plain numbers: take the file as it was published"
            )
        result[str(name)] = torch.from_numpy(value.astype(np.float32))
    return result


class _Arrays(pickle.Unpickler):
    """Reads arrays and plain values."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


_ALLOWED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _latin1}
for _room in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_room, "_reconstruct"] = np.zeros(0).__reduce__()[0]
    _ALLOWED[_room, "scalar"] = np.float64(0).__reduce__()[0]


def theirs(place: Place) -> str:
    """The name of the blob there."""
    fast = "t_" if place.pathway or place.kind == "lateral" else ""
    if place.kind == "last":
        layer, norm = "pred", False
    elif place.kind == "stem":
        norm = place.unit == "norm"
        layer = f"{fast}res_conv1_bn" if norm else f"{fast}conv1"
    elif place.kind == "lateral":
        norm, after = place.unit == "norm", DEPTHS[50][place.stage - 2] - 1
        layer = "t_pool1" if place.stage == 1 else f"t_res{place.stage}_{after}_branch2c_bn"
        layer += "_subsample_bn" if norm else "_subsample"
    elif place.kind == "nonlocal":
        norm = place.unit == "norm"
        layer = f"nonlocal_conv{place.stage}_{place.number}_{'bn' if norm else place.unit}"
    else:
        unit, norm = place.unit.removesuffix("_norm"), place.unit.endswith("_norm")
        branch = "branch1" if unit == "shortcut" else f"branch2{unit}"
        layer = f"{fast}res{place.stage}_{place.number}_{branch}{'_bn' if norm else ''}"
    return f"{layer}_{(_NORM if norm else _CONV).get(place.part, place.part)}"


def matches(state: Mapping[str, Tensor]) -> bool:
    """Whether these are blobs of one of those networks."""
    return {"conv1_w", "pred_w"} <= state.keys()


def convert(state: Mapping[str, Tensor], network: str | None = None) -> tuple[dict[str, Tensor], Description]:
    """Blobs as the state dict of our network. Raises WeightsError for a name that is missing or unknown."""
    nonlocals = 5 if any(name.startswith("nonlocal_") for name in state) else 0
    return pathways.convert("caffe2", state, theirs, "t_conv1_w" in state, nonlocals)
