"""Large arrays in pages of 2 MiB, which Linux hands out in half the time that their small ones take.

What visits rows of a large table in no order spends more time on finding their small pages than on the rows.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numba
from jax.typing import ArrayLike
from llvmlite import ir
from numba.core import types

from . import xla_ffi
from .llvm import I32, I64, addresses, intrinsic

_PAGE = 1 << 12
_ADVICE = 14  # MADV_HUGEPAGE of Linux
_ON_LINUX = sys.platform == "linux"
_WORTH = 1 << 24  # bytes; what is smaller comes from memory that is in use already
_PART = 1 << 18  # numbers copied at a time


@intrinsic
def _advise(typingctx, array, i, n_bytes):
    def codegen(context, builder, signature, arguments):
        address, n_bytes = addresses(context, builder, signature, arguments)
        if _ON_LINUX:
            kind = ir.IntType(8).as_pointer()
            function = builder.module.globals.get("madvise")
            if function is None:
                function = ir.Function(builder.module, ir.FunctionType(I32, [kind, I64, I32]), "madvise")
            end = builder.add(address, n_bytes)
            first = builder.and_(builder.add(address, I64(_PAGE - 1)), I64(-_PAGE))
            length = builder.and_(builder.sub(end, first), I64(-_PAGE))
            builder.call(function, [builder.inttoptr(first, kind), length, I32(_ADVICE)])
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


@numba.njit(cache=True, nogil=True)
def ask_for(array):
    """Asks for huge pages under a large array that nothing was written to; it is advice, whatever comes of it."""
    n_bytes = array.size * array.itemsize
    if n_bytes >= _WORTH:
        _advise(array, 0, n_bytes)


def copy(array: ArrayLike) -> jax.Array:
    """A copy, in huge pages where that is worth while: a large array of 32 bits a number, on the CPU of a Linux.

    For tables whose rows `embedding.update_rows` is to change where they lie. `fit` begins with such copies; what XLA
    makes by itself is in small pages.

    >>> copy(jnp.arange(3.0)).tolist()
    [0.0, 1.0, 2.0]
    """
    array = jnp.asarray(array)
    (device, *others) = array.devices()
    if others or device.platform != "cpu" or array.nbytes < _WORTH or array.dtype not in (jnp.float32, jnp.int32):
        return jax.device_put(array, array.sharding, may_alias=False)  # which compiles nothing
    return _copied(array)


@jax.jit
def _copied(array):
    # One axis, for all are copied by the same kernel.
    result = jax.ShapeDtypeStruct((array.size,), array.dtype)
    return xla_ffi.call("huge_pages_copy", ((_n_parts, _part),), [result], array.reshape(-1))[0].reshape(array.shape)


@numba.njit(nogil=True, cache=True)
def _n_parts(array, target):
    ask_for(target)
    return (len(array) + _PART - 1) // _PART


@numba.njit(nogil=True, cache=True)
def _part(number, array, target):
    for k in range(number * _PART, min((number + 1) * _PART, len(array))):
        target[k] = array[k]
