"""A network that trains in milliseconds, entered in the registry; as a program, the trainer that knows it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.checkpoint import Checkpoint, write
from trainer.data.batches import STREAMS, Input
from trainer.networks.layers import Conv3dSame, Dropout, Norm
from trainer.networks.registry import names, register
from trainer.stream_models import build

SIZE = {"frames": 9, "short_side": 40, "crop": 32}


class Small(nn.Module):
    """Two convolutions, with the layers of I3D: all that training keeps a state of."""

    def __init__(self, num_classes: int, in_channels: int, norm: Norm, dropout=0.5):
        super().__init__()
        self.first = Conv3dSame(in_channels, 16, (3, 7, 7), (1, 4, 4))
        self.first_norm = replace(norm, scale=False)(16)
        self.second = Conv3dSame(16, 32, (3, 3, 3), (2, 2, 2))
        self.second_norm = norm(32)
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
    facts = {"streams": ("both", "rgb", "flow"), "configuration": "quick", "sizes": (9, 32, 32)}
    register("small", Small, norm=Norm(1e-3), separate_streams=True, **facts)


if __name__ == "__main__":
    from trainer.__main__ import main

    sys.exit(main())
