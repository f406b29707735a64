"""The baselines that every recommender must beat: the most popular items, and any items at all."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray, UInt32

from ...kernels.csr import CSR
from ..data.interactions import Interactions, takes_interactions

_WIDTH = 16


class Popularity(NamedTuple):
    """Every user gets the same items, those with the most interactions first."""

    counts: Float[Array, " n_items"]

    @property
    def n_items(self) -> int:
        return self.counts.shape[-1]

    def with_history(self, history: CSR) -> Popularity:
        """The same: what a user met does not count."""
        return self

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch 1"]:
        return jnp.ones((users.shape[0], 1), jnp.float32)

    def item_table(self) -> Float[Array, "n_items 1"]:
        return self.counts[:, None]


class Random(NamedTuple):
    """Every user gets the items in a random order of its own.

    A score is the product of two random normal vectors, the user's drawn when it is asked for: nothing grows with the
    users, and for each of them every order of the items is as likely as any other.
    """

    item_vectors: Float[Array, "n_items width"]
    seed: UInt32[Array, " words"]

    @property
    def n_items(self) -> int:
        return self.item_vectors.shape[-2]

    def with_history(self, history: CSR) -> Random:
        """The same: what a user met does not count."""
        return self

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch width"]:
        key, width = jax.random.wrap_key_data(self.seed), self.item_vectors.shape[-1]
        return jax.vmap(lambda user: jax.random.normal(jax.random.fold_in(key, user), (width,), jnp.float32))(users)

    def item_table(self) -> Float[Array, "n_items width"]:
        return self.item_vectors


@takes_interactions
def popularity(interactions: Interactions) -> Popularity:
    """Counts the interactions of each item.

    >>> popularity(Interactions.from_coo([0, 1, 1], [1, 1, 0])).counts.tolist()
    [1.0, 2.0]
    """
    counts = np.bincount(interactions.items, minlength=interactions.n_items)
    return Popularity(jnp.asarray(counts, jnp.float32))


@takes_interactions
def random(interactions: Interactions, *, key: PRNGKeyArray) -> Random:
    """Ranks by chance: what a metric is worth where nothing was learned.

    Args:
        interactions: Only the number of their items counts.
        key: Of `jax.random`; it decides every user's order.

    >>> model = random(Interactions.from_coo([0], [2]), key=jax.random.key(0))
    >>> model.queries(jnp.array([5, 5], jnp.int32)).shape, model.n_items
    ((2, 16), 3)
    """
    item_key, user_key = jax.random.split(key)
    vectors = jax.random.normal(item_key, (interactions.n_items, _WIDTH), jnp.float32)
    return Random(vectors, jax.random.key_data(user_key))
