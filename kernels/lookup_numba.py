"""`kernels.embedding` on CPU, a row an id: plain copies, and gradients by one pass that parts ids by their rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import huge_pages, simd, xla_ffi
from .entries_by_row import AHEAD, LINE

_IDS = 512  # in a part
_BLOCK = 1 << 13  # ids that are worth a thread of their own
_PARTS = 64  # of the rows, by the last bits of their numbers: a field of few ids has its rows side by side
_ZEROS = 1 << 14  # numbers set to zero at a time, a multiple of 8


def lookup(table, ids):
    """The Numba implementation of `embedding.LOOKUP`."""
    result = jax.ShapeDtypeStruct((ids.shape[0], table.shape[1]), jnp.float32)
    (rows,) = xla_ffi.call("embedding_lookup", ((_n_lookups, _lookup),), [result], table, ids)
    return rows


@numba.njit(cache=True, nogil=True)
def _n_lookups(table, ids, rows):
    return (len(ids) + _IDS - 1) // _IDS


@numba.njit(cache=True, nogil=True)
def _lookup(number, table, ids, rows):
    n, last = len(ids), len(ids) - 1
    n_rows, width = table.shape
    source, target = table.reshape(-1), rows.reshape(-1)
    whole = width // simd.LANES * simd.LANES
    for k in range(number * _IDS, min((number + 1) * _IDS, n)):
        ahead = np.int64(ids[min(k + AHEAD, last)]) * width
        for place in range(0, width, LINE):
            simd.prefetch(source, ahead + place)
        row, place = np.int64(ids[k]), k * width
        if row < 0 or row >= n_rows:
            target[place : place + width] = 0 if row < 0 else np.nan
            continue
        simd.copy(source, row * width, target, place, whole)
        for c in range(whole, width):
            target[place + c] = source[row * width + c]


def lookup_gradient(cotangent, ids, *, n_rows: int, dtype):
    """The Numba implementation of `embedding.LOOKUP_GRADIENT`."""
    blocks = max(1, min(16, ids.shape[0] // _BLOCK))
    results = [
        jax.ShapeDtypeStruct((n_rows, cotangent.shape[1]), dtype),
        jax.ShapeDtypeStruct(ids.shape, jnp.int32),
        jax.ShapeDtypeStruct((blocks, _PARTS), jnp.int32),
        jax.ShapeDtypeStruct((_PARTS + 1,), jnp.int32),
    ]
    gradient, *_ = xla_ffi.call("embedding_lookup_gradient", _GRADIENT, results, cotangent, ids)
    return gradient


@numba.njit(cache=True, nogil=True)
def _n_counts(cotangent, ids, gradient, entries, counts, starts):
    huge_pages.ask_for(gradient)
    return len(counts) + (gradient.size + _ZEROS - 1) // _ZEROS


@numba.njit(cache=True, nogil=True)
def _count(number, cotangent, ids, gradient, entries, counts, starts):
    """How many ids of a block are of each part; or a stretch of the gradient set to zero."""
    if number >= len(counts):
        first = (number - len(counts)) * _ZEROS
        gradient.reshape(-1)[first : first + _ZEROS] = 0
        return
    count, size = counts[number], (len(ids) + len(counts) - 1) // len(counts)
    count[:] = 0
    for k in range(number * size, min((number + 1) * size, len(ids))):
        if 0 <= ids[k] < len(gradient):
            count[ids[k] & (_PARTS - 1)] += 1


@numba.njit(cache=True, nogil=True)
def _once(cotangent, ids, gradient, entries, counts, starts):
    return 1


@numba.njit(cache=True, nogil=True)
def _place(number, cotangent, ids, gradient, entries, counts, starts):
    """Where each part begins, and each block in it."""
    before = 0
    for part in range(_PARTS):
        starts[part] = before
        for block in range(len(counts)):
            count = counts[block, part]
            counts[block, part] = before
            before += count
    starts[_PARTS] = before


@numba.njit(cache=True, nogil=True)
def _n_blocks(cotangent, ids, gradient, entries, counts, starts):
    return len(counts)


@numba.njit(cache=True, nogil=True)
def _share_out(number, cotangent, ids, gradient, entries, counts, starts):
    """Numbers of the ids of each part, in order."""
    place, size = counts[number], (len(ids) + len(counts) - 1) // len(counts)
    for k in range(number * size, min((number + 1) * size, len(ids))):
        if 0 <= ids[k] < len(gradient):
            part = ids[k] & (_PARTS - 1)
            entries[place[part]] = k
            place[part] += 1


@numba.njit(cache=True, nogil=True)
def _n_parts(cotangent, ids, gradient, entries, counts, starts):
    return _PARTS


@numba.njit(cache=True, nogil=True)
def _add_part(number, cotangent, ids, gradient, entries, counts, starts):
    width = gradient.shape[1]
    first, end = np.int64(starts[number]), np.int64(starts[number + 1])
    _add_rows(cotangent.reshape(-1), ids, entries, first, end, width, gradient.reshape(-1))


@numba.njit(cache=True, nogil=True)
def _add_rows(source, ids, scratch, first, end, width, target):
    whole = width // simd.LANES * simd.LANES
    for k in range(first, end):
        later = np.int64(scratch[min(k + AHEAD, end - 1)])
        there = np.int64(ids[later]) * width
        for c in range(0, width, LINE):
            simd.prefetch(source, later * width + c)
            simd.prefetch(target, there + c)
        entry = np.int64(scratch[k])
        place, row = entry * width, np.int64(ids[entry]) * width
        simd.axpy(np.float32(1), source, place, target, row, whole)
        for c in range(whole, width):
            target[row + c] += source[place + c]


_GRADIENT = ((_n_counts, _count), (_once, _place), (_n_blocks, _share_out), (_n_parts, _add_part))
