"""The one table of networks: a family's file registers its builders here with their published figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Entry:
    """A network by name.

    Attributes:
        build: (num_classes, in_channels, **options) -> module.
        streams: what it can be trained on: "rgb", "flow", or "both"; the first is its default. A network with
            `separate_streams` is trained on "both" as one independent tower a stream, whose logits are added.
        configuration: its default configuration, a name in trainer/configurations.
        sizes: (frames, height, width) at which its multiply-adds are published.
        flow_frames: frames of flow that go with so many of RGB, where they are not as many.
        accuracy: published top-1 on Kinetics-400, per cent, by stream.
        source: where network and figures are published.
    """

    name: str
    build: Callable[..., nn.Module]
    streams: tuple[str, ...]
    configuration: str
    sizes: tuple[int, int, int]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    separate_streams: bool = False
    flow_frames: int | None = None

    def inputs(self, stream: str) -> tuple[tuple[int, int, int, int], ...]:
        """The size (C, T, H, W) of each input of a network of `stream`: RGB, flow, or one after the other."""
        frames, height, width = self.sizes
        rgb, flow = (3, frames, height, width), (2, self.flow_frames or frames, height, width)
        return {"rgb": (rgb,), "flow": (flow,), "both": (rgb, flow)}[stream]


_ENTRIES: dict[str, Entry] = {}


def register(name: str, **facts: Any) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorates a builder; `facts` are the fields of `Entry`."""

    def enter(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        if name in _ENTRIES:
            raise ValueError(f"Two networks are called {name}")
        _ENTRIES[name] = Entry(name, build, **facts)
        return build

    return enter


def names() -> list[str]:
    """The names of all networks, in the order of registration."""
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The entry called `name`. Raises KeyError with a sentence that names all there are."""
    if name not in _ENTRIES:
        raise KeyError(f"There is no network {name!r}; there are: {', '.join(_ENTRIES)}")
    return _ENTRIES[name]
