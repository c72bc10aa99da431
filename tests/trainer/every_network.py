"""All networks for the tests: what is published of them, and inputs small enough to train on here."""

from __future__ import annotations

import functools

import torch
from torch import nn

from trainer import networks

PUBLISHED = {  # parameters with 400 classes; 1e9 multiply-adds at the entry's sizes; None: not published
    ("i3d", "rgb"): (12_689_984, 111.15),
    ("i3d", "flow"): (12_668_032, 102.34),
    ("convnet-lstm", "rgb"): (8_952_880, None),
    ("c3d-bn", "rgb"): (79_653_712, None),
    ("two-stream", "both"): (12_073_120, None),
    ("fused-3d", "both"): (39_770_384, None),
    ("r2d-18", "rgb"): (11_447_568, None),
    ("f-r2d-18", "rgb"): (11_381_712, 27.6),
    ("mc2-18", "rgb"): (11_400_528, 28.5),
    ("mc3-18", "rgb"): (11_695_440, 43.34),
    ("mc4-18", "rgb"): (12_727_632, 40.0),
    ("mc5-18", "rgb"): (16_856_400, 39.9),
    ("rmc2-18", "rgb"): (33_352_656, 39.8),
    ("rmc3-18", "rgb"): (33_057_744, 25.0),
    ("rmc4-18", "rgb"): (32_025_552, 29.1),
    ("rmc5-18", "rgb"): (27_896_784, 30.8),
    ("r3d-18", "rgb"): (33_371_472, 40.70),
    ("r2plus1d-18", "rgb"): (31_505_325, 40.52),
    ("r2plus1d-34", "rgb"): (63_697_175, 152.4),
    ("hara-r3d-18", "rgb"): (33_409_104, 8.31),
    ("hara-r3d-34", "rgb"): (63_718_736, 12.70),
    ("s3d", "rgb"): (8_320_048, None),  # of 16 frames 17.98: see the variants
    ("s3d-g", "rgb"): (9_508_000, None),
    ("i3d-bottom-heavy", "rgb"): (7_008_320, None),  # ours: the study gives none
    ("i3d-top-heavy", "rgb"): (11_684_288, None),  # likewise
    ("ir-csn-50", "rgb"): (13_131_152, None),
    ("ir-csn-101", "rgb"): (22_213_776, None),
    ("ir-csn-152", "rgb"): (29_703_568, 74.05),
    ("ip-csn-152", "rgb"): (33_016_592, 83.30),
    ("artnet-18", "rgb"): (39_675_216, None),
    ("i3d-r50", "rgb"): (28_043_472, None),  # its cost: see the test below
    ("i3d-r50-nl5", "rgb"): (35_401_936, 59.3),  # mmaction2's, of its tests' 256x256: 44.3 at 224x224
    ("slowfast-4x16-r50", "rgb"): (34_480_216, None),  # likewise
    ("slowfast-8x8-r50", "rgb"): (34_566_488, 65.71),
    ("tsm-r50", "rgb"): (24_327_632, 32.88),
    ("smallbig-r50", "rgb"): (24_370_640, None),
    ("tsn-bninception", "rgb"): (10_680_240, None),
    ("tsn-bninception", "flow"): (10_702_192, None),
}
NAMES = tuple(dict.fromkeys(name for name, _ in PUBLISHED))

LIGHT = ("mc2-18", "s3d-g", "two-stream", "tsn-bninception", "ir-csn-50")
"""Networks that train two steps in about a second, one of most families; the others do so in test-slow."""

FAMILIES = (
    *(*LIGHT, "i3d", "tsm-r50", "slowfast-8x8-r50", "convnet-lstm", "c3d-bn", "fused-3d"),
    *("i3d-r50-nl5", "hara-r3d-18", "artnet-18", "smallbig-r50"),
)
"""One network of every family, and whatever else is unlike it."""

FRAMES = {"c3d-bn": 16, "two-stream": 10, "fused-3d": 20, "tsn-bninception": 10, "s3d": 9, "s3d-g": 9} | {
    "i3d": 9,
    "i3d-bottom-heavy": 9,
    "i3d-top-heavy": 9,
}
"""Of the reduced input, where 8 are too few."""


def on_meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return networks.build(name, **options)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@functools.cache
def as_published(name: str, stream: str) -> nn.Module:
    return on_meta(name, **channels_of(name, stream))


def channels_of(name: str, stream: str) -> dict[str, int]:
    """Arguments of `build` for one network, or one model, of `stream`."""
    return {} if stream == "both" else {"in_channels": networks.CHANNELS[stream]}


def reduced(name: str, clips: int = 2) -> tuple[torch.Tensor, ...]:
    """Clips for one network of its default stream; RGB as the loader gives it, frame by frame.

    Of 32x32, which leaves most a last map of one place; of 48x48 for CSN, whose 152 layers do not bear to be
    normalised over two values.
    """
    entry, frames, side = networks.entry(name), FRAMES.get(name, 8), 48 if "csn" in name else 32
    generator = torch.Generator().manual_seed(0)
    channels = (3, 2) if entry.streams[0] == "both" and not entry.separate_streams else (3,)
    return tuple(torch.rand(clips, c, frames, side, side, generator=generator) * 2 - 1 for c in channels)
