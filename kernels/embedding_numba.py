"""`kernels.embedding` on CPU, bags: rows asked for ahead of their use, gradients by entries sorted by row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import huge_pages, simd, xla_ffi
from .entries_by_row import AHEAD, LINE, ROW, RUN, add_entries, first_of_run, sort_by_row
from .threads import WORKERS

_BAGS = 32  # in a part
_ZEROS = 1 << 16  # numbers set to zero at a time
_FAST = {"contract", "reassoc", "nsz"}


def one_each(ids):
    """Bags of one entry each."""
    return jnp.arange(ids.shape[0] + 1, dtype=jnp.int32), ids, jnp.ones(1, jnp.float32)


def pool(table, indptr, indices, values):
    """The Numba implementation of `embedding.POOL`."""
    n_bags = indptr.shape[0] - 1
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n_bags, table.shape[1]), (n_bags,))]
    sums, totals = xla_ffi.call("embedding_pool", ((_n_pools, _pool),), results, table, indptr, indices, values)
    return sums, totals


@numba.njit(nogil=True, cache=True)
def _n_pools(table, indptr, indices, values, sums, totals):
    return (len(totals) + _BAGS - 1) // _BAGS


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _pool(number, table, indptr, indices, values, sums, totals):
    n_rows, width = table.shape
    n_bags, step, last = len(totals), np.int64(len(values) > 1), len(indices) - 1
    for bag in range(number * _BAGS, min((number + 1) * _BAGS, n_bags)):
        target, total = sums[bag], np.float32(0)
        target[:] = 0
        for entry in range(indptr[bag], indptr[bag + 1]):
            ahead = np.int64(indices[min(entry + AHEAD, last)])
            for place in range(0, width, LINE):
                simd.prefetch(table, ahead * width + place)
            row = indices[entry]
            if row < 0:
                continue
            weight = values[entry * step]
            total += weight
            if row >= n_rows:
                target[:] = np.nan
                continue
            source = table[row]
            for c in range(width):
                target[c] += weight * source[c]
        totals[bag] = total


def table_gradient(cotangent, indptr, indices, values, *, n_rows: int, dtype):
    """The Numba implementation of `embedding.TABLE_GRADIENT`."""
    results = [
        jax.ShapeDtypeStruct((n_rows, cotangent.shape[1]), dtype),
        jax.ShapeDtypeStruct((5 * indices.shape[0],), jnp.int32),
    ]
    arguments = cotangent, indptr, indices, values
    return xla_ffi.call("embedding_table_gradient", _table_gradient, results, *arguments)[0]


@numba.njit(parallel=True, nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _table_gradient(cotangent, indptr, indices, values, gradient, scratch):
    n_rows, n = len(gradient), len(indices)
    entries, bag_of = sort_by_row(indptr, indices, n_rows, scratch)
    huge_pages.ask_for(gradient)
    flat = gradient.reshape(-1)
    for block in numba.prange(-(-len(flat) // _ZEROS)):
        flat[block * _ZEROS : (block + 1) * _ZEROS] = 0
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            first = simd.take_number(queue, 0) * RUN
            if first >= n:
                break
            k = first_of_run(entries, first)
            while k < min(first + RUN, n) and np.int64(entries[k] >> ROW) < n_rows:
                total = gradient[np.int64(entries[k] >> ROW)]
                k = add_entries(entries, k, bag_of, values, cotangent, total, (gradient,))


def weight_gradient(table, indptr, indices, values, cotangent, of_totals):
    """The Numba implementation of `embedding.WEIGHT_GRADIENT`."""
    passes, arguments = ((_n_slopes, _slopes),), (table, indptr, indices, cotangent, of_totals)
    result = jax.ShapeDtypeStruct(indices.shape, jnp.float32)
    (slopes,) = xla_ffi.call("embedding_weight_gradient", passes, [result], *arguments)
    return slopes if values.shape == slopes.shape else jnp.sum(slopes, keepdims=True)


@numba.njit(nogil=True, cache=True)
def _n_slopes(table, indptr, indices, cotangent, of_totals, slopes):
    slopes[: indptr[0]] = 0
    slopes[indptr[len(of_totals)] :] = 0
    return (len(of_totals) + _BAGS - 1) // _BAGS


@numba.njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
def _slopes(number, table, indptr, indices, cotangent, of_totals, slopes):
    n_rows, width = table.shape
    n_bags, last = len(of_totals), len(indices) - 1
    for bag in range(number * _BAGS, min((number + 1) * _BAGS, n_bags)):
        slope = cotangent[bag]
        for entry in range(indptr[bag], indptr[bag + 1]):
            ahead = np.int64(indices[min(entry + AHEAD, last)])
            for place in range(0, width, LINE):
                simd.prefetch(table, ahead * width + place)
            row = indices[entry]
            total = of_totals[bag] if row >= 0 else np.float32(0)
            if row >= n_rows:
                total = np.float32(np.nan)
            elif row >= 0:
                source = table[row]
                for c in range(width):
                    total += slope[c] * source[c]
            slopes[entry] = total
