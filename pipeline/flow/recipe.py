"""The flow's parameters: every one that changes its bytes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TVL1:
    """Parameters of the TV-L1 solver, with the defaults of OpenCV's DualTVL1.

    Symbols as in Sanchez, Meinhardt-Llopis and Facciolo, "TV-L1 Optical Flow Estimation", IPOL 2013,
    after Zach, Pock and Bischof, "A Duality Based Approach for Realtime TV-L1 Optical Flow", DAGM 2007.
    """

    tau: float = 0.25  # time step of the dual scheme, no unit
    lambda_: float = 0.15  # weight of the data term, no unit
    theta: float = 0.3  # tightness of the coupling of u and v, no unit
    scales: int = 5  # pyramid levels, the full picture included
    warps: int = 5  # linearisations a level
    epsilon: float = 0.01  # stop when the mean squared update falls below epsilon^2, pixels
    inner_iterations: int = 30  # between two median filterings
    outer_iterations: int = 10  # median filterings a warp
    scale_step: float = 0.8  # size of a level over the size of the one below it
    median: int = 5  # side of the median filter, pixels; 1 for none

    def __post_init__(self) -> None:
        for name in ("tau", "lambda_", "theta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("scales", "warps", "inner_iterations", "outer_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.scale_step < 1:
            raise ValueError(f"scale_step must lie between 0 and 1, not be {self.scale_step}")
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon must be at least 0, not {self.epsilon}")
        if self.median not in (1, 5):
            raise ValueError(f"median must be 5, or 1 for none, not {self.median}")


@dataclass(frozen=True)
class FlowCoding:
    """Flow as 8-bit luma in H.264: g = clip(rint(v * 127 / bound) + 128, 1, 255), so zero is exact."""

    bound: float = 20.0  # pixels; what lies beyond is clipped and counted as saturated
    crf: int = 17
    preset: str = "superfast"  # errs no more than veryfast, 5 to 10 % larger, in 2/3 of its time
    keyframe_interval: int = 16  # frames


@dataclass(frozen=True)
class FlowRecipe:
    """The solver, its coding as video, and the kind of machine that computes it."""

    solver: TVL1 = field(default_factory=TVL1)
    coding: FlowCoding = field(default_factory=FlowCoding)
    device: str = "x86-64-v3"  # x86-64-v3 | cuda | other: machines of one class give the same bytes
    encoder: str = ""  # as in EncodeRecipe
