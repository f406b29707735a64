"""Large results in pages of 2 MiB, which Linux hands out in half the time that their small ones take."""

from __future__ import annotations

import sys

import numba
from llvmlite import ir
from numba.core import types

from .llvm import I32, I64, addresses, intrinsic

_PAGE = 1 << 12
_ADVICE = 14  # MADV_HUGEPAGE of Linux
_ON_LINUX = sys.platform == "linux"
_WORTH = 1 << 24  # bytes; what is smaller comes from memory that is in use already


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
