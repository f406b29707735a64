"""What every least-squares kernel does first: bring the table rows of one sparse row together."""

from __future__ import annotations

import numba
import numpy as np

from . import simd

_AHEAD = 12  # entries between a prefetch and its use


@numba.njit(cache=True, nogil=True)
def gather(table, indices, begin, n, weights, targets, buffer, first, w, b):
    """Copies the table rows of `n` entries, their weights and targets, padded with zeros to a multiple of 4.

    Args:
        table: `[n, width]`, a row being a multiple of 32 bytes.
        indices: Table row of each entry; those from `begin` are meant.
        begin: See above.
        n: How many.
        weights: One an entry or one for all, and so
        targets: are these.
        buffer: `[capacity, width]`; it is filled from row
        first: this one on, and so are
        w: the weights and
        b: the targets.

    Returns:
        The padded number of entries, or -1 if one points outside the table.
    """
    width, words = table.shape[1], table.shape[1] * table.itemsize // 4
    line = 64 // table.itemsize
    weight_step, target_step = len(weights) > 1, len(targets) > 1
    for k in range(n):
        ahead = np.int64(indices[min(begin + k + _AHEAD, len(indices) - 1)])
        for place in range(0, width, line):
            simd.prefetch(table, ahead * width + place)
        column = np.int64(indices[begin + k])
        if column < 0 or column >= len(table):
            return -1
        simd.copy(table, column * width, buffer, (first + k) * width, words)
        w[first + k] = weights[(begin + k) * weight_step]
        b[first + k] = targets[(begin + k) * target_step]
    padded = (n + 3) // 4 * 4
    for k in range(first + n, first + padded):
        w[k] = 0
        b[k] = 0
        for place in range(0, width, 32 // table.itemsize):
            simd.clear(buffer, k * width + place)
    return padded
