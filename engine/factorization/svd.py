"""The leading singular vectors of a sparse matrix, by random projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ...kernels import sparse_product
from ...kernels.csr import SparseMatrix
from ...kernels.op import Implementation
from .parts import require_at_least


def randomized_svd(
    key: PRNGKeyArray,
    data: SparseMatrix,
    rank: int,
    *,
    oversampling: int = 10,
    power_iterations: int = 4,
    implementation: Implementation = "auto",
) -> tuple[Float[Array, "n_users rank"], Float[Array, " rank"], Float[Array, "n_items rank"]]:
    """`X ~ U diag(s) V^T` with the `rank` greatest singular values, X being read only in products with tall matrices.

    A random matrix of `rank + oversampling` columns is multiplied by X and, `power_iterations` times, by X^T and X;
    what it then spans is where the singular vectors are looked for. Pure and traceable.

    Args:
        key: Of the random matrix.
        data: X; its values where there are any, else ones.
        rank: At least 1 and, with the oversampling, at most the shorter side of X.
        oversampling: Further columns, at least 0.
        power_iterations: At least 0; more of them where singular values fall slowly.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `(U, s, V)`, s descending.

    Raises:
        ValueError: A parameter out of its range.

    Source: Halko, Martinsson, Tropp 2011, "Finding Structure with Randomness", algorithms 4.4 and 5.1.

    >>> from affinax.engine.data import Interactions
    >>> x = Interactions.from_coo([0, 0, 1, 2], [0, 1, 2, 3], [3.0, 4.0, 2.0, 1.0], n_items=5).to_device()
    >>> u, s, v = randomized_svd(jax.random.key(0), x, 2, oversampling=1)
    >>> [round(value, 4) for value in s.tolist()]
    [5.0, 2.0]
    """
    require_at_least(1, rank=rank)
    require_at_least(0, oversampling=oversampling, power_iterations=power_iterations)
    width = rank + oversampling
    if width > min(data.shape):
        raise ValueError(f"{rank=} and {oversampling=} must add up to at most {min(data.shape)} for shape {data.shape}")

    # X times a matrix is its transpose times X^T, whose rows are those by item.
    def times(table: Array) -> Array:
        return sparse_product.multiply(table.T, data.by_item, data.shape[0], implementation=implementation).T

    def transposed_times(table: Array) -> Array:
        return sparse_product.multiply(table.T, data.by_user, data.shape[1], implementation=implementation).T

    def power(_, basis: Array) -> Array:
        return _orthonormal(times(_orthonormal(transposed_times(basis))))

    basis = _orthonormal(times(jax.random.normal(key, (data.shape[1], width), jnp.float32)))
    basis = lax.fori_loop(0, power_iterations, power, basis)
    items, triangle = jnp.linalg.qr(transposed_times(basis))
    left, values, right = jnp.linalg.svd(triangle, full_matrices=False)
    users = jnp.matmul(basis, right.T, precision=lax.Precision.HIGHEST)
    items = jnp.matmul(items, left, precision=lax.Precision.HIGHEST)
    return users[:, :rank], values[:rank], items[:, :rank]


def _orthonormal(table: Array) -> Array:
    return jnp.linalg.qr(table)[0]
