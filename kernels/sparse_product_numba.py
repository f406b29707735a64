"""`kernels.sparse_product` on CPU: rows by their number of entries over the threads, four table rows at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .threads import WORKERS, balanced_bounds


def multiply_rows(indptr, indices, values, table):
    """The Numba implementation of `sparse_product.OP`."""
    shape = indptr.shape[0] - 1, table.shape[1]
    results = [jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)]
    product, status = xla_ffi.call("sparse_product", _multiply, results, indptr, indices, values, table)
    return jnp.where(status[0] == 1, product, jnp.nan)


@numba.njit(parallel=True, nogil=True, cache=True)
def _multiply(indptr, indices, values, table, product, status):
    step, width = np.int64(len(values) > 1), table.shape[1]
    bounds = balanced_bounds(indptr, WORKERS * 8, 4)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            chunk = simd.take_number(queue, 0)
            if chunk >= len(bounds) - 1:
                break
            for row in range(bounds[chunk], bounds[chunk + 1]):
                begin, end = indptr[row], indptr[row + 1]
                total = product[row]
                total[:] = 0
                whole = begin + (end - begin) // 4 * 4
                for k in range(begin, whole, 4):
                    a, b, c, d = (table[indices[k]], table[indices[k + 1]], table[indices[k + 2]], table[indices[k + 3]])
                    v, w, x, y = (values[k * step], values[(k + 1) * step], values[(k + 2) * step], values[(k + 3) * step])
                    for j in range(width):
                        total[j] += v * a[j] + w * b[j] + x * c[j] + y * d[j]
                for k in range(whole, end):
                    a, v = table[indices[k]], values[k * step]
                    for j in range(width):
                        total[j] += v * a[j]
    status[0] = 1
