"""`kernels.co_rated` on CPU: the four sums of a pair side by side, one row of them a thread."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .packed import pack, take_best
from .threads import WORKERS

_ROWS = 4  # taken from the queue at a time
_SIMILARITIES = {"cosine": 0, "msd": 1}


def search_rows(*arguments, k: int, similarity: str):
    """The Numba implementation of `co_rated.OP`."""
    batch = arguments[-2].shape[0]
    results = [
        jax.ShapeDtypeStruct((batch, k), jnp.int32),
        jax.ShapeDtypeStruct((batch, k), jnp.float32),
    ]
    kind = jnp.full(1, _SIMILARITIES[similarity], jnp.int32)
    return tuple(xla_ffi.call("co_rated", _search, results, *arguments, kind))


@numba.njit(parallel=True, nogil=True, cache=True)
def _search(indptr, indices, values, t_indptr, t_indices, t_values, rows, numbers, kind, ids, scores):
    n_rows, shrink, min_support = len(indptr) - 1, numbers[0], numbers[1]
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        first = simd.take_number(queue, 0) * _ROWS
        width = n_rows if first < len(rows) else 0  # whoever finds nothing left to do takes no memory
        sums, met, packed = np.zeros((width, 4), np.float32), np.empty(width, np.int32), np.empty(width, np.int64)
        bits = sums.view(np.int32)
        while first < len(rows):
            for q in range(first, min(first + _ROWS, len(rows))):
                row = rows[q]
                begin, end = indptr[row], indptr[row + 1]
                n_met = _add_shared(begin, end, indices, values, t_indptr, t_indices, t_values, kind[0] == 1, sums, met)
                ids[q] = -1
                scores[q] = -np.inf
                n_found = 0
                for place in range(n_met):
                    j = met[place]
                    n, a, xx, yy = sums[j]
                    sums[j] = 0
                    if j == row or n < min_support:
                        continue
                    if kind[0] == 0:
                        below = np.sqrt(xx) * np.sqrt(yy)
                        score = a / below if below > 0 else np.float32(0)
                    else:
                        score = n / (n + a)
                    if shrink > 0:
                        score *= (n - np.float32(1)) / (n - np.float32(1) + shrink)
                    if score > 0:
                        sums[j, 0] = score
                        packed[n_found] = pack(bits[j, 0], j)
                        sums[j, 0] = 0
                        n_found += 1
                take_best(packed, n_found, ids[q], scores[q])
            first = simd.take_number(queue, 0) * _ROWS


@numba.njit(cache=True, nogil=True)
def _add_shared(begin, end, indices, values, t_indptr, t_indices, t_values, differences, sums, met):
    """Adds `1, x y, x^2, y^2` of every column that another row shares; returns how many rows `met` then lists.

    With `differences` it adds `1, (x - y)^2`.
    """
    step, t_step = np.int64(len(values) > 1), np.uint32(len(t_values) > 1)
    n_met = 0
    for entry in range(begin, end):
        column, x = indices[entry], values[entry * step]
        for place in range(np.uint32(t_indptr[column]), np.uint32(t_indptr[column + 1])):
            other, y = np.uint32(t_indices[place]), t_values[place * t_step]
            if sums[other, 0] == 0:
                met[n_met] = other
                n_met += 1
            sums[other, 0] += np.float32(1)
            if differences:
                sums[other, 1] += (x - y) * (x - y)
            else:
                sums[other, 1] += x * y
                sums[other, 2] += x * x
                sums[other, 3] += y * y
    return n_met
