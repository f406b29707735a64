"""Models that answer from sparse rows: histories times item-item weights, or neighbours times what they met."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float

from ...kernels.csr import CSR, SparseMatrix


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
    """

    neighbors: CSR
    interactions: SparseMatrix

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
