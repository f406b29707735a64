"""Nearest neighbours among items and among users, for ranking."""

from __future__ import annotations

import numpy as np

from ...kernels.csr import CSR
from ...kernels.op import Implementation
from ...kernels.sparse_top_k import Similarity
from ..data.interactions import Interactions
from .lists import nearest_rows
from .models import ItemWeights, UserNeighbors
from .weighting import SIMILARITIES, WEIGHTINGS, row_sizes, weighted_values


def item_knn(
    interactions: Interactions,
    *,
    neighbors: int = 100,
    similarity: str = "cosine",
    weighting: str = "none",
    shrink: float = 0.0,
    k1: float = 100.0,
    b: float = 0.8,
    implementation: Implementation = "auto",
) -> ItemWeights:
    """Items are as near as the users they share; a user's score for an item is `sum of value times similarity`.

    Args:
        interactions: What to learn from; their values, or 1 where there are none, are what is compared.
        neighbors: Kept for each item, the most similar first; at least 1. Only similarities above 0 are kept.
        similarity: "cosine": `x.y / (|x| |y| + shrink)`; "adjusted-cosine": the same of values less their user's
            mean; "pearson": of values less their item's mean (over all its users, not the shared ones alone);
            "jaccard": `shared / (n_x + n_y - shared + shrink)`; "dot": `x.y`.
        weighting: "none", "tf-idf" or "bm25" of the values; see `weighted_values`.
        shrink: At least 0; makes little of items with few users.
        k1: Of BM25, and so is
        b: this.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `ItemWeights` with sparse weights, whose users are those of the interactions.

    Raises:
        ValueError: A parameter out of its range, or an unknown similarity or weighting.

    Source: Sarwar, Karypis, Konstan, Riedl 2001, "Item-based Collaborative Filtering Recommendation Algorithms".

    >>> x = Interactions.from_coo([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
    >>> item_knn(x, neighbors=2).weights.indices.tolist()
    [1, 0]
    """
    weights = _nearest(interactions, "items", neighbors, similarity, weighting, shrink, k1, b, implementation)
    return ItemWeights(interactions.to_device().by_user, weights)


def user_knn(
    interactions: Interactions,
    *,
    neighbors: int = 100,
    similarity: str = "cosine",
    weighting: str = "none",
    shrink: float = 0.0,
    k1: float = 100.0,
    b: float = 0.8,
    implementation: Implementation = "auto",
) -> UserNeighbors:
    """Users are as near as the items they share; a user's score for an item is `sum over neighbours of similarity
    times value`.

    Args, Returns, Raises:
        As `item_knn`, with users in the place of items.

    Source: Herlocker, Konstan, Borchers, Riedl 1999, "An Algorithmic Framework for Performing Collaborative Filtering".

    >>> x = Interactions.from_coo([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])
    >>> user_knn(x).neighbors.indices.tolist()
    [1, 0]
    """
    nearest = _nearest(interactions, "users", neighbors, similarity, weighting, shrink, k1, b, implementation)
    return UserNeighbors(nearest, interactions.to_device())


def _nearest(
    x: Interactions,
    side: str,
    neighbors: int,
    similarity: str,
    weighting: str,
    shrink: float,
    k1: float,
    b: float,
    implementation: Implementation,
) -> CSR:
    """The nearest rows of one side to each of its rows, itself left out, with their similarities."""
    _check(neighbors, similarity, weighting, shrink, k1, b)
    values = weighted_values(x, side, similarity, weighting, k1, b)
    sizes = row_sizes(x, side, similarity, values)
    kind: Similarity = "jaccard" if similarity == "jaccard" else "shrunk"
    if similarity != "jaccard" and shrink == 0:
        row = x.users if side == "users" else x.items
        values = values / np.where(sizes > 0, sizes, 1)[row]
        kind = "product"
    by_user, by_item = x.with_values(values).to_device()
    queries, table = (by_user, by_item) if side == "users" else (by_item, by_user)
    return nearest_rows(
        queries, table, neighbors, similarity=kind, sizes=sizes, shrink=shrink, implementation=implementation
    )


def _check(neighbors: int, similarity: str, weighting: str, shrink: float, k1: float, b: float) -> None:
    if neighbors < 1:
        raise ValueError(f"{neighbors=} must be at least 1")
    for name, value, accepted in (("similarity", similarity, SIMILARITIES), ("weighting", weighting, WEIGHTINGS)):
        if value not in accepted:
            raise ValueError(f"{name}={value!r} must be one of {accepted}")
    if weighting != "none" and similarity not in ("cosine", "dot"):
        raise ValueError(f'{weighting=} goes with similarity "cosine" or "dot", not {similarity!r}')
    if not (shrink >= 0 and np.isfinite(shrink)) or (similarity == "dot" and shrink):
        raise ValueError(f'{shrink=} must be at least 0, and 0 with similarity "dot"')
    if not (k1 > 0 and 0 <= b <= 1):
        raise ValueError(f"{k1=} must be above 0 and {b=} in [0, 1]")
