"""TV-L1 for one size of picture: coarse to fine over a pyramid, with OpenCV's stopping rule.

Owns the buffers, which are made once and used for every pair, and the order of the kernels; what a
kernel computes stands in its own file. A solver serves one thread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pipeline.flow.compilation import entry, kernel
from pipeline.flow.iterations import clear_dual, iterate
from pipeline.flow.layout import (
    BLOCK,
    LANES,
    U1,
    U2,
    aligned,
    lane_mask,
    level_floats,
    row_stride,
    vectors_across,
)
from pipeline.flow.median import MARGIN, SCRATCH_ROWS, median_filter
from pipeline.flow.pyramid import (
    Level,
    empty_level,
    enlarge_flow,
    fill_first,
    fill_next,
    level_sizes,
    resizing,
)
from pipeline.flow.recipe import TVL1
from pipeline.flow.vectors import load, pointer, store
from pipeline.flow.warp import sources, warp

Pyramid = tuple[Level, ...]


class Constants(NamedTuple):
    """The parameters in the form the kernels take them in."""

    limit: np.float32  # lambda * theta
    tau: np.float32
    tau_over_theta: np.float32
    epsilon: float
    warps: int
    inner: int
    outer: int
    filtered: bool


class Buffers(NamedTuple):
    """Memory that the levels share, large enough for the largest."""

    fields: np.ndarray
    padded: np.ndarray
    ranks: np.ndarray
    values: np.ndarray
    firsts: np.ndarray
    partial: np.ndarray
    line: np.ndarray
    u1: np.ndarray
    u2: np.ndarray


class Solver:
    """Solves pairs of (height, width) pictures, each side at least 1, with one set of parameters."""

    def __init__(self, width: int, height: int, parameters: TVL1) -> None:
        self.sizes = level_sizes(width, height, parameters.scales, parameters.scale_step)
        step = parameters.scale_step
        self._shrinking = [
            resizing(large, small, (1 / step, 1 / step))
            for large, small in zip(self.sizes, self.sizes[1:], strict=False)
        ]
        self._enlarging = [
            resizing(small, large, (small[0] / large[0], small[1] / large[1]))
            for large, small in zip(self.sizes, [*self.sizes[1:], self.sizes[-1]], strict=True)
        ]
        self._factor = np.float32(1 / step)
        self._constants = Constants(
            limit=np.float32(parameters.lambda_ * parameters.theta),
            tau=np.float32(parameters.tau),
            tau_over_theta=np.float32(parameters.tau / parameters.theta),
            epsilon=float(parameters.epsilon),
            warps=parameters.warps,
            inner=parameters.inner_iterations,
            outer=parameters.outer_iterations,
            filtered=parameters.median > 1,
        )
        self._buffers = _buffers(width, height)
        self._masks = [
            (lane_mask(w - 1, vectors_across(w)), lane_mask(w, vectors_across(w))) for w, _ in self.sizes
        ]

    def empty_pyramid(self) -> Pyramid:
        """Memory for one frame's pyramid."""
        return tuple(empty_level(width, height) for width, height in self.sizes)

    def fill(self, gray: np.ndarray, pyramid: Pyramid) -> None:
        """Make the pyramid of a uint8 (height, width) frame."""
        fill_first(gray, pyramid[0])
        for index, tables in enumerate(self._shrinking):
            fill_next(pyramid[index], pyramid[index + 1], tables, self._buffers.line)

    def solve(self, first: Pyramid, second: Pyramid) -> np.ndarray:
        """Flow from the first frame to the second: float32 (height, width, 2), pixels.

        A repeated frame, common where a video was brought to a higher rate, is known to be at rest.
        """
        if np.array_equal(first[0].image, second[0].image):
            width, height = self.sizes[0]
            return np.zeros((height, width, 2), np.float32)
        return self.relax(first, second)

    def relax(self, first: Pyramid, second: Pyramid) -> np.ndarray:
        """Flow (height, width, 2) of two pyramids, also where they are equal."""
        buffers = self._buffers
        buffers.u1[:] = buffers.u2[:] = 0
        coarsest = len(self.sizes) - 1
        for index in range(coarsest, -1, -1):
            smaller, tables = self.sizes[min(index + 1, coarsest)], self._enlarging[index]
            solve_level(
                first[index], second[index], smaller, tables,
                self._factor, self._masks[index], self._constants, buffers,
            )  # fmt: skip
        width, height = self.sizes[0]
        flow = np.empty((height, width, 2), np.float32)
        for component, plane in enumerate((buffers.u1, buffers.u2)):
            flow[..., component] = plane.reshape(height, -1)[:, :width]
        return flow


