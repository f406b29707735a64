"""Nearest neighbours among items and among users, for ranking."""

from __future__ import annotations

from ...kernels.op import Implementation
from ..data.interactions import Interactions, takes_interactions
from .comparison import Comparison, nearest
from .models import ItemWeights, UserNeighbors


@takes_interactions
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
        InteractionError: Values below 0, with a weighting.
        MemoryError: More neighbours than memory; the message has the estimate.

    Source: Sarwar, Karypis, Konstan, Riedl 2001, "Item-based Collaborative Filtering Recommendation Algorithms".

    >>> x = Interactions.from_coo([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
    >>> item_knn(x, neighbors=2).weights.indices.tolist()
    [1, 0]
    """
    how = Comparison(neighbors, similarity, weighting, shrink, k1, b)
    data = interactions.to_device()
    return ItemWeights(data.by_user, nearest(interactions, data, "items", how, implementation=implementation))


@takes_interactions
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
    how = Comparison(neighbors, similarity, weighting, shrink, k1, b)
    data = interactions.to_device()
    return UserNeighbors(nearest(interactions, data, "users", how, implementation=implementation), data, how)
