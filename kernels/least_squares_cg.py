"""Conjugate gradients for `kernels.least_squares`, on CPU.

A few rows are solved side by side: they share one pass over the Gramian in each step, which would otherwise be
read for every row. A row's table rows are gathered once into a buffer that stays in cache over all steps. Nothing
depends on the number of threads.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from . import simd
from .gather import gather
from .outer_products import TILE_COLUMNS, TILE_ROWS, add_outer_products
from .threads import WORKERS, balanced_bounds

_CHUNKS = 512
_SIDE_BY_SIDE = TILE_ROWS
_GROUP_ENTRIES = 2048  # in the rows solved side by side, so that their buffers stay in cache
_FAST = {"contract", "reassoc", "nsz", "arcp"}  # NaN and infinity keep their meaning


@functools.cache
def kernel(width: int, packed: int):
    """The kernel for rows of `width` columns, a multiple of 16, in bfloat16 if `packed`.

    With a bfloat16 table the columns of `gram` come in the order in which its pairs are read.
    """

    @numba.njit(parallel=True, nogil=True, cache=True, fastmath=_FAST)
    def solve(indptr, indices, weights, targets, table, gram, l2, rhs, start, numbers, x, loss, jittered):
        iterations, l2_step = numbers[0], len(l2) > 1
        bounds = balanced_bounds(indptr, _CHUNKS, width // 2)
        queue = np.zeros(1, np.int64)
        longest = _GROUP_ENTRIES
        for row in range(len(indptr) - 1):
            longest = max(longest, indptr[row + 1] - indptr[row])
        for _worker in numba.prange(WORKERS):
            if queue[0] >= len(bounds) - 1:
                continue  # too late for a chunk: nothing to make room for
            capacity = longest + 4 * _SIDE_BY_SIDE
            buffer = np.empty((capacity, width), table.dtype)
            w, b = np.empty(capacity, np.float32), np.empty(capacity, np.float32)
            vectors = np.zeros((5, _SIDE_BY_SIDE, width), np.float32)
            solution, residual, p, q, right = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4]
            norm, moment = np.zeros(_SIDE_BY_SIDE, np.float32), np.zeros(_SIDE_BY_SIDE, np.float32)
            begin, end = np.zeros(_SIDE_BY_SIDE, np.int64), np.zeros(_SIDE_BY_SIDE, np.int64)
            while True:
                chunk = simd.take_number(queue, 0)
                if chunk >= len(bounds) - 1:
                    break
                first, last = bounds[chunk], bounds[chunk + 1]
                row = first
                while row < last:
                    size = 0
                    entries = 0
                    while size < _SIDE_BY_SIDE and row + size < last:
                        n = np.int64(indptr[row + size + 1]) - np.int64(indptr[row + size])
                        if size > 0 and entries + n > _GROUP_ENTRIES:
                            break
                        begin[size] = entries
                        padded = gather(
                            table,
                            indices,
                            np.int64(indptr[row + size]),
                            n,
                            weights,
                            targets,
                            buffer,
                            entries,
                            w,
                            b,
                        )
                        loss[row + size] = 0
                        jittered[row + size] = 0
                        if padded < 0:
                            loss[row + size] = np.nan
                            padded = 0
                        entries += padded
                        end[size] = entries
                        size += 1
                    for r in range(size):
                        _load_row(start, row + r, packed, solution, r)
                        simd.copy(solution, r * width, p, r * width, width)
                        if len(rhs):
                            _load_row(rhs, row + r, packed, right, r)
                    # residual = b - A x;  moment = x.b
                    _shared_products(gram, p, q)
                    for r in range(size):
                        ridge = l2[(row + r) * l2_step]
                        inner = np.float32(0)  # sums in registers: in memory they would wait for each other
                        for j in range(width):
                            inner += right[r, j] * p[r, j]
                            q[r, j] = right[r, j] - ridge * p[r, j] - q[r, j]
                        for k in range(begin[r], end[r], 4):
                            d0, d1, d2, d3 = simd.dot4(buffer, k * width, p, r * width, width, packed)
                            inner += (b[k] * d0 + b[k + 1] * d1) + (b[k + 2] * d2 + b[k + 3] * d3)
                            simd.axpy4(
                                buffer,
                                k * width,
                                b[k] - w[k] * d0,
                                b[k + 1] - w[k + 1] * d1,
                                b[k + 2] - w[k + 2] * d2,
                                b[k + 3] - w[k + 3] * d3,
                                q,
                                r * width,
                                width,
                                packed,
                            )
                        moment[r] = inner
                        square = np.float32(0)
                        for j in range(width):
                            residual[r, j] = q[r, j]
                            p[r, j] = q[r, j]
                            square += q[r, j] * q[r, j]
                        norm[r] = square if begin[r] < end[r] else np.float32(0)
                    for _step in range(iterations):
                        _shared_products(gram, p, q)
                        for r in range(size):
                            if norm[r] == 0:
                                continue
                            ridge = l2[(row + r) * l2_step]
                            slope = np.float32(0)
                            for j in range(width):
                                q[r, j] += ridge * p[r, j]
                                slope += right[r, j] * p[r, j]
                            for k in range(begin[r], end[r], 4):
                                d0, d1, d2, d3 = simd.dot4(buffer, k * width, p, r * width, width, packed)
                                slope += (b[k] * d0 + b[k + 1] * d1) + (b[k + 2] * d2 + b[k + 3] * d3)
                                simd.axpy4(
                                    buffer,
                                    k * width,
                                    w[k] * d0,
                                    w[k + 1] * d1,
                                    w[k + 2] * d2,
                                    w[k + 3] * d3,
                                    q,
                                    r * width,
                                    width,
                                    packed,
                                )
                            curvature = np.float32(0)
                            for j in range(width):
                                curvature += p[r, j] * q[r, j]
                            alpha = norm[r] / curvature if not curvature <= 0 else np.float32(0)
                            moment[r] += alpha * slope
                            after = np.float32(0)
                            for j in range(width):
                                solution[r, j] += alpha * p[r, j]
                                residual[r, j] -= alpha * q[r, j]
                                after += residual[r, j] * residual[r, j]
                            beta = after / norm[r]
                            norm[r] = after
                            for j in range(width):
                                p[r, j] = residual[r, j] + beta * p[r, j]
                    for r in range(size):
                        if begin[r] == end[r]:
                            # Nothing stored, or an entry outside the table, which loss has marked with NaN.
                            x[row + r] = loss[row + r]
                            continue
                        share = -moment[r]
                        for j in range(width):
                            share -= solution[r, j] * residual[r, j]
                        if packed:
                            simd.from_interleaved(solution, r * width, x, (row + r) * width, width)
                        else:
                            simd.copy(solution, r * width, x, (row + r) * width, width)
                        loss[row + r] = share
                    row += size

    return solve


@numba.njit(cache=True, nogil=True)
def _shared_products(gram, p, q):
    """`q[r] = gram p[r]` for the rows solved side by side."""
    width = len(gram)
    q[:] = 0
    for j in range(0, width, TILE_COLUMNS):
        add_outer_products(p, 0, 1, width, gram, j, width, width, q, j, width)


@numba.njit(cache=True, nogil=True)
def _load_row(source, row, packed, target, place):
    """Copies a row to a buffer, in the order of the loops."""
    width = source.shape[1]
    if packed:
        simd.to_interleaved(source, row * width, target, place * width, width)
    else:
        simd.copy(source, row * width, target, place * width, width)
