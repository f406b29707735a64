"""Vector code for the inner loops of the Numba kernels, emitted as LLVM IR.

LLVM's loop vectorizer leaves half or more of the speed of these three loops behind: it neither keeps the
accumulators in registers nor reads packed bfloat16 pairs as they lie. Addresses come from
`address_of`; nothing here checks bounds. Vectors have 8 float32 lanes, which LLVM maps to what the
machine has.

A bfloat16 row is read as 32-bit words that hold two neighbours each: the low half becomes a float32 by a
shift, the high half by a mask. So the 16 columns of a group arrive as 8 even ones, then 8 odd ones, and
`p` and `q` have to be in that order: `interleaved_columns`.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np import arrayobj

LANES = 8
TILE_ROWS = 4
TILE_COLUMNS = 2 * LANES

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _WORDS = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


def interleaved_columns(width: int) -> np.ndarray:
    """Column at each place of a row of `width` (a multiple of 16) bfloat16 numbers, as the loops read it.

    >>> interleaved_columns(16).tolist()
    [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15]
    """
    return np.arange(width).reshape(-1, LANES, 2).transpose(0, 2, 1).reshape(-1)


def _pointer(builder, address, offset, kind):
    if not isinstance(offset, ir.Value):
        offset = _I64(offset)
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _load(builder, address, offset, kind):
    value = builder.load(_pointer(builder, address, offset, kind))
    value.align = 4
    return value


def _store(builder, value, address, offset):
    builder.store(value, _pointer(builder, address, offset, value.type)).align = 4


def _multiply_add(builder, a, b, c):
    name = f"llvm.fmuladd.v{LANES}f32"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), name)
    return builder.call(function, [a, b, c])


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))


def _splat(builder, scalar):
    vector = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, _I32(0))
    return _shuffle(builder, vector, vector, [0] * LANES)


def _row_vectors(builder, address, row, width, packed):
    """Loads row `row` of a `[4, width]` array as `width // LANES` vectors, in the order of the loops."""
    if not packed:
        return [_load(builder, address, 4 * (row * width + c), _VECTOR) for c in range(0, width, LANES)]
    vectors = []
    for column in range(0, width, 2 * LANES):
        words = _load(builder, address, 2 * (row * width + column), _WORDS)
        low = builder.shl(words, ir.Constant(_WORDS, [16] * LANES))
        high = builder.and_(words, ir.Constant(_WORDS, [0xFFFF0000] * LANES))
        vectors += [builder.bitcast(low, _VECTOR), builder.bitcast(high, _VECTOR)]
    return vectors


def _sum_lanes(builder, a, b, c, d):
    """Lane sums of four vectors, as a vector of four."""
    ab = builder.fadd(
        _shuffle(builder, a, b, [0, 8, 2, 10, 4, 12, 6, 14]), _shuffle(builder, a, b, [1, 9, 3, 11, 5, 13, 7, 15])
    )
    cd = builder.fadd(
        _shuffle(builder, c, d, [0, 8, 2, 10, 4, 12, 6, 14]), _shuffle(builder, c, d, [1, 9, 3, 11, 5, 13, 7, 15])
    )
    both = builder.fadd(
        _shuffle(builder, ab, cd, [0, 1, 8, 9, 4, 5, 12, 13]), _shuffle(builder, ab, cd, [2, 3, 10, 11, 6, 7, 14, 15])
    )
    return builder.fadd(_shuffle(builder, both, both, [0, 1, 2, 3]), _shuffle(builder, both, both, [4, 5, 6, 7]))


@intrinsic
def address_of(typingctx, array):
    """Address of the data of an array. (`array.ctypes.data` would keep the caller from being cached.)"""

    def codegen(context, builder, signature, arguments):
        view = arrayobj.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.ptrtoint(view.data, _I64)

    return types.int64(array), codegen


@intrinsic(prefer_literal=True)
def dot4(typingctx, rows, p, width, packed):
    """Products `(d0, d1, d2, d3)` of four consecutive rows with `p`; `width` and `packed` are constants."""
    columns, is_packed = width.literal_value, packed.literal_value

    def codegen(context, builder, signature, arguments):
        rows, p = arguments[:2]
        p_vectors = [_load(builder, p, 4 * c, _VECTOR) for c in range(0, columns, LANES)]
        sums = []
        for row in range(4):
            # Two chains a row: eight multiply-adds in flight hide their latency.
            chains = [ir.Constant(_VECTOR, [0.0] * LANES)] * 2
            for place, vector in enumerate(_row_vectors(builder, rows, row, columns, is_packed)):
                chains[place % 2] = _multiply_add(builder, vector, p_vectors[place], chains[place % 2])
            sums.append(builder.fadd(*chains))
        dots = _sum_lanes(builder, *sums)
        return context.make_tuple(
            builder, signature.return_type, [builder.extract_element(dots, _I32(k)) for k in range(4)]
        )

    return types.UniTuple(types.float32, 4)(types.int64, types.int64, width, packed), codegen


@intrinsic(prefer_literal=True)
def axpy4(typingctx, rows, c0, c1, c2, c3, q, width, packed):
    """Adds four consecutive rows, scaled, to `q`; `width` and `packed` are constants."""
    columns, is_packed = width.literal_value, packed.literal_value

    def codegen(context, builder, signature, arguments):
        rows, *coefficients, q = arguments[:6]
        splats = [_splat(builder, c) for c in coefficients]
        vectors = [_row_vectors(builder, rows, row, columns, is_packed) for row in range(4)]
        for place in range(columns // LANES):
            total = _load(builder, q, 4 * place * LANES, _VECTOR)
            for row in range(4):
                total = _multiply_add(builder, vectors[row][place], splats[row], total)
            _store(builder, total, q, 4 * place * LANES)
        return context.get_dummy_value()

    f32 = types.float32
    return types.void(types.int64, f32, f32, f32, f32, types.int64, width, packed), codegen


@intrinsic
def add_outer_products(typingctx, a, a_stride, b, b_stride, n, c, c_stride):
    """`C[m, j] += sum over k < n of A[k, m] B[k, j]` for 4 x 16 entries kept in registers.

    Strides count float32 numbers between consecutive k (A, B) or rows (C).
    """

    def codegen(context, builder, signature, arguments):
        a, a_stride, b, b_stride, n, c, c_stride = arguments

        def bytes_of(count):
            return builder.mul(count, _I64(4))

        tiles = [(m, half) for m in range(TILE_ROWS) for half in range(2)]
        slots = {}
        entry = builder.block
        loop, done = builder.append_basic_block("products"), builder.append_basic_block("products.done")
        builder.cbranch(builder.icmp_signed(">", n, _I64(0)), loop, done)
        builder.position_at_end(loop)
        k = builder.phi(_I64)
        k.add_incoming(_I64(0), entry)
        for tile in tiles:
            slots[tile] = builder.phi(_VECTOR)
            slots[tile].add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), entry)
        a_row = builder.add(a, bytes_of(builder.mul(k, a_stride)))
        b_row = builder.add(b, bytes_of(builder.mul(k, b_stride)))
        halves = [_load(builder, b_row, 4 * LANES * half, _VECTOR) for half in range(2)]
        sums = {}
        for m in range(TILE_ROWS):
            scale = _splat(builder, _load(builder, a_row, 4 * m, _F32))
            for half in range(2):
                sums[m, half] = _multiply_add(builder, scale, halves[half], slots[m, half])
        after = builder.add(k, _I64(1))
        k.add_incoming(after, loop)
        for tile in tiles:
            slots[tile].add_incoming(sums[tile], loop)
        builder.cbranch(builder.icmp_signed("<", after, n), loop, done)
        builder.position_at_end(done)
        for m, half in tiles:
            total = builder.phi(_VECTOR)
            total.add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), entry)
            total.add_incoming(sums[m, half], loop)
            slots[m, half] = total
        for m, half in tiles:
            place = builder.add(c, bytes_of(builder.add(builder.mul(c_stride, _I64(m)), _I64(half * LANES))))
            _store(builder, builder.fadd(_load(builder, place, 0, _VECTOR), slots[m, half]), place, 0)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(i64, i64, i64, i64, i64, i64, i64), codegen


@intrinsic
def maximum64(typingctx, values):
    """The greatest of 64 float32 numbers; NaN is passed over."""

    def codegen(context, builder, signature, arguments):
        def greater(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        best = [ir.Constant(_VECTOR, [float("-inf")] * LANES)] * 4
        for part in range(64 // LANES):
            best[part % 4] = greater(_load(builder, arguments[0], 4 * LANES * part, _VECTOR), best[part % 4])
        vector = greater(greater(best[0], best[1]), greater(best[2], best[3]))
        for distance in (4, 2, 1):
            vector = greater(vector, _shuffle(builder, vector, vector, [(i + distance) % LANES for i in range(LANES)]))
        return builder.extract_element(vector, _I32(0))

    return types.float32(types.int64), codegen


@intrinsic
def take_number(typingctx, counter):
    """Value of the int64 at address `counter`, which is then one higher; safe among threads."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _pointer(builder, arguments[0], 0, _I64), _I64(1), "monotonic")

    return types.int64(types.int64), codegen


@intrinsic
def prefetch(typingctx, address):
    """Asks for the cache line at `address`."""

    def codegen(context, builder, signature, arguments):
        kind = ir.IntType(8).as_pointer()
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [kind], ir.FunctionType(ir.VoidType(), [kind, _I32, _I32, _I32])
        )
        builder.call(function, [builder.inttoptr(arguments[0], kind), _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@numba.njit(inline="always")
def widen(bits):
    """float32 value of the bits of a bfloat16 number."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)
