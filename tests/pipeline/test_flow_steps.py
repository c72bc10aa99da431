"""Each kernel of the flow does what the slow NumPy specification says, at sizes that test its borders."""

from __future__ import annotations

import itertools

import numba
import numpy as np
import pytest
import tvl1_specification as specification

from pipeline.flow import TVL1, tvl1
from pipeline.flow import iterations as iterations_module
from pipeline.flow import median as median_module
from pipeline.flow import warp as warp_module
from pipeline.flow.layout import LANES, NX, Q11, RHO, U1, U2, aligned, lane_mask, level_floats, vectors_across
from pipeline.flow.pyramid import plane_origin, plane_stride
from pipeline.flow.recipe import TVL1 as Parameters
from pipeline.flow.solver import Solver
from pipeline.flow.vectors import pointer

SIZES = [(1, 1), (2, 3), (5, 40), (15, 2), (16, 16), (17, 9), (31, 33), (64, 20)]
_iterate, _median, _warp = iterations_module.iterate, median_module.median_filter, warp_module.warp


@numba.njit
def _run_iterations(fields, width, height, count, tau, tau_over_theta, inside, partial):
    return _iterate(
        pointer(fields), width, height, count, tau, tau_over_theta, pointer(inside), pointer(partial)
    )


@numba.njit
def _run_median(fields, width, height, plane, padded, ranks, valid):
    _median(pointer(fields), width, height, plane, pointer(padded), pointer(ranks), pointer(valid))


@numba.njit
def _run_warp(fields, first, second, limit, values, firsts):
    _warp(
        pointer(fields), second.width, second.height, pointer(first.image), pointer(second.image),
        pointer(second.gx), pointer(second.gy), limit, pointer(values), pointer(firsts),
    )  # fmt: skip


