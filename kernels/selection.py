"""The k best of many scores, one row at a time: what the Numba kernels of retrieval share.

A list of k answers is a heap whose root is the worst of them: the lower score or, among equal ones, the higher id.
"""

from __future__ import annotations

import numba
import numpy as np

from . import simd


@numba.njit(cache=True, nogil=True)
def sift_down(ids, scores, size, score, item, hole=0):
    """Puts an answer in the place of the root (or of another node) of the heap `[:size]`, and all in order below it."""
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            scores[other] < scores[child] or (scores[other] == scores[child] and ids[other] > ids[child])
        ):
            child = other
        if scores[child] > score or (scores[child] == score and ids[child] < item):
            break
        scores[hole] = scores[child]
        ids[hole] = ids[child]
        hole = child
    scores[hole] = score
    ids[hole] = item


@numba.njit(cache=True, nogil=True)
def build_heap(ids, scores):
    """Turns answers in any order into a heap."""
    for node in range(len(scores) // 2 - 1, -1, -1):
        sift_down(ids, scores, len(scores), scores[node], ids[node], node)


@numba.njit(cache=True, nogil=True)
def sort_best_first(ids, scores):
    """Turns a heap into a list by falling score, equal ones by rising id."""
    for size in range(len(scores) - 1, 0, -1):
        score, item = scores[size], ids[size]
        scores[size] = scores[0]
        ids[size] = ids[0]
        sift_down(ids, scores, size, score, item)


@numba.njit(cache=True, nogil=True)
def best_of_workers(own_ids, own_scores, ids, scores):
    """The best of what each worker has found, `[workers, batch, k]`, best first, into `[batch, k]`."""
    n_workers, batch, k = own_ids.shape
    ids[:] = -1
    scores[:] = -np.inf
    for q in range(batch):
        for worker in range(n_workers):
            for place in range(k):
                score, item = own_scores[worker, q, place], own_ids[worker, q, place]
                if score > scores[q, 0] or (score == scores[q, 0] and 0 <= item < ids[q, 0]):
                    sift_down(ids[q], scores[q], k, score, item)
        sort_best_first(ids[q], scores[q])


@numba.njit(cache=True, nogil=True)
def first_places(first, size, seen_indptr, seen_rows, exclude):
    """For each row of a block, where its seen and its excluded items (sorted, padded with -1) begin."""
    next_seen, next_excluded = np.empty(size, np.int64), np.zeros(size, np.int64)
    for q in range(size):
        next_seen[q] = seen_indptr[seen_rows[first + q]]
        while next_excluded[q] < exclude.shape[1] and exclude[first + q, next_excluded[q]] < 0:
            next_excluded[q] += 1
    return next_seen, next_excluded


@numba.njit(cache=True, nogil=True)
def select(tile, q, low, high, seen_indices, next_seen, end, exclude, next_excluded, allow, ids, scores):
    """Masks row `q` of a tile, the scores of items `low` to `high`, and takes the best of it into the row's heap.

    The row has room for a multiple of 64 scores. They are looked at 64 at a time: only those that beat the worst answer
    so far, which are few, are taken in hand.
    """
    for j in range(high - low, (high - low + 63) // 64 * 64):
        tile[q, j] = -np.inf
    while next_seen[q] < end and seen_indices[next_seen[q]] < high:
        if seen_indices[next_seen[q]] >= low:
            tile[q, seen_indices[next_seen[q]] - low] = -np.inf
        next_seen[q] += 1
    while next_excluded[q] < len(exclude) and exclude[next_excluded[q]] < high:
        if exclude[next_excluded[q]] >= low:
            tile[q, exclude[next_excluded[q]] - low] = -np.inf
        next_excluded[q] += 1
    if len(allow):
        for j in range(high - low):
            if not allow[low + j]:
                tile[q, j] = -np.inf
    start = q * tile.shape[1]
    for j in range(0, high - low, 64):
        above = simd.above64(tile, start + j, scores[0])
        while above:
            m = j + simd.lowest_bit(above)
            above &= above - np.uint64(1)
            if tile[q, m] > scores[0]:
                sift_down(ids, scores, len(scores), tile[q, m], low + m)
