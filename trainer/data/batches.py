"""A network's input settings, and the batches that the loader gives to the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pipeline.command_line import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

from pipeline.media.recipe import EncodeRecipe

STREAMS = ("rgb", "flow")


@dataclass(frozen=True)
class Input:
    """How a network is fed: part of its configuration and of every checkpoint.

    Raises ValueError for a setting that no clip can satisfy.
    """

    stream: str = option("what it sees", "rgb", group="network", choices=(*STREAMS, "both"))
    frames: int = option("length of a training clip", 64, "frames", "input")
    stride: int = 1  # from one frame to the next, in frames at `rate`
    short_side: int = option("resize of the clip, before the crop", 256, "pixels", "input")
    crop: int = option("square that is cut from every frame", 224, "pixels", "input")
    segments: int = 0  # snippets, from all over the clip, that the frames come in; 0: one window
    test_segments: int = 0  # snippets in evaluation; 0: as in training
    test_views: tuple[int, ...] = ()  # clips and crops (1 or 3) in evaluation; (): the whole clip, its centre
    scales: tuple[float, ...] = ()  # of the short side, one of which a training crop takes; (): `crop` itself
    distortion: int = 0  # places in `scales` by which a crop's width and height may differ
    corners: bool = False  # a training crop is at a corner or the centre; else anywhere
    flip: bool = True  # mirror half of the training clips and negate u: off where left and right differ
    colour_jitter: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # at most, of training RGB: see `random_colour`
    rate: int = EncodeRecipe.rate  # frames a second at which `frames` and `stride` count
    clip_side: int = EncodeRecipe.short_side  # pixels; short side of the data set's clips, and raw videos'
    flow_bound: float = 20.0  # pixels; flow is fed as v / flow_bound, in [-1, 1]
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of R, G and B in [0, 1]
    std: tuple[float, ...] = (0.5, 0.5, 0.5)  # RGB is fed as (x - mean) / std: here in [-1, 1]

    def __post_init__(self) -> None:
        for name in ("mean", "std", "scales", "colour_jitter"):  # lists, as they come from files
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        object.__setattr__(self, "test_views", tuple(self.test_views))
        clips, *crops = self.test_views or (1, 1)
        if clips < 1 or crops not in ([1], [3]):
            raise ValueError("test_views is a number of clips and one of crops, 1 or 3, such as [10, 3]")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std are three numbers each, the latter above zero")
        if self.stream not in (*STREAMS, "both"):
            raise ValueError(f"there is no stream {self.stream!r}: choose rgb, flow or both")
        if min(self.frames, self.stride, self.crop) < 1:
            raise ValueError("frames, stride and crop must each be at least 1")
        if min(self.rate, self.clip_side) < 1 or not self.flow_bound > 0:
            found = f"rate is {self.rate}, clip_side {self.clip_side}, flow_bound {self.flow_bound}"
            raise ValueError(f"{found}: give all above 0")
        if self.segments < 0 or self.test_segments < 0 or self.frames % (self.segments or 1):
            raise ValueError(
                f"{self.frames} frames do not come in {self.segments} snippets of equal length: "
                f"give --frames a multiple of {self.segments}"
            )
        if self.test_segments and not self.segments:
            raise ValueError("test_segments goes with segments: give both or neither")
        if any(not 0 < scale <= 1 for scale in self.scales) or self.distortion < 0:
            raise ValueError(
                "scales are shares of the short side, above 0 and at most 1; distortion is 0 or more"
            )
        most, jitter = (1, 1, 1, 0.5), self.colour_jitter
        if len(jitter) != 4 or not all(0 <= x <= high for x, high in zip(jitter, most, strict=True)):
            raise ValueError(
                "colour_jitter is four numbers: brightness, contrast and saturation (0 to 1), hue (0 to .5)"
            )
        if self.crop > self.short_side:
            raise ValueError(
                f"a crop of {self.crop} pixels does not fit into a short side of {self.short_side}: "
                "take a smaller --crop or a larger --short-side"
            )

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams to read: ("rgb",), ("flow",) or both."""
        return STREAMS if self.stream == "both" else (self.stream,)

    @property
    def test_frames(self) -> int:
        """Frames of one view in evaluation, where that is not the whole clip."""
        return self.frames // (self.segments or 1) * (self.test_segments or self.segments or 1)


def current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an `Input` under their present names: files of earlier versions call `std` deviation."""
    return {"std" if name == "deviation" else name: value for name, value in values.items()}


@dataclass(frozen=True)
class Batch:
    """One rank's share of one step, or a part of it; pixels are bytes, a quarter of the size of floats.

    Shapes, with n clips (evaluation: n clips times `views`, the views of a clip side by side):
        rgb: uint8 (n, 3, T, H, W) or None.
        flow: uint8 (n, 2, T, H, W) luma as stored, 128 for zero, or None.
        flow_scale: float32 (n, 2), by which u and v are multiplied: the resize, and -1 on a mirrored u.
        target: int64 (n,), without views; -1 where there is no label.
        weight: float32 (n,), without views; 0 for removed, padding and undecodable clips.
    """

    epoch: int
    step: int  # within the epoch, from 0
    keys: tuple[str, ...]  # training: of the global batch, in order; evaluation: of this rank's n clips
    rgb: Tensor | None
    flow: Tensor | None
    flow_scale: Tensor | None
    target: Tensor
    weight: Tensor
    total_weight: float  # sum of the weights of the global batch, over all ranks
    failures: tuple[str, ...] = ()  # a sentence for each replaced clip, its key first
    views: int = 1
    first: int = 0  # place of the first clip in the rank's share
    last: bool = True  # whether the share ends with this part

    def inputs(self, device: torch.device | str = "cpu") -> tuple[Tensor | None, Tensor | None]:
        """(rgb, flow) for the network: float32 on `device`, both in [-1, 1]; None for an absent stream."""
        return as_inputs(self.rgb, self.flow, self.flow_scale, device)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        pinned: dict[str, Any] = {n: v.pin_memory() for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **pinned)


def as_inputs(
    rgb: Tensor | None, flow: Tensor | None, flow_scale: Tensor | None, device: torch.device | str
) -> tuple[Tensor | None, Tensor | None]:
    """Bytes as in `Batch` -> (rgb, flow) as in `Batch.inputs`."""
    if rgb is not None:
        rgb = rgb.to(device, non_blocking=True).float().div_(127.5).sub_(1)
    if flow is not None and flow_scale is not None:
        scale = flow_scale.to(device, non_blocking=True)[:, :, None, None, None]
        flow = flow.to(device, non_blocking=True).float().sub_(128).mul_(scale / 127).clamp_(-1, 1)
    return rgb, flow


def by_step(batches: Iterable[Batch]) -> Iterator[Iterator[Batch]]:
    """The parts of each step in turn; the one that is `last` ends a step."""
    for _, parts in groupby(batches, key=lambda batch: (batch.epoch, batch.step)):
        yield parts
