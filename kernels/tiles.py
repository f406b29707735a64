"""Products of blocks of rows by tiles summed in registers, out of weights packed in panels; for kernels on CPU.

A panel holds as many columns as a tile, padded with zeros where the weights end, row behind row. Nothing here checks
bounds: rows and columns have to fill the tiles.
"""

from __future__ import annotations

import numba
import numpy as np

from . import simd
from .outer_products import (
    TALL_ROWS,
    TILE_COLUMNS,
    WIDE_COLUMNS,
    add_tall_outer_products,
    add_wide_outer_products,
    tall_products,
    wide_products,
)

ROWS = 64  # in a block, a multiple of those of a tile
ADDED = 8  # rows of the weights whose sums are added at a time
ANY = np.float32(-np.inf)
LARGE = 1 << 18  # numbers of weights, above which XLA's own products are as fast and share out more evenly
_GROUP = 256  # least rows whose gradients of the weights are summed one after the other
_GROUPS = 64  # the most sums, which are added at the end
_SUMS = 1 << 22  # and the most numbers in them, but for large weights


def n_groups(batch: int, n_sums: int) -> int:
    """In how many sums the gradients of weights are added; by shapes alone, so that bits depend on no thread count."""
    return max(1, min(_GROUPS, -(-batch // _GROUP), max(4, _SUMS // n_sums)))


def up(n: int, multiple: int) -> int:
    """The next multiple from n."""
    return -(-n // multiple) * multiple


def left_to_xla(x, *weights) -> bool:
    """Whether XLA's own products serve better: of large weights, and of many single rows under `vmap`, made one."""
    return x.ndim == 1 or max(w.shape[-2] * w.shape[-1] for w in weights) > LARGE


@numba.njit(cache=True, nogil=True)
def rounded(n, multiple):
    """`up`, in a kernel."""
    return (n + multiple - 1) // multiple * multiple


@numba.njit(cache=True, nogil=True)
def n_panels(n):
    """Of n columns."""
    return (n + WIDE_COLUMNS - 1) // WIDE_COLUMNS


@numba.njit(cache=True, nogil=True)
def pack(number, weights, panels, place):
    """Writes one panel of weights, `WIDE_COLUMNS` or at the end fewer; the first of the panels is at `place`."""
    k, n = weights.shape
    first = number * WIDE_COLUMNS
    width = min(WIDE_COLUMNS, rounded(n - first, TILE_COLUMNS))
    place += first * k
    for row in range(k):
        for lane in range(min(width, n - first)):
            panels[place + lane] = weights[row, first + lane]
        for lane in range(n - first, width):
            panels[place + lane] = 0
        place += width


@numba.njit(cache=True, nogil=True)
def multiply(a, i, a_stride, n_rows, panels, p, n, start, s, least, c, j, wide):
    """`C[m, :] = max(start + sum over k < n of A[m, k] B[k, :], least)`, B in the panels from place `p` on."""
    for column in range(0, wide, WIDE_COLUMNS):
        width, b = min(WIDE_COLUMNS, wide - column), p + column * n
        for m in range(0, n_rows, TALL_ROWS):
            place, target = i + m * a_stride, j + m * wide + column
            if width == WIDE_COLUMNS:
                wide_products(a, place, 1, a_stride, panels, b, width, n, c, target, wide, start, s + column, least)
            else:
                tall_products(a, place, 1, a_stride, panels, b, width, n, c, target, wide, start, s + column, least)


@numba.njit(cache=True, nogil=True)
def add_product(a, i, a_stride, a_step, n_rows, b, j, panels, b_stride, n, c, k, wide):
    """`C[m, :] += sum over k < n of A[k, m] B[k, :]`; B from place `j` on, in panels or rows `b_stride` apart."""
    for column in range(0, wide, WIDE_COLUMNS):
        width = min(WIDE_COLUMNS, wide - column)
        place, stride = (j + column * n, width) if panels else (j + column, b_stride)
        for m in range(0, n_rows, TALL_ROWS):
            source, target = i + m * a_step, k + m * wide + column
            if width == WIDE_COLUMNS:
                add_wide_outer_products(a, source, a_stride, a_step, b, place, stride, n, c, target, wide)
            else:
                add_tall_outer_products(a, source, a_stride, a_step, b, place, stride, n, c, target, wide)


@numba.njit(cache=True, nogil=True)
def padded(source, place, stride, size, rows, width):
    """A copy of `size` rows, with zeros behind each and after the last."""
    target = np.zeros(rows * width, np.float32)
    copy_rows(source, place, stride, target, 0, width, size)
    return target


@numba.njit(cache=True, nogil=True)
def copy_rows(source, i, i_stride, target, j, j_stride, n_rows):
    """Copies rows of as many numbers as the lesser stride has."""
    n = min(i_stride, j_stride)
    whole = n // simd.LANES * simd.LANES
    for row in range(n_rows):
        simd.copy(source, i + row * i_stride, target, j + row * j_stride, whole)
        for column in range(whole, n):
            target[j + row * j_stride + column] = source[i + row * i_stride + column]


@numba.njit(cache=True, nogil=True)
def block_of(source, first, size, n, wide):
    """A block of rows of n numbers, `wide` apart, and the place where it begins: a copy unless they lie so."""
    if size == ROWS and wide == n:
        return source, first * n
    return padded(source, first * n, n, size, ROWS, wide), 0


@numba.njit(cache=True, nogil=True)
def added(sums, place, n):
    """The sum over all groups, in their order, of n numbers, a multiple of 8, from `place` on."""
    total = np.zeros(n, np.float32)
    flat = sums.reshape(-1)
    size = flat.size // len(sums)
    for group in range(len(sums)):
        simd.axpy(np.float32(1), flat, group * size + place, total, 0, n)
    return total
