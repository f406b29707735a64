"""`kernels.sparse_top_k` on CPU: one row of scores a thread, summed where the entries lead, then searched."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .selection import first_places, select, sort_best_first
from .threads import WORKERS

_ROWS = 16  # taken from the queue at a time
_SIMILARITIES = {"product": 0, "shrunk": 1, "jaccard": 2}


def search_rows(*arguments, k: int, similarity: str):
    """The Numba implementation of `sparse_top_k.OP`."""
    *others, shrink, seen_indptr, seen_indices, seen_rows, exclude, among, allow = arguments
    batch = seen_rows.shape[0]
    results = [
        jax.ShapeDtypeStruct((batch, k), jnp.int32),
        jax.ShapeDtypeStruct((batch, k), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ]
    # Sorted, so that one pointer walks through it.
    exclude = jnp.sort(exclude, axis=1)
    kind = jnp.full(1, _SIMILARITIES[similarity], jnp.int32)
    masks = (seen_indptr, seen_indices, seen_rows, exclude, among, allow)
    ids, scores, status = xla_ffi.call("sparse_top_k", _search, results, *others, shrink[None], kind, *masks)
    done = status[0] == 1
    return jnp.where(done, ids, -1), jnp.where(done, scores, jnp.nan)


@numba.njit(parallel=True, nogil=True, cache=True)
def _search(
    indptr,
    indices,
    values,
    rows,
    t_indptr,
    t_indices,
    t_values,
    dense,
    query_sizes,
    column_sizes,
    shrink,
    kind,
    seen_indptr,
    seen_indices,
    seen_rows,
    exclude,
    among,
    allow,
    ids,
    scores,
    status,
):
    batch, n_columns = len(rows), dense.shape[1]
    padded = (n_columns + 63) // 64 * 64
    # Above the worst answer there is at first: with a sparse table, only what is above 0.
    floor = np.float32(-np.inf) if len(dense) else np.float32(0)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        tile = np.empty((1, padded), np.float32)
        inside = np.zeros(n_columns if among.shape[1] else 0, np.bool_)
        while True:
            first = simd.take_number(queue, 0) * _ROWS
            if first >= batch:
                break
            for q in range(first, min(first + _ROWS, batch)):
                row = rows[q]
                tile[:] = 0
                _add_rows(indptr[row], indptr[row + 1], indices, values, t_indptr, t_indices, t_values, dense, tile[0])
                if kind[0] == 1:
                    for j in range(n_columns):
                        below = query_sizes[q] * column_sizes[j] + shrink[0]
                        tile[0, j] = tile[0, j] / below if below > 0 else tile[0, j]
                elif kind[0] == 2:
                    for j in range(n_columns):
                        below = query_sizes[q] + column_sizes[j] - tile[0, j] + shrink[0]
                        tile[0, j] = tile[0, j] / below if below > 0 else tile[0, j]
                if among.shape[1]:
                    for place in range(among.shape[1]):
                        if among[q, place] >= 0:
                            inside[among[q, place]] = True
                    for j in range(n_columns):
                        if not inside[j]:
                            tile[0, j] = -np.inf
                    for place in range(among.shape[1]):
                        if among[q, place] >= 0:
                            inside[among[q, place]] = False
                ids[q] = -1
                scores[q] = floor
                next_seen, next_excluded = first_places(q, 1, seen_indptr, seen_rows, exclude)
                end = seen_indptr[seen_rows[q] + 1]
                select(
                    tile,
                    0,
                    0,
                    n_columns,
                    seen_indices,
                    next_seen,
                    end,
                    exclude[q],
                    next_excluded,
                    allow,
                    ids[q],
                    scores[q],
                )
                sort_best_first(ids[q], scores[q])
                for place in range(ids.shape[1]):
                    if ids[q, place] < 0:
                        scores[q, place] = -np.inf
    status[0] = 1


@numba.njit(cache=True, nogil=True)
def _add_rows(begin, end, indices, values, t_indptr, t_indices, t_values, dense, total):
    """Adds the table rows that a sparse row points to, each times its value."""
    step, t_step = np.int64(len(values) > 1), np.int64(len(t_values) > 1)
    for entry in range(begin, end):
        inner, weight = indices[entry], values[entry * step]
        if len(dense):
            for j in range(dense.shape[1]):
                total[j] += weight * dense[inner, j]
        elif t_step:
            for place in range(t_indptr[inner], t_indptr[inner + 1]):
                total[t_indices[place]] += weight * t_values[place]
        else:
            weight *= t_values[0]
            for place in range(t_indptr[inner], t_indptr[inner + 1]):
                total[t_indices[place]] += weight
