"""Warping of the second frame and its gradient by the flow, and what the iterations need of it.

At pixel x with flow u0 the second frame is read at x + u0 by Keys' bicubic kernel with A = -0.75 (as
OpenCV's INTER_CUBIC), zero outside the picture, and

    g     = grad I1(x + u0)
    RHO   = I1(x + u0) - g . u0 - I0(x)
    SCALE = -1 / max(|g|^2, 1e-10)

so that rho(u) = g . u + RHO is the residual linearised around u0 (Zach et al. 2007, equation 9).

Flow is smooth, so the sixteen pixels of a vector nearly always start from source pixels with the same
offset, or offsets that differ by one or two. Then the taps of all sixteen are plain rows of the
picture, and a pixel that does not reach to a tap gives it the weight zero:

    taps of the vector   o o o o o        pixel with offset 0:  c0 c1 c2 c3 0
    (offsets 0 and 1)                     pixel with offset 1:  0  c0 c1 c2 c3

Where offsets differ by more, pixels are read one by one.
"""

from __future__ import annotations

import numpy as np

from pipeline.flow.compilation import kernel
from pipeline.flow.layout import BLOCK, GX, GY, LANES, RHO, SCALE, U1, U2, row_stride
from pipeline.flow.pyramid import plane_origin, plane_stride
from pipeline.flow.vectors import (
    broadcast,
    floor,
    fma,
    largest,
    load,
    load_unaligned,
    maximum,
    minimum,
    smallest,
    store,
    where_equal,
)

WIDEST = 4  # offsets of a vector may differ by this many pixels in each direction
TAPS = 4 + WIDEST
SCRATCH = (2 * TAPS + 16) * LANES  # floats

_RAMP = np.arange(LANES, dtype=np.float32)
_f = np.float32


@kernel
def _cubic(t):
    """Weights of the pixels at -1, 0, 1 and 2 from the one whose distance is t, 0 <= t < 1."""
    one, a = broadcast(_f(1)), broadcast(_f(-0.75))
    s, r = one - t, t + one
    c0 = fma(fma(fma(a, r, broadcast(_f(3.75))), r, broadcast(_f(-6))), r, broadcast(_f(3)))
    c1 = fma(fma(broadcast(_f(1.25)), t, broadcast(_f(-2.25))) * t, t, one)
    c2 = fma(fma(broadcast(_f(1.25)), s, broadcast(_f(-2.25))) * s, s, one)
    return c0, c1, c2, one - c0 - c1 - c2


@kernel
def _spread_weights(scratch, at, weights, offset, widest):
    """Store the weights of taps 0 .. widest + 3 for pixels that start at tap `offset`."""
    zero = broadcast(_f(0))
    if widest == 0:
        store(scratch, at, weights[0])
        store(scratch, at + LANES, weights[1])
        store(scratch, at + 2 * LANES, weights[2])
        store(scratch, at + 3 * LANES, weights[3])
        return
    for tap in range(widest + 4):
        weight = zero
        for k in range(4):
            weight = where_equal(offset, broadcast(_f(tap - k)), weights[k], weight)
        store(scratch, at + tap * LANES, weight)


@kernel
def _read_rows(level, at, stride, taps_x, taps_y, scratch):
    """Image and gradient of sixteen pixels whose taps are rows of the picture."""
    image = gx = gy = broadcast(_f(0))
    for j in range(taps_y):
        row = at + j * stride
        image_row = gx_row = gy_row = broadcast(_f(0))
        for i in range(taps_x):
            weight = load(scratch, i * LANES)
            image_row = fma(weight, load_unaligned(level.image, row + i), image_row)
            gx_row = fma(weight, load_unaligned(level.gx, row + i), gx_row)
            gy_row = fma(weight, load_unaligned(level.gy, row + i), gy_row)
        weight = load(scratch, (TAPS + j) * LANES)
        image, gx, gy = fma(weight, image_row, image), fma(weight, gx_row, gx), fma(weight, gy_row, gy)
    return image, gx, gy


@kernel
def _read_pixels(level, stride, origin, column, row, weights_x, weights_y, scratch):
    """The same for pixels whose offsets have nothing in common."""
    for k in range(4):
        store(scratch, k * LANES, weights_x[k])
        store(scratch, (4 + k) * LANES, weights_y[k])
    store(scratch, 8 * LANES, column)
    store(scratch, 9 * LANES, row)
    for lane in range(LANES):
        at = origin + (int(scratch[9 * LANES + lane]) - 1) * stride + int(scratch[8 * LANES + lane]) - 1
        image = gx = gy = _f(0)
        for j in range(4):
            weight_y = scratch[(4 + j) * LANES + lane]
            for i in range(4):
                weight = weight_y * scratch[i * LANES + lane]
                tap = at + j * stride + i
                image += weight * level.image[tap]
                gx += weight * level.gx[tap]
                gy += weight * level.gy[tap]
        scratch[10 * LANES + lane] = image
        scratch[11 * LANES + lane] = gx
        scratch[12 * LANES + lane] = gy
    return load(scratch, 10 * LANES), load(scratch, 11 * LANES), load(scratch, 12 * LANES)


@kernel
def warp(fields, first, second, scratch):
    """Fill GX, GY, RHO and SCALE of a level's fields from its U1 and U2.

    Args:
        fields: the level's fields (see `pipeline.flow.layout`).
        first, second: the two frames' levels (see `pipeline.flow.pyramid`).
        scratch: (SCRATCH,) floats.
    """
    width, height = second.width, second.height
    stride, origin = plane_stride(width), plane_origin(width)
    left, right = broadcast(_f(-4)), broadcast(_f(width + LANES + 2))
    top, bottom = broadcast(_f(-4)), broadcast(_f(height + 2))
    for y in range(height):
        here = y * row_stride(width)
        for x in range(0, width, LANES):
            u1, u2 = load(fields, here + U1), load(fields, here + U2)
            own = load_unaligned(_RAMP, 0) + broadcast(_f(x))
            source_x = minimum(maximum(own + u1, left), right)
            source_y = minimum(maximum(broadcast(_f(y)) + u2, top), bottom)
            column, row = floor(source_x), floor(source_y)
            weights_x, weights_y = _cubic(source_x - column), _cubic(source_y - row)
            offset_x, offset_y = column - own, row - broadcast(_f(y))
            least_x, least_y = smallest(offset_x), smallest(offset_y)
            widest_x, widest_y = int(largest(offset_x) - least_x), int(largest(offset_y) - least_y)
            if widest_x <= WIDEST and widest_y <= WIDEST:
                _spread_weights(scratch, 0, weights_x, offset_x - broadcast(least_x), widest_x)
                _spread_weights(scratch, TAPS * LANES, weights_y, offset_y - broadcast(least_y), widest_y)
                at = origin + (y + int(least_y) - 1) * stride + x + int(least_x) - 1
                image, gx, gy = _read_rows(second, at, stride, widest_x + 4, widest_y + 4, scratch)
            else:
                image, gx, gy = _read_pixels(
                    second, stride, origin, column, row, weights_x, weights_y, scratch
                )
            size = maximum(fma(gx, gx, gy * gy), broadcast(_f(1e-10)))
            own_pixel = load(first.image, origin + y * stride + x)
            store(fields, here + GX, gx)
            store(fields, here + GY, gy)
            store(fields, here + SCALE, broadcast(_f(-1)) / size)
            store(fields, here + RHO, ((image - gx * u1) - gy * u2) - own_pixel)
            here += BLOCK
