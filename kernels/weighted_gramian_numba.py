"""`kernels.weighted_gramian` on CPU: a band of rows of the result a thread, summed in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .gramian import mirror_upper
from .threads import WORKERS, balanced_bounds

_BANDS = 16  # of about equal work; each is one more reading of the entries


def gramian(indptr, indices, values, weights, *, n_columns: int):
    """The Numba implementation of `weighted_gramian.OP`."""
    shape = n_columns, n_columns
    results = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    return xla_ffi.call("weighted_gramian", _gramian, results, indptr, indices, values, weights)[0]


@numba.njit(cache=True, nogil=True)
def _costs(indptr, indices, n_columns):
    """Running count of the products in each row of the result's upper triangle."""
    total = np.zeros(n_columns + 1, np.int64)
    for row in range(len(indptr) - 1):
        for place in range(indptr[row], indptr[row + 1]):
            total[indices[place] + 1] += indptr[row + 1] - place
    return np.cumsum(total)


@numba.njit(parallel=True, nogil=True, cache=True)
def _gramian(indptr, indices, values, weights, product):
    step = np.int64(len(values) > 1)
    n_columns = len(product)
    bounds = balanced_bounds(_costs(indptr, indices, n_columns), _BANDS, 1)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            band = simd.take_number(queue, 0)
            if band >= len(bounds) - 1:
                break
            low, high = bounds[band], bounds[band + 1]
            total = np.zeros((high - low, n_columns - low))
            for row in range(len(indptr) - 1):
                end = indptr[row + 1]
                for place in range(indptr[row], end):
                    column = indices[place]
                    if column < low:
                        continue
                    if column >= high:
                        break
                    factor = np.float64(weights[row]) * values[place * step]
                    for other in range(place, end):
                        total[column - low, indices[other] - low] += factor * values[other * step]
            for column in range(low, high):
                for other in range(column, n_columns):
                    product[column, other] = total[column - low, other - low]
    mirror_upper(product)
