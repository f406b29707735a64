"""`kernels.cross_entropy` on CPU: a block of rows against all items, whose logits stay in cache for the gradients."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .exponentials import exponentials, greatest
from .outer_products import TILE_COLUMNS, WIDE_COLUMNS
from .tiles import ANY, ROWS, add_product, copy_rows, multiply, n_groups, n_panels, pack, rounded, up

_ITEMS = 256  # whose chances and vectors are multiplied at a time, a multiple of the columns of a tile
_ADDED = 64  # items whose sums are added at a time


def losses(hidden, table, bias, labels, weights, *, slopes: bool):
    """The Numba implementation of `cross_entropy.OP`."""
    (n, width), n_items = hidden.shape, table.shape[0]
    wide, many = up(width, TILE_COLUMNS), up(n_items, TILE_COLUMNS)
    weights = jnp.where(labels < 0, 0.0, weights)
    arguments = hidden, table, bias, labels, weights
    shapes = [(n,), (width * many,)]
    if not slopes:
        found, _ = xla_ffi.call("cross_entropy", _VALUE, _float32(shapes), *arguments)
        return (jnp.sum(weights * found),)
    groups = n_groups(n, many * wide)
    shapes += [(n_items * wide if wide != width else 0,), hidden.shape, table.shape, bias.shape]
    shapes += [(groups, many * wide), (groups, many)]
    found, _, _, *of_all = xla_ffi.call("cross_entropy_slopes", _SLOPES, _float32(shapes), *arguments)
    return jnp.sum(weights * found), *of_all[:3], found


def _float32(shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


@numba.njit(cache=True, nogil=True)
def _n_panels(hidden, table, bias, labels, weights, found, panels):
    return n_panels(rounded(len(table), TILE_COLUMNS))


@numba.njit(cache=True, nogil=True)
def _pack(number, hidden, table, bias, labels, weights, found, panels):
    pack(number, table.T, panels, 0)


@numba.njit(cache=True, nogil=True)
def _n_blocks(hidden, table, bias, labels, weights, found, panels):
    return (len(hidden) + ROWS - 1) // ROWS


@numba.njit(cache=True, nogil=True)
def _value(number, hidden, table, bias, labels, weights, found, panels):
    many = rounded(len(table), TILE_COLUMNS)
    logits, starts = np.empty(ROWS * many, np.float32), _starts(bias, many)
    first = number * ROWS
    size = min(ROWS, len(hidden) - first)
    _logits(hidden, first, size, panels, starts, logits, many)
    for i in range(size):
        found[first + i], _ = _row(logits, i, many, labels[first + i], len(table))


@numba.njit(cache=True, nogil=True)
def _starts(bias, many):
    """What logits begin with: the biases, and of the items that there are not -inf."""
    starts = np.full(many, -np.inf, np.float32)
    starts[: len(bias)] = bias
    return starts


@numba.njit(cache=True, nogil=True)
def _logits(hidden, first, size, panels, starts, logits, many):
    """Of a block of rows, those that there are not being 0; returns the rows, padded."""
    width = hidden.shape[1]
    wide = rounded(width, TILE_COLUMNS)
    rows = np.zeros(ROWS * wide, np.float32)
    copy_rows(hidden.reshape(-1), first * width, width, rows, 0, wide, size)
    multiply(rows, 0, wide, ROWS, panels, 0, width, starts, 0, ANY, logits, 0, many)
    return rows


@numba.njit(cache=True, nogil=True)
def _row(logits, i, many, label, n_items):
    """The loss of a row, and the sum of the exponentials that its logits become."""
    if label < 0:
        return np.float32(0), np.float32(0)
    own = logits[i * many + label] if label < n_items else np.float32(np.nan)
    most = greatest(logits, i * many, many)
    total = exponentials(logits, i * many, most, many)
    return np.float32(math.log(total)) + most - own, total


@numba.njit(cache=True, nogil=True)
def _n_panels_too(
    hidden, table, bias, labels, weights, found, panels, rows, of_hidden, of_table, of_bias, sums, bias_sums
):
    return n_panels(rounded(len(table), TILE_COLUMNS))


@numba.njit(cache=True, nogil=True)
def _pack_too(
    number, hidden, table, bias, labels, weights, found, panels, rows, of_hidden, of_table, of_bias, sums, bias_sums
):
    """Items as columns, and where their vectors do not fill tiles, as rows that do."""
    pack(number, table.T, panels, 0)
    first, width = number * WIDE_COLUMNS, table.shape[1]
    size = min(WIDE_COLUMNS, len(table) - first)
    if len(rows):
        wide = rounded(width, TILE_COLUMNS)
        rows[first * wide : (first + size) * wide] = 0
        copy_rows(table.reshape(-1), first * width, width, rows, first * wide, wide, size)


@numba.njit(cache=True, nogil=True)
def _n_groups(hidden, table, bias, labels, weights, found, panels, rows, of_hidden, of_table, of_bias, sums, bias_sums):
    return len(sums)


@numba.njit(cache=True, nogil=True)
def _group(
    number, hidden, table, bias, labels, weights, found, panels, rows, of_hidden, of_table, of_bias, sums, bias_sums
):
    """Rows whose gradients of the items are summed one after the other; and their own gradients."""
    n, width = hidden.shape
    n_items, mine, bias_sum = len(table), sums[number], bias_sums[number]
    wide, many = rounded(width, TILE_COLUMNS), rounded(n_items, TILE_COLUMNS)
    vectors = rows if len(rows) else table.reshape(-1)
    chances, starts = np.empty(ROWS * many, np.float32), _starts(bias, many)
    of_rows = np.empty(ROWS * wide, np.float32)
    mine[:] = 0
    bias_sum[:] = 0
    size = rounded((n + len(sums) - 1) // len(sums), ROWS)
    for first in range(number * size, min((number + 1) * size, n), ROWS):
        count = min(ROWS, n - first)
        block = _logits(hidden, first, count, panels, starts, chances, many)
        for i in range(ROWS):
            label = labels[first + i] if i < count else -1
            own = chances[i * many : (i + 1) * many]
            if label < 0:
                own[:] = 0
                if i < count:
                    found[first + i] = 0
                continue
            found[first + i], total = _row(chances, i, many, label, n_items)
            weight = weights[first + i]
            own *= weight / total
            if label < n_items:
                own[label] -= weight
            simd.axpy(np.float32(1), chances, i * many, bias_sum, 0, many)
        of_rows[:] = 0
        for item in range(0, many, _ITEMS):
            some, there = min(_ITEMS, many - item), min(_ITEMS, n_items - item)
            add_product(chances, item, 1, many, ROWS, vectors, item * wide, False, wide, there, of_rows, 0, wide)
            add_product(chances, item, many, 1, some, block, 0, False, wide, count, mine, item * wide, wide)
        copy_rows(of_rows, 0, wide, of_hidden.reshape(-1), first * width, width, count)


@numba.njit(cache=True, nogil=True)
def _n_sums(hidden, table, bias, labels, weights, found, panels, rows, of_hidden, of_table, of_bias, sums, bias_sums):
    return (len(table) + _ADDED - 1) // _ADDED


@numba.njit(cache=True, nogil=True)
def _add_up(
    number, hidden, table, bias, labels, weights, found, panels, rows, of_hidden, of_table, of_bias, sums, bias_sums
):
    """The gradients of some items: the sums of all groups, in their order."""
    width = table.shape[1]
    wide = rounded(width, TILE_COLUMNS)
    for item in range(number * _ADDED, min((number + 1) * _ADDED, len(table))):
        of_table[item] = 0
        of_bias[item] = 0
        for group in range(len(sums)):
            of_bias[item] += bias_sums[group, item]
            for c in range(width):
                of_table[item, c] += sums[group, item * wide + c]


_VALUE = ((_n_panels, _pack), (_n_blocks, _value))
_SLOPES = ((_n_panels_too, _pack_too), (_n_groups, _group), (_n_sums, _add_up))
