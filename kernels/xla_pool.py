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

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.np import arrayobj

from .llvm import I32, I64, intrinsic

# Byte offsets in the structs of c_api.h, 64-bit; see `xla_ffi` for what happens where they have moved.
_FRAME_API, _FRAME_CONTEXT = 16, 24
_API_ERROR_CREATE, _API_ERROR_DESTROY, _API_SCHEDULE, _API_NUM_THREADS = 48, 64, 136, 144
_RESOURCE_EXHAUSTED = 8

_USERS, _GATE, _TAKEN, _DONE, _PARTS, _FRAME, _PART, _WORDS = range(8)  # of a job, int64 each
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
def load_int64(typingctx, address):
    """The number there."""

    def codegen(context, builder, signature, arguments):
        return _word(builder, arguments[0], 0)

    return types.int64(types.int64), codegen


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


@intrinsic
def _invoke(typingctx, task, job):
    """Calls the function at the address `task` on a job."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [I64]).as_pointer()
        builder.call(builder.inttoptr(arguments[0], kind), [arguments[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def _enter(typingctx, entry, frame, number):
    """Calls an entry of `xla_entries`."""

    def codegen(context, builder, signature, arguments):
        entry, *given = arguments
        return builder.call(builder.inttoptr(entry, ir.FunctionType(I64, [I64, I64]).as_pointer()), given)

    return types.int64(types.int64, types.int64, types.int64), codegen


@numba.njit(cache=True)
def _leave(job):
    if _add(job, _USERS, -1) == 1:
        _free(job)


@numba.njit(cache=True)
def _share(frame, parts, part, task):
    """Has all parts done by the caller and the threads of XLA; true if they are."""
    helpers = max(0, min(_threads(frame), parts) - 1)
    job = _allocated(_WORDS)
    if job == 0:
        return False
    words = _words(job)
    words[_USERS], words[_GATE], words[_TAKEN], words[_DONE] = helpers + 2, 0, 0, 0
    words[_PARTS], words[_FRAME], words[_PART] = parts, frame, part
    for _ in range(helpers):
        if not _schedule(frame, task, job):
            _add(job, _USERS, -1)
    _invoke(task, job)
    _add(job, _GATE, _CLOSED)
    while _add(job, _GATE, 0) != _CLOSED:
        _let_others_run()
    done = words[_DONE] == parts
    _leave(job)
    return done


@numba.njit(cache=True)
def run(frame, table):
    """Takes passes over the parts of a kernel, one after the other; true if all was done.

    Args:
        frame: Of the call.
        table: Where int64 numbers are: where `work` is; how many passes; of each two entries (see `xla_entries`), of
            `count(*arrays)`, the number of parts, and of `part(number, *arrays)`, which does one. In place of the first
            0: then the second, of the arrays alone, does all.
    """
    for k in range(load_int64(table + 8)):
        count, part = load_int64(table + 16 * k + 16), load_int64(table + 16 * k + 24)
        if count == 0:
            done = _enter(part, frame, 0) == 0
        else:
            parts = _enter(count, frame, 0)
            done = parts >= 0 and _share(frame, parts, part, load_int64(table))
        if not done:
            return False
    return True


def work(job):
    """What a thread does of a job."""
    if _add(job, _GATE, 1) < _CLOSED:
        words = _words(job)
        while True:
            number = _add(job, _TAKEN, 1)
            if number >= words[_PARTS]:
                break
            if _enter(words[_PART], words[_FRAME], number) >= 0:
                _add(job, _DONE, 1)
    _add(job, _GATE, -1)
    _leave(job)
