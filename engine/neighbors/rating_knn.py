"""Nearest neighbours for ratings: how much more or less than expected the nearest gave."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from ...kernels import co_rated, neighbor_mean
from ...kernels.csr import CSR, SparseMatrix, entries
from ...kernels.op import Implementation
from ..data.interactions import Interactions, takes_interactions
from ..errors import InteractionError
from ..factorization.baseline import Baseline, baseline_estimates
from ..factorization.parts import require_at_least, require_whole
from .lists import join_lists

Similarity = Literal["pearson-baseline", "cosine", "msd"]


class ItemRatings(NamedTuple):
    """`score(u, i) = b_ui + sum s(i, j) (r_uj - b_uj) / sum s(i, j)` over the items j nearest to i that u rated.

    Attributes:
        baseline: b, as `baseline_estimates` makes it.
        residuals: `r - b`, a row for each user.
        weights: `[n_items, n_items]`: each item's nearest with their similarities s, nearest first.
        neighbors: How many j count.
    """

    baseline: Baseline
    residuals: CSR
    weights: CSR
    neighbors: Int32[Array, ""]

    @property
    def n_users(self) -> int:
        return self.residuals.n_rows

    @property
    def n_items(self) -> int:
        return self.weights.n_rows

    def pair_scores(self, users: Int32[Array, " batch"], items: Int32[Array, " batch"]) -> Float[Array, " batch"]:
        """Predicted ratings of pairs."""
        means = neighbor_mean.weighted_mean(self.weights, self.residuals, items, users, self.neighbors)
        return self.baseline.pair_scores(users, items) + means

    def scores(self, users: Int32[Array, " batch"]) -> Float[Array, "batch n_items"]:
        """Predicted ratings of all items."""
        rows, columns = _all_pairs(users.shape[0], self.n_items)
        return self.pair_scores(users[rows], columns).reshape(-1, self.n_items)

    def with_history(self, history: CSR) -> ItemRatings:
        """The same items for users with other ratings, whose biases are solved for.

        Raises:
            InteractionError: Histories without values.
        """
        if history.values.shape[0] == 1 < history.nnz:
            raise InteractionError("knn_baseline answers to ratings, and these histories have no values")
        baseline = self.baseline.with_history(history)
        return self._replace(baseline=baseline, residuals=_residuals(history, baseline))


class UserRatings(NamedTuple):
    """`score(u, i) = b_ui + sum s(u, v) (r_vi - b_vi) / sum s(u, v)` over the users v nearest to u who rated i.

    Attributes:
        baseline: b, as `baseline_estimates` makes it.
        residuals: `r - b`, a row for each item.
        similarities: `[n_users, n_users]`: each user's nearest with their similarities s, nearest first.
        neighbors: How many v count.
    """

    baseline: Baseline
    residuals: CSR
    similarities: CSR
    neighbors: Int32[Array, ""]

    @property
    def n_users(self) -> int:
        return self.similarities.n_rows

    @property
    def n_items(self) -> int:
        return self.residuals.n_rows

    def pair_scores(self, users: Int32[Array, " batch"], items: Int32[Array, " batch"]) -> Float[Array, " batch"]:
        """Predicted ratings of pairs."""
        means = neighbor_mean.weighted_mean(self.similarities, self.residuals, users, items, self.neighbors)
        return self.baseline.pair_scores(users, items) + means

    def scores(self, users: Int32[Array, " batch"]) -> Float[Array, "batch n_items"]:
        """Predicted ratings of all items."""
        # Item by item, so that the kernel lays out the ratings of each but once.
        items, place = _all_pairs(self.n_items, users.shape[0])
        return self.pair_scores(users[place], items).reshape(self.n_items, -1).T

    def with_history(self, history: CSR) -> UserRatings:
        """Refused.

        Raises:
            ValueError: Always.
        """
        raise ValueError('k-NN on the side of users compares whole users: side="items" answers to new histories')


@takes_interactions
def knn_baseline(
    interactions: Interactions,
    *,
    side: str = "items",
    neighbors: int = 40,
    candidates: int = 1000,
    similarity: str = "pearson-baseline",
    shrink: float = 100.0,
    min_support: int = 2,
    l2_users: float = 15.0,
    l2_items: float = 10.0,
    implementation: Implementation = "auto",
) -> ItemRatings | UserRatings:
    """Ratings from baselines and from the residuals of the nearest items (or users).

    `score(u, i) = b_ui + sum over j of s(i, j) (r_uj - b_uj) / sum over j of s(i, j)`, where j are the `neighbors`
    items most similar to i that u rated; on the side of users the two change places. Similarities are over shared users
    only.

    Args:
        interactions: Ratings.
        side: "items" or "users": what is compared.
        neighbors: How many count for a prediction, at least 1.
        candidates: How many nearest are kept for each item, at least `neighbors`: those that the user rated are looked
            for among them. Memory is 8 bytes for each; similarities of 0 or less are never kept.
        similarity: "pearson-baseline": the cosine of residuals `r - b`; "cosine" of ratings; "msd":
            `1 / (1 + mean squared difference)` of ratings.
        shrink: At least 0; n shared ratings count `(n - 1) / (n - 1 + shrink)`.
        min_support: Shared ratings below which two items are not compared, at least 1.
        l2_users: Of the baselines, and so
        l2_items: is this.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `ItemRatings` or `UserRatings`, for `predict` and `recommend`.

    Raises:
        InteractionError: Interactions without values.
        ValueError: A parameter out of its range.
        MemoryError: More candidates than memory; the message has the estimate.

    Source: Koren 2010, "Factor in the Neighbors: Scalable and Accurate Collaborative Filtering", eq. 3.

    >>> import numpy as np
    >>> from affinax.engine.retrieval import predict
    >>> users, items = np.nonzero(np.ones((4, 3)) - np.eye(4, 3))
    >>> x = Interactions.from_coo(users, items, (2.0 + 2 * (users % 2)).astype(np.float32))
    >>> [round(r, 1) for r in predict(knn_baseline(x, shrink=0.0, l2_users=0.0), [0, 1], [0, 1]).tolist()]
    [2.0, 4.0]
    """
    if interactions.values is None:
        raise InteractionError("knn_baseline learns from ratings, and these interactions have no values")
    for name, value, accepted in (("side", side, ("items", "users")), ("similarity", similarity, get_args(Similarity))):
        if value not in accepted:
            raise ValueError(f"{name}={value!r} must be one of {accepted}")
    require_whole(1, neighbors=neighbors, candidates=candidates, min_support=min_support)
    require_at_least(0, shrink=shrink, l2_users=l2_users, l2_items=l2_items)
    if candidates < neighbors:
        raise ValueError(f"{candidates=} must be at least {neighbors=}")
    data = interactions.to_device()
    baseline, residuals = _baseline_and_residuals(data, l2_users, l2_items)
    compared = residuals if similarity == "pearson-baseline" else data
    if side == "items":
        compared = SparseMatrix(compared.by_item, compared.by_user)
    n_rows = compared.by_user.n_rows
    kept = min(candidates, n_rows)

    def search(rows: Int32[Array, " batch"]) -> tuple[Array, Array]:
        return co_rated.search(
            compared,
            rows,
            kept,
            similarity="msd" if similarity == "msd" else "cosine",
            shrink=shrink,
            min_support=min_support,
            implementation=implementation,
        )

    nearest, number = join_lists(search, kept, *compared), jnp.asarray(neighbors, jnp.int32)
    if side == "items":
        return ItemRatings(baseline, residuals.by_user, nearest, number)
    return UserRatings(baseline, residuals.by_item, nearest, number)


@jax.jit
def _baseline_and_residuals(data: SparseMatrix, l2_users: Any, l2_items: Any) -> tuple[Baseline, SparseMatrix]:
    baseline = baseline_estimates(data, l2_users=l2_users, l2_items=l2_items)
    by_item = _residuals(data.by_item, baseline, of_items=True)
    return baseline, SparseMatrix(_residuals(data.by_user, baseline), by_item)


def _residuals(rows: CSR, baseline: Baseline, of_items: bool = False) -> CSR:
    row, values = entries(rows)
    users, items = (rows.indices, row) if of_items else (row, rows.indices)
    return rows._replace(values=values - baseline.pair_scores(users, items))


def _all_pairs(n: int, m: int) -> tuple[Array, Array]:
    """Row and column of each entry of an `[n, m]` matrix, row by row."""
    return jnp.repeat(jnp.arange(n, dtype=jnp.int32), m), jnp.tile(jnp.arange(m, dtype=jnp.int32), n)
