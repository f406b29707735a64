"""`kernels.quantized_rows` on CPU: blocks of sums that stay in cache, each searched at once, as in `top_k_numba`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .int8_numba import packed_panels, raise_rows
from .int8_tiles import COLUMNS, DEPTH, ROWS, four_dots, write_tile
from .selection import best_of_workers, first_places, select, sort_best_first
from .threads import WORKERS

_FEW = 8  # queries from which on packing pays
_QUERIES = 32  # in a block, a multiple of `ROWS`
_ITEMS = 2048  # in a block, a multiple of 64


def search_rows(
    codes, scales, columns, item_codes, item_scales, offsets, exact, seen_indptr, seen_indices, seen_rows, exclude,
    allow, *, k: int
):  # fmt: skip
    """The Numba implementation of `quantized_rows.OP`."""
    batch = codes.shape[0]
    results = [jax.ShapeDtypeStruct((batch, k), jnp.int32), jax.ShapeDtypeStruct((batch, k), jnp.float32)]
    exclude = jnp.sort(exclude, axis=1)
    arguments = codes, scales, columns, item_codes, item_scales, offsets, exact
    arguments += seen_indptr, seen_indices, seen_rows, exclude, allow
    few = batch < _FEW
    name, kernel = ("quantized_few", _search_few) if few else ("quantized_many", _search_many)
    return tuple(xla_ffi.call(name, kernel, results, *arguments))


@numba.njit(cache=True, nogil=True)
def _totals(codes, scales):
    """The sum of each row, in codes and in what they stand for."""
    sums, totals = np.zeros(len(codes), np.int32), np.zeros(len(codes), np.float32)
    for q in range(len(codes)):
        for j in range(codes.shape[1]):
            sums[q] += np.int32(codes[q, j])
        totals[q] = np.float32(sums[q]) * scales[q]
    return sums, totals


@numba.njit(cache=True, nogil=True)
def _score(tile, q, row, sums, low, high, scales, totals, columns, item_scales, offsets, exact):
    """Scores of a query and some items, of the sums of their products."""
    scale = scales[row]
    for j in range(high - low):
        tile[q, j] = np.float32(sums[q, j]) * (scale * item_scales[low + j])
    if len(offsets):
        for j in range(high - low):
            tile[q, j] += totals[row] * offsets[low + j]
    for c in range(exact.shape[1]):
        for j in range(high - low):
            tile[q, j] += columns[row, c] * exact[low + j, c]


@numba.njit(parallel=True, nogil=True, cache=True)
def _search_many(
    codes, scales, columns, item_codes, item_scales, offsets, exact, seen_indptr, seen_indices, seen_rows, exclude,
    allow, ids, scores
):  # fmt: skip
    (batch, width), n_items = codes.shape, len(item_codes)
    panels, start = packed_panels(item_codes, width)
    fours = panels.shape[1]
    _, totals = _totals(codes, scales)
    queue = np.zeros(1, np.int64)
    n_blocks = (batch + _QUERIES - 1) // _QUERIES
    for _worker in numba.prange(WORKERS):
        raised = np.empty((_QUERIES, fours * 4), np.uint8)
        sums, tile = np.empty((_QUERIES, _ITEMS), np.int32), np.empty((_QUERIES, _ITEMS), np.float32)
        while True:
            block = simd.take_number(queue, 0)
            if block >= n_blocks:
                break
            first = block * _QUERIES
            size = min(_QUERIES, batch - first)
            raise_rows(codes, first, size, raised)
            next_seen, next_excluded = first_places(first, size, seen_indptr, seen_rows, exclude)
            ids[first : first + size] = -1
            scores[first : first + size] = -np.inf
            for low in range(0, n_items, _ITEMS):
                high = min(low + _ITEMS, n_items)
                for panel in range(low // COLUMNS, (high + COLUMNS - 1) // COLUMNS):
                    column, place = panel * COLUMNS, panel * 2 * fours * DEPTH
                    for q in range(0, size, ROWS):
                        at = q * _ITEMS + column - low
                        write_tile(
                            raised, q * fours * 4, fours * 4, panels, place, fours, start, column, sums, at, _ITEMS
                        )
                for q in range(size):
                    row = first + q
                    _score(tile, q, row, sums, low, high, scales, totals, columns, item_scales, offsets, exact)
                    end = seen_indptr[seen_rows[row] + 1]
                    select(
                        tile, q, low, high, seen_indices, next_seen, end, exclude[row], next_excluded, allow, ids[row],
                        scores[row],
                    )  # fmt: skip
            for row in range(first, first + size):
                sort_best_first(ids[row], scores[row])


@numba.njit(cache=True, nogil=True)
def _laid_out(codes, chunks, halves):
    """Queries as `four_dots` takes them: with half bytes, even columns of each 64 first."""
    rows = np.zeros((len(codes), chunks * DEPTH), np.int8)
    for q in range(len(codes)):
        for j in range(codes.shape[1]):
            place = j
            if halves:
                place = j // DEPTH * DEPTH + (j % 2) * (DEPTH // 2) + j % DEPTH // 2
            rows[q, place] = codes[q, j]
    return rows


@numba.njit(parallel=True, nogil=True, cache=True)
def _search_few(
    codes, scales, columns, item_codes, item_scales, offsets, exact, seen_indptr, seen_indices, seen_rows, exclude,
    allow, ids, scores
):  # fmt: skip
    (batch, k), width = ids.shape, codes.shape[1]
    n_items, stride = item_codes.shape
    halves = item_codes.dtype == np.dtype(np.uint8)
    chunks, split = (width + DEPTH - 1) // DEPTH, (width + 1) // 2
    # Bytes of a row that are read, of which those beyond it meet zeros.
    read = max(chunks * DEPTH // 2, split + 2 * chunks + 2) if halves else chunks * DEPTH
    rows = _laid_out(codes, chunks, halves)
    of_codes, totals = _totals(codes, scales)
    # Items from here on would be read beyond the end of the array: they are copied first.
    beyond = max(0, n_items - (read + stride - 1) // stride - 3) // 4 * 4
    own_ids = np.full((WORKERS, batch, k), -1, np.int32)
    own_scores = np.full((WORKERS, batch, k), -np.inf, np.float32)
    queue = np.zeros(1, np.int64)
    for worker in numba.prange(WORKERS):
        sums, tile = np.empty((batch, _ITEMS), np.int32), np.empty((batch, _ITEMS), np.float32)
        copied = np.zeros((4, read), item_codes.dtype)
        next_seen, next_excluded = first_places(0, batch, seen_indptr, seen_rows, exclude)
        while True:
            low = simd.take_number(queue, 0) * _ITEMS
            if low >= n_items:
                break
            high = min(low + _ITEMS, n_items)
            for item in range(low, high, 4):
                here = item < beyond
                if not here:
                    for other in range(min(4, n_items - item)):
                        copied[other, :stride] = item_codes[item + other]
                for q in range(batch):
                    place = q * chunks * DEPTH
                    if here:
                        dots = four_dots(item_codes, item * stride, stride, split, rows, place, chunks)
                    else:
                        dots = four_dots(copied, 0, read, split, rows, place, chunks)
                    raised = np.int32(0) if halves else of_codes[q] * np.int32(128)
                    for other in range(min(4, high - item)):
                        sums[q, item + other - low] = dots[other] - raised
            for q in range(batch):
                _score(tile, q, q, sums, low, high, scales, totals, columns, item_scales, offsets, exact)
                end = seen_indptr[seen_rows[q] + 1]
                select(
                    tile, q, low, high, seen_indices, next_seen, end, exclude[q], next_excluded, allow,
                    own_ids[worker, q], own_scores[worker, q],
                )  # fmt: skip
    best_of_workers(own_ids, own_scores, ids, scores)
