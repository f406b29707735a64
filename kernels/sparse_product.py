"""Dense rows times a sparse table."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from . import sparse_product_numba
from .csr import CSR, entries
from .op import Implementation, Op, dispatch

_PRODUCTS = 1 << 20  # that the reference holds at a time


def multiply(
    rows: Float[Array, "batch m"], table: CSR, n_columns: int, *, implementation: Implementation = "auto"
) -> Float[Array, "batch n_columns"]:
    """`product[b, j] = sum over i of rows[b, i] table[i, j]`; zeros of the rows cost nothing.

    Differentiable in the rows and in the values of the table.

    Args:
        rows: Dense rows.
        table: `[m, n_columns]`, sparse.
        n_columns: Of the table.
        implementation: See `kernels.op.dispatch`.

    Raises:
        ValueError: Rows that are not as wide as the table is long.

    >>> table = CSR(jnp.array([0, 2, 2], jnp.int32), jnp.array([0, 2], jnp.int32), jnp.array([1.0, 2.0]))
    >>> multiply(jnp.array([[3.0, 5.0], [0.0, 1.0]]), table, 3).tolist()
    [[3.0, 0.0, 6.0], [0.0, 0.0, 0.0]]
    """
    if rows.shape[1] != table.n_rows:
        raise ValueError(
            f"kernels.sparse_product: {rows.shape=} must be [batch, {table.n_rows}], the rows of the table"
        )
    return _multiply(rows, table, n_columns, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _multiply(rows: Array, table: CSR, n_columns: int, implementation: Implementation) -> Array:
    return dispatch(OP, rows, *table, implementation=implementation, n_columns=n_columns)


def _forward(rows: Array, table: CSR, n_columns: int, implementation: Implementation):
    return _multiply(rows, table, n_columns, implementation), (rows, table)


def _backward(n_columns: int, implementation: Implementation, saved, cotangent):
    return jax.vjp(lambda rows, table: _reference(rows, *table, n_columns=n_columns), *saved)[1](cotangent)


_multiply.defvjp(_forward, _backward)


def _reference(rows, indptr, indices, values, *, n_columns: int) -> Array:
    inner, values = entries(CSR(indptr, indices, values))
    nnz, batch = indices.shape[0], rows.shape[0]
    chunk = min(max(1, _PRODUCTS // max(batch, 1)), max(nnz, 1))
    parts = tuple(jnp.pad(part, (0, -nnz % chunk)).reshape(-1, chunk) for part in (inner, indices, values))

    def add(total, part):
        i, column, value = part
        return total.at[:, column].add(rows[:, i] * value[None]), None

    return lax.scan(add, jnp.zeros((batch, n_columns), rows.dtype), parts)[0]


def _supports(rows, indptr, indices, values, **static) -> str | None:
    kinds = {rows.dtype, values.dtype}
    if kinds != {jnp.dtype(jnp.float32)}:
        return f"values of {sorted(map(str, kinds))} must all be float32"
    return None


OP = Op("sparse_product", _reference, _supports, numba=sparse_product_numba.multiply_rows)
