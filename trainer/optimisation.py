"""The settings of a run and its optimisation; SGD, and the learning rate as a pure function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.command_line import option
from trainer.choices import DATA, PRECISION, PRECISIONS, RUN

if TYPE_CHECKING:
    import torch
    from torch import nn

SCHEDULES = ("step", "plateau", "cosine", "one-cycle", "constant")
_BETTER = 1e-4  # share by which a validation loss must fall to count as lower, as in torch


@dataclass(frozen=True)
class Optimisation:
    """The optimiser's part of a configuration. Raises ValueError for what is no training."""

    lr: float = option("peak of the learning rate", 0.1, "RATE", "optimisation")
    momentum: float = 0.9
    weight_decay: float = 1e-7  # of weights, not of biases and normalisation
    schedule: str = option("course of the learning rate", "step", group="optimisation", choices=SCHEDULES)
    milestones: tuple[int, ...] = ()  # steps after which the rate is multiplied by `factor` ("step")
    patience: int = 10  # evaluations without a lower loss after which it is ("plateau")
    factor: float = 0.1
    rise: float = 0.3  # share of the run in which the rate rises ("one-cycle")
    warmup: int = option(
        "steps over which the rate of any schedule rises from 0, in a line", 0, "steps", "optimisation"
    )
    clip_gradient: float = 0.0  # a model's gradient is shortened to this norm where it is longer; 0: never
    freeze: bool = option("only the last layer learns", False, group="optimisation")

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if self.schedule not in SCHEDULES:
            raise ValueError(f"there is no schedule {self.schedule!r}: choose one of {', '.join(SCHEDULES)}")
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise ValueError(f"a learning rate of {self.lr} moves nothing: give --lr a number above 0")
        if not (0 <= self.momentum < 1 and 0 < self.factor <= 1 and 0 <= self.rise <= 1):
            found = f"momentum is {self.momentum}, factor {self.factor} and rise {self.rise}"
            raise ValueError(f"{found}: give momentum 0 to below 1, factor above 0 to 1, rise 0 to 1")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}: give 0 or more")
        if self.clip_gradient < 0:
            found = f"clip_gradient is {self.clip_gradient}"
            raise ValueError(f"{found}: give a norm above 0, or 0 to clip nothing")
        if min(self.warmup, self.patience) < 0:
            raise ValueError("warmup and patience are numbers of steps and evaluations: give 0 or more")

    @property
    def depends_on_length(self) -> bool:
        """Whether a longer run takes other steps from the start."""
        return self.schedule in ("one-cycle", "cosine")


@dataclass(frozen=True)
class Run:
    """Length of a run, its batches, and how often it is evaluated and saved."""

    batch_size: int = option("clips of one step, over all ranks", 8, "clips", "optimisation")
    micro_batch: int = option(
        "clips that a rank takes at a time, gradients added up; 0: its whole share", 0, "clips", RUN
    )
    epochs: int | None = option("length of the run; excludes --steps", None, "N", "optimisation")
    steps: int | None = option("length of the run; excludes --epochs", None, "N", "optimisation")
    seed: int = option("of weights, order, augmentation and dropout", 0, "N", "optimisation")
    workers: int = option("loader processes of a rank", 2, "N", RUN)
    precision: str = option(PRECISION, "fp32", group=RUN, choices=PRECISIONS)
    checkpoint_every: int = option(
        "steps from one checkpoint to the next; one is also made at the end of an epoch", 500, "steps", RUN
    )
    evaluate_every: int = option(
        "epochs from one evaluation on the val split to the next; 0: never", 0, "epochs", RUN
    )
    reestimate: int = 0  # steps over which normalisation's statistics are taken again before an evaluation
    balanced: bool = option("every class comes equally often", False, group=DATA)
    max_failures: float = option(
        "share of clips that may be undecodable before the run stops", 0.01, "SHARE", RUN
    )

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give the run one length: --epochs N or --steps N")
        if self.precision not in PRECISIONS:
            raise ValueError(f"there is no precision {self.precision!r}: choose fp32, bf16 or fp16")
        counts = ("micro_batch", "workers", "evaluate_every", "reestimate", "max_failures")
        for name, least in {"batch_size": 1, "checkpoint_every": 1, **dict.fromkeys(counts, 0)}.items():
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: at least {least}")
        if self.max_failures > 1:
            raise ValueError(f"--max-failures is {self.max_failures}: a share of the clips is at most 1")
        if min(n for n in (self.epochs, self.steps) if n is not None) < 1:
            raise ValueError("a run takes at least one step: give --epochs or --steps 1 or more")


def learning_rate(step: int, steps: int, settings: Optimisation, losses: Sequence[float] = ()) -> float:
    """The rate of step `step` (from 0) of `steps`, after evaluations that gave the validation `losses`.

    "step" multiplies by `factor` at each milestone, "plateau" whenever more than `patience` evaluations on
    end brought no lower loss (as torch's ReduceLROnPlateau); "cosine" falls to nothing along half a cosine,
    from the end of the warm-up on (I. Loshchilov and F. Hutter, arXiv:1608.03983); "one-cycle" rises from
    lr/25 to lr and falls to lr/250,000 along cosines (L. Smith and N. Topin, arXiv:1708.07120, as in torch's
    OneCycleLR). The warm-up is of P. Goyal et al., arXiv:1706.02677, section 2.2.
    """
    share = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return share * _scheduled(step, steps, settings, losses)


def _scheduled(step: int, steps: int, settings: Optimisation, losses: Sequence[float]) -> float:
    if settings.schedule == "step":
        return settings.lr * settings.factor ** sum(step >= m for m in settings.milestones)
    if settings.schedule == "plateau":
        return settings.lr * settings.factor ** plateau_count(losses, settings.patience)
    if settings.schedule == "cosine":
        return _cosine(settings.lr, 0.0, max(0, step - settings.warmup) / max(1, steps - settings.warmup))
    if settings.schedule == "one-cycle":
        top = max(1.0, settings.rise * steps - 1)
        if step <= top:
            return _cosine(settings.lr / 25, settings.lr, step / top)
        return _cosine(settings.lr, settings.lr / 250_000, (step - top) / max(1.0, steps - 1 - top))
    return settings.lr


def plateau_count(losses: Sequence[float], patience: int) -> int:
    """How often more than `patience` losses on end were no lower than the lowest before them."""
    found = waited = 0
    lowest = math.inf
    for loss in losses:
        if loss < lowest * (1 - _BETTER):
            lowest, waited = loss, 0
        else:
            waited += 1
        if waited > patience:
            found, waited = found + 1, 0
    return found


def sgd(modules: Iterable[nn.Module], settings: Optimisation) -> torch.optim.SGD:
    """SGD over the modules' parameters that learn; only weights (two dimensions or more) decay."""
    import torch  # here, for the command line is made of the settings above

    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # fused: half the time (benchmarks/train.py)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * min(1.0, share))) / 2
