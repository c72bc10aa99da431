"""How weights are moved: SGD with momentum, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

SCHEDULES = ("step", "one-cycle", "constant")


@dataclass(frozen=True)
class Optimisation:
    """The optimiser's part of a configuration. Raises ValueError for what is no training."""

    lr: float = 0.1  # the peak
    momentum: float = 0.9
    weight_decay: float = 1e-7  # of weights, not of biases and normalisation
    schedule: str = "step"
    milestones: tuple[int, ...] = ()  # steps after which the rate is multiplied by `factor` ("step")
    factor: float = 0.1
    rise: float = 0.3  # share of the run in which the rate rises ("one-cycle")

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if self.schedule not in SCHEDULES:
            raise ValueError(f"there is no schedule {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise ValueError(f"a learning rate of {self.lr} moves nothing: give --lr a number above 0")

    @property
    def depends_on_length(self) -> bool:
        """Whether a longer run takes other steps from the start."""
        return self.schedule == "one-cycle"


def learning_rate(step: int, steps: int, settings: Optimisation) -> float:
    """The rate of step `step` (from 0) of `steps`.

    "step" multiplies by `factor` at each milestone; "one-cycle" rises from lr/25 to lr and falls to
    lr/250,000 along cosines (L. Smith and N. Topin, arXiv:1708.07120, as in torch's OneCycleLR).
    """
    if settings.schedule == "step":
        return settings.lr * settings.factor ** sum(step >= m for m in settings.milestones)
    if settings.schedule == "one-cycle":
        top = max(1.0, settings.rise * steps - 1)
        if step <= top:
            return _cosine(settings.lr / 25, settings.lr, step / top)
        return _cosine(settings.lr, settings.lr / 250_000, (step - top) / max(1.0, steps - 1 - top))
    return settings.lr


def sgd(modules: Iterable[nn.Module], settings: Optimisation) -> torch.optim.SGD:
    """SGD over the modules' parameters; only weights (two dimensions or more) decay."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=settings.lr,
        momentum=settings.momentum,
    )


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, share))) / 2
