"""From a model to ranked items."""

from .new_items import with_content
from .new_rows import fixed_gramian, fold_in, with_history
from .search import QueryModel, predict, recommend, similar_items, top_k

__all__ = [
    "QueryModel",
    "fixed_gramian",
    "fold_in",
    "predict",
    "recommend",
    "similar_items",
    "top_k",
    "with_content",
    "with_history",
]
