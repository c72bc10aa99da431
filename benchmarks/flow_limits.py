"""The iteration kernel beside what this machine could do at best; used by ``benchmarks/flow.py``."""

from __future__ import annotations

import time

import numba
import numpy as np

from pipeline.flow import TVL1
from pipeline.flow import iterations as iterations_module
from pipeline.flow import median as median_module
from pipeline.flow import warp as warp_module
from pipeline.flow.layout import LANES, U1, aligned
from pipeline.flow.solver import Solver
from pipeline.flow.vectors import broadcast, load, pointer, sqrt, store

_iterate, _median, _warp = iterations_module.iterate, median_module.median_filter, warp_module.warp


@numba.njit(nogil=True, error_model="numpy")
def _run_iterate(fields, width, height, count, tau, tau_over_theta, inside, partial):
    return _iterate(
        pointer(fields), width, height, count, tau, tau_over_theta, pointer(inside), pointer(partial)
    )


@numba.njit(nogil=True, error_model="numpy")
def _run_median(fields, width, height, padded, ranks, valid):
    _median(pointer(fields), width, height, U1, pointer(padded), pointer(ranks), pointer(valid))


@numba.njit(nogil=True, error_model="numpy")
def _run_warp(fields, first, second, limit, values, firsts):
    _warp(
        pointer(fields), second.width, second.height, pointer(first.image), pointer(second.image),
        pointer(second.gx), pointer(second.gy), limit, pointer(values), pointer(firsts),
    )  # fmt: skip


@numba.njit(nogil=True, error_model="numpy")
def _roots_and_divisions(values, count):
    """Two of each a vector, as an iteration has, with nothing to wait for."""
    one = broadcast(np.float32(1))
    for _ in range(count):
        for at in range(0, 512, 32):
            store(values, at, one / sqrt(load(values, at)))
            store(values, at + LANES, one / sqrt(load(values, at + LANES)))


@numba.njit(nogil=True, error_model="numpy")
def _sixteen_loads_six_stores(values, count):
    """The loads and stores of an iteration, in the first-level cache."""
    zero = broadcast(np.float32(0))
    for turn in range(count):
        at = turn % 7 * 22 * LANES
        total = other = zero
        for k in range(0, 16, 2):
            total = total + load(values, at + k * LANES)
            other = other + load(values, at + (k + 1) * LANES)
        for k in range(0, 6, 2):
            store(values, at + (16 + k) * LANES, total)
            store(values, at + (17 + k) * LANES, other)


def _least_seconds(function, *arguments, repeats: int = 40) -> float:
    function(*arguments)
    best = np.inf
    for _ in range(repeats):
        start = time.thread_time()
        function(*arguments)
        best = min(best, time.thread_time() - start)
    return best


def measure(frames: list[np.ndarray]) -> dict[str, float]:
    """Least nanoseconds over many runs, on the fields that one pair's flow leaves."""
    height, width = frames[0].shape
    params = TVL1()
    solver = Solver(width, height, params)
    first, second = solver.empty_pyramid(), solver.empty_pyramid()
    solver.fill(frames[0], first)
    solver.fill(frames[1], second)
    solver.relax(first, second)
    buffers, (inside, valid) = solver._buffers, solver._masks[0]
    tau, ratio, pixels = np.float32(params.tau), np.float32(params.tau / params.theta), width * height
    done = {}
    for count in (1, 4, 16):
        spent = _least_seconds(
            _run_iterate, buffers.fields, width, height, count, tau, ratio, inside, buffers.partial
        )
        done[f"iterations, {count} at once: ns a pixel and iteration"] = 1e9 * spent / pixels / count
    spent = _least_seconds(_roots_and_divisions, aligned(512), 1000)
    done["limit by roots and divisions: ns a pixel and iteration"] = 1e9 * spent / (1000 * 16 * 16)
    spent = _least_seconds(_sixteen_loads_six_stores, aligned(7 * 22 * LANES), 10000)
    done["limit by loads and stores, first-level cache: the same"] = 1e9 * spent / (10000 * 16)
    spent = _least_seconds(
        _run_warp, buffers.fields, first[0], second[0], np.float32(0.045), buffers.values, buffers.firsts
    )
    done["warp: ns a pixel"] = 1e9 * spent / pixels
    spent = _least_seconds(_run_median, buffers.fields, width, height, buffers.padded, buffers.ranks, valid)
    done["median: ns a pixel and component"] = 1e9 * spent / pixels
    return done
