"""Exponentials of rows of numbers, and the greatest of them, by vectors: what a softmax is made of."""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from .llvm import (
    I32,
    I64,
    LANES,
    VECTOR,
    WORDS,
    addresses,
    intrinsic,
    load,
    multiply_add,
    splat,
    store,
    sum_lanes,
    vector_loop,
)


def _exponential(builder, x):
    """`exp(x)`, to 2e-7 of it; 0 from -87 down, and NaN of NaN. Of what compiles it no fast arithmetic may be asked.

    Source: Moshier, "Cephes Mathematical Library", expf: x less a multiple of log 2, and a polynomial of the rest.
    """

    def lanes(number):
        return ir.Constant(VECTOR, [number] * LANES)

    # Added to 1.5 * 2^23 a number becomes whole, and stands in the last bits.
    whole = multiply_add(builder, x, lanes(1.44269504088896341), lanes(12582912.0))
    times = builder.fsub(whole, lanes(12582912.0))
    rest = multiply_add(builder, times, lanes(-0.693359375), x)
    rest = multiply_add(builder, times, lanes(2.12194440e-4), rest)
    found = lanes(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1.0, 1.0):
        found = multiply_add(builder, found, rest, lanes(factor))
    power = builder.shl(builder.bitcast(whole, WORDS), ir.Constant(WORDS, [23] * LANES))
    found = builder.bitcast(builder.add(builder.bitcast(found, WORDS), power), VECTOR)
    found = builder.select(builder.fcmp_ordered("<", x, lanes(-87.0)), lanes(0.0), found)
    return builder.select(builder.fcmp_unordered("!=", x, x), x, found)


@intrinsic
def exponentials(typingctx, a, i, shift, n):
    """`a = exp(a - shift)` over `n` float32 numbers, a multiple of 8, none of them above 88; their sum."""

    def codegen(context, builder, signature, arguments):
        place, shift, n = addresses(context, builder, signature, arguments)
        shifts = splat(builder, shift)

        def body(i, total):
            offset = builder.mul(i, I64(4))
            found = _exponential(builder, builder.fsub(load(builder, place, offset, VECTOR), shifts))
            store(builder, found, place, offset)
            return [builder.fadd(total, found)]

        (total,) = vector_loop(builder, n, body, ir.Constant(VECTOR, [0.0] * LANES))
        return builder.extract_element(sum_lanes(builder, total, total, total, total), I32(0))

    return types.float32(a, types.int64, types.float32, types.int64), codegen


@intrinsic
def greatest(typingctx, a, i, n):
    """The greatest of `n` float32 numbers, a multiple of 8; NaN does not count, and of none it is -inf."""

    def codegen(context, builder, signature, arguments):
        place, n = addresses(context, builder, signature, arguments)

        def body(i, most):
            found = load(builder, place, builder.mul(i, I64(4)), VECTOR)
            return [builder.select(builder.fcmp_ordered(">", found, most), found, most)]

        (most,) = vector_loop(builder, n, body, ir.Constant(VECTOR, [float("-inf")] * LANES))
        found = builder.extract_element(most, I32(0))
        for lane in range(1, LANES):
            other = builder.extract_element(most, I32(lane))
            found = builder.select(builder.fcmp_ordered(">", other, found), other, found)
        return found

    return types.float32(a, types.int64, types.int64), codegen
