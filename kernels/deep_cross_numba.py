"""`kernels.deep_cross` on CPU: a block of rows goes through cross layers, network and ends while it is in cache.

What is remembered for the gradient is what `cross_network_numba` and `dense_numba` remember. W and b are the weights
and biases of the cross layers, v and c those of the network; ends are those of the cross layers, then of the network.
Panels and sums lie in one array each: those of the cross layers come first, those of the network last.
"""

from __future__ import annotations

import jax.numpy as jnp
import numba
import numpy as np

from . import cross_network_numba as crosses
from . import dense_numba as dense
from . import simd, xla_ffi
from .outer_products import TILE_COLUMNS
from .tiles import ROWS, added, block_of, copy_rows, n_groups, rounded, up


def logits(x, cross_weights, cross_biases, cross_end, end, *layers):
    """The Numba implementation of `deep_cross.OP`."""
    (m, n), weights, widths = x.shape, layers[::2], dense.widths_of(layers[::2])
    inner, *packed = crosses.forward_shapes(m, n, len(cross_weights))
    hidden, *also = dense.forward_shapes(m, widths)
    results = dense.float32_shapes((m,), inner, (m, widths[-1]), hidden, *packed, *also)
    layered = dense.flat(weights), dense.flat(layers[1::2]), dense.int32_widths(weights, True)
    given = x, cross_weights, cross_biases, jnp.concatenate([cross_end, end]), *layered
    y, inner, deep, hidden, *_ = xla_ffi.call("deep_cross", _FORWARD, results, *given)
    return y, inner, deep, hidden


def gradient(x, inner, deep, hidden, slope, cross_weights, cross_end, end, *weights):
    """The Numba implementation of `deep_cross.GRADIENT`."""
    (m, n), n_crosses, k = x.shape, len(cross_weights), len(end)
    (n_panels,), n_cross_sums = crosses.gradient_shapes(n, n_crosses)
    of_v, of_c, (n_more,), n_dense_sums = dense.gradient_shapes(dense.widths_of(weights))
    n_sums = n_cross_sums + up(n, TILE_COLUMNS) + up(k, TILE_COLUMNS) + n_dense_sums
    found = x.shape, cross_weights.shape, (n_crosses, n), (n + k,), of_v, of_c
    results = dense.float32_shapes(*found, (n_panels + n_more,), (n_groups(m, n_sums), n_sums))
    layered = dense.flat(weights), dense.int32_widths(weights, True)
    given = x, inner, deep, hidden, slope, cross_weights, jnp.concatenate([cross_end, end]), *layered
    of_x, of_w, of_b, of_ends, of_v, of_c, *_ = xla_ffi.call("deep_cross_gradient", _BACKWARD, results, *given)
    return of_x, of_w, of_b, of_ends[:n], of_ends[n:], *dense.parted(of_v, of_c, weights)


@numba.njit(cache=True, nogil=True)
def _n_packs(x, w, b, ends, v, c, widths, y, inner, deep, hidden, w_panels, w_starts, panels, starts):
    return crosses.n_packed(w) + dense.n_packed(widths)


@numba.njit(cache=True, nogil=True)
def _pack(number, x, w, b, ends, v, c, widths, y, inner, deep, hidden, w_panels, w_starts, panels, starts):
    first = crosses.n_packed(w)
    if number < first:
        crosses.pack_panel(number, w, b, w_panels, w_starts)
    else:
        dense.pack_panel(number - first, v, c, widths, panels, starts)


@numba.njit(cache=True, nogil=True)
def _n_blocks(x, w, b, ends, v, c, widths, y, inner, deep, hidden, w_panels, w_starts, panels, starts):
    return (len(x) + ROWS - 1) // ROWS


@numba.njit(cache=True, nogil=True)
def _forward(number, x, w, b, ends, v, c, widths, y, inner, deep, hidden, w_panels, w_starts, panels, starts):
    """One block of rows."""
    (m, n), first, k = x.shape, number * ROWS, deep.shape[1]
    size, wide, across = min(ROWS, m - first), rounded(n, TILE_COLUMNS), rounded(k, TILE_COLUMNS)
    crossed = np.empty(ROWS * wide, np.float32)
    crosses.through(number, x, inner, w_panels, w_starts, crossed)
    dense.through(number, x, widths, deep, hidden, panels, starts)
    last, place = block_of(deep.reshape(-1), first, size, k, across)
    end = _padded(ends, n, k)
    for row in range(size):
        y[first + row] = simd.dot(crossed, row * wide, end, 0, wide)
        y[first + row] += simd.dot(last, place + row * across, end, wide, across)


@numba.njit(cache=True, nogil=True)
def _padded(ends, n, k):
    """Both ends, each with zeros behind it."""
    wide = rounded(n, TILE_COLUMNS)
    result = np.zeros(wide + rounded(k, TILE_COLUMNS), np.float32)
    result[:n] = ends[:n]
    result[wide : wide + k] = ends[n:]
    return result


