"""`kernels.embedding.update_rows` on CPU: in place, so that a step costs what its rows do, not what the table does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .embedding_numba import one_each
from .embedding_reference import ADAGRAD_EPSILON, ADAM_DECAYS, ADAM_EPSILON
from .entries_by_row import ROW, RUN, add_entries, first_of_run, sort_by_row
from .threads import WORKERS

_KINDS = {"sgd": 0, "adagrad": 1, "rowwise_adagrad": 2, "adam": 3}
_TINY, _SMALL = np.float32(ADAGRAD_EPSILON), np.float32(ADAM_EPSILON)
_KEEP, _KEEP_SQUARE = (np.float32(decay) for decay in ADAM_DECAYS)
_ADD, _ADD_SQUARE = (np.float32(1 - decay) for decay in ADAM_DECAYS)
_LOG_KEEP, _LOG_KEEP_SQUARE = (float(np.log(decay)) for decay in ADAM_DECAYS)
_ONE = np.float32(1)


def update_rows(table, ids, gradients, learning_rate, *slots, optimizer: str):
    """The Numba implementation of `embedding.UPDATE`: of bags of one."""
    return update_bags(table, *one_each(ids), gradients, learning_rate, *slots, optimizer=optimizer)


def update_bags(table, indptr, ids, weights, gradients, learning_rate, *slots, optimizer: str):
    """The Numba implementation of `embedding.UPDATE_BAGS`."""
    # One kernel for all, for few are compiled; what an optimizer does not remember is an array of nothing. None of the
    # state is reshaped here: XLA would copy it.
    counts, *moments = slots if optimizer == "adam" else (jnp.zeros(0, jnp.int32), *slots)
    nothing = jnp.zeros([1] * (table.ndim - 1) + [0], jnp.float32)
    state = table, counts, *moments, *[nothing] * (2 - len(moments))
    numbers = jnp.stack([jnp.float32(_KINDS[optimizer]), learning_rate])
    results = [
        *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in state),
        jax.ShapeDtypeStruct((5 * ids.shape[0],), jnp.int32),
    ]
    arguments = *state, indptr, ids, weights, gradients, numbers
    moved, counts, first, second, _ = xla_ffi.call(
        "embedding_update_rows", _update_rows, results, *arguments, input_output_aliases={k: k for k in range(4)}
    )
    new_slots = (counts, first, second) if optimizer == "adam" else (first, second)[: len(slots)]
    return moved, *new_slots


# Numba would look for a division by 0 at each number, which keeps a loop from being vector code.
@numba.njit(parallel=True, nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def _update_rows(
    _0,
    _1,
    _2,
    _3,
    indptr,
    ids,
    weights,
    gradients,
    numbers,
    table,
    counts,
    first,
    second,
    scratch,
):
    n_rows, n, kind, rate = len(table), len(ids), np.int64(numbers[0]), numbers[1]
    width = table.size // max(n_rows, 1)
    # Rows of numbers, whatever the arrays' axes.
    table, gradients = table.reshape(n_rows, width), gradients.reshape(len(gradients), width)
    first = first.reshape(len(first), first.size // max(len(first), 1))
    second = second.reshape(len(second), second.size // max(len(second), 1))
    # Of what an optimizer does not remember nothing is asked for: its rows have no numbers.
    needed = table, first, second, counts.view(np.float32).reshape(len(counts), min(len(counts), 1))
    entries, bag_of = sort_by_row(indptr, ids, n_rows, scratch)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        begin = simd.take_number(queue, 0) * RUN
        total = np.empty(width, np.float32)
        while begin < n:
            k = first_of_run(entries, begin)
            while k < min(begin + RUN, n) and np.int64(entries[k] >> ROW) < n_rows:
                row = np.int64(entries[k] >> ROW)
                total[:] = 0
                k = add_entries(entries, k, bag_of, weights, gradients, total, needed)
                target = table[row]
                if kind == 0:
                    for c in range(width):
                        target[c] -= rate * total[c]
                elif kind == 1:
                    squares = first[row]
                    for c in range(width):
                        square = squares[c] + total[c] * total[c]
                        squares[c] = square
                        target[c] -= rate * total[c] / np.sqrt(square + _TINY)
                elif kind == 2:
                    square = np.float32(0)
                    for c in range(width):
                        square += total[c] * total[c]
                    first[row, 0] += square / np.float32(width)
                    scale = rate / np.sqrt(first[row, 0] + _TINY)
                    for c in range(width):
                        target[c] -= scale * total[c]
                else:
                    counts[row] += 1
                    mean, square = first[row], second[row]
                    scale = rate / np.float32(-np.expm1(counts[row] * _LOG_KEEP))
                    correct = _ONE / np.float32(-np.expm1(counts[row] * _LOG_KEEP_SQUARE))
                    for c in range(width):
                        mean[c] = _KEEP * mean[c] + _ADD * total[c]
                        square[c] = _KEEP_SQUARE * square[c] + _ADD_SQUARE * total[c] * total[c]
                        target[c] -= scale * mean[c] / (np.sqrt(square[c] * correct) + _SMALL)
            begin = simd.take_number(queue, 0) * RUN
