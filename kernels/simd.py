"""Vector code for the inner loops of the Numba kernels, emitted as LLVM IR.

LLVM's loop vectorizer leaves half or more of the speed of these loops behind: it neither keeps the accumulators in
registers nor reads packed bfloat16 pairs as they lie. A place in memory is given as an array and an offset in
elements, never as a bare address, which would not keep the array alive; nothing here checks bounds.

A bfloat16 row is read as 32-bit words that hold two neighbours each: the low half becomes a float32 by a
shift, the high half by a mask. So the 16 columns of a group arrive as 8 even ones, then 8 odd ones, and
`p` and `q` have to be in that order: `interleaved_columns`.
"""

from __future__ import annotations

import numpy as np
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
    pointer,
    shuffle,
    splat,
    store,
    sum_lanes,
    vector_loop,
)


def interleaved_columns(width: int) -> np.ndarray:
    """Column at each place of a row of `width` (a multiple of 16) bfloat16 numbers, as the loops read it.

    >>> interleaved_columns(16).tolist()
    [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]
    """
    return np.arange(width).reshape(-1, LANES, 2).transpose(0, 2, 1).reshape(-1)


def _row_vectors(builder, address, row, width, packed):
    """Loads row `row` of a `[4, width]` array as `width // LANES` vectors, in the order of the loops."""
    if not packed:
        return [load(builder, address, 4 * (row * width + c), VECTOR) for c in range(0, width, LANES)]
    vectors = []
    for column in range(0, width, 2 * LANES):
        words = load(builder, address, 2 * (row * width + column), WORDS)
        low = builder.shl(words, ir.Constant(WORDS, [16] * LANES))
        high = builder.and_(words, ir.Constant(WORDS, [0xFFFF0000] * LANES))
        vectors += [builder.bitcast(low, VECTOR), builder.bitcast(high, VECTOR)]
    return vectors


@intrinsic(prefer_literal=True)
def dot4(typingctx, rows, i, p, j, width, packed):
    """Products `(d0, d1, d2, d3)` of four consecutive rows with `p`; `width` and `packed` are constants."""
    columns, is_packed = width.literal_value, packed.literal_value

    def codegen(context, builder, signature, arguments):
        rows, p = addresses(context, builder, signature, arguments)[:2]
        p_vectors = [load(builder, p, 4 * c, VECTOR) for c in range(0, columns, LANES)]
        sums = []
        for row in range(4):
            # Two chains a row: eight multiply-adds in flight hide their latency.
            chains = [ir.Constant(VECTOR, [0.0] * LANES)] * 2
            for place, vector in enumerate(_row_vectors(builder, rows, row, columns, is_packed)):
                chains[place % 2] = multiply_add(builder, vector, p_vectors[place], chains[place % 2])
            sums.append(builder.fadd(*chains))
        dots = sum_lanes(builder, *sums)
        return context.make_tuple(
            builder, signature.return_type, [builder.extract_element(dots, I32(k)) for k in range(4)]
        )

    return types.UniTuple(types.float32, 4)(rows, types.int64, p, types.int64, width, packed), codegen


@intrinsic(prefer_literal=True)
def axpy4(typingctx, rows, i, c0, c1, c2, c3, q, j, width, packed):
    """Adds four consecutive rows, scaled, to `q`; `width` and `packed` are constants."""
    columns, is_packed = width.literal_value, packed.literal_value

    def codegen(context, builder, signature, arguments):
        rows, *coefficients, q = addresses(context, builder, signature, arguments)[:6]
        splats = [splat(builder, c) for c in coefficients]
        vectors = [_row_vectors(builder, rows, row, columns, is_packed) for row in range(4)]
        for place in range(columns // LANES):
            total = load(builder, q, 4 * place * LANES, VECTOR)
            for row in range(4):
                total = multiply_add(builder, vectors[row][place], splats[row], total)
            store(builder, total, q, 4 * place * LANES)
        return context.get_dummy_value()

    f32 = types.float32
    return types.void(rows, types.int64, f32, f32, f32, f32, q, types.int64, width, packed), codegen


def _pairs(order):
    """An intrinsic that copies `n` 32-bit words, a multiple of 16, each 16 of them in this order."""

    @intrinsic
    def copied(typingctx, source, i, target, j, n):
        def codegen(context, builder, signature, arguments):
            source, target, n = addresses(context, builder, signature, arguments)

            def body(i):
                low, high = builder.mul(i, I64(8)), builder.add(builder.mul(i, I64(8)), I64(4 * LANES))
                a, b = load(builder, source, low, WORDS), load(builder, source, high, WORDS)
                store(builder, shuffle(builder, a, b, order[:LANES]), target, low)
                store(builder, shuffle(builder, a, b, order[LANES:]), target, high)
                return ()

            vector_loop(builder, builder.lshr(n, I64(1)), body)
            return context.get_dummy_value()

        return types.void(source, types.int64, target, types.int64, types.int64), codegen

    return copied


_EVEN_THEN_ODD = [int(c) for c in interleaved_columns(2 * LANES)]
to_interleaved = _pairs(_EVEN_THEN_ODD)
from_interleaved = _pairs([_EVEN_THEN_ODD.index(c) for c in range(2 * LANES)])


@intrinsic
def copy(typingctx, source, i, target, j, n):
    """Copies `n` 32-bit words, a multiple of 8."""

    def codegen(context, builder, signature, arguments):
        source, target, n = addresses(context, builder, signature, arguments)

        def body(i):
            offset = builder.mul(i, I64(4))
            store(builder, load(builder, source, offset, WORDS), target, offset)
            return ()

        vector_loop(builder, n, body)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64, types.int64), codegen


