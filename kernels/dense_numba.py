"""`kernels.dense` on CPU: tiles of the products summed in registers, over blocks of rows that stay in cache.

Weights are packed in panels, padded with zeros, as wide as a tile. A block whose rows or columns do not fill the tiles
goes through a copy padded with zeros, for nothing may be read or written beyond an array.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import huge_pages, simd, xla_ffi
from .threads import WORKERS

_ROWS = 64  # in a block, a multiple of those of a tile
_GROUP = 256  # least rows whose gradients of the weights are summed one after the other
_GROUPS = 64  # the most sums, which are added at the end
_SUMS = 1 << 22  # and the most numbers in them, but for large weights
_SERIAL = 1 << 18  # so many are added sooner by one thread than others are woken


def layer(x, weights, bias, *, relu: bool):
    """The Numba implementation of `dense.OP`."""
    results = [jax.ShapeDtypeStruct((x.shape[0], weights.shape[1]), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)]
    y, status = xla_ffi.call("dense", _layer, results, x, weights, bias, jnp.full(1, relu, jnp.int32))
    return xla_ffi.or_nan(y, status)


def gradient(x, weights, y, slope, *, relu: bool):
    """The Numba implementation of `dense.GRADIENT`."""
    results = [
        jax.ShapeDtypeStruct(x.shape, jnp.float32),
        jax.ShapeDtypeStruct(weights.shape, jnp.float32),
        jax.ShapeDtypeStruct(weights.shape[1:], jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
    ]
    # Without relu nothing is read of y, which the caller may have left empty.
    *gradients, status = xla_ffi.call("dense_gradient", _gradient, results, x, weights, y, slope)
    return tuple(xla_ffi.or_nan(array, status) for array in gradients)


@numba.njit(cache=True, nogil=True)
def _rounded(n, multiple):
    return (n + multiple - 1) // multiple * multiple


@numba.njit(cache=True, nogil=True)
def _add_products(a, i, a_stride, a_step, n_rows, b, n, b_stride, c, j, wide):
    """`C[m, :] += sum over k < n of A[k, m] B[k, :]` for rows and columns that fill tiles; see `add_outer_products`.

    B lies in panels as wide as a tile, one behind the other, where `b_stride` is 0, else as it is.
    """
    for column in range(0, wide, simd.WIDE_COLUMNS):
        width = min(simd.WIDE_COLUMNS, wide - column)
        place, stride = (column, b_stride) if b_stride else (column * n, width)
        if width == simd.WIDE_COLUMNS:
            for m in range(0, n_rows, simd.TALL_ROWS):
                simd.add_wide_outer_products(
                    a, i + m * a_step, a_stride, a_step, b, place, stride, n, c, j + m * wide + column, wide
                )
        else:
            for m in range(0, n_rows, simd.TALL_ROWS):
                simd.add_tall_outer_products(
                    a, i + m * a_step, a_stride, a_step, b, place, stride, n, c, j + m * wide + column, wide
                )


@numba.njit(cache=True, nogil=True)
def _packed(weights):
    """Columns in panels; the last one is narrow if that is enough."""
    k, n = weights.shape
    panels = np.zeros(k * _rounded(n, simd.TILE_COLUMNS), np.float32)
    place = 0
    for column in range(0, n, simd.WIDE_COLUMNS):
        width = min(simd.WIDE_COLUMNS, _rounded(n - column, simd.TILE_COLUMNS))
        for row in range(k):
            for lane in range(min(width, n - column)):
                panels[place + lane] = weights[row, column + lane]
            place += width
    return panels


@numba.njit(parallel=True, nogil=True, cache=True)
def _layer(x, weights, bias, relu, y, status):
    m, k, n = len(x), x.shape[1], len(bias)
    panels = _packed(weights)
    wide = _rounded(n, simd.TILE_COLUMNS)
    padded = np.zeros(wide, np.float32)
    for column in range(n):
        padded[column] = bias[column]
    huge_pages.ask_for(y)
    n_blocks = (m + _ROWS - 1) // _ROWS
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        rows, sums = np.zeros(_ROWS * k, np.float32), np.empty(_ROWS * wide, np.float32)
        while True:
            block = simd.take_number(queue, 0)
            if block >= n_blocks:
                break
            _forward(x, panels, padded, relu[0] != 0, block * _ROWS, rows, sums, y)
    status[0] = 1


@numba.njit(cache=True, nogil=True)
def _forward(x, panels, bias, relu, first, rows, sums, y):
    """One block of rows."""
    m, k, n = len(x), x.shape[1], y.shape[1]
    wide, size = len(bias), min(_ROWS, m - first)
    given, result = x.reshape(-1), y.reshape(-1)
    whole = wide == n and size == _ROWS
    target, place = (result, first * n) if whole else (sums, 0)
    for row in range(size):
        simd.copy(bias, 0, target, place + row * wide, wide)
    if size == _ROWS:
        _add_products(given, first * k, 1, k, _ROWS, panels, k, 0, target, place, wide)
    else:
        _copy_rows(given, first * k, k, rows, 0, k, size)
        _add_products(rows, 0, 1, k, _rounded(size, simd.TALL_ROWS), panels, k, 0, target, place, wide)
    if relu:
        simd.relu(target, place, target, place, size * wide)
    if not whole:
        _copy_rows(sums, 0, wide, result, first * n, n, size)


@numba.njit(cache=True, nogil=True)
def _copy_rows(source, i, i_stride, target, j, j_stride, n_rows):
    """Rows of as many numbers as the lesser stride has."""
    n = min(i_stride, j_stride)
    whole = n // simd.LANES * simd.LANES
    for row in range(n_rows):
        simd.copy(source, i + row * i_stride, target, j + row * j_stride, whole)
        for column in range(whole, n):
            target[j + row * j_stride + column] = source[i + row * i_stride + column]


@numba.njit(parallel=True, nogil=True, cache=True)
def _gradient(x, weights, y, slope, of_x, of_weights, of_bias, status):
    m, k, n = len(x), x.shape[1], weights.shape[1]
    panels = _packed(weights.T)
    huge_pages.ask_for(of_x)
    tall, wide, across = _rounded(k, simd.TALL_ROWS), _rounded(n, simd.TILE_COLUMNS), _rounded(k, simd.TILE_COLUMNS)
    n_groups = max(1, min(_GROUPS, (m + _GROUP - 1) // _GROUP, max(4, _SUMS // (tall * wide))))
    # By the shapes alone, so that the sums are the same on any number of threads.
    size = _rounded((m + n_groups - 1) // n_groups, _ROWS)
    sums = np.empty((n_groups, tall * wide + wide), np.float32)  # the last row: those of the bias
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        scratch = np.zeros((3, _ROWS * max(wide, across)), np.float32)
        while True:
            group = simd.take_number(queue, 0)
            if group >= n_groups:
                break
            sums[group] = 0
            for first in range(group * size, min((group + 1) * size, m), _ROWS):
                _backward(x, panels, y, slope, first, min(_ROWS, m - first), wide, scratch, of_x, sums[group])
    if n_groups * k * n < _SERIAL:
        for row in range(k + 1):
            _add_up(sums, row, tall, wide, of_weights, of_bias)
    else:
        for row in numba.prange(k + 1):
            _add_up(sums, row, tall, wide, of_weights, of_bias)
    status[0] = 1


@numba.njit(cache=True, nogil=True)
def _add_up(sums, row, tall, wide, of_weights, of_bias):
    """The sums of all groups, in their order: a row of the weights' gradient or, after the last, the bias's."""
    k, n, row = len(of_weights), len(of_bias), np.int64(row)
    total, start = (of_weights[row], row * wide) if row < k else (of_bias, tall * wide)
    total[:] = 0
    for group in range(len(sums)):
        for column in range(n):
            total[column] += sums[group, start + column]


@numba.njit(cache=True, nogil=True)
def _backward(x, panels, y, slope, first, size, wide, scratch, of_x, sums):
    """One block of rows: its part of the gradient in x, and its share of the others added to `sums`."""
    k, n = x.shape[1], slope.shape[1]
    tall, relu = _rounded(k, simd.TALL_ROWS), len(y) > 0
    rows, slopes, products = scratch[0], scratch[1], scratch[2]
    of_bias = tall * wide
    signs, given_slopes = y.reshape(-1), slope.reshape(-1)
    whole = n // simd.LANES * simd.LANES
    for row in range(size):
        place, end = (first + row) * n, row * wide
        if relu:
            simd.where_above_0(given_slopes, place, signs, place, slopes, end, whole)
        else:
            simd.copy(given_slopes, place, slopes, end, whole)
        for column in range(whole, n):
            value = given_slopes[place + column]
            slopes[end + column] = np.float32(0) if relu and not signs[place + column] > 0 else value
        simd.axpy(np.float32(1), slopes, end, sums, of_bias, wide)
    given, result = x.reshape(-1), of_x.reshape(-1)
    # A transposed: its rows are the columns of x.
    source, begin = given, first * k
    if tall != k:
        source, begin = rows, 0
        _copy_rows(given, first * k, k, rows, 0, tall, size)
    _add_products(source, begin, tall, 1, tall, slopes, size, wide, sums, 0, wide)
    across = _rounded(k, simd.TILE_COLUMNS)
    whole = across == k and size == _ROWS
    target, place = (result, first * k) if whole else (products, 0)
    for i in range(0, _rounded(size, simd.TALL_ROWS) * across, simd.LANES):
        simd.clear(target, place + i)
    _add_products(slopes, 0, 1, wide, _rounded(size, simd.TALL_ROWS), panels, n, 0, target, place, across)
    if not whole:
        _copy_rows(products, 0, across, result, first * k, k, size)
