"""Weighted means over the nearest neighbours that have a value: what k-NN predicts ratings from."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32

from . import neighbor_mean_numba
from .csr import CSR, find
from .op import Implementation, Op, dispatch


def weighted_mean(
    similar: CSR,
    values: CSR,
    rows: Int32[Array, " batch"],
    others: Int32[Array, " batch"],
    k: Any,
    *,
    implementation: Implementation = "auto",
) -> Float[Array, " batch"]:
    """`sum s(a, j) v(b, j) / sum s(a, j)` over the k neighbours j nearest to a for which b has a value.

    Args:
        similar: `[n, n]`: the neighbours of each a, nearest first, with similarities above 0.
        values: `[m, n]`: the values of each b, columns ascending.
        rows: a of each pair.
        others: b of each pair. Consecutive pairs with the same b are answered fastest.
        k: How many neighbours count, at least 1; it may be traced.
        implementation: See `kernels.op.dispatch`.

    Returns:
        The means; 0 where b has no value for any neighbour of a.

    Raises:
        ValueError: `rows` and `others` of different lengths; or, where it is concrete, a column of `similar` or
            `values` outside `[0, n)`, or k below 1.

    >>> indptr = jnp.array([0, 3, 3, 3, 3, 3], jnp.int32)
    >>> similar = CSR(indptr, jnp.array([4, 2, 1], jnp.int32), jnp.array([0.9, 0.5, 0.25]))
    >>> values = CSR(jnp.array([0, 2], jnp.int32), jnp.array([1, 2], jnp.int32), jnp.array([3.0, 6.0]))
    >>> zero = jnp.zeros(1, jnp.int32)
    >>> [weighted_mean(similar, values, zero, zero, k).item() for k in (1, 2)]
    [6.0, 5.0]
    """
    if rows.shape != others.shape:
        raise ValueError(f"kernels.neighbor_mean: {rows.shape=} and {others.shape=} must be the same")
    if not isinstance(k, Tracer) and int(k) < 1:
        raise ValueError(f"kernels.neighbor_mean: k={int(k)} must be at least 1")
    for name, matrix in (("similar", similar), ("values", values)):
        if matrix.nnz and not isinstance(matrix.indices, Tracer):
            _require_columns(name, matrix, similar.n_rows)
    number = jnp.asarray(k, jnp.int32).reshape(1)
    return dispatch(OP, *similar, *values, rows, others, number, implementation=implementation)


def _require_columns(name: str, matrix: CSR, n: int) -> None:
    with jax.ensure_compile_time_eval():
        least, greatest = int(jnp.min(matrix.indices)), int(jnp.max(matrix.indices))
    for column in (least, greatest):
        if not 0 <= column < n:
            raise ValueError(
                f"kernels.neighbor_mean: {name} has column {column}; similar has {n} rows and so must be [{n}, {n}], "
                f"and values [m, {n}]"
            )


def _reference(s_indptr, s_indices, s_values, indptr, indices, values, rows, others, k) -> Array:
    if s_indices.shape[0] == 0 or indices.shape[0] == 0:
        return jnp.zeros(rows.shape[0], jnp.float32)
    s_values = jnp.broadcast_to(s_values, s_indices.shape)
    values = jnp.broadcast_to(values, indices.shape)
    begin, end = s_indptr[rows], s_indptr[rows + 1]

    def step(state):
        t, count, above, below = state
        entry = jnp.minimum(begin + t, s_indices.shape[0] - 1)
        (there,), (place,) = (found.T for found in find(indptr, indices, others, s_indices[entry][:, None]))
        counts = there & (begin + t < end) & (count < k[0])
        weight = jnp.where(counts, s_values[entry], 0.0)
        return t + 1, count + counts.astype(jnp.int32), above + weight * values[place], below + weight

    zeros = jnp.zeros(rows.shape[0], jnp.float32)
    longest = jnp.max(end - begin, initial=0)
    state = jnp.int32(0), jnp.zeros(rows.shape[0], jnp.int32), zeros, zeros
    _, _, above, below = lax.while_loop(lambda state: state[0] < longest, step, state)
    return above / jnp.where(below > 0, below, 1.0)


def _supports(s_indptr, s_indices, s_values, indptr, indices, values, *_, **static) -> str | None:
    kinds = {s_values.dtype, values.dtype}
    if kinds != {jnp.dtype(jnp.float32)}:
        return f"values of {sorted(map(str, kinds))} must all be float32"
    return None


OP = Op("neighbor_mean", _reference, _supports, numba=neighbor_mean_numba.means)
