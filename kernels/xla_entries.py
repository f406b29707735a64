"""Ways from a call frame of XLA into compiled functions of Numba.

The code is written here instead of in Python: through all of Numba's compiler, a handler takes a quarter of a second
each time that a process begins to use a kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target

from .llvm import I64, load

# Byte offsets in the structs of c_api.h, 64-bit.
_FRAME_ARGUMENTS = 72
_FRAME_RESULTS = 112
_BUFFER_DATA = 24
_BUFFER_DIMS = 40

Arrays = tuple[types.Array, ...]


@global_compiler_lock
def compiled(
    name: str, functions: Sequence[tuple[Any, bool]], arguments: Arrays, results: Arrays, handle: int, table: int
) -> tuple[int, list[int], Any]:
    """Code for one kernel.

    Args:
        name: Of the kernel.
        functions: `njit` functions of the arrays, each with whether it takes a number before them.
        arguments, results: Types of the arrays.
        handle: Where a function `int64 (frame, table)` is.
        table: Its second argument.

    Returns:
        Where a handler `int64 (frame)` is, which calls `handle`; where the entries `int64 (frame, number)` of the
        functions are, which give what is returned, 0 where that is nothing, and -1 where they raise; and what has to be
        kept alive for it all.
    """
    library = _context().codegen().create_library(name)
    module = library.create_ir_module(name)
    handler = ir.Function(module, ir.FunctionType(I64, [I64]), name)
    builder = ir.IRBuilder(handler.append_basic_block())
    entry = ir.FunctionType(I64, [I64, I64])
    called = builder.inttoptr(I64(handle), entry.as_pointer())
    builder.ret(builder.call(called, [*handler.args, I64(table)]))
    names = [f"{name}_{k}" for k in range(len(functions))]
    for own, (function, numbered) in zip(names, functions, strict=True):
        _write(ir.Function(module, entry, own), function, numbered, arguments, results)
    library.add_ir_module(module)
    library.finalize()
    where, *entries = (library.get_pointer_to_function(own) for own in (name, *names))
    return where, entries, library


def _write(entry: ir.Function, function: Any, numbered: bool, arguments: Arrays, results: Arrays) -> None:
    """The code of an entry, which calls the function by its address: its own code is not compiled anew."""
    builder = ir.IRBuilder(entry.append_basic_block())
    frame, number = entry.args
    kinds = ((types.int64,) if numbered else ()) + arguments + results
    function.compile(kinds)  # or taken out of its cache
    code = function.overloads[kinds]
    result = code.signature.return_type
    kind = _context().call_conv.get_function_type(result, kinds)
    given = [number] if numbered else []
    for base, of_base in ((_FRAME_ARGUMENTS, arguments), (_FRAME_RESULTS, results)):
        buffers = load(builder, frame, base, I64)
        for place, array in enumerate(of_base):
            given += _parts(builder, load(builder, buffers, 8 * place, I64), array)
    # Numba's own convention: where the result and an exception go, then what an array is made of, one by one.
    found, raised = (builder.alloca(of.pointee) for of in kind.args[:2])
    values = [
        builder.inttoptr(value, of) if isinstance(of, ir.PointerType) else value
        for value, of in zip(given, kind.args[2:], strict=True)
    ]
    address = code.library.get_pointer_to_function(code.fndesc.llvm_func_name)
    status = builder.call(builder.inttoptr(I64(address), kind.as_pointer()), [found, raised, *values])
    value = builder.load(found) if types.unliteral(result) == types.int64 else I64(0)
    builder.ret(builder.select(builder.icmp_signed("==", status, status.type(0)), value, I64(-1)))


def _parts(builder: ir.IRBuilder, buffer: Any, kind: types.Array) -> list[Any]:
    """Of an array: nobody who owns it, twice, its size, that of an item, its data, shape and strides."""
    dims = load(builder, buffer, _BUFFER_DIMS, I64)
    shape = [load(builder, dims, 8 * axis, I64) for axis in range(kind.ndim)]
    context = _context()
    strides: list[Any] = [I64(context.get_abi_sizeof(context.get_data_type(kind.dtype)))]
    for n in reversed(shape):
        strides.insert(0, builder.mul(strides[0], n))
    size = I64(1)
    for n in shape:
        size = builder.mul(size, n)
    return [I64(0), I64(0), size, strides[-1], load(builder, buffer, _BUFFER_DATA, I64), *shape, *strides[1:]]


def _context() -> Any:
    return cpu_target.target_context
