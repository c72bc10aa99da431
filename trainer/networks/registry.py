"""The registry of networks: each family's file enters its networks here, with their published figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pipeline.command_line import nearest
from trainer.networks.layers import Norm


@dataclass(frozen=True)
class Entry:
    """A network by name.

    Attributes:
        build: (num_classes, in_channels, norm=Norm, **options) -> module. Every network has the option
            dropout, the probability before its last layer. Its forward takes (N, C, T, H, W) and gives logits
            (N, num_classes), `features` gives the means that go into the last layer.
        configuration: its default configuration, a name in trainer/configurations.
        sizes: (frames, height, width) at which its multiply-adds are published.
        source: where network and figures are published.
        streams: "rgb", "flow" or "both": what it can be trained on; the first is the default. A network with
            `separate_streams` is trained on "both" as one module a stream, whose logits are added.
        accuracy: published top-1 on Kinetics-400, per cent, by stream.
        norm: its batch normalisation as published.
        flow_frames: the number of flow frames, where it differs from that of RGB.
    """

    name: str
    build: Callable[..., nn.Module]
    configuration: str
    sizes: tuple[int, int, int]
    source: str = ""
    streams: tuple[str, ...] = ("rgb", "flow")
    accuracy: Mapping[str, float] = field(default_factory=dict)
    norm: Norm = field(default_factory=Norm)
    separate_streams: bool = False
    flow_frames: int | None = None

    def inputs(self, stream: str) -> tuple[tuple[int, int, int, int], ...]:
        """The size (C, T, H, W) of each input of a network of `stream`: RGB, flow, or one after the other."""
        frames, height, width = self.sizes
        rgb, flow = (3, frames, height, width), (2, self.flow_frames or frames, height, width)
        return {"rgb": (rgb,), "flow": (flow,), "both": (rgb, flow)}[stream]


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str,
    build: Callable[..., nn.Module],
    accuracy: float | Mapping[str, float] | None = None,
    **facts: Any,
) -> None:
    """Enter a network; `accuracy` is of RGB or by stream, `facts` are further fields of `Entry`."""
    if name in _ENTRIES:
        raise ValueError(f"Two networks are called {name}")
    if accuracy is not None:
        facts["accuracy"] = accuracy if isinstance(accuracy, Mapping) else {"rgb": accuracy}
    _ENTRIES[name] = Entry(name, build, **facts)


def names() -> list[str]:
    """The names of all networks, in the order of registration."""
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The entry called `name`. Raises KeyError with a sentence that names all there are."""
    if name not in _ENTRIES:
        near = nearest(name, _ENTRIES)
        raise KeyError(f"There is no network {name!r}; there are: {', '.join(_ENTRIES)}{near}")
    return _ENTRIES[name]
