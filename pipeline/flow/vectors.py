"""Sixteen float32 values as one LLVM vector that Numba can compute with.

LLVM gives a vector one AVX-512 register, two AVX2 registers or four of SSE and NEON, so the kernels
are written once. Arithmetic carries no fast-math flag: every operation is the IEEE one and sums
have a fixed order, so the same input gives the same bits on every target. `+`, `-`, `*` and `/` work lane
by lane between two vectors; a scalar is made a vector by `broadcast`. Memory is a flat float32 array or
a `pointer` to one, and an index counts elements.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import lower_builtin, models, register_model
from numba.np import arrayobj

LANES = 16

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__("float32x16")


vector = _Vector()


intrinsic: Any = extending.intrinsic
"""Numba's decorator for a function that writes LLVM code; kernels alone call the result."""


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _FLOATS)


def _operator(function: Callable, instruction: str) -> None:
    """Give a Python operator its meaning between two vectors: one LLVM instruction."""

    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            return signature(vector, vector, vector) if args == (vector, vector) else None

    @lower_builtin(function, vector, vector)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


# Memory


def _pointer(context: Any, builder: Any, memory_type: Any, memory: Any, index: Any, vector_type: Any) -> Any:
    if isinstance(memory_type, types.Array):
        memory = arrayobj.make_array(memory_type)(context, builder, memory).data
    return builder.bitcast(builder.gep(memory, [index]), vector_type.as_pointer())


@intrinsic
def pointer(typing_context: Any, array: Any) -> Any:
    """Where a contiguous array's values begin; indexed like the array, which must outlive it.

    Passing an array to a function that is not inlined counts references, one atomic operation each
    way; for what is called once a vector that costs more than the work.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return arrayobj.make_array(sig.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), generate


def _make_load(alignment: int) -> Any:
    @intrinsic
    def load(typing_context: Any, array: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _FLOATS)
            return builder.load(pointer, align=alignment)

        return vector(array, types.intp), generate

    return load


load = _make_load(4 * LANES)
"""load(array, index): the 16 values from `index` on, which must lie on a 64-byte boundary."""

load_unaligned = _make_load(4)
"""load_unaligned(array, index): the 16 values from `index` on, wherever that is."""


@intrinsic
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write a vector to a 64-byte boundary."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _FLOATS)
        builder.store(args[2], pointer, align=4 * LANES)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def load_fours(typing_context: Any, array: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """Four values from each of four indices, one group after the other."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        four = ir.VectorType(_FLOAT, 4)
        groups = [
            builder.load(_pointer(context, builder, sig.args[0], args[0], index, four), align=4)
            for index in args[1:]
        ]
        eight = ir.Constant(ir.VectorType(_INT, 8), list(range(8)))
        low, high = builder.shuffle_vector(*groups[:2], eight), builder.shuffle_vector(*groups[2:], eight)
        return builder.shuffle_vector(low, high, ir.Constant(_INTS, list(range(16))))

    index = types.intp
    return vector(array, index, index, index, index), generate


# Arithmetic

Emit = Callable[..., ir.Value]  # (builder, *values): writes the LLVM code of one operation


def _function(emit: Emit, operand: Any = vector, result: Any = vector) -> Any:
    """A function for kernels, of one or more operands of one type."""

    def function(typing_context: Any, *operands: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, *args)

        return result(*[operand] * len(operands)), generate

    function.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]  # Numba packs *operands
    return intrinsic(function)


def _call(builder: Any, name: str, *values: Any) -> Any:
    """An LLVM intrinsic such as llvm.fma on vectors."""
    function_type = ir.FunctionType(_FLOATS, [_FLOATS] * len(values))
    function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, values)


def choose(comparison: str) -> Emit:
    """min ("<") and max (">") as x86 has them: the second operand where neither is smaller."""
    return lambda builder, a, b: builder.select(builder.fcmp_ordered(comparison, a, b), a, b)


def _broadcast(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _INT(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))


fma = _function(lambda builder, a, b, c: _call(builder, "fma", a, b, c))
"""fma(a, b, c): a * b + c, rounded once."""

