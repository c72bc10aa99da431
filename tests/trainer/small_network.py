"""A network that trains in milliseconds, entered in the registry; as a program, the trainer that knows it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.checkpoint import Checkpoint, write
from trainer.data.batches import STREAMS, Input
from trainer.networks.layers import BatchNorm3d, Conv3dSame, Dropout
from trainer.networks.registry import names, register
from trainer.stream_models import build

SIZE = {"frames": 9, "short_side": 40, "crop": 32}


class Small(nn.Module):
    """Two convolutions, with the layers of I3D: all that training keeps a state of."""

    def __init__(self, num_classes: int, in_channels: int, dropout=0.5, bn_momentum=0.1, bn_frozen=False):
        super().__init__()
        self.first = Conv3dSame(in_channels, 16, (3, 7, 7), (1, 4, 4))
        self.first_norm = BatchNorm3d(16, 1e-3, bn_momentum, scale=False, frozen=bn_frozen)
        self.second = Conv3dSame(16, 32, (3, 3, 3), (2, 2, 2))
        self.second_norm = BatchNorm3d(32, 1e-3, bn_momentum, scale=True, frozen=bn_frozen)
        self.dropout = Dropout(dropout)
        self.logits = nn.Conv3d(32, num_classes, 1)

    def maps(self, x: Tensor) -> Tensor:
        x = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(x)))

    def features(self, x: Tensor) -> Tensor:
        return self.maps(x).mean(dim=(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.dropout(self.maps(x))).mean(dim=(2, 3, 4))


CLASSES = ("bowling", "surfing water", "yoga")


def checkpoint(path: Path, name: str = "small", streams: tuple[str, ...] = STREAMS, **input) -> Path:
    """Writes a checkpoint of a network with random weights; `input` are settings of what it is fed."""
    fed = Input(**{"stream": streams[0] if len(streams) == 1 else "both", **SIZE, **input})
    models = build(name, {}, streams, len(CLASSES), seed=1, input=fed)
    weights = {stream: model.network.state_dict() for stream, model in models.items()}
    write(path, Checkpoint(name, {}, fed, CLASSES, (), {}, {}, 0, weights))
    return path


if "small" not in names():

    @register(
        "small",
        streams=("both", "rgb", "flow"),
        configuration="quick",
        sizes=(9, 32, 32),
        separate_streams=True,
    )
    def small(num_classes: int = 400, in_channels: int = 3, **options) -> Small:
        return Small(num_classes, in_channels, **options)


if __name__ == "__main__":
    from trainer.__main__ import main

    sys.exit(main())
