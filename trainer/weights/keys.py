"""Explicit maps from others' names of weights to ours, of which every key is consumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.outcome import CallError
from trainer import networks


class WeightsError(RuntimeError):
    """A file of weights that cannot be read, or not into this network; one sentence with the remedy."""


class AbsentError(WeightsError, CallError):
    """The file that was named is not there."""


@dataclass(frozen=True)
class Description:
    """What a file of weights holds.

    Attributes:
        format: whose, one of `trainer.choices.FORMATS`.
        network, options: ours that they are of, and its builder's options.
        stream: "rgb" or "flow".
        classes: number of logits.
        input: settings of `Input` in which they want another than the network's default.
    """

    format: str
    network: str
    options: Mapping[str, Any]
    stream: str
    classes: int
    input: Mapping[str, Any] = field(default_factory=dict)


def rename(
    state: Mapping[str, Tensor], keys: Mapping[str, str], ignored: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """`state` under our names.

    Args:
        keys: their name -> ours, for all that there must be.
        ignored: their names of what we have no use for; each may be there or not.

    Raises WeightsError where a key is missing, or none of those.
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


def stream_of(channels: int) -> str:
    """The stream whose frames have so many channels. Raises WeightsError."""
    for stream, count in networks.CHANNELS.items():
        if count == channels:
            return stream
    raise WeightsError(f"its input has {channels} channels, and neither RGB's 3 nor flow's 2: take another")


def shapes(description: Description) -> dict[str, torch.Size]:
    """Names and shapes of the weights of the network that is described. Raises WeightsError."""
    channels = networks.CHANNELS[description.stream]
    try:
        with torch.device("meta"):
            built = networks.build(
                description.network, description.classes, in_channels=channels, **description.options
            )
    except (KeyError, ValueError) as error:
        raise WeightsError(str(error.args[0])) from None
    return {name: value.shape for name, value in built.state_dict().items()}


def check(state: Mapping[str, Tensor], description: Description) -> None:
    """Raises WeightsError unless the network that is described takes `state` as it is, and all is numbers."""
    name = description.network
    for weight, shape in shapes(description).items():
        if state[weight].shape != shape:
            raise WeightsError(f"its {weight} is {tuple(state[weight].shape)}, that of {name} {tuple(shape)}")
        if not state[weight].isfinite().all():
            raise WeightsError(f"its {weight} holds what is no number: take another copy")


def fitted(
    state: Mapping[str, Tensor], candidates: Sequence[Description], theirs: Callable[[str], str]
) -> tuple[dict[str, Tensor], Description]:
    """`state` as that of the candidate that it fits best.

    `theirs` gives their name of each of our weights. Counters of batches may be absent. Raises WeightsError
    where a key is missing or unknown.
    """
    best: tuple[int, Description, dict[str, str]] | None = None
    for description in candidates:
        own = shapes(description)
        keys = {theirs(name): name for name in own}
        fits = sum(key in state and state[key].shape == own[ours] for key, ours in keys.items())
        if best is None or fits - len(own) > best[0]:
            best = fits - len(own), description, keys
    assert best is not None
    _, description, keys = best
    counters = {key: ours for key, ours in keys.items() if ours.endswith(".num_batches_tracked")}
    needed = {key: ours for key, ours in keys.items() if key not in counters}
    renamed = rename(state, needed, frozenset(counters))
    for key, ours in counters.items():
        renamed[ours] = state.get(key, torch.tensor(0))
    return renamed, description
