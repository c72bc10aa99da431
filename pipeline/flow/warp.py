"""Warping of the second frame and its gradient by the flow, and what the iterations need of it.

At pixel x with flow u0 the second frame is read at x + u0 by Keys' bicubic kernel with A = -0.75 (as
OpenCV's INTER_CUBIC), zero outside the picture, and with g = grad I1(x + u0)

    N     = g / |g|
    RHO   = (I1(x + u0) - g . u0 - I0(x)) / |g|
    LIMIT = lambda theta |g|

|g|^2 being at least 1e-10, so that rho(u) / |g| = N . u + RHO is the residual linearised around u0 (Zach
et al. 2007, equation 9).

Flow is smooth, so the sixteen pixels of a vector nearly always start from source pixels with the same
offset, or with offsets that differ by one. Then the taps of all sixteen are plain rows of the picture,
and a pixel that does not reach to a tap gives it the weight zero:

    taps of the vector   o o o o o        pixel with offset 0:  c0 c1 c2 c3 0
    (offsets 0 and 1)                     pixel with offset 1:  0  c0 c1 c2 c3

Elsewhere each pixel's four rows of four are read on their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.flow.compilation import inlined, kernel
from pipeline.flow.layout import BLOCK, LANES, LIMIT, NX, NY, RHO, U1, U2, aligned, row_stride, vectors_across
from pipeline.flow.pyramid import plane_origin, plane_stride
from pipeline.flow.vectors import (
    broadcast,
    even,
    floor,
    fma,
    interleave_high,
    interleave_low,
    largest,
    load,
    load_fours,
    load_unaligned,
    maximum,
    minimum,
    odd,
    smallest,
    spread_fours,
    sqrt,
    store,
    weighted_taps,
    where_equal,
)

_f = np.float32
_RAMP = np.arange(LANES, dtype=np.float32)
_spread0, _spread1, _spread2, _spread3 = spread_fours


# Where one row's pixels are read, as rows of one float32 array ...
FRACTION_X, FRACTION_Y = 0, 1  # for each pixel: distance from the source pixel it starts from
OFFSET_X, OFFSET_Y = 2, 3  # for each pixel: how much farther it reaches than the one that reaches least
SPREAD = 4  # for each vector: the largest offset of its pixels
SOURCE_ROWS = 5
# ... and an int64 array: for each vector the index of its first tap, then 16 spare.


def sources(width: int) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of source pixels, for pictures of at most `width` pixels across."""
    vectors = vectors_across(width)
    return aligned(SOURCE_ROWS * vectors * LANES), np.zeros(vectors + LANES, np.int64)


@kernel
def _cubic(t: Any) -> Any:
    """Weights of the pixels at -1, 0, 1 and 2 from the one whose distance is t, 0 <= t < 1."""
    one, a = broadcast(_f(1)), broadcast(_f(-0.75))
    s, r = one - t, t + one
    c0 = fma(fma(fma(a, r, broadcast(_f(3.75))), r, broadcast(_f(-6))), r, broadcast(_f(3)))
    c1 = fma(fma(broadcast(_f(1.25)), t, broadcast(_f(-2.25))) * t, t, one)
    c2 = fma(fma(broadcast(_f(1.25)), s, broadcast(_f(-2.25))) * s, s, one)
    return c0, c1, c2, one - c0 - c1 - c2


@kernel
def _five(weights: Any, offset: Any) -> Any:
    """Weights of five taps, for pixels that start at the first (offset 0) or the second of them (1)."""
    zero = broadcast(_f(0))
    c0, c1, c2, c3 = weights
    return (
        where_equal(offset, zero, c0, zero),
        where_equal(offset, zero, c1, c0),
        where_equal(offset, zero, c2, c1),
        where_equal(offset, zero, c3, c2),
        where_equal(offset, zero, zero, c3),
    )


@inlined
def _read_together(image: Any, gx: Any, gy: Any, at: Any, stride: Any, weights_x: Any, weights_y: Any) -> Any:
    """Image and gradient of sixteen pixels whose taps are rows of the picture."""
    return (
        weighted_taps(image, at, stride, weights_x, weights_y),
        weighted_taps(gx, at, stride, weights_x, weights_y),
        weighted_taps(gy, at, stride, weights_x, weights_y),
    )


@kernel
def _four_pixels(
    plane: Any, firsts: Any, start: Any, stride: Any, weights_x: Any, y0: Any, y1: Any, y2: Any, y3: Any
) -> Any:
    """Four pixels' taps, weighted and summed down the columns: four columns for each pixel."""
    a, b, c, d = firsts[start], firsts[start + 1], firsts[start + 2], firsts[start + 3]
    columns = y0 * load_fours(plane, a, b, c, d)
    columns = fma(y1, load_fours(plane, a + stride, b + stride, c + stride, d + stride), columns)
    a, b, c, d = a + 2 * stride, b + 2 * stride, c + 2 * stride, d + 2 * stride
    columns = fma(y2, load_fours(plane, a, b, c, d), columns)
    columns = fma(y3, load_fours(plane, a + stride, b + stride, c + stride, d + stride), columns)
    return weights_x * columns


