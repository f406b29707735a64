"""Sparse rows times a dense table."""

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
    rows: CSR, table: Float[Array, "m width"], *, implementation: Implementation = "auto"
) -> Float[Array, "n_rows width"]:
    """`product[r] = sum over the entries (i, v) of row r of v table[i]`.

    Differentiable in the values and in the table.

    Args:
        rows: `[n_rows, m]`.
        table: What the columns of the rows stand for.
        implementation: See `kernels.op.dispatch`.

    >>> rows = CSR(jnp.array([0, 2, 2], jnp.int32), jnp.array([0, 2], jnp.int32), jnp.array([1.0, 2.0]))
    >>> multiply(rows, jnp.array([[1.0, 0.0], [5.0, 5.0], [0.0, 3.0]])).tolist()
    [[1.0, 6.0], [0.0, 0.0]]
    """
    return _multiply(rows, table, implementation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(rows: CSR, table: Array, implementation: Implementation) -> Array:
    return dispatch(OP, *rows, table, implementation=implementation)


def _forward(rows: CSR, table: Array, implementation: Implementation):
    return _multiply(rows, table, implementation), (rows, table)


def _backward(implementation: Implementation, saved, cotangent):
    return jax.vjp(lambda rows, table: _reference(*rows, table), *saved)[1](cotangent)


_multiply.defvjp(_forward, _backward)


def _reference(indptr, indices, values, table) -> Array:
    rows = CSR(indptr, indices, values)
    row, values = entries(rows)
    chunk = min(max(1, _PRODUCTS // max(table.shape[1], 1)), max(rows.nnz, 1))
    padding = (0, -rows.nnz % chunk)
    parts = (jnp.pad(part, padding).reshape(-1, chunk) for part in (row, indices, values))

    def add(total, part):
        row, column, value = part
        return total.at[row].add(value[:, None] * table[column]), None

    return lax.scan(add, jnp.zeros((rows.n_rows, table.shape[1]), table.dtype), tuple(parts))[0]


def _supports(indptr, indices, values, table, **static) -> str | None:
    kinds = {values.dtype, table.dtype}
    if kinds != {jnp.dtype(jnp.float32)}:
        return f"values of {sorted(map(str, kinds))} must all be float32"
    return None


OP = Op("sparse_product", _reference, _supports, numba=sparse_product_numba.multiply_rows)