def _put(fields: np.ndarray, offset: int, plane: np.ndarray) -> None:
    """Write a (H, W) plane as the field at `offset`."""
    height, width = plane.shape
    padded = np.zeros((height, vectors_across(width) * LANES), np.float32)
    padded[:, :width] = plane
    blocks = fields[: level_floats(width, height) - 4 * 10 * LANES].reshape(height, -1, 10, LANES)
    blocks[:, :, offset // LANES] = padded.reshape(height, -1, LANES)


def _get(fields: np.ndarray, offset: int, width: int, height: int) -> np.ndarray:
    blocks = fields[: level_floats(width, height) - 4 * 10 * LANES].reshape(height, -1, 10, LANES)
    return blocks[:, :, offset // LANES].reshape(height, -1)[:, :width].astype(float)


def _frame(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_median_is_exact(width, height):
    plane = np.random.default_rng(width).normal(size=(height, width)).astype(np.float32)
    fields = aligned(level_floats(width, height))
    _put(fields, U2, plane)
    row = vectors_across(width) * LANES + median_module.MARGIN
    padded, ranks = aligned((height + 4) * row), aligned(median_module.SCRATCH_ROWS * row + LANES)
    _run_median(fields, width, height, U2, padded, ranks, lane_mask(width, vectors_across(width)))
    assert np.array_equal(_get(fields, U2, width, height), specification.median(plane))


def test_the_median_network_sorts_and_merges_every_pattern_of_zeros_and_ones():
    def order(a, b):
        return min(a, b), max(a, b)

    for bits in itertools.product((0, 1), repeat=5):
        assert median_module.sort(list(bits), order) == sorted(bits)
    for short, long in itertools.product(range(6), range(6)):
        a, b = [0] * short + [1] * (5 - short), [0] * long + [1] * (5 - long)
        assert median_module.merge(a, b, order) == sorted(a + b)
    for zeros in itertools.product(range(11), range(11), range(6)):
        x, y, z = ([0] * k + [1] * (n - k) for k, n in zip(zeros, (10, 10, 5), strict=True))
        merged = median_module.merge(x, y, order)
        assert merged == sorted(x + y)
        assert median_module.middle(merged, z, order) == sorted(x + y + z)[12]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_iterations_follow_the_equations(width, height, count):
    params = TVL1()
    rng = np.random.default_rng(width * 100 + height)
    u, g = rng.normal(size=(2, 2, height, width))
    g *= 20
    p, rho_c = rng.normal(size=(2, 2, height, width)) * 0.3, rng.normal(size=(height, width)) * 20
    p[:, 0, :, -1] = p[:, 1, -1, :] = 0  # what forward differences leave there
    size = np.sqrt((g * g).sum(0))
    fields = aligned(level_floats(width, height))
    planes = [*g / size, rho_c / size, params.lambda_ * params.theta * size, *u]
    planes += list(p.reshape(4, height, width) * params.theta / params.tau)
    for field, plane in enumerate(planes):
        _put(fields, field * LANES, plane)
    inside = lane_mask(width - 1, vectors_across(width))
    step = np.float32(params.tau / params.theta)
    error = _run_iterations(
        fields, width, height, count, np.float32(params.tau), step, inside, aligned(LANES)
    )
    for _ in range(count):
        u, p, wanted = specification.iteration(u, p, g, rho_c, params)
    assert _get(fields, U1, width, height) == pytest.approx(u[0], abs=2e-5)
    assert _get(fields, U2, width, height) == pytest.approx(u[1], abs=2e-5)
    for index, plane in enumerate(p.reshape(4, height, width) * params.theta / params.tau):
        assert _get(fields, Q11 + index * LANES, width, height) == pytest.approx(plane, abs=2e-4)
    assert error == pytest.approx(wanted, rel=1e-4)
    assert np.isfinite(fields).all()


@pytest.mark.parametrize("motion", ["none", "smooth", "step", "wild", "outside"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (17, 9), (48, 40)])
def test_warping_reads_the_bicubic_samples(width, height, motion):
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[:height, :width]
    u = {
        "none": np.zeros((2, height, width)),
        "smooth": np.stack([0.3 * np.sin(rows / 5) - 0.05, 0.4 * np.cos(columns / 7)]),
        "step": np.stack([np.where(columns % 5 < 2, 0.6, -0.4), np.where(rows % 3, 1.2, 0.9)]),
        "wild": rng.normal(size=(2, height, width)) * 6,
        "outside": rng.normal(size=(2, height, width)) * 200,
    }[motion].astype(np.float32)
    solver = Solver(width, height, Parameters())
    first, second = solver.empty_pyramid(), solver.empty_pyramid()
    frames = [_frame(width, height, seed) for seed in (1, 2)]
    solver.fill(frames[0], first)
    solver.fill(frames[1], second)
    fields = aligned(level_floats(width, height))
    _put(fields, U1, u[0])
    _put(fields, U2, u[1])
    _run_warp(fields, first[0], second[0], np.float32(0.045), *warp_module.sources(width))
    g, rho_c = specification.linearise(frames[0].astype(float), frames[1].astype(float), u.astype(float))
    size = np.sqrt(np.maximum((g * g).sum(0), 1e-10))
    limit = _get(fields, RHO + LANES, width, height)
    assert limit / 0.045 == pytest.approx(size, abs=2e-2)
    strong = size > 1
    for field, wanted in ((NX, g[0]), (NX + LANES, g[1]), (RHO, rho_c)):
        found = _get(fields, field, width, height) * limit / 0.045
        assert found[strong] == pytest.approx(wanted[strong], rel=1e-3, abs=5e-2)


@pytest.mark.parametrize(("width", "height"), [(16, 16), (19, 33), (90, 70), (340, 256)])
def test_the_pyramid_holds_the_resized_image_and_its_gradient(width, height):
    params = TVL1()
    solver, frame = Solver(width, height, params), _frame(width, height, 3)
    assert solver.sizes == specification.level_sizes(width, height, params)
    pyramid = solver.empty_pyramid()
    solver.fill(_frame(width, height, 4), pyramid)
    solver.fill(frame, pyramid)
    image = frame.astype(float)
    for index, level in enumerate(pyramid):
        if index:
            image = specification.resize(image, level.width, level.height, (1 / params.scale_step,) * 2)
        for plane, wanted in zip(level[2:], (image, *specification.gradient(image)), strict=True):
            stride, origin = plane_stride(level.width), plane_origin(level.width)
            rows = plane[origin - LANES :][: level.height * stride].reshape(-1, stride)
            assert rows[:, LANES : LANES + level.width] == pytest.approx(wanted, abs=2e-4)
            bordered = plane.reshape(-1, stride).copy()
            bordered[6:-6, LANES : LANES + level.width] = 0
            assert not bordered.any()


@pytest.mark.parametrize(
    "params",
    [TVL1(warps=2), TVL1(scales=2, median=1, warps=2), TVL1(scales=3, scale_step=0.5, inner_iterations=7)],
)
def test_the_whole_solver_follows_the_specification(params):
    rows, columns = np.mgrid[:37, :53]
    texture = np.random.default_rng(5).normal(size=(37, 53)).cumsum(0).cumsum(1)
    texture = 255 * (texture - texture.min()) / np.ptp(texture)
    x, y = columns + 1.3 + 0.02 * rows, rows - 0.8
    moved = specification.sample_bicubic(texture, x.clip(2, 50), y.clip(2, 34)).clip(0, 255)
    frames = [plane.astype(np.uint8) for plane in (moved, texture)]
    wanted = specification.tvl1(*frames, params)
    error = np.linalg.norm(tvl1(*frames, params) - wanted, axis=-1)
    assert np.abs(wanted).max() > 0.5
    assert error.mean() < 0.01
