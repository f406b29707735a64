"""Numba functions as XLA custom calls: no Python, no interpreter lock and no copy at run time.

XLA hands a custom call one pointer, to an `XLA_FFI_CallFrame`. The C layout read here is that of
`xla/ffi/api/c_api.h` under `jax.ffi.include_dir()`; its version is answered through the metadata
extension, so a runtime that has moved on refuses the registration instead of misreading memory.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numba
import numpy as np
from llvmlite import ir
from numba.core import types

from . import xla_entries, xla_pool
from .llvm import intrinsic
from .threads import require_safe_layer
from .xla_pool import load_int64

# Byte offsets in the structs of c_api.h, 64-bit; see also `xla_entries`.
_FRAME_EXTENSION = 8
_EXTENSION_TYPE = 8
_EXTENSION_METADATA = 24
_METADATA_API_MAJOR = 24
_METADATA_API_MINOR = 28
_METADATA_TYPE = 1

_API_MAJOR, _API_MINOR = 0, 3


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
    extension = load_int64(frame + _FRAME_EXTENSION)
    if extension == 0 or np.int32(load_int64(extension + _EXTENSION_TYPE)) != _METADATA_TYPE:
        return False
    metadata = load_int64(extension + _EXTENSION_METADATA)
    _store_int32(metadata + _METADATA_API_MAJOR, np.int32(_API_MAJOR))
    _store_int32(metadata + _METADATA_API_MINOR, np.int32(_API_MINOR))
    return True


def _numba_type(shape: tuple[int, ...], dtype: Any) -> types.Array:
    # Numba has no bfloat16: such a buffer reaches the kernel as its bits.
    name = np.dtype(dtype).name
    element = types.uint16 if name == "bfloat16" else numba.from_dtype(np.dtype(dtype))
    return types.Array(element, len(shape), "C")


def _handle(frame, table):
    """What XLA calls, of the kernel that has this table; see `xla_pool.run`."""
    return 0 if _answers_metadata(frame) or xla_pool.run(frame, table) else xla_pool.failure(frame)


@functools.cache
def _common() -> tuple[Any, Any]:
    """What all kernels share, out of Numba's cache: `_handle` and `xla_pool.work`."""
    handle: Any = numba.cfunc(types.int64(types.int64, types.int64), cache=True)(_handle)
    work: Any = numba.cfunc(types.void(types.int64), cache=True)(xla_pool.work)
    return handle, work


@functools.cache
def _register(name: str, kernel: Any, arguments: tuple[types.Array, ...], results: tuple[types.Array, ...]) -> str:
    """Compiles the handler of `kernel` for these buffer types and registers it once."""
    target = "_".join(["affinax", name, *(f"{kind.dtype}x{kind.ndim}" for kind in arguments + results)])
    if isinstance(kernel, tuple):
        functions = [entry for count, part in kernel for entry in ((count, False), (part, True))]
    else:
        require_safe_layer()
        functions = [(kernel, False)]
    handle, work = _common()
    table = np.zeros(2 + 2 * ((len(functions) + 1) // 2), np.int64)
    handler, entries, library = xla_entries.compiled(
        target, functions, arguments, results, handle.address, table.ctypes.data
    )
    table[:2] = work.address, len(table) // 2 - 1
    table[-len(entries) :] = entries
    jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(ctypes.c_void_p(handler)), platform="cpu", api_version=1)
    _handlers.append((library, table))
    return target


# XLA keeps only the address of a handler; this keeps alive the code behind it, and what that reads.
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