@kernel
def _read_apart(plane: Any, firsts: Any, start: Any, stride: Any, weights_x: Any, weights_y: Any) -> Any:
    """One plane's values of sixteen pixels that have nothing in common."""
    x0, x1, x2, x3 = weights_x
    y0, y1, y2, y3 = weights_y
    evens, odds = interleave_low(x0, x2), interleave_low(x1, x3)
    x_first, x_second = interleave_low(evens, odds), interleave_high(evens, odds)
    evens, odds = interleave_high(x0, x2), interleave_high(x1, x3)
    x_third, x_fourth = interleave_low(evens, odds), interleave_high(evens, odds)
    a = _four_pixels(
        plane, firsts, start, stride, x_first,
        _spread0(y0, y0), _spread0(y1, y1), _spread0(y2, y2), _spread0(y3, y3),
    )  # fmt: skip
    b = _four_pixels(
        plane, firsts, start + 4, stride, x_second,
        _spread1(y0, y0), _spread1(y1, y1), _spread1(y2, y2), _spread1(y3, y3),
    )  # fmt: skip
    c = _four_pixels(
        plane, firsts, start + 8, stride, x_third,
        _spread2(y0, y0), _spread2(y1, y1), _spread2(y2, y2), _spread2(y3, y3),
    )  # fmt: skip
    d = _four_pixels(
        plane, firsts, start + 12, stride, x_fourth,
        _spread3(y0, y0), _spread3(y1, y1), _spread3(y2, y2), _spread3(y3, y3),
    )  # fmt: skip
    low, high = even(a, b) + odd(a, b), even(c, d) + odd(c, d)
    return even(low, high) + odd(low, high)


@kernel
def _find_sources(fields: Any, width: int, height: int, y: Any, values: Any, firsts: Any) -> None:
    """Where the pixels of row y are read; no branch here, so that vectors overlap in the processor."""
    stride, origin = plane_stride(width), plane_origin(width)
    vectors = vectors_across(width)
    row_floats = vectors * LANES
    left, right = broadcast(_f(-4)), broadcast(_f(width + LANES + 2))
    top, bottom = broadcast(_f(-4)), broadcast(_f(height + 2))
    ramp = load_unaligned(_RAMP, 0)
    here = y * row_stride(width)
    for block in range(vectors):
        x = block * LANES
        source_x = minimum(maximum(ramp + broadcast(_f(x)) + load(fields, here + U1), left), right)
        source_y = minimum(maximum(broadcast(_f(y)) + load(fields, here + U2), top), bottom)
        column, row = floor(source_x), floor(source_y)
        store(values, FRACTION_X * row_floats + x, source_x - column)
        store(values, FRACTION_Y * row_floats + x, source_y - row)
        column = column - ramp  # of the pixel in lane 0, were it read at the same distance
        least_x, least_y = smallest(column), smallest(row)
        offset_x, offset_y = column - broadcast(least_x), row - broadcast(least_y)
        store(values, OFFSET_X * row_floats + x, offset_x)
        store(values, OFFSET_Y * row_floats + x, offset_y)
        values[SPREAD * row_floats + block] = largest(maximum(offset_x, offset_y))
        firsts[block] = origin + (int(least_y) - 1) * stride + int(least_x) - 1
        here += BLOCK


@inlined
def _read(
    image: Any, gx: Any, gy: Any, stride: Any, block: Any, vectors: Any, values: Any, firsts: Any
) -> Any:
    """Image and gradient of the sixteen pixels of one block."""
    row_floats = vectors * LANES
    x, first = block * LANES, firsts[block]
    weights_x = _cubic(load(values, FRACTION_X * row_floats + x))
    weights_y = _cubic(load(values, FRACTION_Y * row_floats + x))
    spread = values[SPREAD * row_floats + block]
    if spread == _f(0):
        return _read_together(image, gx, gy, first, stride, weights_x, weights_y)
    if spread == _f(1):
        five_x = _five(weights_x, load(values, OFFSET_X * row_floats + x))
        five_y = _five(weights_y, load(values, OFFSET_Y * row_floats + x))
        return _read_together(image, gx, gy, first, stride, five_x, five_y)
    for lane in range(LANES):
        down, right = values[OFFSET_Y * row_floats + x + lane], values[OFFSET_X * row_floats + x + lane]
        firsts[vectors + lane] = first + int(down) * stride + int(right) + lane
    return (
        _read_apart(image, firsts, vectors, stride, weights_x, weights_y),
        _read_apart(gx, firsts, vectors, stride, weights_x, weights_y),
        _read_apart(gy, firsts, vectors, stride, weights_x, weights_y),
    )


@kernel
def warp(
    fields: Any, width: int, height: int, first_image: Any, image: Any, gx: Any, gy: Any,
    limit: Any, values: Any, firsts: Any,
) -> None:  # fmt: skip
    """Fill NX, NY, RHO and LIMIT of a level's `fields` from its U1 and U2.

    Args:
        first_image: the first frame's image; image, gx, gy: the second one's planes.
        limit: lambda * theta, float32.
        values, firsts: scratch, see `sources`.
    """
    stride, origin = plane_stride(width), plane_origin(width)
    vectors = vectors_across(width)
    for y in range(height):
        _find_sources(fields, width, height, y, values, firsts)
        here = y * row_stride(width)
        for block in range(vectors):
            warped, warped_x, warped_y = _read(image, gx, gy, stride, block, vectors, values, firsts)
            u1, u2 = load(fields, here + U1), load(fields, here + U2)
            size = sqrt(maximum(fma(warped_x, warped_x, warped_y * warped_y), broadcast(_f(1e-10))))
            own = load(first_image, origin + y * stride + block * LANES)
            residual = ((warped - warped_x * u1) - warped_y * u2) - own
            inverse = broadcast(_f(1)) / size
            store(fields, here + NX, warped_x * inverse)
            store(fields, here + NY, warped_y * inverse)
            store(fields, here + RHO, residual * inverse)
            store(fields, here + LIMIT, size * broadcast(limit))
            here += BLOCK
