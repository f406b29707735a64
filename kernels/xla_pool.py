"""Parts of a kernel on the threads of XLA itself.

A kernel with threads of its own makes a program slower on all cores: XLA's threads stay awake between two of its
operations, as those of the kernel do between two calls, and both kinds take the cores from each other. So a kernel can
be given as passes, whose parts the threads of XLA take from a common queue, as the caller does.

A thread may come late, when all parts are done and the call frame is gone. What it looks at first is a job of its own
memory, which the last one to leave frees, with a gate: past it nobody goes after the caller has closed it, and the
caller waits for those who went in before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.np import arrayobj

from .llvm import I32, I64
from .simd import intrinsic

# Byte offsets in the structs of c_api.h, 64-bit; see `xla_ffi` for what happens where they have moved.
_FRAME_API, _FRAME_CONTEXT = 16, 24
_API_ERROR_CREATE, _API_ERROR_DESTROY, _API_SCHEDULE, _API_NUM_THREADS = 48, 64, 136, 144
_RESOURCE_EXHAUSTED = 8

_USERS, _GATE, _TAKEN, _DONE, _PARTS, _FRAME, _WORDS = range(7)  # of a job, int64 each
_CLOSED = 1 << 32


def _word(builder, address, offset):
    return builder.load(builder.inttoptr(builder.add(address, I64(offset)), I64.as_pointer()))


def _call(builder, frame, function, *words):
    """Calls a function of the API: it takes a struct of its own size, no extension, and such words."""
    struct = cgutils.alloca_once(builder, I64, size=2 + len(words))
    for place, value in enumerate((I64(8 * (2 + len(words))), I64(0), *words)):
        builder.store(value, builder.gep(struct, [I32(place)]))
    kind = ir.FunctionType(I64, [I64.as_pointer()]).as_pointer()
    address = _word(builder, _word(builder, frame, _FRAME_API), function)
    return builder.call(builder.inttoptr(address, kind), [struct])


def _ask(builder, frame, function, *words):
    """Calls a function that begins with the context and may fail; true where it did not."""
    error = _call(builder, frame, function, _word(builder, frame, _FRAME_CONTEXT), *words)
    failed = builder.icmp_signed("!=", error, I64(0))
    with builder.if_then(failed, likely=False):
        _call(builder, frame, _API_ERROR_DESTROY, error)
    return builder.not_(failed)


@intrinsic
def failure(typingctx, frame):
    """The error that XLA raises where a handler returns it."""

    def codegen(context, builder, signature, arguments):
        message = "a kernel of affinax has not run to its end; memory may have run out"
        text = builder.ptrtoint(context.insert_const_string(builder.module, message), I64)
        return _call(builder, arguments[0], _API_ERROR_CREATE, text, I64(_RESOURCE_EXHAUSTED))

    return types.int64(types.int64), codegen


@intrinsic
def _threads(typingctx, frame):
    """How many threads XLA has, 1 where it does not say."""

    def codegen(context, builder, signature, arguments):
        found = cgutils.alloca_once_value(builder, I64(1))
        _ask(builder, arguments[0], _API_NUM_THREADS, builder.ptrtoint(found, I64))
        return builder.load(found)

    return types.int64(types.int64), codegen


@intrinsic
def _schedule(typingctx, frame, task, job):
    """Has a thread of XLA call the function at the address `task` on a job; false where it has no such thread."""

    def codegen(context, builder, signature, arguments):
        return _ask(builder, arguments[0], _API_SCHEDULE, *arguments[1:])

    return types.boolean(types.int64, types.int64, types.int64), codegen


def _external(builder, name, result, *arguments):
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


@intrinsic
def _allocated(typingctx, n_words):
    """Address of so many int64 numbers."""

    def codegen(context, builder, signature, arguments):
        return builder.call(_external(builder, "malloc", I64, I64), [builder.mul(arguments[0], I64(8))])

    return types.int64(types.int64), codegen


@intrinsic
def _free(typingctx, address):
    def codegen(context, builder, signature, arguments):
        builder.call(_external(builder, "free", ir.VoidType(), I64), arguments)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _words(typingctx, address):
    """The numbers of a job, as an array that does not own them."""
    kind = types.Array(types.int64, 1, "C")

    def codegen(context, builder, signature, arguments):
        view = arrayobj.make_array(kind)(context, builder)
        arrayobj.populate_array(
            view,
            data=builder.inttoptr(arguments[0], view.data.type),
            shape=cgutils.pack_array(builder, [I64(_WORDS)], I64),
            strides=cgutils.pack_array(builder, [I64(8)], I64),
            itemsize=I64(8),
            meminfo=None,
        )
        return view._getvalue()

    return kind(types.int64), codegen


@intrinsic
def _add(typingctx, job, word, change):
    """Adds to a number of a job, at once for all threads and in order with what else they write; its value before."""

    def codegen(context, builder, signature, arguments):
        job, word, change = arguments
        place = builder.inttoptr(builder.add(job, builder.mul(word, I64(8))), I64.as_pointer())
        return builder.atomic_rmw("add", place, change, "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), codegen


@intrinsic
def _let_others_run(typingctx):
    def codegen(context, builder, signature, arguments):
        if os.name == "posix":
            builder.call(_external(builder, "sched_yield", I32), [])
        return context.get_dummy_value()

    return types.void(), codegen


@numba.njit
def _leave(job):
    if _add(job, _USERS, -1) == 1:
        _free(job)


def shared(count: Any, part: Any, read: Any) -> tuple[Any, Any]:
    """A pass over the parts of a kernel, shared among the caller and the threads of XLA.

    Args:
        count: `count(*arrays)`, an `njit` function: how many parts there are.
        part: `part(number, *arrays)`: does one.
        read: `read(frame)`: the arrays.

    Returns:
        An `njit` function of the call frame, which says whether all was done, and what has to be kept alive for it.
    """

    @numba.njit
    def take(job, frame):
        arrays = read(frame)
        n = _words(job)[_PARTS]
        while True:
            number = _add(job, _TAKEN, 1)
            if number >= n:
                break
            part(number, *arrays)
            _add(job, _DONE, 1)

    @numba.njit
    def work(job, frame):
        try:  # noqa: SIM105 - Numba knows no other way
            take(job, frame)
        except Exception:
            pass  # the part that raised is not done, which the caller sees

    def help_with(job):
        if _add(job, _GATE, 1) < _CLOSED:
            work(job, _words(job)[_FRAME])
        _add(job, _GATE, -1)
        _leave(job)

    task: Any = numba.cfunc(types.void(types.int64))(help_with)
    address = int(task.address)

    @numba.njit
    def run(frame):
        parts = count(*read(frame))
        helpers = max(0, min(_threads(frame), parts) - 1)
        job = _allocated(_WORDS)
        if job == 0:
            return False
        words = _words(job)
        words[_USERS], words[_GATE], words[_TAKEN], words[_DONE] = helpers + 1, 0, 0, 0
        words[_PARTS], words[_FRAME] = parts, frame
        for _ in range(helpers):
            if not _schedule(frame, address, job):
                _add(job, _USERS, -1)
        work(job, frame)
        _add(job, _GATE, _CLOSED)
        while _add(job, _GATE, 0) != _CLOSED:
            _let_others_run()
        done = words[_DONE] == parts
        _leave(job)
        return done

    return run, task


def in_turn(first: Callable[..., Any], then: Callable[..., Any]) -> Any:
    """Two functions of the call frame as one, that goes on where the first was done."""

    @numba.njit
    def both(frame):
        return first(frame) and then(frame)

    return both
