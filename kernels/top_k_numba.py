"""`kernels.top_k` on CPU: blocks of scores that stay in cache, each searched at once.

Items are packed in panels of 16, so that a tile of 4 queries by 16 items is summed in registers. A block is
searched 64 scores at a time: only where their maximum beats the worst answer so far is anything compared.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .threads import WORKERS

_QUERIES = 64  # in a block
_ITEMS = 1024  # in a block, a multiple of 64


def search_rows(queries, items, seen_indptr, seen_indices, seen_rows, exclude, allow, *, k: int):
    """The Numba implementation of `top_k.OP`."""
    batch = queries.shape[0]
    results = [
        jax.ShapeDtypeStruct((batch, k), jnp.int32),
        jax.ShapeDtypeStruct((batch, k), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ]
    # Sorted, so that one pointer a query walks through it as the blocks of items go by.
    exclude = jnp.sort(exclude, axis=1)
    arguments = (queries, items, seen_indptr, seen_indices, seen_rows, exclude, allow)
    ids, scores, status = xla_ffi.call("top_k", _search_kernel, results, *arguments)
    done = status[0] == 1
    return jnp.where(done, ids, -1), jnp.where(done, scores, jnp.nan)


@numba.njit(cache=True, nogil=True)
def _insert(ids, scores, score, item):
    """Puts an item into its place in a list sorted by falling score, behind its equals."""
    place = len(scores) - 1
    while place > 0 and scores[place - 1] < score:
        scores[place] = scores[place - 1]
        ids[place] = ids[place - 1]
        place -= 1
    scores[place] = score
    ids[place] = item


@numba.njit(parallel=True, nogil=True, cache=True)
def _search_kernel(queries, items, seen_indptr, seen_indices, seen_rows, exclude, allow, ids, scores, status):
    batch, width = queries.shape
    n_items, k = len(items), ids.shape[1]
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
    block_size = max(4, min(_QUERIES, (batch // 4 + 3) // 4 * 4))
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
            next_seen, next_excluded = np.empty(block_size, np.int64), np.zeros(block_size, np.int64)
            for q in range(size):
                next_seen[q] = seen_indptr[seen_rows[first + q]]
                while next_excluded[q] < exclude.shape[1] and exclude[first + q, next_excluded[q]] < 0:
                    next_excluded[q] += 1
                ids[first + q] = -1
                scores[first + q] = -np.inf
            for low in range(0, n_items, _ITEMS):
                high = min(low + _ITEMS, n_items)
                tile[:] = 0
                for panel in range(low // 16, (high + 15) // 16):
                    for q in range(0, size, 4):
                        simd.add_outer_products(
                            columns,
                            q,
                            block_size,
                            panels,
                            panel * width * 16,
                            16,
                            width,
                            tile,
                            q * _ITEMS + panel * 16 - low,
                            _ITEMS,
                        )
                for q in range(size):
                    for j in range(high - low, (high - low + 63) // 64 * 64):
                        tile[q, j] = -np.inf
                    end = seen_indptr[seen_rows[first + q] + 1]
                    while next_seen[q] < end and seen_indices[next_seen[q]] < high:
                        if seen_indices[next_seen[q]] >= low:
                            tile[q, seen_indices[next_seen[q]] - low] = -np.inf
                        next_seen[q] += 1
                    while next_excluded[q] < exclude.shape[1] and exclude[first + q, next_excluded[q]] < high:
                        tile[q, exclude[first + q, next_excluded[q]] - low] = -np.inf
                        next_excluded[q] += 1
                    if len(allow):
                        for j in range(high - low):
                            if not allow[low + j]:
                                tile[q, j] = -np.inf
                    worst = scores[first + q, k - 1]
                    for j in range(0, high - low, 64):
                        if not simd.maximum64(tile, q * _ITEMS + j) > worst:
                            continue
                        for m in range(j, j + 64):
                            if tile[q, m] > worst:
                                _insert(ids[first + q], scores[first + q], tile[q, m], low + m)
                                worst = scores[first + q, k - 1]
    status[0] = 1
