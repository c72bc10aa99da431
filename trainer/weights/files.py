"""Reads the tensors in files that torch wrote, without running anything in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.weights.keys import AbsentError, WeightsError

_INSIDE = ("state_dict", "model_state")  # keys under which a training program's file has its weights
_PARALLEL = "module."  # torch's DataParallel adds it to each name


def read_torch(path: Path) -> dict[str, Tensor]:
    """Read the state dict in `path` to the CPU, also from inside a training program's file or DataParallel.

    Raises:
        AbsentError: there is no such file.
        WeightsError: the file is damaged or holds more than tensors and plain values, or a tensor is sparse,
            quantised or without values.
    """
    if path.is_dir() or not path.exists():
        raise AbsentError(f"{path} is no file: name one of weights")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): download it again") from None
    except Exception as error:  # whatever a damaged or hostile file makes torch raise
        said = str(error).strip().split("\n")[0][:120]
        why = f"is damaged or holds more than weights ({type(error).__name__}: {said})"
        raise WeightsError(f"{path} {why}: copy it again") from None
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not (isinstance(found, Mapping) and found and all(isinstance(v, Tensor) for v in found.values())):
        raise WeightsError(f"{path} holds no state dict: take the file of weights")
    for name, value in found.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            unfit = f"{path}: its {name} holds no plain numbers"
            raise WeightsError(f"{unfit}: take the file as it was published")
    names = [str(name) for name in found]
    cut = len(_PARALLEL) if all(name.startswith(_PARALLEL) for name in names) else 0
    return {name[cut:]: value for name, value in zip(names, found.values(), strict=True)}
