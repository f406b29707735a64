"""Recommenders that compare users or items, or count them."""

from .content import ContentProfiles, content_profiles
from .counts import Popularity, Random, popularity, random
from .graph import rp3beta
from .graph_filter import GraphFilter, gf_cf
from .item_weights import ease
from .knn import item_knn, user_knn
from .models import ItemWeights, UserNeighbors
from .rating_knn import ItemRatings, UserRatings, knn_baseline
from .similarity import cosine_similarity

__all__ = [
    "ContentProfiles",
    "GraphFilter",
    "ItemRatings",
    "ItemWeights",
    "Popularity",
    "Random",
    "UserNeighbors",
    "UserRatings",
    "content_profiles",
    "cosine_similarity",
    "ease",
    "gf_cf",
    "item_knn",
    "knn_baseline",
    "popularity",
    "random",
    "rp3beta",
    "user_knn",
]