def _buffers(width: int, height: int) -> Buffers:
    row = vectors_across(width) * LANES
    padded_row = row + MARGIN
    values, firsts = sources(width)
    return Buffers(
        fields=aligned(level_floats(width, height)),
        padded=aligned((height + 4) * padded_row),
        ranks=aligned(SCRATCH_ROWS * padded_row + LANES),
        values=values,
        firsts=firsts,
        partial=aligned(LANES),
        line=aligned(row + LANES),
        u1=aligned(height * row),
        u2=aligned(height * row),
    )


# The least share of its error that the n-th iteration after a median filter leaves, n from 2 on, and the
# last one's for all that follow: exceeded by 96 % of the iterations on real video. A product of several
# is far below what the same number of iterations leaves.
SHARES = (0.25, 0.41, 0.61, 0.65, 0.73, 0.79, 0.79, 0.83, 0.85)


@kernel
def _iterations_until(error: Any, target: Any, done: Any, most: Any) -> Any:
    """A lower bound on how many more iterations bring the error to the target.

    Checking only then stops at the very iteration at which checking each would stop, but for 3 of the
    1,315 rounds of 40 pairs of real video, where it came after one or a few too many.
    """
    count, predicted = 0, error
    while count == 0 or (predicted > target and count < most):
        predicted *= SHARES[min(done + count, len(SHARES)) - 1]
        count += 1
    return count


@kernel
def _relax(
    fields: Any, width: int, height: int, inside: Any, valid: Any, constants: Any,
    padded: Any, ranks: Any, partial: Any,
) -> None:  # fmt: skip
    """Rounds of median filter and iterations, until an iteration changes u by less than epsilon."""
    target = constants.epsilon * constants.epsilon * width * height
    error = np.inf
    for _ in range(constants.outer):
        if error <= target:
            break
        if constants.filtered:
            median_filter(fields, width, height, U1, padded, ranks, valid)
            median_filter(fields, width, height, U2, padded, ranks, valid)
        done = 0
        while done < constants.inner and error > target:
            count = 1
            if done > 0:
                count = _iterations_until(error, target, done, constants.inner - done)
            tau, tau_over_theta = constants.tau, constants.tau_over_theta
            error = np.float64(iterate(fields, width, height, count, tau, tau_over_theta, inside, partial))
            done += count


@entry
def solve_level(
    first: Any, second: Any, smaller: Any, tables: Any, factor: Any, masks: Any, constants: Any, buffers: Any
) -> None:
    """One level: enlarge the flow found so far, then warp and relax `constants.warps` times.

    Args:
        first, second: the frames' levels.
        smaller: (width, height) of the flow in `buffers.u1` and `buffers.u2`; this level's replaces it.
        tables: resizing from there to here; factor: what the flow is multiplied with.
        masks: lanes of a row's last block with a right neighbour, and lanes that are pixels.
    """
    width, height = second.width, second.height
    fields, u1, u2 = pointer(buffers.fields), pointer(buffers.u1), pointer(buffers.u2)
    first_image, image = pointer(first.image), pointer(second.image)
    gx, gy = pointer(second.gx), pointer(second.gy)
    values, firsts = pointer(buffers.values), pointer(buffers.firsts)
    padded, ranks, partial = pointer(buffers.padded), pointer(buffers.ranks), pointer(buffers.partial)
    inside, valid = pointer(masks[0]), pointer(masks[1])
    columns, column_weights = pointer(tables.columns), pointer(tables.column_weights)
    rows, row_weights = pointer(tables.rows), pointer(tables.row_weights)
    enlarge_flow(
        fields, width, height, u1, u2, smaller[0], smaller[1], columns, column_weights,
        rows, row_weights, factor, pointer(buffers.line),
    )  # fmt: skip
    clear_dual(fields, width, height)
    for _ in range(constants.warps):
        warp(fields, width, height, first_image, image, gx, gy, constants.limit, values, firsts)
        _relax(fields, width, height, inside, valid, constants, padded, ranks, partial)
    _take_flow(fields, width, height, u1, u2)


@kernel
def _take_flow(fields: Any, width: int, height: int, u1: Any, u2: Any) -> None:
    """Copy u1 and u2 from their blocks to padded planes."""
    vectors = vectors_across(width)
    for y in range(height):
        block = y * row_stride(width)
        for at in range(y * vectors * LANES, (y + 1) * vectors * LANES, LANES):
            store(u1, at, load(fields, block + U1))
            store(u2, at, load(fields, block + U2))
            block += BLOCK
