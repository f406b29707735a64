"""`kernels.int8` on CPU: tiles of 8 rows by 32 columns, whose sums stay in registers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .half_bytes import BLOCK
from .int8_tiles import COLUMNS, ROWS, write_tile
from .threads import WORKERS

_ROWS_AT_ONCE = 8 * ROWS  # rows that are laid out together
_CACHED = 1 << 19  # bytes of panels that are gone through for one block of rows


def multiply(a, b):
    """The Numba implementation of `int8.OP`."""
    result = jax.ShapeDtypeStruct((a.shape[0], b.shape[0]), jnp.int32)
    return xla_ffi.call("int8_product", _multiply, [result], a, b)[0]


@numba.njit(nogil=True, cache=True)
def _half(stored, k):
    return ((np.int32(stored[k // 2]) >> (4 * (k % 2))) & 15) - 8


@numba.njit(parallel=True, nogil=True, cache=True)
def packed_panels(codes, width):
    """Rows, of bytes or half bytes, as columns of panels, with k by fours; and -128 times the sum of each."""
    n, halves = len(codes), codes.dtype == np.dtype(np.uint8)
    split = (width + 1) // 2
    fours, n_panels = (width + 3) // 4, (n + COLUMNS - 1) // COLUMNS
    panels = np.empty((2 * n_panels, fours, 16, 4), np.int8)
    start = np.empty(n_panels * COLUMNS, np.int32)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            panel = simd.take_number(queue, 0)
            if panel >= n_panels:
                break
            for column in range(COLUMNS):
                row, total = panel * COLUMNS + column, np.int32(0)
                half, lane = panel * 2 + column // 16, column % 16
                for k in range(fours * 4):
                    value = np.int32(0)
                    if row < n and k < width and halves:
                        value = _half(codes[row], k) * _half(codes[row, split:], k // BLOCK)
                    elif row < n and k < width:
                        value = np.int32(codes[row, k])
                    panels[half, k // 4, lane, k % 4] = value
                    total += value
                start[row] = -128 * total
    return panels, start


@numba.njit(nogil=True, cache=True)
def raise_rows(a, first, size, raised):
    """Rows of a as unsigned bytes, 128 more; 128 where there is nothing."""
    depth = a.shape[1]
    for row in range(len(raised)):
        for k in range(raised.shape[1]):
            value = np.int16(a[first + row, k]) if row < size and k < depth else np.int16(0)
            raised[row, k] = np.uint8(value + 128)


@numba.njit(parallel=True, nogil=True, cache=True)
def _multiply(a, b, out):
    (m, depth), n = a.shape, len(b)
    fours, n_panels = (depth + 3) // 4, (n + COLUMNS - 1) // COLUMNS
    panels, start = packed_panels(b, depth)
    queue = np.zeros(1, np.int64)
    n_blocks = (m + _ROWS_AT_ONCE - 1) // _ROWS_AT_ONCE
    cached = max(1, _CACHED // (fours * 4 * COLUMNS))
    n_columns = (n_panels + cached - 1) // cached
    for _worker in numba.prange(WORKERS):
        raised = np.empty((_ROWS_AT_ONCE, fours * 4), np.uint8)
        tile = np.empty((ROWS, COLUMNS), np.int32)
        while True:
            # One part of the columns after the other, so that its panels stay in cache.
            number = simd.take_number(queue, 0)
            if number >= n_blocks * n_columns:
                break
            first, low = (number % n_blocks) * _ROWS_AT_ONCE, (number // n_blocks) * cached
            size = min(_ROWS_AT_ONCE, m - first)
            raise_rows(a, first, size, raised)
            for panel in range(low, min(low + cached, n_panels)):
                column = panel * COLUMNS
                place = panel * 2 * fours * 64
                for row in range(0, size, ROWS):
                    whole = row + ROWS <= size and column + COLUMNS <= n
                    if whole:
                        at = (first + row) * n + column
                        write_tile(raised, row * fours * 4, fours * 4, panels, place, fours, start, column, out, at, n)
                        continue
                    write_tile(
                        raised, row * fours * 4, fours * 4, panels, place, fours, start, column, tile, 0, COLUMNS
                    )
                    for r in range(min(ROWS, size - row)):
                        for c in range(min(COLUMNS, n - column)):
                            out[first + row + r, column + c] = tile[r, c]
