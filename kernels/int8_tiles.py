"""Sums of products of bytes in registers, by the instruction that x86 has for them (VNNI), emitted as LLVM IR.

`vpdpbusd` adds up four products of an unsigned and a signed byte to each of 16 int32 lanes, and `vpdpwssd` two of
numbers of 16 bits. One side is signed by being raised by 128 (or half bytes by 8), which costs that times the sum of
the other side: a constant that sums begin with.
"""

from __future__ import annotations

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import types

from .llvm import I32, I64, addresses, intrinsic, load, shuffle, splat, store, vector_loop

ROWS, COLUMNS = 8, 32  # of a tile
DEPTH = 64  # bytes that one instruction takes
_I8 = ir.IntType(8)
_SUMS, _BYTES = ir.VectorType(I32, 16), ir.VectorType(_I8, DEPTH)
_WORDS = ir.VectorType(ir.IntType(16), DEPTH // 2)
_HALF = ir.VectorType(_I8, DEPTH // 2)


def available() -> bool:
    """Whether this CPU has the instruction."""
    features = get_host_cpu_features()
    return all(features.get(name, False) for name in ("avx512f", "avx512bw", "avx512vnni"))


def matrix_unit() -> bool:
    """Whether this CPU has a unit for whole tiles of bytes (AMX), which XLA uses and this does not."""
    return bool(get_host_cpu_features().get("amx-int8", False))


def _add_products(builder, sums, unsigned, signed, name="vpdpbusd"):
    """Of the bytes of both sides, or by `vpdpwssd` of words, of which both are signed."""
    name = f"llvm.x86.avx512.{name}.512"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(_SUMS, [_SUMS] * 3), name)
    return builder.call(function, [sums, *(builder.bitcast(v, _SUMS) for v in (unsigned, signed))])


def _total(builder, sums):
    """The sum of the lanes."""
    for half in (8, 4, 2, 1):
        lanes = range(half)
        sums = builder.add(
            shuffle(builder, sums, sums, list(lanes)), shuffle(builder, sums, sums, [half + lane for lane in lanes])
        )
    return builder.extract_element(sums, I32(0))


def _unaligned(builder, address, offset, kind):
    value = load(builder, address, offset, kind)
    value.align = 1
    return value


@intrinsic
def write_tile(typingctx, a, i, a_stride, panels, j, fours, start, s, out, o, out_stride):
    """`C[r, c] = start[c] + sum over k of A[r, k] B[k, c]` for 8 rows and 32 columns, int32.

    A is uint8, `a_stride` bytes a row; B is two panels of `[fours, 16, 4]` int8, one behind the other, with k by fours;
    `fours` is 1 or more.
    """

    def codegen(context, builder, signature, arguments):
        a, a_stride, panels, fours, start, out, out_stride = addresses(context, builder, signature, arguments)
        second = builder.mul(fours, I64(DEPTH))
        begin = [load(builder, start, 64 * half, _SUMS) for half in range(2)]
        rows = [builder.add(a, builder.mul(a_stride, I64(row))) for row in range(ROWS)]

        def body(k, *sums):
            place, found = builder.mul(k, I64(DEPTH)), []
            halves = [load(builder, panels, place, _BYTES), load(builder, panels, builder.add(place, second), _BYTES)]
            for row in range(ROWS):
                four = load(builder, rows[row], builder.mul(k, I64(4)), I32)
                bytes_of_row = builder.bitcast(splat(builder, four, _SUMS), _BYTES)
                for half in range(2):
                    found.append(_add_products(builder, sums[2 * row + half], bytes_of_row, halves[half]))
            return found

        totals = vector_loop(builder, fours, body, *begin * ROWS, step=1)
        for row in range(ROWS):
            place = builder.add(out, builder.mul(builder.mul(out_stride, I64(4)), I64(row)))
            for half in range(2):
                store(builder, totals[2 * row + half], place, 64 * half)
        return context.get_dummy_value()

    i64 = types.int64
    return types.void(a, i64, i64, panels, i64, i64, start, i64, out, i64, i64), codegen


@intrinsic
def four_dots(typingctx, codes, i, stride, split, row, j, chunks):
    """Products of a row of int8, of 64 times `chunks` columns, with four rows of codes, `stride` bytes apart.

    Codes are bytes, here raised by 128, which the sums have yet to be rid of; or, as uint8, half bytes whose
    multipliers begin at byte `split` of a row. What the four have beyond their end meets zeros, but has to be memory of
    the array. With half bytes `row` has the even ones of each 64 columns first, as the low halves of 32 bytes are.
    """
    body_of = _of_half_bytes if codes.dtype == types.uint8 else _of_bytes

    def codegen(context, builder, signature, arguments):
        codes, stride, split, row, chunks = addresses(context, builder, signature, arguments)
        rows = [builder.add(codes, builder.mul(stride, I64(number))) for number in range(4)]

        def body(chunk, *sums):
            signed = _unaligned(builder, row, builder.mul(chunk, I64(DEPTH)), _BYTES)
            return body_of(builder, sums, rows, split, chunk, signed)

        totals = vector_loop(builder, chunks, body, *[ir.Constant(_SUMS, [0] * 16)] * 4, step=1)
        found = [_total(builder, total) for total in totals]
        return context.make_tuple(builder, signature.return_type, found)

    i64 = types.int64
    return types.UniTuple(types.int32, 4)(codes, i64, i64, i64, row, i64, i64), codegen


def _of_bytes(builder, sums, rows, split, chunk, signed):
    place, raise_by = builder.mul(chunk, I64(DEPTH)), ir.Constant(_BYTES, [-128] * DEPTH)
    raised = [builder.xor(_unaligned(builder, row, place, _BYTES), raise_by) for row in rows]
    return [_add_products(builder, *pair, signed) for pair in zip(sums, raised, strict=True)]


def _of_half_bytes(builder, sums, rows, split, chunk, signed):
    """Each lane is of four columns of one block and at most 4,064, and multiplied as the low one of two int16."""
    low, four = ir.Constant(_HALF, [15] * (DEPTH // 2)), ir.Constant(_HALF, [4] * (DEPTH // 2))
    none, eights = ir.Constant(_SUMS, [0] * 16), ir.Constant(_BYTES, [8] * DEPTH)
    of_block, half = ir.Constant(_SUMS, [lane // 2 * 4 for lane in range(8)] * 2), ir.Constant(_SUMS, [15] * 16)
    begin, found = builder.sub(none, _add_products(builder, none, eights, signed)), []
    for total, row in zip(sums, rows, strict=True):
        packed = _unaligned(builder, row, builder.mul(chunk, I64(DEPTH // 2)), _HALF)
        raised = shuffle(builder, builder.and_(packed, low), builder.lshr(packed, four), list(range(DEPTH)))
        two = _unaligned(builder, builder.add(row, split), builder.mul(chunk, I64(2)), I32)  # and two bytes more
        numbers = builder.and_(builder.lshr(splat(builder, two, _SUMS), of_block), half)
        multipliers = builder.sub(builder.bitcast(numbers, _WORDS), ir.Constant(_WORDS, [8, 0] * 16))
        dots = _add_products(builder, begin, raised, signed)
        found.append(_add_products(builder, total, multipliers, dots, "vpdpwssd"))
    return found
