"""Cosine similarity of rows: the formula of content-based recommendation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ...kernels.csr import CSR, entries


def cosine_similarity(a: Array | CSR, b: Array | CSR, *, n_columns: int | None = None) -> Float[Array, "n m"]:
    """`x.y / (|x| |y|)` of every row x of `a` and y of `b`; 0 where either is all zeros.

    The whole `[n, m]` result is held: for the nearest rows among many, `similar_items` and `item_knn` hold but k each.
    Works under jit, vmap and grad.

    Args:
        a: `[n, d]` rows, or sparse ones.
        b: `[m, d]` rows, or sparse ones.
        n_columns: d, where both are sparse.

    Raises:
        ValueError: Widths that differ, or that are not known.

    >>> a, b = jnp.array([[0.5, 0.6, 0.7]]), jnp.array([[0.4, 0.5, 0.6]])
    >>> round(cosine_similarity(a, b).item(), 4)
    0.9996
    """
    widths = {rows.shape[1] for rows in (a, b) if not isinstance(rows, CSR)}
    if n_columns is not None:
        widths.add(n_columns)
    if len(widths) != 1:
        raise ValueError(f"rows must have one width; found {sorted(widths)}. n_columns gives it where all are sparse")
    (width,) = widths
    a, b = _unit_rows(a, width), _unit_rows(b, width)
    if isinstance(a, CSR):
        return _sparse_times(a, _dense(b, width).T)
    if isinstance(b, CSR):
        return _sparse_times(b, a.T).T
    return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)


def _unit_rows(rows: Array | CSR, width: int) -> Array | CSR:
    if isinstance(rows, CSR):
        row, values = entries(rows)
        squares = jax.ops.segment_sum(values * values, row, rows.n_rows)
        return rows._replace(values=values * _inverse_root(squares)[row])
    return rows * _inverse_root(jnp.sum(rows * rows, axis=1))[:, None]


def _inverse_root(squares: Array) -> Array:
    # The inner choice keeps the gradient finite at 0.
    return jnp.where(squares > 0, lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


def _dense(rows: Array | CSR, width: int) -> Array:
    if not isinstance(rows, CSR):
        return rows
    row, values = entries(rows)
    return jnp.zeros((rows.n_rows, width), values.dtype).at[row, rows.indices].add(values)


def _sparse_times(rows: CSR, table: Array) -> Array:
    row, values = entries(rows)
    return jax.ops.segment_sum(values[:, None] * table[rows.indices], row, rows.n_rows)
