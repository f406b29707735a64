"""Recommenders that compare users or items, or count them."""

from .content import ContentProfiles, content_profiles
from .counts import Popularity, popularity
from .graph import rp3beta
from .item_weights import ease
from .knn import item_knn, user_knn
from .models import ItemWeights, UserNeighbors
from .similarity import cosine_similarity

__all__ = [
    "ContentProfiles",
    "ItemWeights",
    "Popularity",
    "UserNeighbors",
    "content_profiles",
    "cosine_similarity",
    "ease",
    "item_knn",
    "popularity",
    "rp3beta",
    "user_knn",
]
