"""Options of a training run: its length, its batches, its random seed. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.command_line import option
from pipeline.outcome import CallError
from trainer.choices import PRECISIONS

DATA, NETWORK, RUN = "data", "network", "run and where"  # groups of options in help
PRECISION = "number format of the network; auto is bf16 where the processor computes in it, else fp32"


class ConfigurationError(CallError, ValueError):
    """The settings cannot be run: one sentence with the remedy; the program ends with 2."""


@dataclass(frozen=True)
class Run:
    """Length of a run, its batches, and how often it is evaluated and saved."""

    batch_size: int = option("clips of one step, over all ranks", 8, unit="clips", group="optimisation")
    micro_batch: int = option(
        "clips that a rank takes at a time, gradients added up; 0: its whole share",
        0,
        unit="clips",
        group=RUN,
    )
    epochs: int | None = option("length of the run; excludes --steps", None, unit="N", group="optimisation")
    steps: int | None = option("length of the run; excludes --epochs", None, unit="N", group="optimisation")
    seed: int = option("of weights, order, augmentation and dropout", 0, unit="N", group="optimisation")
    workers: int = option("loader processes of a rank", 2, unit="N", group=RUN)
    precision: str = option(PRECISION, "fp32", group=RUN, choices=PRECISIONS)
    checkpoint_every: int = option(
        "steps from one checkpoint to the next; one is also made at the end of an epoch",
        500,
        unit="steps",
        group=RUN,
    )
    evaluate_every: int = option(
        "epochs from one evaluation on the val split to the next; 0: never", 0, unit="epochs", group=RUN
    )
    reestimate: int = 0  # steps over which normalisation's statistics are taken again before an evaluation
    balanced: bool = option("every class comes equally often", False, group=DATA)
    max_failures: float = option(
        "share of clips that may be undecodable before the run stops", 0.01, unit="SHARE", group=RUN
    )

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give the run one length: --epochs N or --steps N")
        if self.precision not in PRECISIONS:
            raise ValueError(f"there is no precision {self.precision!r}: choose fp32, bf16 or fp16")
        for name, least in (
            ("batch_size", 1),
            ("micro_batch", 0),
            ("workers", 0),
            ("checkpoint_every", 1),
            ("evaluate_every", 0),
            ("reestimate", 0),
            ("max_failures", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}: at least {least}")
        if self.max_failures > 1:
            raise ValueError(f"--max-failures is {self.max_failures}: a share of the clips is at most 1")
        if min(n for n in (self.epochs, self.steps) if n is not None) < 1:
            raise ValueError("a run takes at least one step: give --epochs or --steps 1 or more")
