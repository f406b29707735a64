"""`kernels.least_squares` on CPU: rows in parallel, the rank a constant of the compiled code.

Each thread takes chunks of rows with about equal numbers of entries. A row's table rows are gathered once
into a buffer that stays in cache over all steps; results do not depend on the number of threads.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .threads import WORKERS, balanced_bounds

MAX_RANK = 256
_CHUNKS = 512
_AHEAD = 12  # entries between a prefetch and its use
_GROUP = 64  # entries whose outer products are summed in registers
_JITTER_RETRIES = 4
_JITTER = np.float32(1e-6)
_FAST = {"contract", "reassoc", "nsz", "arcp"}  # NaN and infinity keep their meaning


def solve_rows(
    indptr, indices, weights, targets, table, gram, l2, rhs, start, *, solver: str, iterations: int, block: int
) -> list[jax.Array]:
    """The Numba implementation of `least_squares.OP`: `[x, loss, jittered]`."""
    n_rows, rank = start.shape
    width = -(-rank // simd.TILE_COLUMNS) * simd.TILE_COLUMNS
    packed = int(table.dtype == jnp.bfloat16)

    def widened(array):
        return jnp.pad(array, [(0, 0), (0, width - rank)])

    gram = jnp.pad(gram, (0, width - rank))
    if solver == "cg":
        columns = simd.interleaved_columns(width) if packed else np.arange(width)
        gram = gram[columns][:, columns]
        kernel = _conjugate_gradient(width, packed)
        specialised, numbers = f"cg_{width}", jnp.asarray([rank, iterations, 0], jnp.int32)
        extra = (numbers, jnp.asarray(columns, jnp.int32))
    else:
        kernel = _blockwise(width, packed)
        specialised = f"blockwise_{width}"
        extra = (jnp.asarray([rank, iterations, block], jnp.int32),)
    results = [
        jax.ShapeDtypeStruct((n_rows, width), jnp.float32),
        jax.ShapeDtypeStruct((n_rows,), jnp.float32),
        jax.ShapeDtypeStruct((n_rows,), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ]
    arguments = (indptr, indices, weights, targets, widened(table), gram, l2, widened(rhs), widened(start), *extra)
    x, loss, jittered, status = xla_ffi.call(f"least_squares_{specialised}", kernel, results, *arguments)
    x = jnp.where(status[0] == 1, x[:, :rank], jnp.nan)
    return [x, loss, jittered]


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _factorize_and_solve(a, diagonal, n, jitter, v):
    """Cholesky of the upper triangle of `a` in place, then v <- a^-1 v; False where it breaks down."""
    for i in range(n):
        a[i, i] = diagonal[i] + jitter
    for k in range(n):
        pivot = a[k, k]
        if not pivot > 0:
            return False
        scale = np.float32(1) / np.sqrt(pivot)
        for j in range(k, n):
            a[k, j] *= scale
        for i in range(k + 1, n):
            factor = a[k, i]
            for j in range(i, n):
                a[i, j] -= factor * a[k, j]
    for i in range(n):
        v[i] /= a[i, i]
        for j in range(i + 1, n):
            v[j] -= a[i, j] * v[i]
    for i in range(n - 1, -1, -1):
        total = v[i]
        for j in range(i + 1, n):
            total -= a[i, j] * v[j]
        v[i] = total / a[i, i]
    return True


@functools.cache
def _conjugate_gradient(width: int, packed: int):
    row_bytes = (2 if packed else 4) * width

    @numba.njit(parallel=True, nogil=True, cache=True, fastmath=_FAST)
    def kernel(
        indptr, indices, weights, targets, table, gram, l2, rhs, start, numbers, columns, x, loss, jittered, status
    ):
        n_rows, n_columns = len(indptr) - 1, len(table)
        rank, iterations = numbers[0], numbers[1]
        weight_step, target_step, l2_step = len(weights) > 1, len(targets) > 1, len(l2) > 1
        bounds = balanced_bounds(indptr, _CHUNKS, rank // 2)
        table_data, gram_data = simd.address_of(table), simd.address_of(gram)
        queue = np.zeros(1, np.int64)
        for _worker in numba.prange(WORKERS):
            while True:
                chunk = simd.take_number(simd.address_of(queue))
                if chunk >= len(bounds) - 1:
                    break
                first, last = bounds[chunk], bounds[chunk + 1]
                longest = 0
                for row in range(first, last):
                    longest = max(longest, indptr[row + 1] - indptr[row])
                buffer = np.empty((longest + 4, width), table.dtype)
                w, b = np.empty(longest + 4, np.float32), np.empty(longest + 4, np.float32)
                solution, residual = np.empty(width, np.float32), np.empty(width, np.float32)
                p, q = np.empty(width, np.float32), np.empty(width, np.float32)
                buffer_data, p_data, q_data = simd.address_of(buffer), simd.address_of(p), simd.address_of(q)
                for row in range(first, last):
                    begin = np.int64(indptr[row])
                    n = np.int64(indptr[row + 1]) - begin
                    jittered[row] = 0
                    if n == 0:
                        x[row] = 0
                        loss[row] = 0
                        continue
                    valid = True
                    for k in range(n):
                        ahead = indices[min(begin + k + _AHEAD, len(indices) - 1)]
                        for line in range(0, row_bytes, 64):
                            simd.prefetch(table_data + np.int64(ahead) * row_bytes + line)
                        column = indices[begin + k]
                        if column < 0 or column >= n_columns:
                            valid = False
                            break
                        for j in range(width):
                            buffer[k, j] = table[column, j]
                        w[k] = weights[(begin + k) * weight_step]
                        b[k] = targets[(begin + k) * target_step]
                    if not valid:
                        x[row] = np.nan
                        loss[row] = np.nan
                        continue
                    padded = (n + 3) // 4 * 4
                    for k in range(n, padded):
                        w[k] = 0
                        b[k] = 0
                        for j in range(width):
                            buffer[k, j] = 0
                    ridge = l2[row * l2_step]
                    # residual = b - A x;  moment = x.b over the entries
                    for j in range(width):
                        solution[j] = start[row, columns[j]]
                        p[j] = solution[j]
                        q[j] = rhs[row, columns[j]] if len(rhs) else np.float32(0)
                    moment = np.float32(0)
                    for j in range(width):
                        moment += q[j] * p[j]
                    for k in range(0, padded, 4):
                        d0, d1, d2, d3 = simd.dot4(buffer_data + k * row_bytes, p_data, width, packed)
                        moment += (b[k] * d0 + b[k + 1] * d1) + (b[k + 2] * d2 + b[k + 3] * d3)
                        simd.axpy4(
                            buffer_data + k * row_bytes,
                            b[k] - w[k] * d0,
                            b[k + 1] - w[k + 1] * d1,
                            b[k + 2] - w[k + 2] * d2,
                            b[k + 3] - w[k + 3] * d3,
                            q_data,
                            width,
                            packed,
                        )
                    for j in range(0, width, 4):
                        simd.axpy4(gram_data + j * width * 4, -p[j], -p[j + 1], -p[j + 2], -p[j + 3], q_data, width, 0)
                    norm = np.float32(0)
                    for j in range(width):
                        residual[j] = q[j] - ridge * solution[j]
                        p[j] = residual[j]
                        norm += residual[j] * residual[j]
                    for _ in range(iterations):
                        if norm == 0:
                            break
                        for j in range(width):
                            q[j] = ridge * p[j]
                        slope = np.float32(0)
                        for k in range(0, padded, 4):
                            d0, d1, d2, d3 = simd.dot4(buffer_data + k * row_bytes, p_data, width, packed)
                            slope += (b[k] * d0 + b[k + 1] * d1) + (b[k + 2] * d2 + b[k + 3] * d3)
                            simd.axpy4(
                                buffer_data + k * row_bytes,
                                w[k] * d0,
                                w[k + 1] * d1,
                                w[k + 2] * d2,
                                w[k + 3] * d3,
                                q_data,
                                width,
                                packed,
                            )
                        for j in range(0, width, 4):
                            simd.axpy4(gram_data + j * width * 4, p[j], p[j + 1], p[j + 2], p[j + 3], q_data, width, 0)
                        curvature = np.float32(0)
                        for j in range(width):
                            curvature += p[j] * q[j]
                        if len(rhs):
                            for j in range(width):
                                slope += rhs[row, columns[j]] * p[j]
                        alpha = norm / curvature if not curvature <= 0 else np.float32(0)
                        moment += alpha * slope
                        after = np.float32(0)
                        for j in range(width):
                            solution[j] += alpha * p[j]
                            residual[j] -= alpha * q[j]
                            after += residual[j] * residual[j]
                        beta = after / norm
                        norm = after
                        for j in range(width):
                            p[j] = residual[j] + beta * p[j]
                    share = -moment
                    for j in range(width):
                        share -= solution[j] * residual[j]
                        x[row, columns[j]] = solution[j]
                    loss[row] = share
        status[0] = 1

    return kernel


@functools.cache
def _blockwise(width: int, packed: int):
    """Exact solves for `block` coordinates at a time; one block of full rank is the Cholesky solver."""
    row_bytes, table_row_bytes = 4 * width, (2 if packed else 4) * width

    @numba.njit(parallel=True, nogil=True, cache=True, fastmath=_FAST)
    def kernel(indptr, indices, weights, targets, table, gram, l2, rhs, start, numbers, x, loss, jittered, status):
        n_rows, n_columns = len(indptr) - 1, len(table)
        rank, iterations, block = numbers[0], numbers[1], numbers[2]
        weight_step, target_step, l2_step = len(weights) > 1, len(targets) > 1, len(l2) > 1
        bounds = balanced_bounds(indptr, _CHUNKS, rank)
        table_data, gram_data = simd.address_of(table), simd.address_of(gram)
        queue = np.zeros(1, np.int64)
        for _worker in numba.prange(WORKERS):
            while True:
                chunk = simd.take_number(simd.address_of(queue))
                if chunk >= len(bounds) - 1:
                    break
                first, last = bounds[chunk], bounds[chunk + 1]
                longest = 0
                for row in range(first, last):
                    longest = max(longest, indptr[row + 1] - indptr[row])
                buffer = np.empty((longest + 4, width), np.float32)
                scaled = np.empty((_GROUP, width), np.float32)
                w, b = np.empty(longest + 4, np.float32), np.empty(longest + 4, np.float32)
                matrix, upper = np.empty((width, width), np.float32), np.empty((width, width), np.float32)
                diagonal = np.empty(width, np.float32)
                solution, gradient = np.empty(width, np.float32), np.empty(width, np.float32)
                delta = np.empty(width, np.float32)
                buffer_data, scaled_data, matrix_data = (
                    simd.address_of(buffer),
                    simd.address_of(scaled),
                    simd.address_of(matrix),
                )
                solution_data, gradient_data = simd.address_of(solution), simd.address_of(gradient)
                for row in range(first, last):
                    begin = np.int64(indptr[row])
                    n = np.int64(indptr[row + 1]) - begin
                    jittered[row] = 0
                    if n == 0:
                        x[row] = 0
                        loss[row] = 0
                        continue
                    valid = True
                    for k in range(n):
                        ahead = indices[min(begin + k + _AHEAD, len(indices) - 1)]
                        for line in range(0, table_row_bytes, 64):
                            simd.prefetch(table_data + np.int64(ahead) * table_row_bytes + line)
                        column = indices[begin + k]
                        if column < 0 or column >= n_columns:
                            valid = False
                            break
                        for j in range(width):
                            buffer[k, j] = simd.widen(table[column, j]) if packed else table[column, j]
                        w[k] = weights[(begin + k) * weight_step]
                        b[k] = targets[(begin + k) * target_step]
                    if not valid:
                        x[row] = np.nan
                        loss[row] = np.nan
                        continue
                    padded = (n + 3) // 4 * 4
                    for k in range(n, padded):
                        w[k] = 0
                        b[k] = 0
                        for j in range(width):
                            buffer[k, j] = 0
                    ridge = l2[row * l2_step]
                    for j in range(width):
                        solution[j] = start[row, j]
                    for sweep in range(iterations):
                        for low in range(0, rank, block):
                            high = min(low + block, rank)
                            # The gradient of all coordinates costs one pass; those of the block are used.
                            for j in range(width):
                                gradient[j] = (rhs[row, j] if len(rhs) else np.float32(0)) - ridge * solution[j]
                            for k in range(0, padded, 4):
                                d0, d1, d2, d3 = simd.dot4(buffer_data + k * row_bytes, solution_data, width, 0)
                                simd.axpy4(
                                    buffer_data + k * row_bytes,
                                    b[k] - w[k] * d0,
                                    b[k + 1] - w[k + 1] * d1,
                                    b[k + 2] - w[k + 2] * d2,
                                    b[k + 3] - w[k + 3] * d3,
                                    gradient_data,
                                    width,
                                    0,
                                )
                            for j in range(0, width, 4):
                                simd.axpy4(
                                    gram_data + j * row_bytes,
                                    -solution[j],
                                    -solution[j + 1],
                                    -solution[j + 2],
                                    -solution[j + 3],
                                    gradient_data,
                                    width,
                                    0,
                                )
                            low_tile = low // 16 * 16
                            for i in range(low_tile, (high + 15) // 16 * 16):
                                for j in range(i // 16 * 16, (high + 15) // 16 * 16):
                                    matrix[i, j] = gram[i, j]
                            for group in range(0, n, _GROUP):
                                size = min(_GROUP, n - group)
                                for k in range(size):
                                    for j in range(low_tile, (high + 15) // 16 * 16):
                                        scaled[k, j] = w[group + k] * buffer[group + k, j]
                                for i in range(low // 4 * 4, high, 4):
                                    for j in range(i // 16 * 16, high, 16):
                                        simd.add_outer_products(
                                            scaled_data + i * 4,
                                            width,
                                            buffer_data + (group * width + j) * 4,
                                            width,
                                            size,
                                            matrix_data + (i * width + j) * 4,
                                            width,
                                        )
                            size = high - low
                            largest = np.float32(0)
                            for i in range(size):
                                diagonal[i] = matrix[low + i, low + i] + ridge
                                largest = max(largest, abs(diagonal[i]))
                            jitter = np.float32(0)
                            for attempt in range(_JITTER_RETRIES + 1):
                                for i in range(size):
                                    delta[i] = gradient[low + i]
                                    for j in range(i, size):
                                        upper[i, j] = matrix[low + i, low + j]
                                if _factorize_and_solve(upper, diagonal, size, jitter, delta):
                                    break
                                if attempt == _JITTER_RETRIES:
                                    delta[:size] = np.nan
                                    break
                                jitter = largest * _JITTER * np.float32(10.0**attempt)
                                jittered[row] += 1
                            for i in range(size):
                                solution[low + i] += delta[i]
                    # share = x^T A x - 2 x.b = x.(A x - b) - x.b, by one more pass over the entries
                    share = np.float32(0)
                    for j in range(width):
                        gradient[j] = ridge * solution[j]
                    for k in range(0, padded, 4):
                        dots = simd.dot4(buffer_data + k * row_bytes, solution_data, width, 0)
                        for m in range(4):
                            share += (w[k + m] * dots[m] - np.float32(2) * b[k + m]) * dots[m]
                    for j in range(0, width, 4):
                        simd.axpy4(
                            gram_data + j * row_bytes,
                            solution[j],
                            solution[j + 1],
                            solution[j + 2],
                            solution[j + 3],
                            gradient_data,
                            width,
                            0,
                        )
                    for j in range(width):
                        share += gradient[j] * solution[j]
                        if len(rhs):
                            share -= np.float32(2) * rhs[row, j] * solution[j]
                        x[row, j] = solution[j]
                    loss[row] = share
        status[0] = 1

    return kernel
