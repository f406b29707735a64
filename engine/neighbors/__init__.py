"""Recommenders that compare users or items, or count them."""

from .counts import Popularity, Random, popularity, random
from .graph import rp3beta
from .item_weights import ease
from .knn import item_knn, user_knn
from .models import ItemWeights, UserNeighbors
from .similarity import cosine_similarity

__all__ = [
    "ItemWeights",
    "Popularity",
    "Random",
    "UserNeighbors",
    "cosine_similarity",
    "ease",
    "item_knn",
    "popularity",
    "random",
    "rp3beta",
    "user_knn",
]
