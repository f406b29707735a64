"""`kernels.top_k` on CPU: blocks of scores that stay in cache, each searched at once.

Many queries: items are packed in panels of 16, so that a tile of 4 or 8 queries by 16 items is summed in registers, and
threads share out the queries. A few: packing would cost more than the products, so items are read as they lie, and
threads share out the items.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .outer_products import TALL_ROWS, add_tall_outer_products
from .selection import best_of_workers, first_places, select, sort_best_first
from .threads import WORKERS

_FEW = 8  # queries from which on packing pays
_QUERIES = 32  # in a block
_ITEMS = 2048  # in a block, a multiple of 64


def search_rows(queries, items, seen_indptr, seen_indices, seen_rows, exclude, allow, *, k: int):
    """The Numba implementation of `top_k.OP`."""
    batch = queries.shape[0]
    results = [
        jax.ShapeDtypeStruct((batch, k), jnp.int32),
        jax.ShapeDtypeStruct((batch, k), jnp.float32),
    ]
    # Sorted, so that one pointer a query walks through it as the blocks of items go by.
    exclude = jnp.sort(exclude, axis=1)
    arguments = (queries, items, seen_indptr, seen_indices, seen_rows, exclude, allow)
    name, kernel = ("top_k_few", _search_few) if batch < _FEW else ("top_k", _search_many)
    return tuple(xla_ffi.call(name, kernel, results, *arguments))


@numba.njit(parallel=True, nogil=True, cache=True)
def _search_many(queries, items, seen_indptr, seen_indices, seen_rows, exclude, allow, ids, scores):
    batch, width = queries.shape
    n_items = len(items)
    n_panels = (n_items + 15) // 16
    panels = np.empty((n_panels, width, 16), np.float32)
    queue = np.zeros(2, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            panel = simd.take_number(queue, 0)
            if panel >= n_panels:
                break
            for lane in range(16):
                item = panel * 16 + lane
                if item < n_items:
                    for j in range(width):
                        panels[panel, j, lane] = items[item, j]
                else:
                    for j in range(width):
                        panels[panel, j, lane] = 0
    tall = TALL_ROWS
    block_size = max(tall, min(_QUERIES, (batch // 4 + tall - 1) // tall * tall))
    n_blocks = (batch + block_size - 1) // block_size
    for _worker in numba.prange(WORKERS):
        while True:
            block = simd.take_number(queue, 1)
            if block >= n_blocks:
                break
            first = block * block_size
            size = min(block_size, batch - first)
            columns = np.zeros((width, block_size), np.float32)
            for q in range(size):
                for j in range(width):
                    columns[j, q] = queries[first + q, j]
            tile = np.empty((block_size, _ITEMS), np.float32)
            next_seen, next_excluded = first_places(first, size, seen_indptr, seen_rows, exclude)
            ids[first : first + size] = -1
            scores[first : first + size] = -np.inf
            for low in range(0, n_items, _ITEMS):
                high = min(low + _ITEMS, n_items)
                tile[:] = 0
                for panel in range(low // 16, (high + 15) // 16):
                    for q in range(0, size, TALL_ROWS):
                        add_tall_outer_products(
                            columns,
                            q,
                            block_size,
                            1,
                            panels,
                            panel * width * 16,
                            16,
                            width,
                            tile,
                            q * _ITEMS + panel * 16 - low,
                            _ITEMS,
                        )
                for q in range(size):
                    row = first + q
                    end = seen_indptr[seen_rows[row] + 1]
                    select(
                        tile,
                        q,
                        low,
                        high,
                        seen_indices,
                        next_seen,
                        end,
                        exclude[row],
                        next_excluded,
                        allow,
                        ids[row],
                        scores[row],
                    )
            for row in range(first, first + size):
                sort_best_first(ids[row], scores[row])


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _product(query, item):
    total = np.float32(0)
    for j in range(len(query)):
        total += query[j] * item[j]
    return total


@numba.njit(parallel=True, nogil=True, cache=True)
def _search_few(queries, items, seen_indptr, seen_indices, seen_rows, exclude, allow, ids, scores):
    batch, k = ids.shape
    n_items = len(items)
    # Every worker keeps lists of its own; those of a worker that came too late for a block stay empty.
    own_ids = np.full((WORKERS, batch, k), -1, np.int32)
    own_scores = np.full((WORKERS, batch, k), -np.inf, np.float32)
    queue = np.zeros(1, np.int64)
    for worker in numba.prange(WORKERS):
        tile = np.empty((batch, _ITEMS), np.float32)
        next_seen, next_excluded = first_places(0, batch, seen_indptr, seen_rows, exclude)
        while True:
            low = simd.take_number(queue, 0) * _ITEMS
            if low >= n_items:
                break
            high = min(low + _ITEMS, n_items)
            for item in range(low, high):
                for q in range(batch):
                    tile[q, item - low] = _product(queries[q], items[item])
            for q in range(batch):
                end = seen_indptr[seen_rows[q] + 1]
                select(
                    tile,
                    q,
                    low,
                    high,
                    seen_indices,
                    next_seen,
                    end,
                    exclude[q],
                    next_excluded,
                    allow,
                    own_ids[worker, q],
                    own_scores[worker, q],
                )
    best_of_workers(own_ids, own_scores, ids, scores)
