"""The fixed-point iterations between two median filterings: equations 12, 14 and 17 of Zach et al. 2007.

One iteration, with g the warped gradient, rho(u) = g . u + RHO and p stored times theta:

    d  = clip(-rho(u) / |g|^2, -lambda theta, lambda theta)         thresholding, v = u + d g
    u' = u + d g + div p                                            primal step
    p' = (p + tau grad u') / (1 + (tau / theta) |grad u'|)          dual step

Backward differences in div and forward ones in grad, zero across the border. Row y of the primal step
and row y - 1 of the dual one are done in one sweep, and several iterations run as a wavefront, each two
rows behind the one before, so that the rows in work stay in cache:

    sweep r:  iteration 0 on row r, iteration 1 on row r - 1, iteration 2 on row r - 2, ...

(The sweep over row y finishes row y - 1, so iteration k may enter row y as soon as iteration k - 1 has
entered row y + 1.)
"""

from __future__ import annotations

import numpy as np

from pipeline.flow.compilation import kernel
from pipeline.flow.layout import (
    BLOCK,
    GX,
    GY,
    LANES,
    P11,
    P12,
    P21,
    P22,
    RHO,
    SCALE,
    U1,
    U2,
    row_stride,
    vectors_across,
)
from pipeline.flow.vectors import (
    broadcast,
    fma,
    following,
    load,
    maximum,
    minimum,
    preceding,
    sqrt,
    store,
    total,
)

TINY = np.float32(1e-30)  # keeps |grad u| off zero, where the root's speed and nothing else would suffer


@kernel
def _primal(fields, here, div1, div2, limit, errors):
    """u' of one block, stored; returns it with the block's squared updates added to `errors`."""
    gx, gy = load(fields, here + GX), load(fields, here + GY)
    u1, u2 = load(fields, here + U1), load(fields, here + U2)
    step = fma(gx, u1, fma(gy, u2, load(fields, here + RHO))) * load(fields, here + SCALE)
    step = minimum(maximum(step, broadcast(-limit)), broadcast(limit))
    update1, update2 = fma(step, gx, div1), fma(step, gy, div2)
    u1, u2 = u1 + update1, u2 + update2
    store(fields, here + U1, u1)
    store(fields, here + U2, u2)
    return u1, u2, fma(update1, update1, fma(update2, update2, errors))


@kernel
def _shrink(dx, dy, tau_over_theta):
    """1 / (1 + (tau / theta) |grad u|)."""
    one = broadcast(np.float32(1))
    norm = sqrt(fma(dx, dx, fma(dy, dy, broadcast(TINY))))
    return one / fma(broadcast(tau_over_theta), norm, one)


@kernel
def _dual(fields, block, first, second, dx, dy, tau, tau_over_theta):
    """p' of one block for one of the flow's components, whose p lies at `first` and `second`."""
    shrink = _shrink(dx, dy, tau_over_theta)
    rate = broadcast(tau)
    store(fields, block + first, shrink * fma(rate, dx, load(fields, block + first)))
    store(fields, block + second, shrink * fma(rate, dy, load(fields, block + second)))


@kernel
def _first_row(fields, here, blocks, limit, errors):
    """Primal step of row 0, above which p is zero."""
    left11 = left21 = broadcast(np.float32(0))
    for _ in range(blocks):
        p11, p21 = load(fields, here + P11), load(fields, here + P21)
        div1 = (p11 - preceding(left11, p11)) + load(fields, here + P12)
        div2 = (p21 - preceding(left21, p21)) + load(fields, here + P22)
        left11, left21 = p11, p21
        _, _, errors = _primal(fields, here, div1, div2, limit, errors)
        here += BLOCK
    return errors


@kernel
def _middle_row(fields, here, above, blocks, limit, tau, tau_over_theta, inside, errors):
    """Primal step of one row and dual step of the row above it."""
    left11 = left21 = broadcast(np.float32(0))
    next1, next2 = load(fields, above + U1), load(fields, above + U2)
    for block in range(blocks):
        p11, p21 = load(fields, here + P11), load(fields, here + P21)
        div1 = (p11 - preceding(left11, p11)) + (load(fields, here + P12) - load(fields, above + P12))
        div2 = (p21 - preceding(left21, p21)) + (load(fields, here + P22) - load(fields, above + P22))
        left11, left21 = p11, p21
        below1, below2, errors = _primal(fields, here, div1, div2, limit, errors)
        u1, u2 = next1, next2
        next1, next2 = load(fields, above + BLOCK + U1), load(fields, above + BLOCK + U2)
        u1x, u2x = following(u1, next1) - u1, following(u2, next2) - u2
        if block == blocks - 1:
            u1x, u2x = u1x * inside, u2x * inside
        _dual(fields, above, P11, P12, u1x, below1 - u1, tau, tau_over_theta)
        _dual(fields, above, P21, P22, u2x, below2 - u2, tau, tau_over_theta)
        here += BLOCK
        above += BLOCK
    return errors


@kernel
def _last_row(fields, above, blocks, tau, tau_over_theta, inside):
    """Dual step of the last row, where the vertical derivative is zero."""
    zero = broadcast(np.float32(0))
    next1, next2 = load(fields, above + U1), load(fields, above + U2)
    for block in range(blocks):
        u1, u2 = next1, next2
        next1, next2 = load(fields, above + BLOCK + U1), load(fields, above + BLOCK + U2)
        u1x, u2x = following(u1, next1) - u1, following(u2, next2) - u2
        if block == blocks - 1:
            u1x, u2x = u1x * inside, u2x * inside
        _dual(fields, above, P11, P12, u1x, zero, tau, tau_over_theta)
        _dual(fields, above, P21, P22, u2x, zero, tau, tau_over_theta)
        above += BLOCK


@kernel
def iterate(fields, width, height, count, limit, tau, tau_over_theta, inside, partial, errors):
    """Run `count` iterations over a level.

    Args:
        fields: the level's fields (see `pipeline.flow.layout`); u and p are updated in place.
        width, height: pixels.
        count: iterations, at least 1.
        limit: lambda * theta, float32; tau, tau_over_theta: float32.
        inside: (16,) 1 for the lanes of a row's last block that have a right neighbour.
        partial: (count * 16,) scratch.
        errors: (count,) receives the sum over pixels of |u' - u|^2 of each iteration.
    """
    stride, blocks = row_stride(width), vectors_across(width)
    has_right = load(inside, 0)
    for k in range(count):
        store(partial, k * LANES, broadcast(np.float32(0)))
    for sweep in range(height + count):
        for k in range(max(sweep - height, 0), min(sweep, count - 1) + 1):
            y = sweep - k
            here = y * stride
            if y == height:
                _last_row(fields, here - stride, blocks, tau, tau_over_theta, has_right)
                continue
            sums = load(partial, k * LANES)
            if y == 0:
                sums = _first_row(fields, here, blocks, limit, sums)
            else:
                sums = _middle_row(
                    fields, here, here - stride, blocks, limit, tau, tau_over_theta, has_right, sums
                )
            store(partial, k * LANES, sums)
    for k in range(count):
        errors[k] = total(load(partial, k * LANES))


@kernel
def clear_dual(fields, width, height):
    """Set p to zero."""
    stride, blocks = row_stride(width), vectors_across(width)
    zero = broadcast(np.float32(0))
    for y in range(height):
        block = y * stride
        for _ in range(blocks):
            store(fields, block + P11, zero)
            store(fields, block + P12, zero)
            store(fields, block + P21, zero)
            store(fields, block + P22, zero)
            block += BLOCK
