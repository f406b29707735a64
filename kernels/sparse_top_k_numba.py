"""`kernels.sparse_top_k` on CPU: one row of scores a thread; of a sparse table only the columns met are looked at."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .packed import pack, take_best
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
    ]
    # Sorted, so that one pointer walks through it.
    exclude = jnp.sort(exclude, axis=1) if exclude.shape[1] > 1 else exclude
    kind = jnp.full(1, _SIMILARITIES[similarity], jnp.int32)
    masks = (seen_indptr, seen_indices, seen_rows, exclude, among, allow)
    return tuple(xla_ffi.call("sparse_top_k", _search, results, *others, shrink[None], kind, *masks))


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
):
    batch, n_columns = len(rows), dense.shape[1]
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        first = simd.take_number(queue, 0) * _ROWS
        width = n_columns if first < batch else 0  # whoever finds nothing left to do takes no memory
        tile = np.zeros((1, (width + 63) // 64 * 64), np.float32)
        total = tile[0]
        met, inside = np.zeros(width, np.bool_), np.zeros(width if among.shape[1] else 0, np.bool_)
        columns, packed = np.empty(width, np.int32), np.empty(width, np.int64)
        bits = total.view(np.int32)
        while first < batch:
            for q in range(first, min(first + _ROWS, batch)):
                row = rows[q]
                begin, end = indptr[row], indptr[row + 1]
                ids[q] = -1
                scores[q] = -np.inf
                for place in range(among.shape[1]):
                    if among[q, place] >= 0:
                        inside[among[q, place]] = True
                size = query_sizes[q] if len(query_sizes) else np.float32(0)
                next_seen, next_excluded = first_places(q, 1, seen_indptr, seen_rows, exclude)
                seen_end = seen_indptr[seen_rows[q] + 1]
                if len(dense):
                    total[:] = 0
                    _add_dense(begin, end, indices, values, dense, total)
                    for j in range(n_columns):
                        total[j] = _similarity(total[j], size, column_sizes, j, shrink[0], kind[0])
                        if len(inside) and not inside[j]:
                            total[j] = -np.inf
                    select(
                        tile,
                        0,
                        0,
                        n_columns,
                        seen_indices,
                        next_seen,
                        seen_end,
                        exclude[q],
                        next_excluded,
                        allow,
                        ids[q],
                        scores[q],
                    )
                    sort_best_first(ids[q], scores[q])
                else:
                    # Only what is above 0 is answered.
                    n_products = 0
                    for entry in range(begin, end):
                        n_products += t_indptr[indices[entry] + 1] - t_indptr[indices[entry]]
                    # Where most columns are met, it is not worth it to note which.
                    every = n_products > n_columns // 4
                    arguments = begin, end, indices, values, t_indptr, t_indices, t_values, total
                    if every:
                        n_met = n_columns
                        _add_sparse(*arguments)
                    else:
                        n_met = _add_few(*arguments, met, columns)
                    for place in range(next_seen[0], seen_end):
                        total[seen_indices[place]] = 0
                    for place in range(next_excluded[0], exclude.shape[1]):
                        total[exclude[q, place]] = 0
                    n_found = 0
                    for place in range(n_met):
                        j = np.int32(place) if every else columns[place]
                        met[j] = False
                        if total[j] > 0:
                            total[j] = _similarity(total[j], size, column_sizes, j, shrink[0], kind[0])
                        if total[j] > 0:
                            packed[n_found] = pack(bits[j], j)
                            n_found += (not len(allow) or allow[j]) and (not len(inside) or inside[j])
                        total[j] = 0
                    take_best(packed, n_found, ids[q], scores[q])
                for place in range(among.shape[1]):
                    if among[q, place] >= 0:
                        inside[among[q, place]] = False
            first = simd.take_number(queue, 0) * _ROWS


@numba.njit(cache=True, nogil=True)
def _similarity(dot, size, column_sizes, column, shrink, kind):
    if kind == 0:
        return dot
    below = size * column_sizes[column] if kind == 1 else size + column_sizes[column] - dot
    below += shrink
    return dot / below if below > 0 else dot


@numba.njit(cache=True, nogil=True)
def _add_dense(begin, end, indices, values, table, total):
    """Adds the dense table rows that a sparse row points to, each times its value."""
    step = np.int64(len(values) > 1)
    for entry in range(begin, end):
        inner, weight = indices[entry], values[entry * step]
        for j in range(table.shape[1]):
            total[j] += weight * table[inner, j]


@numba.njit(cache=True, nogil=True)
def _add_sparse(begin, end, indices, values, t_indptr, t_indices, t_values, total):
    """The same of a sparse table."""
    # Unsigned, so that no place is looked at for being below 0: that is more than half of the time.
    step, one_each = np.int64(len(values) > 1), len(t_values) > 1
    for entry in range(begin, end):
        inner, weight = indices[entry], values[entry * step]
        first, last = np.uint32(t_indptr[inner]), np.uint32(t_indptr[inner + 1])
        if one_each:
            for place in range(first, last):
                total[np.uint32(t_indices[place])] += weight * t_values[place]
        else:
            product = weight * t_values[0]
            for place in range(first, last):
                total[np.uint32(t_indices[place])] += product


@numba.njit(cache=True, nogil=True)
def _add_few(begin, end, indices, values, t_indptr, t_indices, t_values, total, met, columns):
    """The same; returns how many columns were met, which `columns` then lists."""
    step, t_step = np.int64(len(values) > 1), np.uint32(len(t_values) > 1)
    n_met = np.uint32(0)
    for entry in range(begin, end):
        inner, weight = indices[entry], values[entry * step]
        for place in range(np.uint32(t_indptr[inner]), np.uint32(t_indptr[inner + 1])):
            column = np.uint32(t_indices[place])
            if not met[column]:
                met[column] = True
                columns[n_met] = column
                n_met += np.uint32(1)
            total[column] += weight * t_values[place * t_step]
    return np.int64(n_met)
