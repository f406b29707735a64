"""Dense Gramian of a sparse matrix, on the host."""

from __future__ import annotations

import numba
import numpy as np

from . import simd
from .threads import WORKERS

_BLOCK = 64  # rows and columns mirrored together


@numba.njit(parallel=True, nogil=True, cache=True)
def add_gramian(indptr, indices, values, indptr_t, rows_t, values_t, product):
    """Adds `X^T X` of a matrix in CSR and, transposed, in CSR again to `product [n_columns, n_columns]` float32.

    Each row of the result is summed by one thread, in the order of the rows of X. `values` of size 1 stand for all.
    """
    step = np.int64(len(values) > 1)
    queue = np.zeros(1, np.int64)
    for _worker in numba.prange(WORKERS):
        while True:
            column = simd.take_number(queue, 0)
            if column >= len(product):
                break
            total = product[column]
            for k in range(indptr_t[column], indptr_t[column + 1]):
                row, weight = rows_t[k], values_t[k * step]
                for place in range(indptr[row], indptr[row + 1]):
                    total[indices[place]] += weight * values[place * step]


@numba.njit(parallel=True, nogil=True, cache=True)
def mirror_upper(matrix):
    """Writes the upper triangle over the lower one, block by block."""
    n = len(matrix)
    n_blocks = (n + _BLOCK - 1) // _BLOCK
    for block in numba.prange(n_blocks):
        for i in range(block * _BLOCK, min((block + 1) * _BLOCK, n)):
            for other in range(block + 1):
                for j in range(other * _BLOCK, min((other + 1) * _BLOCK, i)):
                    matrix[i, j] = matrix[j, i]