@intrinsic
def clear(typingctx, target, i):
    """Sets 8 32-bit words to 0."""

    def codegen(context, builder, signature, arguments):
        (place,) = addresses(context, builder, signature, arguments)
        store(builder, ir.Constant(WORDS, [0] * LANES), place, 0)
        return context.get_dummy_value()

    return types.void(target, types.int64), codegen


def _elementwise(name, what, n_inputs, combine):
    """An intrinsic on `n` float32 numbers, a multiple of 8, of each input and the target."""

    def codegen(context, builder, signature, arguments):
        *inputs, target, n = addresses(context, builder, signature, arguments)

        def body(i):
            offset = builder.mul(i, I64(4))
            store(builder, combine(builder, *(load(builder, a, offset, VECTOR) for a in inputs)), target, offset)
            return ()

        vector_loop(builder, n, body)
        return context.get_dummy_value()

    i64 = types.int64

    def of_two(typingctx, a, i, b, j, target, k, n):
        return types.void(a, i64, b, i64, target, i64, i64), codegen

    def of_three(typingctx, a, i, b, j, c, k, target, m, n):
        return types.void(a, i64, b, i64, c, i64, target, i64, i64), codegen

    function = {2: of_two, 3: of_three}[n_inputs]
    function.__name__, function.__doc__ = name, what
    return intrinsic(function)


def _where_above_0(builder, values, signs):
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    return builder.select(builder.fcmp_ordered(">", signs, zero), values, zero)


where_above_0 = _elementwise("where_above_0", "`target = a where b > 0, else 0`.", 2, _where_above_0)
multiply = _elementwise("multiply", "`target = a b`.", 2, lambda builder, a, b: builder.fmul(a, b))
multiply_and_add = _elementwise("multiply_and_add", "`target = a b + c`.", 3, multiply_add)


@intrinsic
def axpy(typingctx, c, source, i, target, j, n):
    """`target += c source` over `n` float32 numbers, a multiple of 8."""

    def codegen(context, builder, signature, arguments):
        c, source, target, n = addresses(context, builder, signature, arguments)
        scale = splat(builder, c)

        def body(i):
            offset = builder.mul(i, I64(4))
            total = load(builder, target, offset, VECTOR)
            store(builder, multiply_add(builder, scale, load(builder, source, offset, VECTOR), total), target, offset)
            return ()

        vector_loop(builder, n, body)
        return context.get_dummy_value()

    return types.void(types.float32, source, types.int64, target, types.int64, types.int64), codegen


@intrinsic
def mix(typingctx, a, p, i, b, q, j, n):
    """`p, q = a p + b q, a q + b p` over `n` float32 numbers of two rows, a multiple of 8."""

    def codegen(context, builder, signature, arguments):
        a, p, b, q, n = addresses(context, builder, signature, arguments)
        own, other = splat(builder, a), splat(builder, b)

        def body(i):
            offset = builder.mul(i, I64(4))
            v, w = load(builder, p, offset, VECTOR), load(builder, q, offset, VECTOR)
            store(builder, multiply_add(builder, own, v, builder.fmul(other, w)), p, offset)
            store(builder, multiply_add(builder, own, w, builder.fmul(other, v)), q, offset)
            return ()

        vector_loop(builder, n, body)
        return context.get_dummy_value()

    f32, i64 = types.float32, types.int64
    return types.void(f32, p, i64, f32, q, i64, i64), codegen


