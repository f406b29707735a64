"""`kernels.sampling` on CPU: splitmix64, one stream for each sample, so that threads do not change what is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .threads import WORKERS

TRIES = 64
_CHUNK = 4096  # rows taken from the queue at a time


def permutation(seed, *, n: int):
    """The Numba implementation of `sampling.PERMUTATION`."""
    (order,) = xla_ffi.call("permutation", _permutation, [jax.ShapeDtypeStruct((n,), jnp.int32)], seed)
    return order


def negatives(seed, indptr, indices, rows, cumulative, *, n_columns: int, per_row: int):
    """The Numba implementation of `sampling.NEGATIVES`."""
    result = jax.ShapeDtypeStruct((rows.shape[0], per_row), jnp.int32)
    numbers = jnp.full(1, n_columns, jnp.int32)
    (found,) = xla_ffi.call("negatives", _negatives, [result], seed, indptr, indices, rows, cumulative, numbers)
    return found


def stages(seed, indptr, indices, *, n_columns: int, blocks: int):
    """The Numba implementation of `sampling.STAGES`."""
    results = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in (indices.shape[0], blocks * blocks + 1)]
    numbers = jnp.asarray([n_columns, blocks], jnp.int32)
    order, ends = xla_ffi.call("stages", _stages, results, seed, indptr, indices, numbers)
    return order, ends


@numba.njit(cache=True, nogil=True)
def _start(seed, stream):
    """State of the generator for one stream of a seed, two 32-bit words."""
    state = (np.uint64(seed[0]) << np.uint64(32)) | np.uint64(seed[1])
    state += np.uint64(stream) * np.uint64(0xD1342543DE82EF95)
    return _mix(state)


@numba.njit(cache=True, nogil=True)
def _mix(state):
    """A well mixed number from a state (Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators")."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _below(number, n):
    """A number in `[0, n)`, n at most 2**31, from the high bits of a random one."""
    return np.int64(((number >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@numba.njit(cache=True, nogil=True)
def _permutation(seed, order):
    _permute(_start(seed, 0), order)


@numba.njit(cache=True, nogil=True)
def _permute(state, order):
    for k in range(len(order)):
        order[k] = k
    for k in range(len(order) - 1, 0, -1):
        state += np.uint64(0x9E3779B97F4A7C15)
        other = _below(_mix(state), k + 1)
        order[k], order[other] = order[other], order[k]


@numba.njit(cache=True, nogil=True)
def _groups(state, sizes, total, n_groups):
    """A random order, and the group of each member: what comes before it, in parts of equal size."""
    order, group = np.empty(len(sizes), np.int32), np.empty(len(sizes), np.int32)
    _permute(state, order)
    part, before = max(-(-total // n_groups), 1), 0
    for member in order:
        group[member] = min(before // part, n_groups - 1)
        before += sizes[member]
    return order, group


@numba.njit(cache=True, nogil=True)
def _stages(seed, indptr, indices, numbers, order, ends):
    n_rows, n_columns, blocks = len(indptr) - 1, numbers[0], numbers[1]
    lengths, counts = np.diff(indptr), np.zeros(n_columns, np.int32)
    for column in indices:
        counts[column] += 1
    rows, row_group = _groups(_start(seed, 0), lengths, len(indices), blocks)
    _, column_group = _groups(_start(seed, 1), counts, len(indices), blocks)
    ends[:] = 0
    for row in range(n_rows):
        for k in range(indptr[row], indptr[row + 1]):
            ends[(column_group[indices[k]] - row_group[row]) % blocks * blocks + row_group[row] + 1] += 1
    for block in range(blocks * blocks):
        ends[block + 1] += ends[block]
    place = ends[:-1].copy()
    for row in rows:
        for k in range(indptr[row], indptr[row + 1]):
            block = (column_group[indices[k]] - row_group[row]) % blocks * blocks + row_group[row]
            order[place[block]] = k
            place[block] += 1


@numba.njit(cache=True, nogil=True)
def _has(indices, low, high, column):
    """Whether an ascending run of indices holds a column, by bisection."""
    end = high
    while low < high:
        middle = (low + high) // 2
        if indices[middle] < column:
            low = middle + 1
        else:
            high = middle
    return low < end and indices[low] == column


@numba.njit(parallel=True, nogil=True, cache=True)
def _negatives(seed, indptr, indices, rows, cumulative, numbers, found):
    n_columns = numbers[0]
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            first = simd.take_number(queue, 0) * _CHUNK
            if first >= len(rows):
                break
            for k in range(first, min(first + _CHUNK, len(rows))):
                begin, end = np.int64(indptr[rows[k]]), np.int64(indptr[rows[k] + 1])
                state = _start(seed, k)
                for place in range(found.shape[1]):
                    found[k, place] = -1
                    for _try in range(TRIES):
                        state += np.uint64(0x9E3779B97F4A7C15)
                        if len(cumulative):
                            part = np.float32(_mix(state) >> np.uint64(40)) * np.float32(2.0**-24)
                            column = min(np.searchsorted(cumulative, part, side="right"), n_columns - 1)
                        else:
                            column = _below(_mix(state), n_columns)
                        if not _has(indices, begin, end, column):
                            found[k, place] = column
                            break
