"""Models that answer from sparse rows: histories times item-item weights, or neighbours times what they met."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ...kernels.csr import CSR, SparseMatrix
from ..data.interactions import Interactions
from .comparison import Comparison, nearest_users


class ItemWeights(NamedTuple):
    """`score(u, j) = sum over i in u's history of value(u, i) weights[i, j]`.

    Attributes:
        history: A row for each user: what the scores are made of.
        weights: `[n_items, n_items]`, sparse where each item keeps its nearest only, or dense.
    """

    history: CSR
    weights: CSR | Float[Array, "n_items n_items"]

    @property
    def n_users(self) -> int:
        return self.history.n_rows

    @property
    def n_items(self) -> int:
        return self.weights.n_rows if isinstance(self.weights, CSR) else self.weights.shape[-1]

    def sparse_queries(self) -> CSR:
        """The sparse row of each user."""
        return self.history

    def score_table(self) -> CSR | Float[Array, "n_items n_items"]:
        """What the rows are multiplied with."""
        return self.weights

    def with_history(self, history: CSR) -> ItemWeights:
        """The same weights for users with other histories."""
        return self._replace(history=history)


class UserNeighbors(NamedTuple):
    """`score(u, j) = sum over the neighbours v of u of similarity(u, v) value(v, j)`.

    Attributes:
        neighbors: `[n_users, n_users]`, each user's nearest with their similarities.
        interactions: Those of all users.
        comparison: How the neighbours were found, and those of newcomers will be.
    """

    neighbors: CSR
    interactions: SparseMatrix
    comparison: Comparison

    @property
    def n_users(self) -> int:
        return self.neighbors.n_rows

    @property
    def n_items(self) -> int:
        return self.interactions.by_item.n_rows

    def sparse_queries(self) -> CSR:
        """The neighbours of each user."""
        return self.neighbors

    def score_table(self) -> CSR:
        """What users met."""
        return self.interactions.by_user

    def with_history(self, history: CSR) -> UserNeighbors:
        """The same interactions, and the nearest of their users to those of other histories.

        Raises:
            NotImplementedError: Histories that are traced.
        """
        if isinstance(history.indices, Tracer):
            raise NotImplementedError(
                "user_knn compares newcomers on the host: call with_history outside jit and pass the model it returns"
            )
        newcomers, x = (_on_the_host(rows, self.n_items) for rows in (history, self.interactions.by_user))
        return self._replace(neighbors=nearest_users(newcomers, x, self.comparison))


def _on_the_host(rows: CSR, n_items: int) -> Interactions:
    values = np.broadcast_to(np.asarray(rows.values), rows.nnz)
    return Interactions(np.asarray(rows.indptr, np.int64), np.asarray(rows.indices), n_items, values)
