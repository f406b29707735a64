"""`kernels.cross_network` on CPU: a block of rows goes through all layers while it is in cache.

What is remembered for the gradient are the products of each layer, from which the rows between the layers come anew.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .outer_products import TILE_COLUMNS, WIDE_COLUMNS
from .tiles import ADDED, ANY, ROWS, add_product, copy_rows, multiply, n_groups, n_panels, pack, padded, rounded, up


def cross(x, weights, biases):
    """The Numba implementation of `cross_network.OP`."""
    (m, n), layers = x.shape, len(weights)
    wide = up(n, TILE_COLUMNS)
    shapes = (m, n), (layers, m, n), (layers * n * wide,), (layers * wide,)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    y, inner, *_ = xla_ffi.call("cross_network", _FORWARD, results, x, weights, biases)
    return y, inner


def gradient(x, weights, inner, slope):
    """The Numba implementation of `cross_network.GRADIENT`."""
    (m, n), layers = x.shape, len(weights)
    wide = up(n, TILE_COLUMNS)
    groups = n_groups(m, layers * wide * wide)
    shapes = (m, n), (layers, n, n), (layers, n), (layers * n * wide,), (groups, layers, (wide + 1) * wide)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    arguments = x, weights, inner, slope
    of_x, of_weights, of_biases, *_ = xla_ffi.call("cross_network_gradient", _BACKWARD, results, *arguments)
    return of_x, of_weights, of_biases


@numba.njit(cache=True, nogil=True)
def _n_panels(x, weights, biases, y, inner, panels, starts):
    return len(weights) * n_panels(weights.shape[1])


@numba.njit(cache=True, nogil=True)
def _pack(number, x, weights, biases, y, inner, panels, starts):
    n = weights.shape[1]
    wide = rounded(n, TILE_COLUMNS)
    layer, panel = number // n_panels(n), number % n_panels(n)
    pack(panel, weights[layer], panels, layer * n * wide)
    first = panel * WIDE_COLUMNS
    for column in range(first, min(first + WIDE_COLUMNS, wide)):
        starts[layer * wide + column] = biases[layer, column] if column < n else 0


@numba.njit(cache=True, nogil=True)
def _n_blocks(x, weights, biases, y, inner, panels, starts):
    return (len(x) + ROWS - 1) // ROWS


@numba.njit(cache=True, nogil=True)
def _forward(number, x, weights, biases, y, inner, panels, starts):
    """One block of rows."""
    (m, n), first = x.shape, number * ROWS
    size, wide = min(ROWS, m - first), rounded(n, TILE_COLUMNS)
    whole = size == ROWS and wide == n
    start, s = (x.reshape(-1), first * n) if whole else (padded(x.reshape(-1), first * n, n, size, ROWS, wide), 0)
    result, r = (y.reshape(-1), first * n) if whole else (np.empty(ROWS * wide, np.float32), 0)
    row, place = start, s
    for layer in range(len(weights)):
        kept = inner[layer].reshape(-1)
        products, p = (kept, first * n) if whole else (np.empty(ROWS * wide, np.float32), 0)
        multiply(row, place, wide, ROWS, panels, layer * n * wide, n, starts, layer * wide, ANY, products, p, wide)
        if not whole:
            copy_rows(products, 0, wide, kept, first * n, n, size)
        simd.multiply_and_add(start, s, products, p, row, place, result, r, ROWS * wide)
        row, place = result, r
    if not whole:
        copy_rows(result, 0, wide, y.reshape(-1), first * n, n, size)


@numba.njit(cache=True, nogil=True)
def _n_panels_back(x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    return len(weights) * n_panels(weights.shape[1])


@numba.njit(cache=True, nogil=True)
def _pack_back(number, x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    n = weights.shape[1]
    layer, panel = number // n_panels(n), number % n_panels(n)
    pack(panel, weights[layer].T, panels, layer * n * rounded(n, TILE_COLUMNS))


@numba.njit(cache=True, nogil=True)
def _n_groups(x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    return len(sums)


@numba.njit(cache=True, nogil=True)
def _backward(number, x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    """Rows whose gradients of the weights are summed one after the other; and their own gradients."""
    (m, n), layers, mine = x.shape, len(weights), sums[number]
    wide = rounded(n, TILE_COLUMNS)
    size = rounded((m + len(sums) - 1) // len(sums), ROWS)
    mine[:] = 0
    area = ROWS * wide
    rows, slopes, back = np.zeros(layers * area, np.float32), np.empty(area, np.float32), np.zeros(area, np.float32)
    of_start = np.empty(area, np.float32)
    for first in range(number * size, min((number + 1) * size, m), ROWS):
        count = min(ROWS, m - first)
        copy_rows(x.reshape(-1), first * n, n, rows, 0, wide, count)
        copy_rows(slope.reshape(-1), first * n, n, back, 0, wide, count)
        rows[count * wide : area] = 0
        back[count * wide :] = 0
        of_start[:] = 0
        for layer in range(layers - 1):
            products, p = _products(inner[layer].reshape(-1), first, count, n, wide)
            simd.multiply_and_add(rows, 0, products, p, rows, layer * area, rows, (layer + 1) * area, area)
        for layer in range(layers - 1, -1, -1):
            products, p = _products(inner[layer].reshape(-1), first, count, n, wide)
            simd.multiply_and_add(back, 0, products, p, of_start, 0, of_start, 0, area)
            simd.multiply(back, 0, rows, 0, slopes, 0, area)
            for row in range(count):
                simd.axpy(np.float32(1), slopes, row * wide, mine[layer], wide * wide, wide)
            add_product(rows, layer * area, wide, 1, wide, slopes, 0, False, wide, ROWS, mine[layer], 0, wide)
            add_product(slopes, 0, 1, wide, ROWS, panels, layer * n * wide, True, 0, n, back, 0, wide)
        simd.axpy(np.float32(1), of_start, 0, back, 0, area)
        copy_rows(back, 0, wide, of_x.reshape(-1), first * n, n, count)


@numba.njit(cache=True, nogil=True)
def _products(kept, first, count, n, wide):
    """Those of a block, and the place where they begin."""
    if count == ROWS and wide == n:
        return kept, first * n
    return padded(kept, first * n, n, count, ROWS, wide), 0


@numba.njit(cache=True, nogil=True)
def _n_sums(x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    # One more row than there are: that of the bias.
    return len(weights) * ((x.shape[1] + ADDED) // ADDED)


@numba.njit(cache=True, nogil=True)
def _add_up(number, x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    """The sums of all groups, in their order: some rows of the gradient of a layer or, after the last, its bias's."""
    n = x.shape[1]
    wide, of_layer = rounded(n, TILE_COLUMNS), (n + ADDED) // ADDED
    layer, part = number // of_layer, number % of_layer
    for row in range(part * ADDED, min((part + 1) * ADDED, n + 1)):
        total, start = (of_weights[layer, row], row * wide) if row < n else (of_biases[layer], wide * wide)
        total[:] = 0
        for group in range(len(sums)):
            for column in range(n):
                total[column] += sums[group, layer, start + column]


_FORWARD = ((_n_panels, _pack), (_n_blocks, _forward))
_BACKWARD = ((_n_panels_back, _pack_back), (_n_groups, _backward), (_n_sums, _add_up))
