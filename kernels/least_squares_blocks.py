"""Exact solves for `kernels.least_squares`, on CPU: all coordinates at once (Cholesky) or by blocks (iALS++).

A pass minimises over one block of coordinates after the other, each exactly, by the normal equations of the block
(Rendle et al. 2021, "iALS++", algorithm 1). One block of full rank, begun at 0, is the Cholesky solver.
"""

from __future__ import annotations

import functools

import numba
import numpy as np

from . import simd
from .gather import gather
from .outer_products import add_outer_products
from .threads import WORKERS, balanced_bounds

JITTER_RETRIES = 4
JITTER = 1e-6  # of the largest diagonal entry, ten times more at each retry
_CHUNKS = 512
_GROUP = 64  # entries whose outer products are summed in registers
_FAST = {"contract", "reassoc", "nsz", "arcp"}  # NaN and infinity keep their meaning


@functools.cache
def kernel(width: int):
    """The kernel for float32 rows of `width` columns, a multiple of 16."""

    @numba.njit(parallel=True, nogil=True, cache=True, fastmath=_FAST)
    def solve(indptr, indices, weights, targets, table, gram, l2, rhs, start, numbers, x, loss, jittered):
        iterations, block, rank = numbers[0], numbers[1], numbers[2]
        l2_step = len(l2) > 1
        bounds = balanced_bounds(indptr, _CHUNKS, width)
        queue = np.zeros(1, np.int64)
        for _worker in numba.prange(WORKERS):
            while True:
                chunk = simd.take_number(queue, 0)
                if chunk >= len(bounds) - 1:
                    break
                first, last = bounds[chunk], bounds[chunk + 1]
                longest = 0
                for row in range(first, last):
                    longest = max(longest, indptr[row + 1] - indptr[row])
                buffer = np.empty((longest + 4, width), np.float32)
                w, b = np.empty(longest + 4, np.float32), np.empty(longest + 4, np.float32)
                matrix, factor = np.empty((width, width), np.float32), np.empty((width, width), np.float32)
                scratch = np.empty((_GROUP, width), np.float32)
                solution, product = np.empty(width, np.float32), np.empty(width, np.float32)
                delta = np.empty(width, np.float32)
                for row in range(first, last):
                    n = np.int64(indptr[row + 1]) - np.int64(indptr[row])
                    padded = gather(
                        table,
                        indices,
                        np.int64(indptr[row]),
                        n,
                        weights,
                        targets,
                        buffer,
                        0,
                        w,
                        b,
                    )
                    jittered[row] = 0
                    if padded <= 0:
                        loss[row] = 0 if padded == 0 else np.nan
                        x[row] = loss[row]
                        continue
                    ridge = l2[row * l2_step]
                    solution[:] = start[row]
                    for _sweep in range(iterations):
                        for low in range(0, rank, block):
                            high = min(low + block, rank)
                            # product = rhs + sum b y - A x, of which the coordinates of the block are used
                            for j in range(width):
                                product[j] = (rhs[row, j] if len(rhs) else np.float32(0)) - ridge * solution[j]
                            for k in range(0, padded, 4):
                                d0, d1, d2, d3 = simd.dot4(buffer, k * width, solution, 0, width, 0)
                                simd.axpy4(
                                    buffer,
                                    k * width,
                                    b[k] - w[k] * d0,
                                    b[k + 1] - w[k + 1] * d1,
                                    b[k + 2] - w[k + 2] * d2,
                                    b[k + 3] - w[k + 3] * d3,
                                    product,
                                    0,
                                    width,
                                    0,
                                )
                            for j in range(low if high - low == rank else 0, rank):
                                if solution[j] != 0:
                                    simd.axpy(-solution[j], gram, j * width, product, 0, width)
                            _block_matrix(matrix, gram, ridge, buffer, w, padded, low, high, scratch)
                            jittered[row] += _solve_block(matrix, factor, product, low, high, delta, scratch)
                            for i in range(low, high):
                                solution[i] += delta[i - low]
                    # share = x^T A x - 2 x.b, by one more pass over the entries
                    share = np.float32(0)
                    for k in range(0, padded, 4):
                        dots = simd.dot4(buffer, k * width, solution, 0, width, 0)
                        for m in range(4):
                            share += (w[k + m] * dots[m] - np.float32(2) * b[k + m]) * dots[m]
                    for j in range(rank):
                        share += solution[j] * simd.dot(gram, j * width, solution, 0, width)
                        share += ridge * solution[j] * solution[j]
                        if len(rhs):
                            share -= np.float32(2) * rhs[row, j] * solution[j]
                    x[row] = solution
                    loss[row] = share

    return solve


