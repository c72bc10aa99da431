"""Where the solver's fields of one pyramid level lie in memory.

All ten fields of a level share one flat, 64-byte-aligned float32 array. A row of pixels is a run of
blocks, each block 16 pixels wide and ten vectors long, so that one sweep reads one stream:

    row y:  | block 0: pixels 0..15                            | block 1: pixels 16..31 | ...
            | nx | ny | rho | limit | u1 | u2 | q11 | q12 | q21 | q22 | nx | ny | ...
              ^16 floats each

Lanes right of the picture's last column hold zero in every field and stay so: the kernels mask what
would flow into them.
"""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

LANES = 16

# Offsets of the fields inside a block.
NX, NY = 0 * LANES, 1 * LANES  # direction of the warped gradient, g / |g|
RHO = 2 * LANES  # constant part of the residual over |g|: rho(u) / |g| = n . u + RHO
LIMIT = 3 * LANES  # lambda theta |g|
U1, U2 = 4 * LANES, 5 * LANES  # flow, pixels of this level
Q11, Q12, Q21, Q22 = 6 * LANES, 7 * LANES, 8 * LANES, 9 * LANES  # dual variables, p theta / tau
BLOCK = 10 * LANES

SPARE = 4 * BLOCK  # floats after the last row: the kernels load a block ahead


@register_jitable
def vectors_across(width: int) -> int:
    """Vectors of 16 pixels that cover `width` pixels."""
    return (width + LANES - 1) // LANES


@register_jitable
def row_stride(width: int) -> int:
    """Floats from a row of blocks to the next."""
    return vectors_across(width) * BLOCK


def level_floats(width: int, height: int) -> int:
    """Floats that the fields of a level take, spare blocks included."""
    return height * row_stride(width) + SPARE


def aligned(count: int, dtype: type = np.float32) -> np.ndarray:
    """`count` zeros of a 4-byte type, starting on a 64-byte boundary."""
    raw = np.zeros(4 * count + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + 4 * count].view(dtype)


def lane_mask(columns: int, vectors: int) -> np.ndarray:
    """1 for the lanes of the last of `vectors` vectors that lie before `columns`, else 0; float32 (16,)."""
    mask = aligned(LANES)
    mask[: max(columns - (vectors - 1) * LANES, 0)] = 1
    return mask
