"""`kernels.dense` on CPU: a block of rows goes through all layers while it is in cache.

What is remembered for the gradient are the rows between the layers, those of one layer after those of the other. All
weights lie in one array, too, and the widths of the layers in another, so that one program is for all networks.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .outer_products import TALL_ROWS, TILE_COLUMNS, WIDE_COLUMNS
from .tiles import (
    ADDED,
    ANY,
    ROWS,
    add_product,
    added,
    copy_rows,
    multiply,
    n_groups,
    n_panels,
    pack,
    padded,
    rounded,
    up,
)

_NARROW = 8  # columns, of which fewer fill too little of a tile


def network(x, *layers, relu_end: bool):
    """The Numba implementation of `dense.OP`."""
    weights, biases = layers[::2], layers[1::2]
    m, n = len(x), weights[-1].shape[1]
    if len(weights) == 1 and n < _NARROW:
        results = float32_shapes((m, n))
        (y,) = xla_ffi.call("narrow_dense", _NARROW_FORWARD, results, x, weights[0].T, biases[0])
        return jnp.maximum(y, 0) if relu_end else y, jnp.zeros(0, jnp.float32)
    given = x, flat(weights), flat(biases), int32_widths(weights, relu_end)
    results = float32_shapes((m, n), *forward_shapes(m, widths_of(weights)))
    y, hidden, *_ = xla_ffi.call("dense", _FORWARD, results, *given)
    return y, hidden


def gradient(x, slope, hidden, *weights):
    """The Numba implementation of `dense.GRADIENT`."""
    (m, k), n = x.shape, weights[-1].shape[1]
    if len(weights) == 1 and n < _NARROW:
        results = float32_shapes((m, k), (n, k), (n,), (n_groups(m, n * k), n * (k + 1)))
        of_x, of_columns, of_bias, _ = xla_ffi.call(
            "narrow_dense_gradient", _NARROW_BACKWARD, results, x, weights[0].T, slope
        )
        return of_x, of_columns.T, of_bias
    *shapes, n_sums = gradient_shapes(widths_of(weights))
    results = float32_shapes((m, k), *shapes, (n_groups(m, n_sums), n_sums))
    given = x, flat(weights), int32_widths(weights, False), hidden, slope
    of_x, of_weights, of_biases, *_ = xla_ffi.call("dense_gradient", _BACKWARD, results, *given)
    return of_x, *parted(of_weights, of_biases, weights)


def widths_of(weights) -> list[int]:
    """Of the input and of each layer."""
    return [len(w) for w in weights] + [weights[-1].shape[1]]


def int32_widths(weights, relu_end: bool) -> jax.Array:
    """`widths_of`, and whether there is a relu at the end, as kernels take them."""
    return jnp.asarray([*widths_of(weights), relu_end], jnp.int32)


def forward_shapes(m: int, widths: list[int]) -> tuple[tuple[int, ...], ...]:
    """Of the rows between layers, the panels, and the biases padded."""
    wide = [up(width, TILE_COLUMNS) for width in widths]
    panels = sum(a * b for a, b in zip(widths, wide[1:], strict=False))
    return (m * sum(widths[1:-1]),), (panels,), (sum(wide[1:]),)


def gradient_shapes(widths: list[int]) -> tuple[Any, ...]:
    """Of the gradients of weights and biases, and the panels; and how many sums there are of a group of rows."""
    layers = list(itertools.pairwise(widths))
    n_sums = sum((up(a, TALL_ROWS) + 1) * up(b, TILE_COLUMNS) for a, b in layers)
    panels = sum(b * up(a, TILE_COLUMNS) for a, b in layers)
    return (sum(a * b for a, b in layers),), (sum(widths[1:]),), (panels,), n_sums


def parted(of_weights, of_biases, weights) -> list[jax.Array]:
    """The gradients of each layer's weights and bias."""
    found, w, b = [], 0, 0
    for one in weights:
        found += [of_weights[w : w + one.size].reshape(one.shape), of_biases[b : b + one.shape[1]]]
        w, b = w + one.size, b + one.shape[1]
    return found


def flat(arrays) -> jax.Array:
    """All numbers in one array."""
    return jnp.concatenate([array.reshape(-1) for array in arrays])


