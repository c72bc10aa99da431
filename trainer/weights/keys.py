"""Renames the weights of other implementations to ours; every key must be accounted for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.outcome import CallError
from trainer import networks


class WeightsError(RuntimeError):
    """A file of weights cannot be read, or does not fit this network: one sentence with the remedy."""


class AbsentError(WeightsError, CallError):
    """The named file does not exist."""


@dataclass(frozen=True)
class Description:
    """Describes the weights in a file.

    Attributes:
        format: one of `trainer.choices.FORMATS`.
        network, options: our network that they fit, and its options.
        stream: "rgb" or "flow".
        classes: number of logits.
        input: settings of `Input` that differ from the network's default.
    """

    format: str
    network: str
    options: Mapping[str, Any]
    stream: str
    classes: int
    input: Mapping[str, Any] = field(default_factory=dict)


State = Mapping[str, Tensor]
"""Weights by another implementation's names."""

Converted = tuple[dict[str, Tensor], Description]
"""A state dict of our network, and what it fits."""


def rename(state: State, keys: Mapping[str, str], ignored: Collection[str] = ()) -> dict[str, Tensor]:
    """Rename the weights in `state`.

    Args:
        keys: their name -> ours, for all that are needed.
        ignored: their names of weights that we do not use, which may be absent.

    Raises WeightsError for a key that is missing or unknown.
    """
    if missing := [name for name in keys if name not in state]:
        raise WeightsError(
            f"it has no {missing[0]} ({len(missing)} of {len(keys)} weights are missing): take the whole file"
        )
    if unknown := [name for name in state if name not in keys and name not in ignored]:
        raise WeightsError(
            f"it has {unknown[0]}, which stands for no weight of the network ({len(unknown)} such): "
            "take the file as it was published"
        )
    return {ours: state[theirs] for theirs, ours in keys.items()}


def ends(state: State, first: str, last: str, ndim: int = 5) -> tuple[str, int]:
    """The stream and the number of classes, by the weights of the first and the last layer.

    Raises WeightsError where one is missing, or the first has not `ndim` dimensions.
    """
    if first not in state or last not in state or state[first].ndim != ndim or state[last].ndim < 2:
        raise WeightsError("its first or its last layer is missing: take the whole file")
    return stream_of(state[first].shape[1]), state[last].shape[0]


def stream_of(channels: int) -> str:
    """The stream whose frames have so many channels. Raises WeightsError."""
    for stream, count in networks.CHANNELS.items():
        if count == channels:
            return stream
    raise WeightsError(f"its input has {channels} channels, and neither RGB's 3 nor flow's 2: take another")


def shapes(description: Description) -> dict[str, torch.Size]:
    """The names and shapes of the weights of the described network. Raises WeightsError."""
    channels = networks.CHANNELS[description.stream]
    try:
        with torch.device("meta"):
            built = networks.build(description.network, description.classes, channels, **description.options)
    except (KeyError, ValueError) as error:
        raise WeightsError(str(error.args[0])) from None
    return {name: value.shape for name, value in built.state_dict().items()}


def check(state: State, description: Description) -> None:
    """Raise WeightsError unless `state` fits the described network and holds finite numbers only."""
    name = description.network
    for weight, shape in shapes(description).items():
        if state[weight].shape != shape:
            raise WeightsError(f"its {weight} is {tuple(state[weight].shape)}, that of {name} {tuple(shape)}")
        if not state[weight].isfinite().all():
            raise WeightsError(f"its {weight} holds what is no number: take another copy")


def resnet_name(ours: str) -> str:
    """The name, in torchvision's image networks, of a weight of our `ResidualNetwork`."""
    layer, _, part = ours.rpartition(".")
    path, _, place = layer.rpartition(".")
    if layer == "fc" or path.endswith("downsample"):
        return ours
    path = "conv1" if path == "stem" else path
    return f"{path if place == '0' else path.replace('conv', 'bn')}.{part}"


def fitted(state: State, candidates: Sequence[Description], theirs: Callable[[str], str]) -> Converted:
    """Rename `state` to the weights of the candidate that it fits best.

    `theirs` maps our name of a weight to theirs. Counters of batches may be absent. Raises WeightsError for a
    key that is missing or unknown.
    """

    def misfits(known: tuple[Description, dict[str, torch.Size]]) -> int:
        named = ((theirs(name), shape) for name, shape in known[1].items())
        return sum(name not in state or state[name].shape != shape for name, shape in named)

    description, own = min(((candidate, shapes(candidate)) for candidate in candidates), key=misfits)
    keys = {theirs(name): name for name in own}
    counters = {key: ours for key, ours in keys.items() if ours.endswith(".num_batches_tracked")}
    renamed = rename(state, {key: keys[key] for key in keys if key not in counters}, counters)
    return renamed | {ours: state.get(key, torch.tensor(0)) for key, ours in counters.items()}, description
