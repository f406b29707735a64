"""Tiles of a matrix product, whose entries stay in registers while they are summed, emitted as LLVM IR."""

from __future__ import annotations

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba.core import types

from .llvm import F32, I64, LANES, VECTOR, addresses, intrinsic, load, multiply_add, splat, store

TILE_ROWS = 4
TILE_COLUMNS = 2 * LANES


def _outer_products(rows: int, vector: ir.VectorType, width: int = TILE_COLUMNS, fresh: bool = False):
    """The intrinsic for tiles of `rows` x `width` entries, whose rows are made of such vectors."""

    def codegen(context, builder, signature, arguments):
        places = addresses(context, builder, signature, arguments)
        a, a_stride, a_step, b, b_stride, n, c, c_stride = places[:8]
        zero = ir.Constant(vector, [0.0] * vector.count)

        def bytes_of(count):
            return builder.mul(count, I64(4))

        firsts = range(0, width, vector.count)
        tiles = [(m, first) for m in range(rows) for first in firsts]
        starts = {first: load(builder, places[8], 4 * first, vector) if fresh else zero for first in firsts}
        slots = {}
        entry = builder.block
        loop, done = builder.append_basic_block("products"), builder.append_basic_block("products.done")
        builder.cbranch(builder.icmp_signed(">", n, I64(0)), loop, done)
        builder.position_at_end(loop)
        k = builder.phi(I64)
        k.add_incoming(I64(0), entry)
        for tile in tiles:
            slots[tile] = builder.phi(vector)
            slots[tile].add_incoming(starts[tile[1]], entry)
        a_row = builder.add(a, bytes_of(builder.mul(k, a_stride)))
        b_row = builder.add(b, bytes_of(builder.mul(k, b_stride)))
        columns = {first: load(builder, b_row, 4 * first, vector) for first in firsts}
        sums = {}
        for m in range(rows):
            scale = splat(builder, load(builder, a_row, bytes_of(builder.mul(a_step, I64(m))), F32), vector)
            for first in firsts:
                sums[m, first] = multiply_add(builder, scale, columns[first], slots[m, first])
        after = builder.add(k, I64(1))
        k.add_incoming(after, loop)
        for tile in tiles:
            slots[tile].add_incoming(sums[tile], loop)
        builder.cbranch(builder.icmp_signed("<", after, n), loop, done)
        builder.position_at_end(done)
        for tile in tiles:
            total = builder.phi(vector)
            total.add_incoming(starts[tile[1]], entry)
            total.add_incoming(sums[tile], loop)
            slots[tile] = total
        least = splat(builder, places[9], vector) if fresh else zero
        for m, first in tiles:
            place = builder.add(c, bytes_of(builder.add(builder.mul(c_stride, I64(m)), I64(first))))
            if fresh:
                # Not ordered: NaN stays.
                above = builder.fcmp_unordered(">", slots[m, first], least)
                value = builder.select(above, slots[m, first], least)
            else:
                value = builder.fadd(load(builder, place, 0, vector), slots[m, first])
            store(builder, value, place, 0)
        return context.get_dummy_value()

    def products(typingctx, a, i, a_stride, a_step, b, j, b_stride, n, c, k, c_stride):
        """`C[m, j] += sum over k < n of A[k, m] B[k, j]` for a tile of entries kept in registers.

        Strides count float32 numbers between consecutive k (A, B) or rows (C), the step those between consecutive m.
        """
        i64 = types.int64
        return types.void(a, i64, i64, i64, b, i64, i64, i64, c, i64, i64), codegen

    def fresh_products(typingctx, a, i, a_stride, a_step, b, j, b_stride, n, c, k, c_stride, start, s, least):
        """`C[m, j] = max(start[j] + sum over k < n of A[k, m] B[k, j], least)`; see `add_outer_products`."""
        i64 = types.int64
        return types.void(a, i64, i64, i64, b, i64, i64, i64, c, i64, i64, start, i64, types.float32), codegen

    return intrinsic(fresh_products if fresh else products)


add_outer_products = _outer_products(TILE_ROWS, VECTOR)
# Of as many rows as the registers hold: 32 of 16 lanes with AVX-512, 16 of 8 lanes elsewhere.
TALL_ROWS, _TALL_VECTOR = TILE_ROWS, VECTOR
# And of two such tiles side by side, which read A half as often, where the registers hold them.
WIDE_COLUMNS = TILE_COLUMNS
if get_host_cpu_features().get("avx512f"):
    TALL_ROWS, _TALL_VECTOR = 8, ir.VectorType(F32, TILE_COLUMNS)
    WIDE_COLUMNS = 2 * TILE_COLUMNS
add_tall_outer_products = _outer_products(TALL_ROWS, _TALL_VECTOR)
add_wide_outer_products = _outer_products(TALL_ROWS, _TALL_VECTOR, WIDE_COLUMNS)
tall_products = _outer_products(TALL_ROWS, _TALL_VECTOR, fresh=True)
wide_products = _outer_products(TALL_ROWS, _TALL_VECTOR, WIDE_COLUMNS, fresh=True)