def float32_shapes(*shapes: tuple[int, ...]) -> list[jax.ShapeDtypeStruct]:
    """Results of a kernel."""
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


@numba.njit(cache=True, nogil=True)
def _n_layers(widths):
    return len(widths) - 2  # the widths of the input and of each layer, then whether there is a relu at the end


@numba.njit(cache=True, nogil=True)
def n_packed(widths):
    """Panels of all layers."""
    n = 0
    for layer in range(_n_layers(widths)):
        n += n_panels(widths[layer + 1])
    return n


@numba.njit(cache=True, nogil=True)
def pack_panel(number, weights, biases, widths, panels, starts):
    """Writes one panel of the weights and its part of the biases, padded with zeros."""
    w, b, p, s, layer = 0, 0, 0, 0, 0
    while number >= n_panels(widths[layer + 1]):
        k, n = np.int64(widths[layer]), np.int64(widths[layer + 1])
        wide = rounded(n, TILE_COLUMNS)
        w, b, p, s = w + k * n, b + n, p + k * wide, s + wide
        number -= n_panels(n)
        layer += 1
    k, n = np.int64(widths[layer]), np.int64(widths[layer + 1])
    pack(number, weights[w : w + k * n].reshape(k, n), panels, p)
    first = number * WIDE_COLUMNS
    for column in range(first, min(first + WIDE_COLUMNS, rounded(n, TILE_COLUMNS))):
        starts[s + column] = biases[b + column] if column < n else 0


@numba.njit(cache=True, nogil=True)
def through(number, x, widths, y, hidden, panels, starts):
    """One block of rows through all layers."""
    m, layers, first = len(x), _n_layers(widths), number * ROWS
    size, stride = min(ROWS, m - first), x.shape[1]
    row, place = x.reshape(-1), first * stride
    if size < ROWS:
        row, place = padded(row, place, stride, size, ROWS, stride), 0
    p, s, region = 0, 0, 0
    for layer in range(layers):
        k, n = np.int64(widths[layer]), np.int64(widths[layer + 1])
        wide, end = rounded(n, TILE_COLUMNS), layer == layers - 1
        least = np.float32(0) if not end or widths[layers + 1] else ANY
        result, r = (y.reshape(-1), first * n) if end else (hidden, region + first * n)
        whole = size == ROWS and wide == n
        target, t = (result, r) if whole else (np.empty(ROWS * wide, np.float32), 0)
        multiply(row, place, stride, ROWS, panels, p, k, starts, s, least, target, t, wide)
        if not whole:
            copy_rows(target, t, wide, result, r, n, size)
        row, place, stride = target, t, wide
        p, s, region = p + k * wide, s + wide, region + m * n


@numba.njit(cache=True, nogil=True)
def widest_of(widths):
    """The greatest width, rounded up to that of tiles."""
    widest = 0
    for layer in range(_n_layers(widths) + 1):
        widest = max(widest, rounded(np.int64(widths[layer]), TILE_COLUMNS))
    return widest


@numba.njit(cache=True, nogil=True)
def n_packed_transposed(widths):
    """Panels of all layers' weights transposed."""
    n = 0
    for layer in range(_n_layers(widths)):
        n += n_panels(widths[layer])
    return n


@numba.njit(cache=True, nogil=True)
def pack_transposed(number, weights, widths, panels):
    """Writes one panel of the weights transposed."""
    w, p, layer = 0, 0, 0
    while number >= n_panels(widths[layer]):
        k, n = np.int64(widths[layer]), np.int64(widths[layer + 1])
        w, p = w + k * n, p + n * rounded(k, TILE_COLUMNS)
        number -= n_panels(k)
        layer += 1
    k, n = np.int64(widths[layer]), np.int64(widths[layer + 1])
    pack(number, weights[w : w + k * n].reshape(k, n).T, panels, p)


