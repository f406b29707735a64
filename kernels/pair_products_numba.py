"""`kernels.pair_products` on CPU: each example's vectors, padded with zeros, in tiles summed in registers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .threads import WORKERS

_EXAMPLES = 64  # taken from the queue at a time


def products(vectors):
    """The Numba implementation of `pair_products.OP`."""
    batch, n, _ = vectors.shape
    results = [jax.ShapeDtypeStruct((batch, n * (n - 1) // 2), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)]
    found, status = xla_ffi.call("pair_products", _products, results, vectors)
    return xla_ffi.or_nan(found, status)


def gradient(vectors, slope):
    """The Numba implementation of `pair_products.GRADIENT`."""
    results = [jax.ShapeDtypeStruct(vectors.shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)]
    found, status = xla_ffi.call("pair_products_gradient", _gradient, results, vectors, slope)
    return xla_ffi.or_nan(found, status)


@numba.njit(cache=True, nogil=True)
def _rounded(n, multiple):
    return (n + multiple - 1) // multiple * multiple


@numba.njit(parallel=True, nogil=True, cache=True)
def _products(vectors, found, status):
    batch, n, width = vectors.shape
    tall, wide, padded = _rounded(n, simd.TALL_ROWS), _rounded(n, simd.TILE_COLUMNS), _rounded(width, simd.TILE_COLUMNS)
    source, target = vectors.reshape(-1), found.reshape(-1)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        rows, columns = np.zeros(tall * padded, np.float32), np.zeros(width * wide, np.float32)
        tile = np.empty(tall * wide, np.float32)
        while True:
            first = simd.take_number(queue, 0) * _EXAMPLES
            if first >= batch:
                break
            for example in range(first, min(first + _EXAMPLES, batch)):
                _load(source, example * n * width, n, width, padded, rows)
                for i in range(n):
                    for c in range(width):
                        columns[c * wide + i] = rows[i * padded + c]
                for i in range(0, tall * wide, simd.LANES):
                    simd.clear(tile, i)
                for i in range(0, tall, simd.TALL_ROWS):
                    for j in range(0, min(i + simd.TALL_ROWS, wide), simd.TILE_COLUMNS):
                        simd.add_tall_outer_products(
                            rows, i * padded, 1, padded, columns, j, wide, width, tile, i * wide + j, wide
                        )
                place = example * (n * (n - 1) // 2)
                for i in range(1, n):
                    for j in range(i):
                        target[place + j] = tile[i * wide + j]
                    place += i
    status[0] = 1


@numba.njit(cache=True, nogil=True)
def _load(source, place, n, width, padded, rows):
    """The vectors of an example, each padded."""
    whole = width // simd.LANES * simd.LANES
    for i in range(n):
        simd.copy(source, place + i * width, rows, i * padded, whole)
        for c in range(whole, width):
            rows[i * padded + c] = source[place + i * width + c]


@numba.njit(parallel=True, nogil=True, cache=True)
def _gradient(vectors, slope, found, status):
    batch, n, width = vectors.shape
    tall, padded = _rounded(n, simd.TALL_ROWS), _rounded(width, simd.TILE_COLUMNS)
    whole = width // simd.LANES * simd.LANES
    source, slopes, target = vectors.reshape(-1), slope.reshape(-1), found.reshape(-1)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        rows, tile = np.zeros(tall * padded, np.float32), np.empty(tall * padded, np.float32)
        both = np.zeros(n * tall, np.float32)  # slopes of i, j and of j, i
        while True:
            first = simd.take_number(queue, 0) * _EXAMPLES
            if first >= batch:
                break
            for example in range(first, min(first + _EXAMPLES, batch)):
                _load(source, example * n * width, n, width, padded, rows)
                place = example * (n * (n - 1) // 2)
                for i in range(1, n):
                    for j in range(i):
                        value = slopes[place + j]
                        both[i * tall + j] = value
                        both[j * tall + i] = value
                    place += i
                for i in range(0, tall * padded, simd.LANES):
                    simd.clear(tile, i)
                for i in range(0, tall, simd.TALL_ROWS):
                    for c in range(0, padded, simd.TILE_COLUMNS):
                        simd.add_tall_outer_products(both, i, tall, 1, rows, c, padded, n, tile, i * padded + c, padded)
                for i in range(n):
                    place = (example * n + i) * width
                    simd.copy(tile, i * padded, target, place, whole)
                    for c in range(whole, width):
                        target[place + c] = tile[i * padded + c]
    status[0] = 1
