"""A frame's pyramid: each level's image and gradient, and the resizing between levels.

A level's three planes are flat float32 arrays with a border of zeros, as OpenCV's remap sees what lies
outside a picture:

    | 16 zeros | row of the picture, padded with zeros to a multiple of 16 | 32 zeros |

with six such rows of zeros above and below. Column 0 lies on a 64-byte boundary.

Resizing is bilinear with half-pixel centres, the source coordinate clamped to the picture: OpenCV's
INTER_LINEAR up to rounding, in an order of our own, first down the columns, then along the rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba.extending import register_jitable

from pipeline.flow.compilation import entry, kernel
from pipeline.flow.layout import BLOCK, LANES, U1, U2, aligned, row_stride, vectors_across
from pipeline.flow.vectors import broadcast, fma, load, load_unaligned, pointer, store

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
def fill_first(gray: Any, level: Any) -> None:
    """The full picture's level from a uint8 (height, width) frame."""
    width, height, image = level.width, level.height, pointer(level.image)
    stride, origin = plane_stride(width), plane_origin(width)
    for y in range(height):
        for x in range(width):
            image[origin + y * stride + x] = np.float32(gray[y, x])
    _gradient(width, height, image, pointer(level.gx), pointer(level.gy))


@entry
def fill_next(larger: Any, level: Any, tables: Any, line: Any) -> None:
    """A level's image from the next larger one's, then its gradient; `line` is one row of scratch."""
    width, height, image = level.width, level.height, pointer(level.image)
    source, source_stride, line = pointer(larger.image), plane_stride(larger.width), pointer(line)
    columns, column_weights = pointer(tables.columns), pointer(tables.column_weights)
    rows, row_weights = pointer(tables.rows), pointer(tables.row_weights)
    for y in range(height):
        above = plane_origin(larger.width) + rows[y] * source_stride
        below = above + source_stride if rows[y] + 1 < larger.height else above
        _blend(source, above, below, row_weights[y], larger.width, line)
        at = plane_origin(width) + y * plane_stride(width)
        for x in range(width):
            image[at + x] = _between(line, columns[x], column_weights[x])
    _gradient(width, height, image, pointer(level.gx), pointer(level.gy))


@kernel
def _blend(plane: Any, first: Any, second: Any, weight: Any, width: int, line: Any) -> None:
    """line = (1 - weight) * row at `first` + weight * row at `second`, with one value repeated at its end."""
    w = broadcast(weight)
    for x in range(0, width, LANES):
        a, b = load(plane, first + x), load(plane, second + x)
        store(line, x, fma(w, b - a, a))
    line[width] = line[width - 1]


@kernel
def _between(line: Any, start: Any, weight: Any) -> Any:
    left = line[start]
    return left + weight * (line[start + 1] - left)


@kernel
def _gradient(width: int, height: int, image: Any, gx: Any, gy: Any) -> None:
    """Half the difference of the two neighbours; at an edge the pixel itself stands in for one."""
    stride, origin = plane_stride(width), plane_origin(width)
    half = broadcast(np.float32(0.5))
    last = width - 1
    for y in range(height):
        row = origin + y * stride
        up = row - stride if y > 0 else row
        down = row + stride if y < height - 1 else row
        for x in range(0, width, LANES):
            right, left = load_unaligned(image, row + x + 1), load_unaligned(image, row + x - 1)
            store(gx, row + x, half * (right - left))
            store(gy, row + x, half * (load(image, down + x) - load(image, up + x)))
        gx[row] = np.float32(0.5) * (image[row + min(1, last)] - image[row])
        gx[row + last] = np.float32(0.5) * (image[row + last] - image[row + max(last - 1, 0)])
        for x in range(width, vectors_across(width) * LANES):
            gx[row + x] = np.float32(0)


@kernel
def enlarge_flow(
    fields: Any, width: int, height: int, u1: Any, u2: Any, old_width: Any, old_height: Any,
    columns: Any, column_weights: Any, rows: Any, row_weights: Any, factor: Any, line: Any,
) -> None:  # fmt: skip
    """Flow of the next smaller level, two padded planes, into a level's U1 and U2.

    `columns` to `row_weights` are a `Resizing`; `factor` multiplies the flow; `line` is a row of scratch.
    """
    old_stride = vectors_across(old_width) * LANES
    for y in range(height):
        above = rows[y] * old_stride
        below = above + old_stride if rows[y] + 1 < old_height else above
        here = y * row_stride(width)
        _blend(u1, above, below, row_weights[y], old_width, line)
        _put_line(fields, here + U1, width, columns, column_weights, factor, line)
        _blend(u2, above, below, row_weights[y], old_width, line)
        _put_line(fields, here + U2, width, columns, column_weights, factor, line)


@kernel
def _put_line(
    fields: Any, at: Any, width: int, columns: Any, column_weights: Any, factor: Any, line: Any
) -> None:
    """One row of one component, from `line` to its blocks; zero right of the picture."""
    for first in range(0, width, LANES):
        for lane in range(LANES):
            x = first + lane
            value = np.float32(0)
            if x < width:
                value = _between(line, columns[x], column_weights[x]) * factor
            fields[at + lane] = value
        at += BLOCK
