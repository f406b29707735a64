"""What a factorization algorithm is, and what it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ...kernels.quantized_rows import Table, with_columns
from .objectives import ExplicitObjective, ImplicitObjective, RankingSgd, RatingSgd


class Algorithm(NamedTuple):
    """Two pure functions, traceable and not jitted: jit, scan, vmap, shard or embed them as you like.

    Attributes:
        init: `init(key, data) -> state`.
        step: `step(key, state, data) -> (state, info)`: one sweep or epoch of all the data, or one of its batches. A
            step by a batch gives the state back as it was where a number is not finite; else `fit` sees to that.
        name: What messages call it.
        batches: `batches(data, seed) -> training.Batches` where a step takes a batch; None where it takes all the data.
        resume: `resume(state, data) -> state` makes a model a state to go on from: with what only training needs, which
            one that was pruned lacks, and with what it answers by of these data. None where there is neither.
        settings: What it was built with, as JSON can hold it; see `with_settings`.
    """

    init: Callable[[PRNGKeyArray, Any], Any]
    step: Callable[[PRNGKeyArray, Any, Any], tuple[Any, Info]]
    name: str = "algorithm"
    batches: Callable[[Any, np.ndarray], Any] | None = None
    resume: Callable[[Any, Any], Any] | None = None
    settings: Mapping[str, Any] = MappingProxyType({})


class Info(NamedTuple):
    """What one step reports.

    Attributes:
        loss: The objective after the step, summed over all interactions; of a batch, its mean before the step.
        nonfinite: `[2]`, how many rows of the user and of the item side are not finite; of a batch, how many arrays of
            the gradient, and 0.
        first_bad_row: `[2]`, the first such row of each side, -1 if there is none.
    """

    loss: Float[Array, ""]
    nonfinite: Int32[Array, 2]
    first_bad_row: Int32[Array, 2]


class Factors(NamedTuple):
    """A factor model: `score(u, i) = users[u] . items[i] (+ user_bias[u] + item_bias[i] + mean)`.

    The state of ALS and a model at once; its hyper-parameters are leaves, so that `vmap` trains a grid. `slots` is what
    the optimizer of a minibatch remembers of each user and of each item, which no score needs.

    For answers alone, `users` and `items` may be what `compression.quantize_model` makes of them.
    """

    users: Float[Array, "n_users rank"]
    items: Float[Array, "n_items rank"]
    user_bias: Float[Array, " n_users"] | None = None
    item_bias: Float[Array, " n_items"] | None = None
    mean: Float[Array, ""] | None = None
    objective: ExplicitObjective | ImplicitObjective | RatingSgd | RankingSgd | None = None
    slots: tuple[tuple[Array, ...], tuple[Array, ...]] | None = None

    @property
    def n_users(self) -> int:
        return self.users.shape[-2]

    @property
    def n_items(self) -> int:
        return self.items.shape[-2]

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch width"]:
        """Vectors whose products with `item_table()` are the scores of these users."""
        rows = self.users[users]
        if self.mean is None or self.user_bias is None:
            return rows
        ones = jnp.ones((rows.shape[0], 1), rows.dtype)
        return jnp.concatenate([rows, ones, (self.user_bias[users] + self.mean)[:, None]], axis=1)

    def item_table(self) -> Table:
        """Item vectors, with the biases folded in as further columns."""
        if self.mean is None or self.item_bias is None:
            return self.items
        return with_columns(self.items, self.item_bias, jnp.ones_like(self.item_bias))
