"""Cosine similarity of rows: the formula of content-based recommendation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from ...kernels.csr import CSR, entries

_PRODUCTS = 1 << 20  # of sparse rows with dense ones, held at a time


def cosine_similarity(a: Array | CSR, b: Array | CSR, *, n_columns: int | None = None) -> Float[Array, "n m"]:
    """`x.y / (|x| |y|)` of every row x of `a` and y of `b`; 0 where either is all zeros.

    The whole `[n, m]` result is held: for the nearest rows among many, `similar_items` and `item_knn` hold but k each.
    Works under jit, vmap and grad.

    Args:
        a: `[n, d]` rows, or sparse ones; whole numbers become float32.
        b: `[m, d]` rows, or sparse ones.
        n_columns: d, where both are sparse.

    Raises:
        TypeError: Neither an array nor a CSR.
        ValueError: Widths that differ, or that are not known; a column of concrete sparse rows beyond `n_columns`.

    >>> a, b = jnp.array([[0.5, 0.6, 0.7]]), jnp.array([[0.4, 0.5, 0.6]])
    >>> round(cosine_similarity(a, b).item(), 4)
    0.9996
    """
    a, b = _checked(a, n_columns), _checked(b, n_columns)
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


def _checked(rows: Any, n_columns: int | None) -> Array | CSR:
    if isinstance(rows, CSR):
        if n_columns is not None and rows.nnz and not isinstance(rows.indices, Tracer):
            with jax.ensure_compile_time_eval():
                last = int(jnp.max(rows.indices))
            if last >= n_columns:
                raise ValueError(f"sparse rows have column {last}, and {n_columns=}")
        return rows
    if not isinstance(rows, list) and (not hasattr(rows, "dtype") or hasattr(rows, "tocsr")):
        raise TypeError(
            f"rows must be an array [n, d] or a CSR, such as to_device().by_user; got {type(rows).__name__}"
        )
    rows = jnp.asarray(rows)
    if rows.ndim != 2:
        raise ValueError(f"rows must be [n, d]; got shape {rows.shape}")
    return rows if jnp.issubdtype(rows.dtype, jnp.floating) else rows.astype(jnp.float32)


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
    chunk = min(max(1, _PRODUCTS // max(table.shape[1], 1)), max(rows.nnz, 1))
    parts = tuple(jnp.pad(part, (0, -rows.nnz % chunk)).reshape(-1, chunk) for part in (row, rows.indices, values))

    @jax.checkpoint
    def add(total, part):
        row, column, value = part
        return total.at[row].add(value[:, None] * table[column]), None

    return lax.scan(add, jnp.zeros((rows.n_rows, table.shape[1]), values.dtype), parts)[0]
