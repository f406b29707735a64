"""Baselines of ratings: a mean, and what each user and each item adds to it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from ...kernels.csr import CSR, SparseMatrix, entries
from .parts import require_at_least, scalar


class Baseline(NamedTuple):
    """`score(u, i) = mean + user_bias[u] + item_bias[i]`.

    Attributes:
        mean: Of all ratings.
        user_bias: `[n_users]`.
        item_bias: `[n_items]`.
        l2_users: What the biases of new users are solved with.
    """

    mean: Float[Array, ""]
    user_bias: Float[Array, " n_users"]
    item_bias: Float[Array, " n_items"]
    l2_users: Float[Array, ""]

    @property
    def n_users(self) -> int:
        return self.user_bias.shape[-1]

    @property
    def n_items(self) -> int:
        return self.item_bias.shape[-1]

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch 2"]:
        bias = self.user_bias[users] + self.mean
        return jnp.stack([jnp.ones_like(bias), bias], axis=1)

    def item_table(self) -> Float[Array, "n_items 2"]:
        return jnp.stack([self.item_bias, jnp.ones_like(self.item_bias)], axis=1)

    def pair_scores(self, users: Int32[Array, " batch"], items: Int32[Array, " batch"]) -> Float[Array, " batch"]:
        """Baselines of pairs."""
        return self.mean + self.user_bias[users] + self.item_bias[items]

    def with_history(self, history: CSR) -> Baseline:
        """The same items for other users, whose biases are solved for."""
        return self._replace(user_bias=_row_biases(history, self.mean, self.item_bias, self.l2_users))


def baseline_estimates(data: SparseMatrix, *, l2_users: Any = 15.0, l2_items: Any = 10.0, sweeps: int = 10) -> Baseline:
    """A mean and biases by alternating least squares: what every model of ratings must beat.

    Minimises `sum (r - mean - b_u - b_i)^2 + l2_users sum b_u^2 + l2_items sum b_i^2`. Pure and traceable.

    Args:
        data: Ratings.
        l2_users: At least 0; and so
        l2_items: is this.
        sweeps: Passes over both sides, at least 1.

    Returns:
        `Baseline`, a model as any other.

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
    mean, l2_users, l2_items = jnp.mean(data.by_user.values), scalar(l2_users), scalar(l2_items)

    def sweep(_, biases):
        item_bias = _row_biases(data.by_item, mean, biases[0], l2_items)
        return _row_biases(data.by_user, mean, item_bias, l2_users), item_bias

    start = jnp.zeros(data.shape[0], jnp.float32), jnp.zeros(data.shape[1], jnp.float32)
    user_bias, item_bias = lax.fori_loop(0, sweeps, sweep, start)
    return Baseline(mean, user_bias, item_bias, l2_users)


def _row_biases(rows: CSR, mean: Array, other_bias: Array, l2: Array) -> Float[Array, " n_rows"]:
    """`sum (r - mean - other_bias) / (n_row + l2)` of each row; 0 where a row is empty."""
    row, values = entries(rows)
    rest = values - mean - other_bias[rows.indices]
    sums = jax.ops.segment_sum(rest, row, rows.n_rows, indices_are_sorted=True)
    below = jnp.diff(rows.indptr) + l2
    return sums / jnp.where(below > 0, below, 1.0)
