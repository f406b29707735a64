"""Baselines of ratings: a mean, and what each user and each item adds to it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ...kernels.csr import CSR, SparseMatrix, entries
from .algorithm import Factors
from .objectives import ExplicitObjective
from .parts import require_at_least, scalar


def baseline_estimates(data: SparseMatrix, *, l2_users: Any = 15.0, l2_items: Any = 10.0, sweeps: int = 10) -> Factors:
    """`r ~ mean + user_bias + item_bias`, by alternating least squares from the mean of all ratings.

    Minimises `sum (r - mean - b_u - b_i)^2 + l2_users sum b_u^2 + l2_items sum b_i^2`. Pure and traceable.

    Args:
        data: Ratings.
        l2_users: At least 0; and so
        l2_items: is this.
        sweeps: Passes over both sides, at least 1.

    Returns:
        `Factors` of rank 0, a model as any other.

    Raises:
        ValueError: A parameter out of its range.

    Source: Koren 2010, "Factor in the Neighbors: Scalable and Accurate Collaborative Filtering", section 2.1.

    >>> from affinax.engine.data import Interactions
    >>> data = Interactions.from_coo([0, 0, 1, 1], [0, 1, 0, 1], [5.0, 3.0, 4.0, 2.0]).to_device()
    >>> model = baseline_estimates(data, l2_users=0.0, l2_items=0.0)
    >>> model.mean.item(), model.user_bias.tolist(), model.item_bias.tolist()
    (3.5, [0.5, -0.5], [1.0, -1.0])
    """
    require_at_least(0, l2_users=l2_users, l2_items=l2_items)
    require_at_least(1, sweeps=sweeps)
    n_users, n_items = data.shape
    mean = jnp.mean(data.by_user.values)

    def sweep(_, user_bias):
        item_bias = row_biases(data.by_item, mean, user_bias, scalar(l2_items))
        return row_biases(data.by_user, mean, item_bias, scalar(l2_users))

    user_bias = lax.fori_loop(0, sweeps - 1, sweep, jnp.zeros(n_users, jnp.float32))
    item_bias = row_biases(data.by_item, mean, user_bias, scalar(l2_items))
    user_bias = row_biases(data.by_user, mean, item_bias, scalar(l2_users))
    none = jnp.zeros((n_users, 0), jnp.float32), jnp.zeros((n_items, 0), jnp.float32)
    return Factors(*none, user_bias, item_bias, mean, ExplicitObjective(scalar(l2_users), scalar(0.0)))


def row_biases(
    rows: CSR, mean: Float[Array, ""], other_bias: Float[Array, " n"], l2: Float[Array, ""]
) -> Float[Array, " n_rows"]:
    """`sum (r - mean - other_bias) / (n_row + l2)` of each row; 0 where a row is empty."""
    row, values = entries(rows)
    rest = values - mean - other_bias[rows.indices]
    sums = jax.ops.segment_sum(rest, row, rows.n_rows, indices_are_sorted=True)
    below = jnp.diff(rows.indptr) + l2
    return sums / jnp.where(below > 0, below, 1.0)
