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


def negatives(seed, indptr, indices, rows, columns, pool_of, cumulative, *, per_row: int):
    """The Numba implementation of `sampling.NEGATIVES`."""
    result = jax.ShapeDtypeStruct((pool_of.shape[0], per_row), jnp.int32)
    arguments = seed, indptr, indices, rows, columns, pool_of, cumulative, jnp.zeros(0, jnp.uint32)
    (found,) = xla_ffi.call("negatives", _negatives, [result], *arguments)
    return found


def stages(seed, indptr, indices, *, n_columns: int, blocks: int):
    """The Numba implementation of `sampling.STAGES`."""
    results = [jax.ShapeDtypeStruct((n,), jnp.int32) for n in (indices.shape[0], blocks * blocks + 1, n_columns)]
    numbers = jnp.full(1, blocks, jnp.int32)
    order, ends, columns = xla_ffi.call("stages", _stages, results, seed, indptr, indices, numbers)
    return order, ends, columns


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
def _groups(state, sizes, total, n_groups, order):
    """Writes a random order; returns the group of each member: what comes before it, in parts of equal size."""
    group = np.empty(len(sizes), np.int32)
    _permute(state, order)
    part, before = max(-(-total // n_groups), 1), 0
    for member in order:
        group[member] = min(before // part, n_groups - 1)
        before += sizes[member]
    return group


@numba.njit(cache=True, nogil=True)
def _wrapped(stage, blocks):
    """A stage counted from any other, without the price of a division."""
    return stage + blocks if stage < 0 else stage


@numba.njit(parallel=True, nogil=True, cache=True)
def _stages(seed, indptr, indices, numbers, order, ends, columns):
    n_rows, blocks = len(indptr) - 1, numbers[0]
    rows = np.empty(n_rows, np.int32)
    row_group = _groups(_start(seed, 0), np.diff(indptr), len(indices), blocks, rows)
    column_group = _groups(_start(seed, 1), np.ones(len(columns), np.int32), len(columns), blocks, columns)
    first_row = np.searchsorted(row_group[rows], np.arange(blocks + 1))
    counts = np.zeros((blocks, blocks), np.int64)  # entries of each row group in each stage
    queue = np.zeros(2, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            group = simd.take_number(queue, 0)
            if group >= blocks:
                break
            for row in rows[first_row[group] : first_row[group + 1]]:
                for k in range(indptr[row], indptr[row + 1]):
                    counts[group, _wrapped(column_group[indices[k]] - group, blocks)] += 1
    ends[0] = 0
    for stage in range(blocks):
        for group in range(blocks):
            block = stage * blocks + group
            ends[block + 1] = ends[block] + counts[group, stage]
            counts[group, stage] = ends[block]
    for _worker in numba.prange(WORKERS):
        while True:
            group = simd.take_number(queue, 1)
            if group >= blocks:
                break
            for row in rows[first_row[group] : first_row[group + 1]]:
                for k in range(indptr[row], indptr[row + 1]):
                    stage = _wrapped(column_group[indices[k]] - group, blocks)
                    order[counts[group, stage]] = k
                    counts[group, stage] += 1


@numba.njit(cache=True, nogil=True)
def _has(indices, low, high, column):
    """Whether an ascending run of indices holds a column: quarter by quarter, three looks at once, few branches."""
    length = high - low
    while length > 3:
        quarter = length >> 2
        passed = np.int64(indices[low + quarter] <= column)
        passed += np.int64(indices[low + 2 * quarter] <= column)
        passed += np.int64(indices[low + 3 * quarter] <= column)
        low += passed * quarter
        length = length - 3 * quarter if passed == 3 else quarter
    found = False
    for k in range(low, low + length):
        found |= indices[k] == column
    return found


def marks_of_pairs(indptr: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """A bit for each pair of a row and a column, at a place that chance decides; of 8 bits a pair most stay 0.

    Where it is 0 the pair is not there, which costs one look: a search in the row costs as many as its length has
    digits, each of which waits for the one before.
    """
    marks = np.zeros(1 << max(0, int(8 * len(indices) - 1).bit_length() - 5), np.uint32)
    _mark(indptr, indices, marks)
    return marks


@numba.njit(cache=True, nogil=True)
def _mark(indptr, indices, marks):
    for row in range(len(indptr) - 1):
        for column in indices[indptr[row] : indptr[row + 1]]:
            word, bit = _mark_of(row, column, marks)
            marks[word] |= bit


@numba.njit(cache=True, nogil=True)
def _mark_of(row, column, marks):
    """The word and the bit of a pair."""
    place = _mix(np.uint64(row) << np.uint64(32) | np.uint64(column)) & np.uint64(32 * len(marks) - 1)
    return np.int64(place >> np.uint64(5)), np.uint32(1) << np.uint32(place & np.uint64(31))


@numba.njit(parallel=True, nogil=True, cache=True)
def _negatives(seed, indptr, indices, rows, columns, pool_of, cumulative, marked, found):
    width, n_lines = columns.shape[1], len(found)
    in_order = len(rows) < n_lines  # a line for each positive
    n_words = (max(columns.max(), indices.max() if len(indices) else 0) >> 6) + 1 if in_order else 0
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        marks = np.zeros(0, np.uint64)  # a bit for each column, set in those of the row
        while True:
            first = simd.take_number(queue, 0) * _CHUNK
            if first >= n_lines:
                break
            begin = end = np.int64(-1)
            if in_order and len(marks) == 0:
                marks = np.zeros(n_words, np.uint64)
            for k in range(first, min(first + _CHUNK, n_lines)):
                if not in_order:
                    begin, end = np.int64(indptr[rows[k]]), np.int64(indptr[rows[k] + 1])
                elif k >= end:
                    _clear(marks, indices, begin, end)
                    row = np.searchsorted(indptr, k, side="right") - 1
                    begin, end = np.int64(indptr[row]), np.int64(indptr[row + 1])
                    for column in indices[begin:end]:
                        marks[column >> 6] |= np.uint64(1) << np.uint64(column & 63)
                pool, state = pool_of[k], _start(seed, k)
                for negative in range(found.shape[1]):
                    found[k, negative] = -1
                    for _try in range(TRIES):
                        state += np.uint64(0x9E3779B97F4A7C15)
                        if len(cumulative):
                            part = np.float32(_mix(state) >> np.uint64(40)) * np.float32(2.0**-24)
                            place = np.searchsorted(cumulative[pool], part, side="right")
                        else:
                            place = _below(_mix(state), width)
                        column = columns[pool, place] if place < width else np.int32(-1)
                        if column < 0:
                            continue
                        if in_order:
                            taken = (marks[column >> 6] >> np.uint64(column & 63)) & np.uint64(1) != 0
                        else:
                            taken = True
                            if len(marked):
                                word, bit = _mark_of(rows[k], column, marked)
                                taken = marked[word] & bit != 0
                            taken = taken and _has(indices, begin, end, column)
                        if not taken:
                            found[k, negative] = column
                            break
            _clear(marks, indices, begin, end)


@numba.njit(cache=True, nogil=True)
def _others(seed, indptr, indices, rows, entries, found):
    length = found.shape[1]
    for line in range(len(rows)):
        begin, end, own = np.int64(indptr[rows[line]]), np.int64(indptr[rows[line] + 1]), np.int64(entries[line])
        found[line] = -1
        if end - begin <= length + 1:
            place = 0
            for entry in range(begin, end):
                if entry != own:
                    found[line, place] = indices[entry]
                    place += 1
            continue
        state = _start(seed, line)
        for place in range(length):
            state += np.uint64(0x9E3779B97F4A7C15)
            entry = begin + _below(_mix(state), end - begin - 1)
            found[line, place] = indices[entry + np.int64(entry >= own)]


@numba.njit(cache=True, nogil=True)
def _clear(marks, indices, begin, end):
    if len(marks):
        for k in range(begin, end):
            marks[indices[k] >> 6] = 0
