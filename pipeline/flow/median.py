"""The 5x5 median filter of the flow, edges replicated.

A pixel's window is five columns of five. Each column is sorted once, each pair of neighbouring columns
merged once, and both are shared by all windows they lie in:

    columns      c(x)    = sort of 5 pixels                     (9 comparators)
    pairs        q(x)    = merge of c(x) and c(x + 1)           (13 comparators)
    window       median of q(x - 2), c(x) and q(x + 1)

The networks are Batcher's odd-even merge (Knuth, The Art of Computer Programming 3, 5.3.4), written out
by the Python functions below when the kernel is compiled; what does not reach the median is never
computed. Minimum and maximum only: the result is bit-equal to any other correct median.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from pipeline.flow.compilation import kernel
from pipeline.flow.layout import BLOCK, LANES, row_stride, vectors_across
from pipeline.flow.vectors import choose, intrinsic, load, load_unaligned, store, vector

MARGIN = 2 * LANES  # floats of a padded row beside its vectors, half of them on either side
SCRATCH_ROWS = 15  # sorted columns, then merged pairs

Order = Callable[[Any, Any], tuple[Any, Any]]


def merge(a: list, b: list, order: Order) -> list:
    """Merge two sorted lists; `order(x, y)` returns the smaller and the larger of two values."""
    if not a or not b:
        return a or b
    if len(a) == len(b) == 1:
        return list(order(a[0], b[0]))
    evens, odds = merge(a[::2], b[::2], order), merge(a[1::2], b[1::2], order)
    merged = [evens[0]]
    for low, high in zip(odds, evens[1:], strict=False):
        merged += order(low, high)
    return merged + odds[len(evens) - 1 :] + evens[len(odds) + 1 :]


def sort(values: list, order: Order) -> list:
    """Sort by merging halves."""
    if len(values) == 1:
        return values
    half = len(values) // 2
    return merge(sort(values[:half], order), sort(values[half:], order), order)


def middle(long: list, short: list, order: Order) -> Any:
    """The median of two sorted lists of together an odd number of values.

    With k values below or at it, i of them from the short list, it is the least over i of
    max(long[k - i - 1], short[i - 1]).
    """
    k = (len(long) + len(short) + 1) // 2
    median = long[k - 1]
    for i, value in enumerate(short, start=1):
        _, larger = order(long[k - i - 1], value)
        median, _ = order(median, larger)
    return median


def _network(outputs: int, wire: Callable[[list, Order], list]) -> Any:
    """A compiled function from a tuple of vectors to a tuple of vectors: what `wire` connects."""

    @intrinsic
    def network(typing_context: Any, inputs: Any) -> Any:
        result = types.UniTuple(vector, outputs)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def order(a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
                return choose("<")(builder, a, b), choose(">")(builder, a, b)

            values = cgutils.unpack_tuple(builder, args[0], len(sig.args[0]))
            return context.make_tuple(builder, sig.return_type, wire(values, order))

        return result(inputs), generate

    return network


_sort_column = _network(5, lambda v, order: sort(v, order))
_merge_columns = _network(10, lambda v, order: merge(v[:5], v[5:], order))
_window_median = _network(1, lambda v, order: [middle(merge(v[:10], v[10:20], order), v[20:], order)])


@kernel
def _pad(fields: Any, width: int, height: int, plane: Any, padded: Any) -> None:
    """Copy a field into rows of their own, two pixels of each edge repeated around it."""
    stride, blocks = row_stride(width), vectors_across(width)
    row = blocks * LANES + MARGIN
    for y in range(height):
        source = y * stride + plane
        target = (y + 2) * row + LANES
        for block in range(blocks):
            store(padded, target + block * LANES, load(fields, source + block * BLOCK))
        first, last = padded[target], padded[target + width - 1]
        padded[target - 2] = padded[target - 1] = first
        padded[target + width] = padded[target + width + 1] = last
    for x in range(0, row, LANES):
        top, bottom = load(padded, 2 * row + x), load(padded, (height + 1) * row + x)
        store(padded, x, top)
        store(padded, row + x, top)
        store(padded, (height + 2) * row + x, bottom)
        store(padded, (height + 3) * row + x, bottom)


@kernel
def _five(rows: Any, at: Any, row: Any) -> Any:
    """The vectors at index `at` and in the four rows below, each `row` floats long."""
    return (
        load_unaligned(rows, at),
        load_unaligned(rows, at + row),
        load_unaligned(rows, at + 2 * row),
        load_unaligned(rows, at + 3 * row),
        load_unaligned(rows, at + 4 * row),
    )


@kernel
def _sort_columns(padded: Any, row: Any, y: Any, scratch: Any) -> None:
    """Sorted columns of the window rows y - 2 .. y + 2, and their merged pairs."""
    for x in range(0, row, LANES):
        column = _sort_column(_five(padded, y * row + x, row))
        for rank in range(5):
            store(scratch, x + rank * row, column[rank])
    for x in range(0, row, LANES):
        pair = _merge_columns(_five(scratch, x, row) + _five(scratch, x + 1, row))
        for rank in range(10):
            store(scratch, x + (5 + rank) * row, pair[rank])


@kernel
def _pair(scratch: Any, row: Any, x: Any) -> Any:
    """The sorted ten of columns x and x + 1, sixteen x at once."""
    return _five(scratch, x + 5 * row, row) + _five(scratch, x + 10 * row, row)


@kernel
def median_filter(
    fields: Any, width: int, height: int, plane: Any, padded: Any, scratch: Any, valid: Any
) -> None:
    """Replace the field at offset `plane` by its 5x5 median.

    Args:
        padded: scratch of (height + 4) rows of `LANES * blocks + MARGIN` floats.
        scratch: `SCRATCH_ROWS` such rows and one vector more.
        valid: (16,) 1 for the lanes of a row's last block that are pixels.
    """
    stride, blocks = row_stride(width), vectors_across(width)
    row = blocks * LANES + MARGIN
    _pad(fields, width, height, plane, padded)
    for y in range(height):
        _sort_columns(padded, row, y, scratch)
        target = y * stride + plane
        for block in range(blocks):
            x = LANES + block * LANES
            window = _pair(scratch, row, x - 2) + _pair(scratch, row, x + 1) + _five(scratch, x, row)
            median = _window_median(window)[0]
            if block == blocks - 1:
                median = median * load(valid, 0)
            store(fields, target + block * BLOCK, median)
