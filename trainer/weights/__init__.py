"""Reads checkpoints of other implementations, one file of `formats` each, and inflates 2D weights."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from torch import Tensor

from trainer.choices import FORMATS
from trainer.weights import bundle
from trainer.weights.files import read_torch
from trainer.weights.inflation import inflate, initialise
from trainer.weights.keys import Description, WeightsError, check

__all__ = ["Description", "WeightsError", "inflate", "initialise", "load"]

_READERS: dict[str, ModuleType] = {
    name: importlib.import_module(f"{__name__}.formats.{module}") for name, module in FORMATS.items()
}


def load(
    path: str | Path, format: str = "auto", network: str | None = None
) -> tuple[dict[str, Tensor], Description]:
    """Read the weights in a file as a state dict of our network, and their description.

    Nothing in the file is run. Scales of batch normalisation are kept.

    Args:
        path: a file of torch, or a TensorFlow checkpoint: the prefix of its files, one of them, or their
            folder.
        format: one of `trainer.choices.FORMATS`, or "auto" to tell it by the names of the weights.
        network: our network, where a format has several.

    Raises WeightsError for a damaged file, an unknown format, and a key that is missing, unknown or of
    another shape.
    """
    path = Path(path)
    try:
        state = bundle.read(path) if bundle.prefix(path) else read_torch(path)
        state_dict, description = _reader(state, format).convert(state, network)
        if network is not None and description.network != network:
            raise WeightsError(f"it is of {description.network}: leave out --network {network}")
        check(state_dict, description)
    except WeightsError as error:
        said = str(error)
        raise type(error)(said if str(path) in said else f"{path}: {said}") from None
    return state_dict, description


def _reader(state: Mapping[str, Tensor], format: str) -> ModuleType:
    if format != "auto":
        return _READERS[format]
    for reader in _READERS.values():
        if reader.matches(state):
            return reader
    first = next(iter(state), None)
    raise WeightsError(
        f"it is of no known format (its first weight is {first}): those known are {', '.join(FORMATS)}"
    )
