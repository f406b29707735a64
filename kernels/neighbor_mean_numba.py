"""`kernels.neighbor_mean` on CPU: the values of one b laid out by column, and the lists walked from their start."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .threads import WORKERS

_PAIRS = 2048  # taken from the queue at a time


def means(*arguments):
    """The Numba implementation of `neighbor_mean.OP`."""
    results = [jax.ShapeDtypeStruct(arguments[6].shape, jnp.float32)]
    return xla_ffi.call("neighbor_mean", _means, results, *arguments)[0]


@numba.njit(parallel=True, nogil=True, cache=True)
def _means(s_indptr, s_indices, s_values, indptr, indices, values, rows, others, k, found):
    # Neighbours are rows of `similar` themselves.
    n_columns = len(s_indptr) - 1
    s_step, step = np.int64(len(s_values) > 1), np.int64(len(values) > 1)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        first = simd.take_number(queue, 0) * _PAIRS
        by_column = np.full(n_columns if first < len(rows) else 0, np.nan, np.float32)
        while first < len(rows):
            last = np.int64(-1)
            for pair in range(first, min(first + _PAIRS, len(rows))):
                other = np.int64(others[pair])
                if other != last:
                    if last >= 0:
                        for place in range(indptr[last], indptr[last + 1]):
                            by_column[indices[place]] = np.nan
                    for place in range(indptr[other], indptr[other + 1]):
                        by_column[indices[place]] = values[place * step]
                    last = other
                count, above, below = 0, np.float32(0), np.float32(0)
                for place in range(s_indptr[rows[pair]], s_indptr[rows[pair] + 1]):
                    value = by_column[s_indices[place]]
                    if value == value:
                        above += s_values[place * s_step] * value
                        below += s_values[place * s_step]
                        count += 1
                        if count == k[0]:
                            break
                found[pair] = above / below if below > 0 else np.float32(0)
            if last >= 0:
                for place in range(indptr[last], indptr[last + 1]):
                    by_column[indices[place]] = np.nan
            first = simd.take_number(queue, 0) * _PAIRS
