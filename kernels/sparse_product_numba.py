"""`kernels.sparse_product` on CPU: one row of the result a thread."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .threads import WORKERS


def multiply_rows(rows, indptr, indices, values, *, n_columns: int):
    """The Numba implementation of `sparse_product.OP`."""
    shape = rows.shape[0], n_columns
    results = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    return xla_ffi.call("sparse_product", _multiply, results, rows, indptr, indices, values)[0]


@numba.njit(parallel=True, nogil=True, cache=True)
def _multiply(rows, indptr, indices, values, product):
    step = np.int64(len(values) > 1)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            row = simd.take_number(queue, 0)
            if row >= len(rows):
                break
            total = product[row]
            total[:] = 0
            for i in range(rows.shape[1]):
                factor = rows[row, i]
                if factor == 0:
                    continue
                for place in range(indptr[i], indptr[i + 1]):
                    total[indices[place]] += factor * values[place * step]
