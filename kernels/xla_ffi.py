"""Numba functions as XLA custom calls: no Python, no interpreter lock and no copy at run time.

XLA hands a custom call one pointer, to an `XLA_FFI_CallFrame`. The C layout read here is that of
`xla/ffi/api/c_api.h` under `jax.ffi.include_dir()`; its version is answered through the metadata
extension, so a runtime that has moved on refuses the registration instead of misreading memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.np import arrayobj

from . import xla_pool
from .llvm import intrinsic
from .threads import require_safe_layer

# Byte offsets in the structs of c_api.h, 64-bit.
_FRAME_EXTENSION = 8
_FRAME_ARGUMENTS = 72
_FRAME_RESULTS = 112
_BUFFER_DATA = 24
_BUFFER_DIMS = 40
_EXTENSION_TYPE = 8
_EXTENSION_METADATA = 24
_METADATA_API_MAJOR = 24
_METADATA_API_MINOR = 28
_METADATA_TYPE = 1

_API_MAJOR, _API_MINOR = 0, 3


@intrinsic
def _load_int64(typingctx, address):
    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(pointer)

    return types.int64(types.int64), codegen


@intrinsic
def _store_int32(typingctx, address, value):
    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        builder.store(arguments[1], pointer)
        return context.get_dummy_value()

    return types.void(types.int64, types.int32), codegen


@numba.njit
def _answers_metadata(frame):
    """True if the call only asks for the API version, which is then filled in."""
    extension = _load_int64(frame + _FRAME_EXTENSION)
    if extension == 0 or np.int32(_load_int64(extension + _EXTENSION_TYPE)) != _METADATA_TYPE:
        return False
    metadata = _load_int64(extension + _EXTENSION_METADATA)
    _store_int32(metadata + _METADATA_API_MAJOR, np.int32(_API_MAJOR))
    _store_int32(metadata + _METADATA_API_MINOR, np.int32(_API_MINOR))
    return True


def _frame_reader(arguments: tuple[types.Array, ...], results: tuple[types.Array, ...]):
    """An intrinsic that turns a call frame into the tuple of its arrays, arguments first."""

    @intrinsic
    def read(typingctx, frame):
        def codegen(context, builder, signature, values):
            int64 = ir.IntType(64)

            def load(address, offset):
                pointer = builder.inttoptr(builder.add(address, int64(offset)), int64.as_pointer())
                return builder.load(pointer)

            def array(kind, buffer):
                shape = [load(load(buffer, _BUFFER_DIMS), 8 * axis) for axis in range(kind.ndim)]
                itemsize = int64(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
                strides = [itemsize] * kind.ndim
                for axis in range(kind.ndim - 2, -1, -1):
                    strides[axis] = builder.mul(strides[axis + 1], shape[axis + 1])
                view = arrayobj.make_array(kind)(context, builder)
                data = builder.inttoptr(load(buffer, _BUFFER_DATA), view.data.type)
                arrayobj.populate_array(
                    view,
                    data=data,
                    shape=cgutils.pack_array(builder, shape, int64) if shape else [],
                    strides=cgutils.pack_array(builder, strides, int64) if strides else [],
                    itemsize=itemsize,
                    meminfo=None,
                )
                return view._getvalue()

            arrays = []
            for base, kinds in ((_FRAME_ARGUMENTS, arguments), (_FRAME_RESULTS, results)):
                buffers = load(values[0], base)
                arrays += [array(kind, load(buffers, 8 * k)) for k, kind in enumerate(kinds)]
            return context.make_tuple(builder, signature.return_type, arrays)

        return types.Tuple(arguments + results)(types.int64), codegen

    return read


def _numba_type(shape: tuple[int, ...], dtype: Any) -> types.Array:
    # Numba has no bfloat16: such a buffer reaches the kernel as its bits.
    name = np.dtype(dtype).name
    element = types.uint16 if name == "bfloat16" else numba.from_dtype(np.dtype(dtype))
    return types.Array(element, len(shape), "C")


@functools.cache
def _register(name: str, kernel: Any, arguments: tuple[types.Array, ...], results: tuple[types.Array, ...]) -> str:
    """Compiles the handler of `kernel` for these buffer types and registers it once."""
    read = _frame_reader(arguments, results)
    if isinstance(kernel, tuple):
        run, kept = xla_pool.shared(kernel, read, arguments + results)
        _handlers.append(kept)
    else:
        require_safe_layer()
        run = xla_pool.alone(kernel, read, arguments + results)

    def handler(frame):
        return 0 if _answers_metadata(frame) or run(frame) else xla_pool.failure(frame)

    compiled = numba.cfunc(types.int64(types.int64))(handler)
    target = "_".join(["affinax", name, *(f"{kind.dtype}x{kind.ndim}" for kind in arguments + results)])
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(compiled.ctypes), platform="cpu", api_version=1)
    _handlers.append(compiled)
    return target


# XLA keeps only the address of a handler; this keeps the code behind it alive.
_handlers: list[Any] = []


def call(
    name: str,
    kernel: Any,
    results: Sequence[jax.ShapeDtypeStruct],
    *arguments: jax.Array,
    input_output_aliases: dict[int, int] | None = None,
) -> list[jax.Array]:
    """Calls a Numba function on traced arrays, on CPU.

    Args:
        name: Names the kernel and all that it is specialised on; one name stands for one function.
        kernel: An `njit` function of the argument arrays, then the result arrays, which it fills; or passes that follow
            each other, pairs of such functions: `count(*arrays)`, the number of parts, called once before them, and
            `part(number, *arrays)`, which does one of them and writes nothing that another reads. Parts run on XLA's
            threads. Where one raises, as when memory runs out, the call fails. Under `vmap` it is called once per
            element.
        results: Shapes and dtypes of the results.
        *arguments: C-contiguous arrays; bfloat16 arrives as uint16.
        input_output_aliases: Which argument lies in the memory of which result, by their numbers: such a result holds
            the argument when the kernel begins. XLA copies the argument first where anything else still needs it.

    Returns:
        The results, one array each.
    """
    target = _register(
        name,
        kernel,
        tuple(_numba_type(a.shape, a.dtype) for a in arguments),
        tuple(_numba_type(r.shape, r.dtype) for r in results),
    )
    options = {"vmap_method": "sequential", "input_output_aliases": input_output_aliases}
    return list(jax.ffi.ffi_call(target, list(results), **options)(*arguments))
