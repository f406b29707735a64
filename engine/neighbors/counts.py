"""The baseline that every recommender must beat."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from ...kernels.csr import CSR
from ..data.interactions import Interactions


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


def popularity(interactions: Interactions) -> Popularity:
    """Counts the interactions of each item.

    >>> popularity(Interactions.from_coo([0, 1, 1], [1, 1, 0])).counts.tolist()
    [1.0, 2.0]
    """
    counts = np.bincount(interactions.items, minlength=interactions.n_items)
    return Popularity(jnp.asarray(counts, jnp.float32))
