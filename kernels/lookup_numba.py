"""`kernels.embedding` on CPU, a row an id: plain copies, and gradients by one pass that parts ids by their rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import huge_pages, simd, xla_ffi
from .entries_by_row import AHEAD, LINE
from .threads import WORKERS

_IDS = 512  # taken from the queue at a time
_BLOCK = 1 << 13  # ids that are worth a thread of their own
_PARTS = 64  # of the rows, by the last bits of their numbers: a field of few ids has its rows side by side
_ZEROS = 1 << 14  # numbers set to zero at a time, a multiple of 8


def lookup(table, ids):
    """The Numba implementation of `embedding.LOOKUP`."""
    results = [
        jax.ShapeDtypeStruct((ids.shape[0], table.shape[1]), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ]
    rows, status = xla_ffi.call("embedding_lookup", _lookup, results, table, ids)
    return xla_ffi.or_nan(rows, status)


@numba.njit(parallel=True, nogil=True, cache=True)
def _lookup(table, ids, rows, status):
    n, last = len(ids), len(ids) - 1
    n_rows, width = table.shape
    source, target = table.reshape(-1), rows.reshape(-1)
    whole = width // simd.LANES * simd.LANES
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            first = simd.take_number(queue, 0) * _IDS
            if first >= n:
                break
            for k in range(first, min(first + _IDS, n)):
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
    status[0] = 1


def lookup_gradient(cotangent, ids, *, n_rows: int, dtype):
    """The Numba implementation of `embedding.LOOKUP_GRADIENT`."""
    results = [
        jax.ShapeDtypeStruct((n_rows, cotangent.shape[1]), dtype),
        jax.ShapeDtypeStruct(ids.shape, jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ]
    gradient, _, status = xla_ffi.call("embedding_lookup_gradient", _lookup_gradient, results, cotangent, ids)
    return xla_ffi.or_nan(gradient, status)


@numba.njit(parallel=True, nogil=True, cache=True)
def _lookup_gradient(cotangent, ids, gradient, scratch, status):
    n = len(ids)
    n_rows, width = gradient.shape
    huge_pages.ask_for(gradient)
    source, target = cotangent.reshape(-1), gradient.reshape(-1)
    n_blocks = max(1, min(16, n // _BLOCK))
    size = (n + n_blocks - 1) // n_blocks
    counts = np.zeros((n_blocks, _PARTS), np.int64)
    n_zeros = (len(target) + _ZEROS - 1) // _ZEROS
    queue = np.zeros(2, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            task = simd.take_number(queue, 0)
            if task >= n_blocks + n_zeros:
                break
            if task < n_blocks:
                _count(ids, task * size, min((task + 1) * size, n), n_rows, counts[task])
            else:
                first = (task - n_blocks) * _ZEROS
                target[first : first + _ZEROS] = 0
    starts = np.empty(_PARTS + 1, np.int64)
    before = 0
    for part in range(_PARTS):
        starts[part] = before
        for block in range(n_blocks):
            count = counts[block, part]
            counts[block, part] = before
            before += count
    starts[_PARTS] = before
    for block in numba.prange(n_blocks):
        _share_out(ids, np.int64(block) * size, min((np.int64(block) + 1) * size, n), n_rows, counts[block], scratch)
    for _worker in numba.prange(WORKERS):
        while True:
            part = simd.take_number(queue, 1)
            if part >= _PARTS:
                break
            _add_rows(source, ids, scratch, starts[part], starts[part + 1], width, target)
    status[0] = 1


@numba.njit(cache=True, nogil=True)
def _count(ids, first, end, n_rows, count):
    for k in range(first, end):
        if 0 <= ids[k] < n_rows:
            count[ids[k] & (_PARTS - 1)] += 1


@numba.njit(cache=True, nogil=True)
def _share_out(ids, first, end, n_rows, place, scratch):
    """Numbers of the ids of each part, in order."""
    for k in range(first, end):
        if 0 <= ids[k] < n_rows:
            part = ids[k] & (_PARTS - 1)
            scratch[place[part]] = k
            place[part] += 1


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
