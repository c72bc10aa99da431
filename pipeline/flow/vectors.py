"""Sixteen float32 values as one LLVM vector that Numba can compute with.

LLVM gives a vector one AVX-512 register, two AVX2 registers or four of SSE and NEON, so the kernels
are written once. Arithmetic carries no fast-math flag: every operation is the IEEE one and sums
have a fixed order, so the same input gives the same bits on every target. `+`, `-`, `*` and `/` work lane
by lane between two vectors; a scalar is made a vector by `broadcast`. Memory is a flat float32 array or
a `pointer` to one, and an index counts elements.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
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


def intrinsic(function: Callable) -> Any:
    """Numba's decorator for a function that writes LLVM code; what it returns is called from kernels only."""
    return extending.intrinsic(function)


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


for _function, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _operator(_function, _instruction)


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
            return builder.load(
                _pointer(context, builder, sig.args[0], args[0], args[1], _FLOATS), align=alignment
            )

        return vector(array, types.intp), generate

    return load


load = _make_load(4 * LANES)
"""load(array, index): the 16 values from `index` on, which must lie on a 64-byte boundary."""

load_unaligned = _make_load(4)
"""load_unaligned(array, index): the 16 values from `index` on, wherever that is."""


def _make_store(alignment: int) -> Any:
    @intrinsic
    def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _FLOATS)
            builder.store(args[2], pointer, align=alignment)
            return context.get_dummy_value()

        return types.void(array, types.intp, vector), generate

    return store


store = _make_store(4 * LANES)
"""store(array, index, value): to a 64-byte boundary."""


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
        sixteen = ir.Constant(_INTS, list(range(16)))
        low = builder.shuffle_vector(groups[0], groups[1], eight)
        high = builder.shuffle_vector(groups[2], groups[3], eight)
        return builder.shuffle_vector(low, high, sixteen)

    index = types.intp
    return vector(array, index, index, index, index), generate


# Arithmetic


def _make_call(name: str, operands: int) -> Any:
    """An LLVM intrinsic such as llvm.fma on vectors."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function_type = ir.FunctionType(_FLOATS, [_FLOATS] * operands)
        function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.v{LANES}f32")
        return builder.call(function, args)

    if operands == 1:

        @intrinsic
        def call(typing_context: Any, a: Any) -> Any:
            return vector(vector), generate
    else:

        @intrinsic
        def call(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
            return vector(vector, vector, vector), generate

    return call


fma = _make_call("fma", 3)
"""fma(a, b, c): a * b + c, rounded once."""

sqrt = _make_call("sqrt", 1)
floor = _make_call("floor", 1)


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
        function_type = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.fma.v{LANES}f32")
        result = None
        for weight_y in down:
            row = None
            for i, weight_x in enumerate(across):
                at = builder.add(index, ir.Constant(index.type, i))
                tap = builder.load(_pointer(context, builder, sig.args[0], array, at, _FLOATS), align=4)
                row = (
                    builder.fmul(weight_x, tap)
                    if row is None
                    else builder.call(multiply_add, [weight_x, tap, row])
                )
            result = (
                builder.fmul(weight_y, row)
                if result is None
                else builder.call(multiply_add, [weight_y, row, result])
            )
            index = builder.add(index, stride)
        return result

    return vector(array, types.intp, types.intp, weights_x, weights_y), generate


def _make_choice(comparison: str) -> Any:
    """min and max as x86 has them: the second operand where neither is smaller."""

    @intrinsic
    def choose(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, *args), *args)

        return vector(vector, vector), generate

    return choose


minimum = _make_choice("<")
maximum = _make_choice(">")


@intrinsic
def broadcast(typing_context: Any, scalar: Any) -> Any:
    """A float32 in all lanes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        first = builder.insert_element(undefined, args[0], _INT(0))
        return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))

    return vector(types.float32), generate


@intrinsic
def where_equal(typing_context: Any, a: Any, b: Any, if_equal: Any, otherwise: Any) -> Any:
    """Lane by lane, `if_equal` where a == b and `otherwise` elsewhere."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])

    return vector(vector, vector, vector, vector), generate


def _make_reduction(make: Callable) -> Any:
    """A scalar from 16 lanes, halving: lane i with lane i + 8, then + 4, + 2, + 1."""

    @intrinsic
    def reduce(typing_context: Any, a: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value, width = args[0], LANES
            while width > 1:
                width //= 2
                low, high = (
                    builder.shuffle_vector(
                        value, value, ir.Constant(ir.VectorType(_INT, width), list(range(s, s + width)))
                    )
                    for s in (0, width)
                )
                value = make(builder, low, high)
            return builder.extract_element(value, _INT(0))

        return types.float32(vector), generate

    return reduce


total = _make_reduction(lambda builder, a, b: builder.fadd(a, b))
smallest = _make_reduction(lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
largest = _make_reduction(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))


# Order of lanes


def _make_shuffle(lanes: Sequence[int]) -> Any:
    """Lanes 0..15 are the first operand's, 16..31 the second's."""

    @intrinsic
    def shuffle(typing_context: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.shuffle_vector(args[0], args[1], ir.Constant(_INTS, list(lanes)))

        return vector(vector, vector), generate

    return shuffle


following = _make_shuffle(range(1, LANES + 1))
"""following(a, b): a[1], ..., a[15], b[0]: the right neighbours of a, b being the next vector."""

preceding = _make_shuffle(range(LANES - 1, 2 * LANES - 1))
"""preceding(a, b): a[15], b[0], ..., b[14]: the left neighbours of b, a being the vector before."""

even = _make_shuffle(range(0, 2 * LANES, 2))
"""even(a, b): a[0], a[2], ..., b[14]."""

odd = _make_shuffle(range(1, 2 * LANES, 2))
"""odd(a, b): a[1], a[3], ..., b[15]."""

interleave_low = _make_shuffle([k // 2 + LANES * (k % 2) for k in range(LANES)])
"""interleave_low(a, b): a[0], b[0], a[1], ..., b[7]."""

interleave_high = _make_shuffle([8 + k // 2 + LANES * (k % 2) for k in range(LANES)])
"""interleave_high(a, b): a[8], b[8], a[9], ..., b[15]."""


def _make_spread(group: int) -> Any:
    """Lane 4 i + j gets what lane 4 * group + i has: four values, each four times."""
    return _make_shuffle([4 * group + k // 4 for k in range(LANES)])


spread_fours = tuple(_make_spread(group) for group in range(4))
