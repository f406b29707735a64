"""The dense Gramian of sparse rows that have weights."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from . import weighted_gramian_numba
from .csr import CSR, entries
from .op import Implementation, Op, dispatch

_ROWS_HELD = 1 << 22  # numbers of the sparse rows that the reference holds densely together
_ENTRIES = 1 << 14  # of them that are written together


def compute(
    rows: CSR, weights: Float[Array, " n_rows"], n_columns: int, *, implementation: Implementation = "auto"
) -> Float[Array, "n_columns n_columns"]:
    """`X^T diag(weights) X`, for X sparse with `n_columns` columns; not differentiable.

    Args:
        rows: X, columns ascending in each row.
        weights: One for each row.
        n_columns: Of X.
        implementation: See `kernels.op.dispatch`.

    >>> rows = CSR(jnp.array([0, 2, 3], jnp.int32), jnp.array([0, 2, 2], jnp.int32), jnp.array([1.0, 2.0, 3.0]))
    >>> compute(rows, jnp.array([1.0, 10.0]), 3).tolist()
    [[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [2.0, 0.0, 94.0]]
    """
    return dispatch(OP, *rows, weights, implementation=implementation, n_columns=n_columns)


def _reference(indptr, indices, values, weights, *, n_columns: int) -> Array:
    """Rows held densely a block at a time."""
    row, values = entries(CSR(indptr, indices, values))
    n_rows, nnz = weights.shape[0], indices.shape[0]
    start = jnp.zeros((n_columns, n_columns), jnp.float32)
    if nnz == 0:
        return start
    at_once = max(1, min(n_rows, _ROWS_HELD // n_columns))
    n_blocks = -(-n_rows // at_once)
    weights = jnp.pad(weights, (0, n_blocks * at_once - n_rows)).reshape(n_blocks, at_once)
    bounds = indptr[jnp.minimum(jnp.arange(n_blocks + 1) * at_once, n_rows)]
    chunk = min(nnz, _ENTRIES)

    def add(total, block):
        number, own = block
        begin, end = bounds[number], bounds[number + 1]

        def fill(state):
            first, dense = state
            place = first + jnp.arange(chunk, dtype=jnp.int32)
            entry = jnp.minimum(place, nnz - 1)
            inside = jnp.where(place < end, row[entry] - number * at_once, at_once)  # which is outside and dropped
            return first + chunk, dense.at[inside, indices[entry]].add(values[entry], mode="drop")

        empty = jnp.zeros((at_once, n_columns), jnp.float32)
        _, dense = lax.while_loop(lambda state: state[0] < end, fill, (begin, empty))
        return total + jnp.matmul(dense.T, dense * own[:, None], precision=lax.Precision.HIGHEST), None

    return lax.scan(add, start, (jnp.arange(n_blocks, dtype=jnp.int32), weights))[0]


def _supports(indptr, indices, values, weights, **static) -> str | None:
    kinds = {values.dtype, weights.dtype}
    if kinds != {jnp.dtype(jnp.float32)}:
        return f"values and weights of {sorted(map(str, kinds))} must all be float32"
    return None


OP = Op("weighted_gramian", _reference, _supports, numba=weighted_gramian_numba.gramian)