@intrinsic
def contrast(typingctx, keep, pull, p, i, a, j, b, k, n):
    """`p, a, b = keep p + pull (a - b), keep a + pull p, keep b - pull p` over `n` numbers, a multiple of 8."""

    def codegen(context, builder, signature, arguments):
        keep, pull, p, a, b, n = addresses(context, builder, signature, arguments)
        keep, pull = splat(builder, keep), splat(builder, pull)

        def body(i):
            offset = builder.mul(i, I64(4))
            u, v, w = (load(builder, row, offset, VECTOR) for row in (p, a, b))
            step = builder.fmul(pull, u)
            store(builder, multiply_add(builder, keep, u, builder.fmul(pull, builder.fsub(v, w))), p, offset)
            store(builder, multiply_add(builder, keep, v, step), a, offset)
            store(builder, builder.fsub(builder.fmul(keep, w), step), b, offset)
            return ()

        vector_loop(builder, n, body)
        return context.get_dummy_value()

    f32, i64 = types.float32, types.int64
    return types.void(f32, f32, p, i64, a, i64, b, i64, i64), codegen


@intrinsic
def dot(typingctx, a, i, b, j, n):
    """Product of two rows of `n` float32 numbers, a multiple of 8."""

    def codegen(context, builder, signature, arguments):
        a, b, n = addresses(context, builder, signature, arguments)

        def products(offset, total):
            return multiply_add(builder, load(builder, a, offset, VECTOR), load(builder, b, offset, VECTOR), total)

        def four(i, *totals):
            first = builder.mul(i, I64(16))
            return [products(builder.add(first, I64(4 * LANES * k)), total) for k, total in enumerate(totals)]

        def one(i, total):
            return [products(builder.mul(builder.add(whole, i), I64(4)), total)]

        # Four chains, for one alone would wait for each sum before the next; then what is left.
        quarter = builder.and_(builder.lshr(n, I64(2)), I64(-LANES))
        whole = builder.mul(quarter, I64(4))
        first, *others = vector_loop(builder, quarter, four, *[ir.Constant(VECTOR, [0.0] * LANES)] * 4)
        (last,) = vector_loop(builder, builder.sub(n, whole), one, first)
        total = builder.fadd(builder.fadd(last, others[0]), builder.fadd(others[1], others[2]))
        return builder.extract_element(sum_lanes(builder, total, total, total, total), I32(0))

    return types.float32(a, types.int64, b, types.int64, types.int64), codegen


@intrinsic
def four_dots(typingctx, rows, i, stride, p, j, n, target, k):
    """Products of four rows, so many numbers apart, with `p`, over `n` numbers, a multiple of 8, into the target."""

    def codegen(context, builder, signature, arguments):
        rows, stride, p, n, target = addresses(context, builder, signature, arguments)
        places = [builder.add(rows, builder.mul(stride, I64(4 * row))) for row in range(4)]

        def body(i, *totals):
            offset = builder.mul(i, I64(4))
            common = load(builder, p, offset, VECTOR)
            loaded = (load(builder, place, offset, VECTOR) for place in places)
            return [multiply_add(builder, row, common, total) for row, total in zip(loaded, totals, strict=True)]

        totals = vector_loop(builder, n, body, *[ir.Constant(VECTOR, [0.0] * LANES)] * 4)
        store(builder, sum_lanes(builder, *totals), target, 0)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(rows, i64, i64, p, i64, i64, target, i64), codegen


@intrinsic
def above64(typingctx, values, i, bound):
    """Which of 64 float32 numbers are greater than `bound`, a bit each from the lowest; NaN is not."""

    def codegen(context, builder, signature, arguments):
        place, bound = addresses(context, builder, signature, arguments)
        bounds, bits = splat(builder, bound), I64(0)
        for first in range(0, 64, LANES):
            greater = builder.fcmp_ordered(">", load(builder, place, 4 * first, VECTOR), bounds)
            part = builder.zext(builder.bitcast(greater, ir.IntType(LANES)), I64)
            bits = builder.or_(bits, builder.shl(part, I64(first)))
        return bits

    return types.uint64(values, types.int64, types.float32), codegen


@intrinsic
def lowest_bit(typingctx, bits):
    """Number of the lowest bit that is set; 64 where none is."""

    def codegen(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), codegen


@intrinsic
def take_number(typingctx, counter, i):
    """Value of the int64 `counter[i]`, which is then one higher; safe among threads."""

    def codegen(context, builder, signature, arguments):
        (place,) = addresses(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer(builder, place, 0, I64), I64(1), "monotonic")

    return types.int64(counter, types.int64), codegen


@intrinsic
def prefetch(typingctx, array, i):
    """Asks for the cache line of element i."""

    def codegen(context, builder, signature, arguments):
        kind = ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [kind], ir.FunctionType(ir.VoidType(), [kind, I32, I32, I32])
        )
        (place,) = addresses(context, builder, signature, arguments)
        builder.call(function, [builder.inttoptr(place, kind), I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen
