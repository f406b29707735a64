"""`kernels.pair_products` on CPU: each example's vectors, padded with zeros, in tiles summed in registers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .outer_products import TALL_ROWS, TILE_COLUMNS, tall_products
from .tiles import ANY, rounded

_EXAMPLES = 64  # in a part


def products(vectors):
    """The Numba implementation of `pair_products.OP`."""
    batch, n, _ = vectors.shape
    result = jax.ShapeDtypeStruct((batch, n * (n - 1) // 2), jnp.float32)
    (found,) = xla_ffi.call("pair_products", ((_n_parts, _products),), [result], vectors)
    return found


def gradient(vectors, slope):
    """The Numba implementation of `pair_products.GRADIENT`."""
    passes = ((_n_parts_of_gradient, _gradient),)
    result = jax.ShapeDtypeStruct(vectors.shape, jnp.float32)
    (found,) = xla_ffi.call("pair_products_gradient", passes, [result], vectors, slope)
    return found


@numba.njit(cache=True, nogil=True)
def _n_parts(vectors, found):
    return rounded(len(vectors), _EXAMPLES) // _EXAMPLES


@numba.njit(cache=True, nogil=True)
def _products(number, vectors, found):
    batch, n, width = vectors.shape
    whole = width // simd.LANES * simd.LANES
    source, target = vectors.reshape(-1), found.reshape(-1)
    for example in range(number * _EXAMPLES, min((number + 1) * _EXAMPLES, batch)):
        first, place = example * n * width, example * (n * (n - 1) // 2)
        for i in range(1, n):
            row = first + i * width
            if i < 4:
                for j in range(i):
                    target[place + j] = simd.dot(source, first + j * width, source, row, whole)
            else:
                for start in range(0, i, 4):
                    j = min(start, i - 4)  # the last four may overlap those before
                    simd.four_dots(source, first + j * width, width, source, row, whole, target, place + j)
            for c in range(whole, width):
                for j in range(i):
                    target[place + j] += source[first + j * width + c] * source[row + c]
            place += i


@numba.njit(cache=True, nogil=True)
def _load(source, place, n, width, padded, rows):
    """The vectors of an example, each padded."""
    whole = width // simd.LANES * simd.LANES
    for i in range(n):
        simd.copy(source, place + i * width, rows, i * padded, whole)
        for c in range(whole, width):
            rows[i * padded + c] = source[place + i * width + c]


@numba.njit(cache=True, nogil=True)
def _n_parts_of_gradient(vectors, slope, found):
    return rounded(len(vectors), _EXAMPLES) // _EXAMPLES


@numba.njit(cache=True, nogil=True)
def _gradient(number, vectors, slope, found):
    batch, n, width = vectors.shape
    tall, padded = rounded(n, TALL_ROWS), rounded(width, TILE_COLUMNS)
    whole = width // simd.LANES * simd.LANES
    source, slopes, target = vectors.reshape(-1), slope.reshape(-1), found.reshape(-1)
    rows, tile = np.zeros(tall * padded, np.float32), np.empty(tall * padded, np.float32)
    both = np.zeros(n * tall, np.float32)  # slopes of i, j and of j, i
    none = np.zeros(TILE_COLUMNS, np.float32)
    for example in range(number * _EXAMPLES, min((number + 1) * _EXAMPLES, batch)):
        _load(source, example * n * width, n, width, padded, rows)
        place = example * (n * (n - 1) // 2)
        for i in range(1, n):
            for j in range(i):
                value = slopes[place + j]
                both[i * tall + j] = value
                both[j * tall + i] = value
            place += i
        for i in range(0, tall, TALL_ROWS):
            for c in range(0, padded, TILE_COLUMNS):
                place = i * padded + c
                tall_products(both, i, tall, 1, rows, c, padded, n, tile, place, padded, none, 0, ANY)
        for i in range(n):
            place = (example * n + i) * width
            simd.copy(tile, i * padded, target, place, whole)
            for c in range(whole, width):
                target[place + c] = tile[i * padded + c]
