"""The entries of bags sorted by the row of a table, and what comes of each row summed: for gradients and updates."""

from __future__ import annotations

import numba
import numpy as np

from . import simd

AHEAD = 16  # entries between asking for a row and its use
LINE = 16  # float32 numbers in a cache line
RUN = 256  # sorted entries that a thread takes at a time
ROW = np.uint64(32)  # shift to the row of a sorted entry
_ENTRY = np.uint64(2**32 - 1)  # mask of its number
_DIGIT = 11  # most bits of a row that one pass of the sort looks at
_BLOCK = 1 << 13  # entries that are worth a thread of their own in a sort


@numba.njit(cache=True, nogil=True)
def first_of_run(entries, k):
    """The first entry from `k`, where a run begins, of a row that began in no run before."""
    stop = min(k + RUN, len(entries))
    while k > 0 and k < stop and entries[k] >> ROW == entries[k - 1] >> ROW:
        k += 1
    return k


# Inlined: called, it takes twice as long.
@numba.njit(cache=True, nogil=True, fastmath={"contract"}, forceinline=True)
def add_entries(entries, k, bag_of, weights, slopes, total, needed):
    """Adds the slopes of the bags of all entries of one row, by weight and in order, to `total`.

    Args:
        entries: From `sort_by_row`.
        k: The first of the row.
        bag_of: Bag of each entry.
        weights: One an entry or one for all.
        slopes: `[n_bags, width]`.
        total: `[width]`.
        needed: Arrays `[n_rows, …]` whose rows the caller needs next: they are asked for ahead.

    Returns:
        One after the last entry of the row.
    """
    n, width, step, row = len(entries), len(total), np.int64(len(weights) > 1), entries[k] >> ROW
    while k < n and entries[k] >> ROW == row:
        later = entries[min(k + AHEAD, n - 1)]
        far = np.int64(bag_of[np.int64(later & _ENTRY)]) * width
        for place in range(0, width, LINE):
            simd.prefetch(slopes, far + place)
        for array in needed:
            there = min(np.int64(later >> ROW), len(array) - 1) * array.shape[1]
            for place in range(0, array.shape[1], LINE):
                simd.prefetch(array, there + place)
        entry = np.int64(entries[k] & _ENTRY)
        weight, source = weights[entry * step], slopes[bag_of[entry]]
        for c in range(width):
            total[c] += weight * source[c]
        k += 1
    return k


@numba.njit(parallel=True, nogil=True, cache=True)
def sort_by_row(indptr, rows, n_rows, scratch):
    """Entries sorted by row, those of a row in their own order, by a radix sort.

    Args:
        indptr: Of the bags.
        rows: `[n]`, that of each entry. Rows outside the table and entries outside all bags become row `n_rows`, and so
            come last.
        n_rows: Of the table.
        scratch: `[5 n]` int32, which the results are parts of.

    Returns:
        `(entries, bag_of)`: `[n]` uint64, `row << 32 | entry`, and the bag of each entry, where it is in one.
    """
    n = len(rows)
    words, bag_of = scratch[: 4 * n].view(np.uint64), scratch[4 * n :]
    here, there = words[:n], words[n:]
    begin, end = indptr[0], indptr[len(indptr) - 1]
    _number_bags(indptr, bag_of)
    n_blocks = max(1, min(16, n // _BLOCK))
    size = -(-n // n_blocks)
    for block in numba.prange(n_blocks):
        for k in range(block * size, min((block + 1) * size, n)):
            row = np.int64(rows[k])
            if row < 0 or row >= n_rows or k < begin or k >= end:
                row = n_rows
            here[k] = np.uint64(row) << ROW | np.uint64(k)
    bits = 1
    while n_rows >> bits:
        bits += 1
    n_passes = -(-bits // _DIGIT)
    digit = -(-bits // n_passes)
    mask = np.uint64((1 << digit) - 1)
    counts = np.empty((n_blocks, 1 << digit), np.int64)
    for number in range(n_passes):
        shift = ROW + np.uint64(number * digit)
        for block in numba.prange(n_blocks):
            count = counts[block]
            count[:] = 0
            for k in range(block * size, min((block + 1) * size, n)):
                count[np.int64(here[k] >> shift & mask)] += 1
        before = 0
        for value in range(counts.shape[1]):
            for block in range(n_blocks):
                count = counts[block, value]
                counts[block, value] = before
                before += count
        for block in numba.prange(n_blocks):
            place = counts[block]
            for k in range(block * size, min((block + 1) * size, n)):
                value = np.int64(here[k] >> shift & mask)
                there[place[value]] = here[k]
                place[value] += 1
        here, there = there, here
    return here, bag_of


# Apart from the sort, whose compiler would make every slice a parallel loop.
@numba.njit(cache=True, nogil=True)
def _number_bags(indptr, bag_of):
    for bag in range(len(indptr) - 1):
        for entry in range(indptr[bag], indptr[bag + 1]):
            bag_of[entry] = bag