@numba.njit(cache=True, nogil=True)
def _block_matrix(matrix, gram, ridge, buffer, w, n, low, high, scratch):
    """Upper triangle of `gram + sum w y y^T + ridge I` on the coordinates of a block, in whole tiles."""
    width = matrix.shape[1]
    left, right = low // 16 * 16, (high + 15) // 16 * 16
    for i in range(left, right):
        for j in range(i // 16 * 16, right):
            matrix[i, j] = gram[i, j]
    for group in range(0, n, _GROUP):
        size = min(_GROUP, n - group)
        for k in range(size):
            for j in range(left, right):
                scratch[k, j] = w[group + k] * buffer[group + k, j]
        for i in range(low // 4 * 4, high, 4):
            for j in range(i // 16 * 16, right, 16):
                add_outer_products(
                    scratch, i, width, 1, buffer, group * width + j, width, size, matrix, i * width + j, width
                )
    for i in range(low, high):
        matrix[i, i] += ridge


@numba.njit(cache=True, nogil=True)
def _solve_block(matrix, factor, right, low, high, delta, scratch):
    """Solves for one block into `delta`; returns how often the diagonal had to be raised."""
    size = high - low
    padded = (size + 15) // 16 * 16
    largest = np.float32(0)
    for i in range(low, high):
        largest = max(largest, abs(matrix[i, i]))
    jitter = np.float32(0)
    for attempt in range(JITTER_RETRIES + 1):
        for i in range(padded):
            for j in range(i // 16 * 16, padded):
                inside = i <= j and j < size
                factor[i, j] = matrix[low + i, low + j] if inside else np.float32(0)
            factor[i, i] = factor[i, i] + jitter if i < size else np.float32(1)
            delta[i] = right[low + i] if i < size else np.float32(0)
        if _factorize(factor, padded, scratch):
            _substitute(factor, padded, delta)
            return attempt
        jitter = np.float32(largest * JITTER * 10.0**attempt)
    delta[:size] = np.nan
    return JITTER_RETRIES


@numba.njit(cache=True, nogil=True)
def _factorize(a, n, scratch):
    """Cholesky of the upper triangle of `a` in place, by panels of 16 rows; False where it breaks down."""
    width = a.shape[1]
    for first in range(0, n, 16):
        rest = first + 16
        for i in range(first, rest):
            pivot = a[i, i]
            if not pivot > 0:
                return False
            scale = np.float32(1) / np.sqrt(pivot)
            for j in range(i, n):
                a[i, j] *= scale
            for row in range(i + 1, rest):
                offset = row // 8 * 8  # whole vectors: what lies left of the diagonal is never read
                simd.axpy(-a[i, row], a, i * width + offset, a, row * width + offset, n - offset)
        for i in range(16):
            for j in range(rest, n):
                scratch[i, j] = -a[first + i, j]
        for i in range(rest, n, 4):
            for j in range(i // 16 * 16, n, 16):
                add_outer_products(scratch, i, width, 1, a, first * width + j, width, 16, a, i * width + j, width)
    return True


@numba.njit(cache=True, nogil=True)
def _substitute(a, n, v):
    """`v <- (U^T U)^-1 v` for the upper triangle U of `a`."""
    width = a.shape[1]
    for i in range(n):
        v[i] /= a[i, i]
        whole = min((i + 8) // 8 * 8, n)
        for j in range(i + 1, whole):
            v[j] -= a[i, j] * v[i]
        simd.axpy(-v[i], a, i * width + whole, v, whole, n - whole)
    for i in range(n - 1, -1, -1):
        whole = min((i + 8) // 8 * 8, n)
        total = v[i] - simd.dot(a, i * width + whole, v, whole, n - whole)
        for j in range(i + 1, whole):
            total -= a[i, j] * v[j]
        v[i] = total / a[i, i]
