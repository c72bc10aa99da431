"""Names the place of each weight in our I3D on ResNet-50 and our SlowFast; readers make their names of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from trainer.networks.residual import DEPTHS
from trainer.networks.resnet_i3d import BLOCKS
from trainer.weights.keys import Converted, Description, State, ends, fitted

PIXELS = {"mean": (0.45, 0.45, 0.45), "std": (0.225, 0.225, 0.225)}
"""_C.DATA.MEAN and .STD in slowfast/config/defaults.py; pytorchvideo's model zoo has the same."""

_UNITS = {"conv1": "a", "conv2": "b", "conv3": "c", "downsample": "shortcut"}


@dataclass(frozen=True)
class Place:
    """The place of one weight.

    Attributes:
        stage: 1 for the stem, 2 to 5 for res2 to res5, 6 for the last layer.
        kind: "stem", "lateral" (after that stage), "block", "nonlocal" or "last".
        pathway: 0, or 1 for the fast one.
        number: of the residual block, for "block" and "nonlocal", which stands after it.
        unit: "conv" or "norm" of a stem or lateral; of a block a, b, c or shortcut, or its norm ("a_norm");
            theta, phi, g, out or norm of a non-local block.
        part: "weight", "bias", "running_mean", "running_var" or "num_batches_tracked".
    """

    stage: int
    kind: str
    pathway: int
    number: int
    unit: str
    part: str


def place(ours: str, nonlocals: int = 0) -> Place:
    """Find the place of our weight `ours` in a network with so many non-local blocks."""
    layer, _, part = ours.rpartition(".")
    first, *rest = layer.split(".")
    if first == "fc":
        return Place(6, "last", 0, 0, "", part)
    if first == "laterals":
        return Place(int(rest[0]) + 1, "lateral", 0, 0, ("conv", "norm")[int(rest[2])], part)
    pathway = int(first == "fast")
    if first in ("slow", "fast"):
        first, *rest = f"layer{rest[0]}" if rest[0] != "0" else "stem", *rest[1:]
    if first == "stem":
        return Place(1, "stem", pathway, 0, ("conv", "norm")[int(rest[0])], part)
    stage = int(first.removeprefix("layer")) + 1
    kind, number = _inside(stage, nonlocals)[int(rest[0])]
    unit = rest[1] if kind == "nonlocal" else _UNITS[rest[1]] + ("", "_norm")[int(rest[2])]
    return Place(stage, kind, pathway, number, unit, part)


def _inside(stage: int, nonlocals: int) -> list[tuple[str, int]]:
    """The modules of a stage of ours: each residual block, and the non-local one that may follow it."""
    places = BLOCKS[nonlocals][stage - 3] if stage in (3, 4) else ()
    return [
        (kind, number)
        for number in range(DEPTHS[50][stage - 2])
        for kind in ("block", "nonlocal")
        if kind == "block" or number in places
    ]


def convert(
    format: str, state: State, theirs: Callable[[Place], str], two: bool, nonlocals: int = 0
) -> Converted:
    """Rename `state`, in which the weight at a place is called `theirs(place)`, to our network's.

    With `two` pathways that is a SlowFast, else an I3D with so many non-local blocks. Raises WeightsError for
    a key that is missing or unknown.
    """
    name = partial(place, nonlocals=nonlocals)
    stream, classes = ends(state, theirs(name("slow.0.0.weight")), theirs(name("fc.weight")))
    options = {"nonlocal_blocks": nonlocals, "nonlocal_pool": "before"} if nonlocals else {}
    networks = ("slowfast-4x16-r50", "slowfast-8x8-r50") if two else ("i3d-r50",)
    described = [Description(format, ours, options, stream, classes, PIXELS) for ours in networks]
    return fitted(state, described, lambda ours: theirs(name(ours)))
