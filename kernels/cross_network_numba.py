"""`kernels.cross_network` on CPU: a block of rows goes through all layers while it is in cache.

What is remembered for the gradient are the products of each layer, from which the rows between the layers come anew.
"""

from __future__ import annotations

import numba
import numpy as np

from . import simd, xla_ffi
from .dense_numba import float32_shapes
from .outer_products import TILE_COLUMNS, WIDE_COLUMNS
from .tiles import (
    ADDED,
    ANY,
    ROWS,
    add_product,
    added,
    block_of,
    copy_rows,
    multiply,
    n_groups,
    n_panels,
    pack,
    rounded,
    up,
)


def cross(x, weights, biases):
    """The Numba implementation of `cross_network.OP`."""
    (m, n), layers = x.shape, len(weights)
    results = float32_shapes((m, n), *forward_shapes(m, n, layers))
    y, inner, *_ = xla_ffi.call("cross_network", _FORWARD, results, x, weights, biases)
    return y, inner


def gradient(x, weights, inner, slope):
    """The Numba implementation of `cross_network.GRADIENT`."""
    (m, n), layers = x.shape, len(weights)
    panels, n_sums = gradient_shapes(n, layers)
    shapes = (m, n), (layers, n, n), (layers, n), panels, (n_groups(m, n_sums), n_sums)
    results = float32_shapes(*shapes)
    arguments = x, weights, inner, slope
    of_x, of_weights, of_biases, *_ = xla_ffi.call("cross_network_gradient", _BACKWARD, results, *arguments)
    return of_x, of_weights, of_biases


def forward_shapes(m: int, n: int, layers: int) -> tuple[tuple[int, ...], ...]:
    """Of the products of each layer, the panels, and the biases padded."""
    wide = up(n, TILE_COLUMNS)
    return (layers, m, n), (layers * n * wide,), (layers * wide,)


def gradient_shapes(n: int, layers: int) -> tuple[tuple[int, ...], int]:
    """Of the panels; and how many sums there are of a group of rows."""
    wide = up(n, TILE_COLUMNS)
    return (layers * n * wide,), layers * (wide + 1) * wide


@numba.njit(cache=True, nogil=True)
def n_packed(weights):
    """Panels of all layers."""
    return len(weights) * n_panels(weights.shape[1])


@numba.njit(cache=True, nogil=True)
def pack_panel(number, weights, biases, panels, starts):
    """Writes one panel of the weights and its part of the biases, padded with zeros."""
    n = weights.shape[1]
    wide = rounded(n, TILE_COLUMNS)
    layer, panel = number // n_panels(n), number % n_panels(n)
    pack(panel, weights[layer], panels, layer * n * wide)
    first = panel * WIDE_COLUMNS
    for column in range(first, min(first + WIDE_COLUMNS, wide)):
        starts[layer * wide + column] = biases[layer, column] if column < n else 0


@numba.njit(cache=True, nogil=True)
def pack_transposed(number, weights, panels):
    """Writes one panel of the weights transposed."""
    n = weights.shape[1]
    layer, panel = number // n_panels(n), number % n_panels(n)
    pack(panel, weights[layer].T, panels, layer * n * rounded(n, TILE_COLUMNS))


@numba.njit(cache=True, nogil=True)
def through(number, x, inner, panels, starts, result):
    """One block of rows through all layers, into rows padded with zeros."""
    (m, n), first = x.shape, number * ROWS
    size, wide = min(ROWS, m - first), rounded(n, TILE_COLUMNS)
    start, s = block_of(x.reshape(-1), first, size, n, wide)
    row, place = start, s
    for layer in range(len(inner)):
        kept = inner[layer].reshape(-1)
        whole = size == ROWS and wide == n
        products, p = (kept, first * n) if whole else (np.empty(ROWS * wide, np.float32), 0)
        multiply(row, place, wide, ROWS, panels, layer * n * wide, n, starts, layer * wide, ANY, products, p, wide)
        if not whole:
            copy_rows(products, 0, wide, kept, first * n, n, size)
        simd.multiply_and_add(start, s, products, p, row, place, result, 0, ROWS * wide)
        row, place = result, 0