@numba.njit(cache=True, nogil=True)
def _n_packs_back(
    x, inner, deep, hidden, slope, w, ends, v, widths, of_x, of_w, of_b, of_ends, of_v, of_c, panels, sums
):
    return crosses.n_packed(w) + dense.n_packed_transposed(widths)


@numba.njit(cache=True, nogil=True)
def _pack_back(
    number, x, inner, deep, hidden, slope, w, ends, v, widths, of_x, of_w, of_b, of_ends, of_v, of_c, panels, sums
):
    first, n = crosses.n_packed(w), w.shape[1]
    if number < first:
        crosses.pack_transposed(number, w, panels)
    else:
        dense.pack_transposed(number - first, v, widths, panels[len(w) * n * rounded(n, TILE_COLUMNS) :])


@numba.njit(cache=True, nogil=True)
def _n_groups(x, inner, deep, hidden, slope, w, ends, v, widths, of_x, of_w, of_b, of_ends, of_v, of_c, panels, sums):
    return len(sums)


@numba.njit(cache=True, nogil=True)
def _backward(
    number, x, inner, deep, hidden, slope, w, ends, v, widths, of_x, of_w, of_b, of_ends, of_v, of_c, panels, sums
):
    """Rows whose gradients of the weights are summed one after the other; and their own gradients."""
    (m, n), k, mine = x.shape, deep.shape[1], sums[number]
    wide, across, end, of_end = rounded(n, TILE_COLUMNS), rounded(k, TILE_COLUMNS), _padded(ends, n, k), _n_sums(w)
    size, area, widest = rounded((m + len(sums) - 1) // len(sums), ROWS), ROWS * wide, dense.widest_of(widths)
    mine[:] = 0
    rows, back = np.zeros((len(inner) + 1) * area, np.float32), np.zeros(area, np.float32)
    slopes, of_start = np.empty(area, np.float32), np.empty(area, np.float32)
    deep_back, other = np.zeros(ROWS * widest, np.float32), np.empty(ROWS * widest, np.float32)
    zeros = np.zeros(widest, np.float32)
    for first in range(number * size, min((number + 1) * size, m), ROWS):
        count = min(ROWS, m - first)
        crosses.rows_between(first, count, x, inner, rows)
        last, place = block_of(deep.reshape(-1), first, count, k, across)
        back[:] = 0
        deep_back[: ROWS * across] = 0
        for row in range(count):
            value = slope[first + row]
            simd.axpy(value, rows, len(inner) * area + row * wide, mine, of_end, wide)
            simd.axpy(value, last, place + row * across, mine, of_end + wide, across)
            simd.axpy(value, end, 0, back, row * wide, wide)
            simd.axpy(value, end, wide, deep_back, row * across, across)
        simd.where_above_0(deep_back, 0, last, place, deep_back, 0, ROWS * across)
        crosses.back_through(first, count, n, inner, panels, rows, back, slopes, of_start, mine)
        dense.back_through(first, count, x, widths, hidden, panels, deep_back, other, zeros, mine)
        simd.axpy(np.float32(1), other, 0, back, 0, area)
        copy_rows(back, 0, wide, of_x.reshape(-1), first * n, n, count)


@numba.njit(cache=True, nogil=True)
def _n_sums(w):
    """Those of the cross layers, behind which are those of the ends."""
    wide = rounded(w.shape[1], TILE_COLUMNS)
    return len(w) * (wide + 1) * wide


@numba.njit(cache=True, nogil=True)
def _n_added(x, inner, deep, hidden, slope, w, ends, v, widths, of_x, of_w, of_b, of_ends, of_v, of_c, panels, sums):
    return 1 + crosses.n_added(w) + dense.n_added(widths)


@numba.njit(cache=True, nogil=True)
def _add_up(
    number, x, inner, deep, hidden, slope, w, ends, v, widths, of_x, of_w, of_b, of_ends, of_v, of_c, panels, sums
):
    """The sums of all groups, in their order: of the ends, of the cross layers, then of the network."""
    n, k, of_end, first = x.shape[1], deep.shape[1], _n_sums(w), 1 + crosses.n_added(w)
    wide, across = rounded(n, TILE_COLUMNS), rounded(k, TILE_COLUMNS)
    if number == 0:
        total = added(sums, of_end, wide + across)
        of_ends[:n] = total[:n]
        of_ends[n:] = total[wide : wide + k]
    elif number < first:
        crosses.add_up(number - 1, of_w, of_b, sums)
    else:
        dense.add_up(number - first, widths, of_v, of_c, sums, of_end + wide + across)


_FORWARD = ((_n_packs, _pack), (_n_blocks, _forward))
_BACKWARD = ((_n_packs_back, _pack_back), (_n_groups, _backward), (_n_added, _add_up))
