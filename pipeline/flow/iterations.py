"""The fixed-point iterations between two median filterings: equations 12, 14 and 17 of Zach et al. 2007.

One iteration, with n = g / |g| the direction of the warped gradient and q = p theta / tau:

    a  = clip(n . u + RHO, -LIMIT, LIMIT)                     thresholding: v = u - a n
    u' = u - a n + tau div q                                  primal step
    q' = (q + grad u') / (1 + (tau / theta) |grad u'|)        dual step

which is the papers' iteration with the constants put where they cost least: RHO is the residual over
|g|, and LIMIT is lambda theta |g| (see `pipeline.flow.warp`).

Backward differences in div and forward ones in grad, zero across the border. Row y of the primal step
and row y - 1 of the dual one are done in one sweep, and several iterations run as a wavefront, each two
rows behind the one before, so that the rows in work stay in cache:

    sweep r:  iteration 0 on row r, iteration 1 on row r - 1, iteration 2 on row r - 2, ...

(The sweep over row y finishes row y - 1, so iteration k may enter row y as soon as iteration k - 1 has
entered row y + 1.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.flow.compilation import kernel
from pipeline.flow.layout import (
    BLOCK,
    LIMIT,
    NX,
    NY,
    Q11,
    Q12,
    Q21,
    Q22,
    RHO,
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
def _primal(fields: Any, here: Any, div1: Any, div2: Any, tau: Any, errors: Any, counted: Any) -> Any:
    """u' of one block, stored; returns it with the block's squared updates added to `errors` if counted."""
    nx, ny = load(fields, here + NX), load(fields, here + NY)
    u1, u2 = load(fields, here + U1), load(fields, here + U2)
    limit = load(fields, here + LIMIT)
    residual = fma(nx, u1, fma(ny, u2, load(fields, here + RHO)))
    residual = minimum(maximum(residual, broadcast(np.float32(0)) - limit), limit)
    down1 = fma(residual, nx, broadcast(-tau) * div1)
    down2 = fma(residual, ny, broadcast(-tau) * div2)
    u1, u2 = u1 - down1, u2 - down2
    store(fields, here + U1, u1)
    store(fields, here + U2, u2)
    if counted:
        errors = fma(down1, down1, fma(down2, down2, errors))
    return u1, u2, errors


@kernel
def _dual(fields: Any, block: Any, first: Any, second: Any, dx: Any, dy: Any, tau_over_theta: Any) -> None:
    """q' of one block for one of the flow's components, whose q lies at `first` and `second`."""
    one = broadcast(np.float32(1))
    norm = sqrt(fma(dx, dx, fma(dy, dy, broadcast(TINY))))
    shrink = one / fma(broadcast(tau_over_theta), norm, one)
    store(fields, block + first, shrink * (load(fields, block + first) + dx))
    store(fields, block + second, shrink * (load(fields, block + second) + dy))


@kernel
def _first_row(fields: Any, here: Any, blocks: Any, tau: Any, errors: Any) -> Any:
    """Primal step of row 0, above which q is zero."""
    left11 = left21 = broadcast(np.float32(0))
    for _ in range(blocks):
        q11, q21 = load(fields, here + Q11), load(fields, here + Q21)
        div1 = (q11 - preceding(left11, q11)) + load(fields, here + Q12)
        div2 = (q21 - preceding(left21, q21)) + load(fields, here + Q22)
        left11, left21 = q11, q21
        _, _, errors = _primal(fields, here, div1, div2, tau, errors, True)
        here += BLOCK
    return errors


@kernel
def _middle_row(
    fields: Any,
    here: Any,
    above: Any,
    blocks: Any,
    tau: Any,
    tau_over_theta: Any,
    inside: Any,
    errors: Any,
    counted: Any,
) -> Any:
    """Primal step of one row and dual step of the row above it.

    The dual step runs a block behind the primal one, so that neither waits for the other's results:
    the chain of both is longer than what a processor can look ahead.
    """
    zero = broadcast(np.float32(0))
    left11 = left21 = below1 = below2 = u1 = u2 = zero
    for block in range(blocks):
        q11, q21 = load(fields, here + Q11), load(fields, here + Q21)
        div1 = (q11 - preceding(left11, q11)) + (load(fields, here + Q12) - load(fields, above + Q12))
        div2 = (q21 - preceding(left21, q21)) + (load(fields, here + Q22) - load(fields, above + Q22))
        left11, left21 = q11, q21
        next_below1, next_below2, errors = _primal(fields, here, div1, div2, tau, errors, counted)
        next1, next2 = load(fields, above + U1), load(fields, above + U2)
        if block > 0:
            last = above - BLOCK
            _dual(fields, last, Q11, Q12, following(u1, next1) - u1, below1 - u1, tau_over_theta)
            _dual(fields, last, Q21, Q22, following(u2, next2) - u2, below2 - u2, tau_over_theta)
        below1, below2, u1, u2 = next_below1, next_below2, next1, next2
        here += BLOCK
        above += BLOCK
    last = above - BLOCK
    _dual(fields, last, Q11, Q12, (following(u1, zero) - u1) * inside, below1 - u1, tau_over_theta)
    _dual(fields, last, Q21, Q22, (following(u2, zero) - u2) * inside, below2 - u2, tau_over_theta)
    return errors


@kernel
def _last_row(fields: Any, above: Any, blocks: Any, tau_over_theta: Any, inside: Any) -> None:
    """Dual step of the last row, where the vertical derivative is zero."""
    zero = broadcast(np.float32(0))
    for block in range(blocks):
        u1, u2 = load(fields, above + U1), load(fields, above + U2)
        if block < blocks - 1:
            u1x = following(u1, load(fields, above + BLOCK + U1)) - u1
            u2x = following(u2, load(fields, above + BLOCK + U2)) - u2
        else:
            u1x, u2x = (following(u1, zero) - u1) * inside, (following(u2, zero) - u2) * inside
        _dual(fields, above, Q11, Q12, u1x, zero, tau_over_theta)
        _dual(fields, above, Q21, Q22, u2x, zero, tau_over_theta)
        above += BLOCK


@kernel
def iterate(
    fields: Any, width: int, height: int, count: Any, tau: Any, tau_over_theta: Any, inside: Any, partial: Any
) -> Any:
    """Run `count` iterations, at least 1, over a level; `fields` (u and q) are updated in place.

    Args:
        inside: (16,) 1 for the lanes of a row's last block that have a right neighbour.
        partial: (16,) scratch.

    Returns:
        float32: the sum over pixels of |u' - u|^2 in the last of the iterations.
    """
    stride, blocks = row_stride(width), vectors_across(width)
    has_right = load(inside, 0)
    zero = broadcast(np.float32(0))
    store(partial, 0, zero)
    for sweep in range(height + count):
        for k in range(max(sweep - height, 0), min(sweep, count - 1) + 1):
            y = sweep - k
            here = y * stride
            above = here - stride
            if y == height:
                _last_row(fields, above, blocks, tau_over_theta, has_right)
            elif k < count - 1:
                if y == 0:
                    _first_row(fields, here, blocks, tau, zero)
                else:
                    _middle_row(fields, here, above, blocks, tau, tau_over_theta, has_right, zero, False)
            else:
                sums = load(partial, 0)
                if y == 0:
                    sums = _first_row(fields, here, blocks, tau, sums)
                else:
                    sums = _middle_row(
                        fields, here, above, blocks, tau, tau_over_theta, has_right, sums, True
                    )
                store(partial, 0, sums)
    return total(load(partial, 0))


@kernel
def clear_dual(fields: Any, width: int, height: int) -> None:
    """Set q to zero."""
    stride, blocks = row_stride(width), vectors_across(width)
    zero = broadcast(np.float32(0))
    for y in range(height):
        block = y * stride
        for _ in range(blocks):
            for q in (Q11, Q12, Q21, Q22):
                store(fields, block + q, zero)
            block += BLOCK