@numba.njit(cache=True, nogil=True)
def rows_between(first, count, x, inner, rows):
    """The rows that each layer was given, as many of these blocks as there is place for."""
    n = x.shape[1]
    wide = rounded(n, TILE_COLUMNS)
    area = ROWS * wide
    copy_rows(x.reshape(-1), first * n, n, rows, 0, wide, count)
    rows[count * wide : area] = 0
    for layer in range(len(rows) // area - 1):
        products, p = block_of(inner[layer].reshape(-1), first, count, n, wide)
        simd.multiply_and_add(rows, 0, products, p, rows, layer * area, rows, (layer + 1) * area, area)


@numba.njit(cache=True, nogil=True)
def back_through(first, count, n, inner, panels, rows, back, slopes, of_start, sums):
    """Turns `back`, the slopes of a block's results, into those of its rows, and adds up those of the weights."""
    wide = rounded(n, TILE_COLUMNS)
    area = ROWS * wide
    of_start[:] = 0
    for layer in range(len(inner) - 1, -1, -1):
        products, p = block_of(inner[layer].reshape(-1), first, count, n, wide)
        simd.multiply_and_add(back, 0, products, p, of_start, 0, of_start, 0, area)
        simd.multiply(back, 0, rows, 0, slopes, 0, area)
        own = layer * (wide + 1) * wide
        for row in range(count):
            simd.axpy(np.float32(1), slopes, row * wide, sums, own + wide * wide, wide)
        add_product(rows, layer * area, wide, 1, wide, slopes, 0, False, wide, ROWS, sums, own, wide)
        add_product(slopes, 0, 1, wide, ROWS, panels, layer * n * wide, True, 0, n, back, 0, wide)
    simd.axpy(np.float32(1), of_start, 0, back, 0, area)


@numba.njit(cache=True, nogil=True)
def n_added(weights):
    """How many parts of the gradients are added up: some rows of a layer each."""
    # One more row than there are: that of the bias.
    return len(weights) * ((weights.shape[1] + ADDED) // ADDED)


@numba.njit(cache=True, nogil=True)
def add_up(number, of_weights, of_biases, sums):
    """The sums of all groups, in their order: some rows of the gradient of a layer or, after the last, its bias's."""
    n = of_weights.shape[1]
    wide, of_layer = rounded(n, TILE_COLUMNS), (n + ADDED) // ADDED
    layer, first = number // of_layer, number % of_layer * ADDED
    start = layer * (wide + 1) * wide
    count = min(ADDED, n - first)
    if count > 0:
        total = added(sums, start + first * wide, count * wide)
        copy_rows(total, 0, wide, of_weights[layer].reshape(-1), first * n, n, count)
    if first + ADDED > n:
        of_biases[layer] = added(sums, start + wide * wide, wide)[:n]


@numba.njit(cache=True, nogil=True)
def _n_panels(x, weights, biases, y, inner, panels, starts):
    return n_packed(weights)


@numba.njit(cache=True, nogil=True)
def _pack(number, x, weights, biases, y, inner, panels, starts):
    pack_panel(number, weights, biases, panels, starts)


@numba.njit(cache=True, nogil=True)
def _n_blocks(x, weights, biases, y, inner, panels, starts):
    return (len(x) + ROWS - 1) // ROWS


@numba.njit(cache=True, nogil=True)
def _forward(number, x, weights, biases, y, inner, panels, starts):
    (m, n), first = x.shape, number * ROWS
    wide = rounded(n, TILE_COLUMNS)
    result = np.empty(ROWS * wide, np.float32)
    through(number, x, inner, panels, starts, result)
    copy_rows(result, 0, wide, y.reshape(-1), first * n, n, min(ROWS, m - first))


@numba.njit(cache=True, nogil=True)
def _n_panels_back(x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    return n_packed(weights)


@numba.njit(cache=True, nogil=True)
def _pack_back(number, x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    pack_transposed(number, weights, panels)


@numba.njit(cache=True, nogil=True)
def _n_groups(x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    return len(sums)


@numba.njit(cache=True, nogil=True)
def _backward(number, x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    """Rows whose gradients of the weights are summed one after the other; and their own gradients."""
    (m, n), mine = x.shape, sums[number]
    wide = rounded(n, TILE_COLUMNS)
    size = rounded((m + len(sums) - 1) // len(sums), ROWS)
    mine[:] = 0
    area = ROWS * wide
    rows, back = np.zeros(len(inner) * area, np.float32), np.zeros(area, np.float32)
    slopes, of_start = np.empty(area, np.float32), np.empty(area, np.float32)
    for first in range(number * size, min((number + 1) * size, m), ROWS):
        count = min(ROWS, m - first)
        rows_between(first, count, x, inner, rows)
        copy_rows(slope.reshape(-1), first * n, n, back, 0, wide, count)
        back[count * wide :] = 0
        back_through(first, count, n, inner, panels, rows, back, slopes, of_start, mine)
        copy_rows(back, 0, wide, of_x.reshape(-1), first * n, n, count)


@numba.njit(cache=True, nogil=True)
def _n_sums(x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    return n_added(weights)


@numba.njit(cache=True, nogil=True)
def _add_up(number, x, weights, inner, slope, of_x, of_weights, of_biases, panels, sums):
    add_up(number, of_weights, of_biases, sums)


_FORWARD = ((_n_panels, _pack), (_n_blocks, _forward))
_BACKWARD = ((_n_panels_back, _pack_back), (_n_groups, _backward), (_n_sums, _add_up))