@numba.njit(cache=True, nogil=True)
def back_through(first, count, x, widths, hidden, panels, back, other, zeros, sums):
    """Turns `back`, the slopes of a block's results, into those of its rows, in `other`, and adds up the weights'."""
    m, layers = len(x), _n_layers(widths)
    p, q, region = len(panels), len(sums), len(hidden)  # the ends of what belongs to the layers up to this one
    for layer in range(layers - 1, -1, -1):
        k, n = np.int64(widths[layer]), np.int64(widths[layer + 1])
        wide, tall = rounded(n, TILE_COLUMNS), rounded(k, TALL_ROWS)
        across = rounded(k, TILE_COLUMNS)
        p, q = p - n * across, q - (tall + 1) * wide
        for row in range(count):
            simd.axpy(np.float32(1), back, row * wide, sums, q + tall * wide, wide)
        if layer == 0:
            _add_first(x, first, count, back, wide, sums, q)
            multiply(back, 0, wide, ROWS, panels, p, n, zeros, 0, ANY, other, 0, across)
            break
        region -= m * k
        rows, r = hidden, region + first * k
        if count < ROWS or across != k:
            rows, r = padded(rows, r, k, count, ROWS, across), 0
        add_product(rows, r, across, 1, tall, back, 0, False, wide, count, sums, q, wide)
        multiply(back, 0, wide, ROWS, panels, p, n, zeros, 0, ANY, other, 0, across)
        simd.where_above_0(other, 0, rows, r, back, 0, ROWS * across)


@numba.njit(cache=True, nogil=True)
def _add_first(x, first, size, slopes, wide, sums, q):
    """Adds the products of the columns of a block of x with its slopes."""
    k = x.shape[1]
    tall = rounded(k, TALL_ROWS)
    given, begin = x.reshape(-1), first * k
    if tall != k:
        given, begin = padded(given, begin, k, size, size, tall), 0
    add_product(given, begin, tall, 1, tall, slopes, 0, False, wide, size, sums, q, wide)


@numba.njit(cache=True, nogil=True)
def n_added(widths):
    """How many parts of the gradients are added up: some rows of a layer each."""
    n = 0
    for layer in range(_n_layers(widths)):
        n += (widths[layer] + ADDED) // ADDED  # one more row than there are: that of the bias
    return n


@numba.njit(cache=True, nogil=True)
def add_up(number, widths, of_weights, of_biases, sums, place):
    """The sums of all groups, in their order: some rows of the gradient of a layer or, after the last, its bias's."""
    w, b, q, layer = 0, 0, place, 0
    while number >= (widths[layer] + ADDED) // ADDED:
        k, n = np.int64(widths[layer]), np.int64(widths[layer + 1])
        w, b, q = w + k * n, b + n, q + (rounded(k, TALL_ROWS) + 1) * rounded(n, TILE_COLUMNS)
        number -= (widths[layer] + ADDED) // ADDED
        layer += 1
    k, n = np.int64(widths[layer]), np.int64(widths[layer + 1])
    tall, wide, first = rounded(k, TALL_ROWS), rounded(n, TILE_COLUMNS), number * ADDED
    count = min(ADDED, k - first)
    if count > 0:
        total = added(sums, q + first * wide, count * wide)
        copy_rows(total, 0, wide, of_weights, w + first * n, n, count)
    if first + ADDED > k:
        of_biases[b : b + n] = added(sums, q + tall * wide, wide)[:n]


@numba.njit(cache=True, nogil=True)
def _n_packs(x, weights, biases, widths, y, hidden, panels, starts):
    return n_packed(widths)


@numba.njit(cache=True, nogil=True)
def _pack(number, x, weights, biases, widths, y, hidden, panels, starts):
    pack_panel(number, weights, biases, widths, panels, starts)


@numba.njit(cache=True, nogil=True)
def _n_blocks(x, weights, biases, widths, y, hidden, panels, starts):
    return (len(x) + ROWS - 1) // ROWS


@numba.njit(cache=True, nogil=True)
def _forward(number, x, weights, biases, widths, y, hidden, panels, starts):
    through(number, x, widths, y, hidden, panels, starts)


@numba.njit(cache=True, nogil=True)
def _n_packs_back(x, weights, widths, hidden, slope, of_x, of_weights, of_biases, panels, sums):
    return n_packed_transposed(widths)


@numba.njit(cache=True, nogil=True)
def _pack_back(number, x, weights, widths, hidden, slope, of_x, of_weights, of_biases, panels, sums):
    pack_transposed(number, weights, widths, panels)


@numba.njit(cache=True, nogil=True)
def _n_groups(x, weights, widths, hidden, slope, of_x, of_weights, of_biases, panels, sums):
    return len(sums)


