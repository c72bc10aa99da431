"""A frame's pyramid: each level's image and gradient, and the resizing between levels.

A level's three planes are flat float32 arrays with a border of zeros, as OpenCV's remap sees what lies
outside a picture:

    | 16 zeros | row of the picture, padded with zeros to a multiple of 16 | 32 zeros |

with six such rows of zeros above and below. Column 0 lies on a 64-byte boundary.

Resizing is bilinear with half-pixel centres, the source coordinate clamped to the picture: OpenCV's
INTER_LINEAR up to rounding, in an order of our own, first down the columns, then along the rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from pipeline.flow.compilation import entry, kernel
from pipeline.flow.layout import BLOCK, LANES, U1, U2, aligned, row_stride, vectors_across
from pipeline.flow.vectors import broadcast, fma, load, load_unaligned, store

LEFT, RIGHT = LANES, 2 * LANES  # zeros beside a row, floats
ROWS = 6  # rows of zeros above and below
SMALLEST = 16  # pixels: a level with a side below this is not made


class Level(NamedTuple):
    """One frame at one size: its image (0..255) and central differences, as bordered planes."""

    width: int
    height: int
    image: np.ndarray
    gx: np.ndarray
    gy: np.ndarray


class Resizing(NamedTuple):
    """For every target column and row, the source it starts from and the weight of the next one."""

    columns: np.ndarray  # int32 (width,)
    column_weights: np.ndarray  # float32 (width,)
    rows: np.ndarray  # int32 (height,)
    row_weights: np.ndarray  # float32 (height,)


def level_sizes(width: int, height: int, levels: int, step: float) -> list[tuple[int, int]]:
    """(width, height) of each level, the full picture first, as OpenCV counts them."""
    sizes = [(width, height)]
    for _ in range(1, levels):
        width, height = round(width * step), round(height * step)
        if min(width, height) < SMALLEST:
            break
        sizes.append((width, height))
    return sizes


def resizing(source: tuple[int, int], target: tuple[int, int], ratio: tuple[float, float]) -> Resizing:
    """Tables for resizing from one (width, height) to another; `ratio` is source over target, x then y."""

    def axis(old: int, new: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        position = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
        start = np.floor(position).astype(np.int32)
        weight = position - start.astype(np.float32)
        weight[(start < 0) | (start >= old - 1)] = 0
        return start.clip(0, old - 1), weight

    return Resizing(*axis(source[0], target[0], ratio[0]), *axis(source[1], target[1], ratio[1]))


def empty_level(width: int, height: int) -> Level:
    """A level of zeros."""
    size = plane_stride(width) * (height + 2 * ROWS)
    return Level(width, height, aligned(size), aligned(size), aligned(size))


@register_jitable
def plane_stride(width: int) -> int:
    """Floats from a row of a bordered plane to the next."""
    return LEFT + vectors_across(width) * LANES + RIGHT


@register_jitable
def plane_origin(width: int) -> int:
    """Index of pixel (0, 0) in a bordered plane."""
    return ROWS * plane_stride(width) + LEFT


@entry
def fill_first(gray, level):
    """The full picture's level from a uint8 (height, width) frame."""
    stride, origin = plane_stride(level.width), plane_origin(level.width)
    for y in range(level.height):
        for x in range(level.width):
            level.image[origin + y * stride + x] = np.float32(gray[y, x])
    _gradient(level)


@entry
def fill_next(above, level, tables, line):
    """A level's image from the next larger one's, then its gradient; `line` is one row of scratch."""
    stride, origin = plane_stride(above.width), plane_origin(above.width)
    target_stride, target = plane_stride(level.width), plane_origin(level.width)
    for y in range(level.height):
        row = tables.rows[y]
        below = min(row + 1, above.height - 1)
        _blend(
            above.image,
            origin + row * stride,
            origin + below * stride,
            tables.row_weights[y],
            above.width,
            line,
        )
        at = target + y * target_stride
        for x in range(level.width):
            level.image[at + x] = _between(line, tables.columns[x], tables.column_weights[x])
    _gradient(level)


@kernel
def _blend(plane, first, second, weight, width, line):
    """line = (1 - weight) * row at `first` + weight * row at `second`, with one value repeated at its end."""
    w = broadcast(weight)
    for x in range(0, width, LANES):
        a, b = load_unaligned(plane, first + x), load_unaligned(plane, second + x)
        store(line, x, fma(w, b - a, a))
    line[width] = line[width - 1]


@kernel
def _between(line, start, weight):
    left = line[start]
    return left + weight * (line[start + 1] - left)


@kernel
def _gradient(level):
    """Half the difference of the two neighbours; at an edge the pixel itself stands in for one."""
    stride, origin = plane_stride(level.width), plane_origin(level.width)
    image, gx, gy = level.image, level.gx, level.gy
    half = broadcast(np.float32(0.5))
    last = level.width - 1
    for y in range(level.height):
        row = origin + y * stride
        up = row - stride if y > 0 else row
        down = row + stride if y < level.height - 1 else row
        for x in range(0, level.width, LANES):
            store(gy, row + x, half * (load(image, down + x) - load(image, up + x)))
            store(
                gx, row + x, half * (load_unaligned(image, row + x + 1) - load_unaligned(image, row + x - 1))
            )
        gx[row] = np.float32(0.5) * (image[row + min(1, last)] - image[row])
        gx[row + last] = np.float32(0.5) * (image[row + last] - image[row + max(last - 1, 0)])
        for x in range(last + 1, vectors_across(level.width) * LANES):
            gx[row + x] = np.float32(0)


@kernel
def enlarge_flow(fields, width, height, u1, u2, old_width, old_height, tables, factor, line):
    """Flow of the next smaller level, two planes (old_height, LANES-padded), into a level's u1 and u2."""
    old_stride = vectors_across(old_width) * LANES
    stride = row_stride(width)
    for y in range(height):
        row = tables.rows[y]
        below = min(row + 1, old_height - 1)
        first, second = row * old_stride, below * old_stride
        here = y * stride
        weight = tables.row_weights[y]
        _blend(u1, first, second, weight, old_width, line)
        _put_line(fields, here + U1, width, tables, factor, line)
        _blend(u2, first, second, weight, old_width, line)
        _put_line(fields, here + U2, width, tables, factor, line)


@kernel
def _put_line(fields, at, width, tables, factor, line):
    """One row of one component, from `line` to its blocks; zero right of the picture."""
    for first in range(0, width, LANES):
        for lane in range(LANES):
            x = first + lane
            value = np.float32(0)
            if x < width:
                value = _between(line, tables.columns[x], tables.column_weights[x]) * factor
            fields[at + lane] = value
        at += BLOCK
