"""LLVM IR that the vector code of `kernels.simd` is put together from.

Vectors have 8 float32 lanes, which LLVM maps to what the machine has. Places in memory are integers here; the
intrinsics take arrays and offsets, which `addresses` turns into them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic as _intrinsic
from numba.np import arrayobj

# To a type checker the decorator leaves the typing context among the parameters; it takes it away.
intrinsic: Any = _intrinsic

LANES = 8

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR, WORDS = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)


def _address(context, builder, kind, array, offset):
    """Address of the element at `offset` of an array, as an integer."""
    data = builder.ptrtoint(arrayobj.make_array(kind)(context, builder, array).data, I64)
    itemsize = context.get_abi_sizeof(context.get_data_type(kind.dtype))
    return builder.add(data, builder.mul(offset, I64(itemsize)))


def addresses(context, builder, signature, arguments):
    """The arguments, each array with the offset behind it turned into one address."""
    given, kinds, places = list(arguments), list(signature.args), []
    while given:
        value, kind = given.pop(0), kinds.pop(0)
        if isinstance(kind, types.Array):
            value = _address(context, builder, kind, value, given.pop(0))
            kinds.pop(0)
        places.append(value)
    return places


def pointer(builder, address, offset, kind):
    """Pointer to a `kind` at a number of bytes, constant or not, from an address."""
    if not isinstance(offset, ir.Value):
        offset = I64(offset)
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def load(builder, address, offset, kind):
    """Loads a `kind` that lies at any multiple of 4 bytes."""
    value = builder.load(pointer(builder, address, offset, kind))
    value.align = 4
    return value


def store(builder, value, address, offset):
    """Stores a value at any multiple of 4 bytes."""
    builder.store(value, pointer(builder, address, offset, value.type)).align = 4


def multiply_add(builder, a, b, c):
    """`a b + c`, lane by lane."""
    name = f"llvm.fmuladd.v{a.type.count}f32"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(a.type, [a.type] * 3), name)
    return builder.call(function, [a, b, c])


def shuffle(builder, a, b, lanes):
    """The lanes of `a`, then those of `b`, picked by number."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def splat(builder, scalar, kind=VECTOR):
    """A vector of one number."""
    vector = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
    return shuffle(builder, vector, vector, [0] * kind.count)


def sum_lanes(builder, a, b, c, d):
    """Lane sums of four vectors, as a vector of four."""
    ab = builder.fadd(
        shuffle(builder, a, b, [0, 8, 2, 10, 4, 12, 6, 14]), shuffle(builder, a, b, [1, 9, 3, 11, 5, 13, 7, 15])
    )
    cd = builder.fadd(
        shuffle(builder, c, d, [0, 8, 2, 10, 4, 12, 6, 14]), shuffle(builder, c, d, [1, 9, 3, 11, 5, 13, 7, 15])
    )
    both = builder.fadd(
        shuffle(builder, ab, cd, [0, 1, 8, 9, 4, 5, 12, 13]), shuffle(builder, ab, cd, [2, 3, 10, 11, 6, 7, 14, 15])
    )
    return builder.fadd(shuffle(builder, both, both, [0, 1, 2, 3]), shuffle(builder, both, both, [4, 5, 6, 7]))


def vector_loop(builder, n, body, *carried, step=LANES):
    """Runs `body(i, *carried) -> carried` for i = 0, 8, … (or another step) below n; what is carried at the end."""
    entry = builder.block
    loop, done = builder.append_basic_block("vectors"), builder.append_basic_block("vectors.done")
    builder.cbranch(builder.icmp_signed(">", n, I64(0)), loop, done)
    builder.position_at_end(loop)
    i = builder.phi(I64)
    i.add_incoming(I64(0), entry)
    slots = []
    for value in carried:
        slots.append(builder.phi(value.type))
        slots[-1].add_incoming(value, entry)
    results = body(i, *slots)
    after = builder.add(i, I64(step))
    i.add_incoming(after, loop)
    for slot, result in zip(slots, results, strict=True):
        slot.add_incoming(result, loop)
    builder.cbranch(builder.icmp_signed("<", after, n), loop, done)
    builder.position_at_end(done)
    finals = []
    for value, result in zip(carried, results, strict=True):
        finals.append(builder.phi(value.type))
        finals[-1].add_incoming(value, entry)
        finals[-1].add_incoming(result, loop)
    return finals