@numba.njit(cache=True, nogil=True)
def _backward(number, x, weights, widths, hidden, slope, of_x, of_weights, of_biases, panels, sums):
    """Rows whose gradients of the weights are summed one after the other; and their own gradients."""
    (m, k), mine = x.shape, sums[number]
    size = rounded((m + len(sums) - 1) // len(sums), ROWS)
    mine[:] = 0
    last = slope.shape[1]
    wide = rounded(last, TILE_COLUMNS)
    widest = widest_of(widths)
    back, other = np.zeros(ROWS * widest, np.float32), np.empty(ROWS * widest, np.float32)
    zeros = np.zeros(widest, np.float32)
    for first in range(number * size, min((number + 1) * size, m), ROWS):
        count = min(ROWS, m - first)
        back[: ROWS * wide] = 0
        copy_rows(slope.reshape(-1), first * last, last, back, 0, wide, count)
        back_through(first, count, x, widths, hidden, panels, back, other, zeros, mine)
        copy_rows(other, 0, rounded(k, TILE_COLUMNS), of_x.reshape(-1), first * k, k, count)


@numba.njit(cache=True, nogil=True)
def _n_added(x, weights, widths, hidden, slope, of_x, of_weights, of_biases, panels, sums):
    return n_added(widths)


@numba.njit(cache=True, nogil=True)
def _add_up(number, x, weights, widths, hidden, slope, of_x, of_weights, of_biases, panels, sums):
    add_up(number, widths, of_weights, of_biases, sums, 0)


_FORWARD = ((_n_packs, _pack), (_n_blocks, _forward))
_BACKWARD = ((_n_packs_back, _pack_back), (_n_groups, _backward), (_n_added, _add_up))


@numba.njit(cache=True, nogil=True)
def _n_narrow(x, columns, bias, y):
    return (len(x) + ROWS - 1) // ROWS


@numba.njit(cache=True, nogil=True)
def _narrow_forward(number, x, columns, bias, y):
    """One block of rows by one layer of few columns: `columns` are its weights transposed."""
    k = x.shape[1]
    whole = k // simd.LANES * simd.LANES
    for row in range(number * ROWS, min((number + 1) * ROWS, len(x))):
        for column in range(len(columns)):
            total = bias[column] + simd.dot(x, row * k, columns, column * k, whole)
            for place in range(whole, k):
                total += x[row, place] * columns[column, place]
            y[row, column] = total


@numba.njit(cache=True, nogil=True)
def _n_narrow_groups(x, columns, slope, of_x, of_columns, of_bias, sums):
    return len(sums)


@numba.njit(cache=True, nogil=True)
def _narrow_backward(number, x, columns, slope, of_x, of_columns, of_bias, sums):
    """As `_backward`; the sums are those of the columns, then those of the bias."""
    (m, k), n, mine = x.shape, len(columns), sums[number]
    whole = k // simd.LANES * simd.LANES
    size = (m + len(sums) - 1) // len(sums)
    mine[:] = 0
    for row in range(number * size, min((number + 1) * size, m)):
        of_x[row] = 0
        for column in range(n):
            value = slope[row, column]
            mine[n * k + column] += value
            simd.axpy(value, x, row * k, mine, column * k, whole)
            simd.axpy(value, columns, column * k, of_x, row * k, whole)
            for place in range(whole, k):
                mine[column * k + place] += value * x[row, place]
                of_x[row, place] += value * columns[column, place]


@numba.njit(cache=True, nogil=True)
def _once(x, columns, slope, of_x, of_columns, of_bias, sums):
    return 1


@numba.njit(cache=True, nogil=True)
def _add_narrow(number, x, columns, slope, of_x, of_columns, of_bias, sums):
    """The sums of all groups, in their order."""
    n, k = columns.shape
    of_columns[:] = 0
    of_bias[:] = 0
    for group in range(len(sums)):
        of_columns += sums[group, : n * k].reshape(n, k)
        of_bias += sums[group, n * k :]


_NARROW_FORWARD = ((_n_narrow, _narrow_forward),)
_NARROW_BACKWARD = ((_n_narrow_groups, _narrow_backward), (_once, _add_narrow))