sqrt = _function(lambda builder, a: _call(builder, "sqrt", a))
floor = _function(lambda builder, a: _call(builder, "floor", a))
minimum, maximum = _function(choose("<")), _function(choose(">"))

broadcast = _function(_broadcast, types.float32)
"""broadcast(scalar): a float32 in all lanes."""

where_equal = _function(
    lambda builder, a, b, if_equal, otherwise: builder.select(
        builder.fcmp_ordered("==", a, b), if_equal, otherwise
    )
)
"""where_equal(a, b, if_equal, otherwise), lane by lane."""


@intrinsic
def weighted_taps(
    typing_context: Any, array: Any, index: Any, stride: Any, weights_x: Any, weights_y: Any
) -> Any:
    """Sum over i and j of weights_x[i] * weights_y[j] * the 16 values from index + j * stride + i on.

    The weights are tuples of vectors, and as many steps as they have are written out, rows first.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, index, stride = args[:3]
        across = cgutils.unpack_tuple(builder, args[3], len(sig.args[3]))
        down = cgutils.unpack_tuple(builder, args[4], len(sig.args[4]))

        def add(weight: Any, value: Any, to: Any) -> Any:
            return builder.fmul(weight, value) if to is None else _call(builder, "fma", weight, value, to)

        result = None
        for weight_y in down:
            row = None
            for i, weight_x in enumerate(across):
                at = builder.add(index, ir.Constant(index.type, i))
                tap = builder.load(_pointer(context, builder, sig.args[0], array, at, _FLOATS), align=4)
                row = add(weight_x, tap, row)
            result = add(weight_y, row, result)
            index = builder.add(index, stride)
        return result

    return vector(array, types.intp, types.intp, weights_x, weights_y), generate


def _reduce(combine: Emit) -> Any:
    """A scalar from 16 lanes, halving: lane i with lane i + 8, then + 4, + 2, + 1."""

    def emit(builder: Any, value: Any) -> Any:
        for width in (8, 4, 2, 1):
            lanes = ir.VectorType(_INT, width)
            low = builder.shuffle_vector(value, value, ir.Constant(lanes, list(range(width))))
            high = builder.shuffle_vector(value, value, ir.Constant(lanes, list(range(width, 2 * width))))
            value = combine(builder, low, high)
        return builder.extract_element(value, _INT(0))

    return _function(emit, result=types.float32)


total = _reduce(ir.IRBuilder.fadd)
smallest, largest = _reduce(choose("<")), _reduce(choose(">"))


# Order of lanes


def _shuffle(lanes: Iterable[int]) -> Any:
    """Lanes 0..15 are the first operand's, 16..31 the second's."""
    order = ir.Constant(_INTS, list(lanes))
    return _function(lambda builder, a, b: builder.shuffle_vector(a, b, order))


following = _shuffle(range(1, LANES + 1))
"""following(a, b): a[1], ..., a[15], b[0]: the right neighbours of a, b being the next vector."""

preceding = _shuffle(range(LANES - 1, 2 * LANES - 1))
"""preceding(a, b): a[15], b[0], ..., b[14]: the left neighbours of b, a being the vector before."""

even = _shuffle(range(0, 2 * LANES, 2))
"""even(a, b): a[0], a[2], ..., b[14]."""

odd = _shuffle(range(1, 2 * LANES, 2))
"""odd(a, b): a[1], a[3], ..., b[15]."""

interleave_low = _shuffle([k // 2 + LANES * (k % 2) for k in range(LANES)])
"""interleave_low(a, b): a[0], b[0], a[1], ..., b[7]."""

interleave_high = _shuffle([8 + k // 2 + LANES * (k % 2) for k in range(LANES)])
"""interleave_high(a, b): a[8], b[8], a[9], ..., b[15]."""

spread_fours = tuple(_shuffle(4 * group + k // 4 for k in range(LANES)) for group in range(4))
"""spread_fours[group](a, a): lane 4 i + j gets what lane 4 * group + i has: four values, each four times."""
