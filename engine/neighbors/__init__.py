"""Recommenders that compare items or count them."""

from .counts import Popularity, popularity

__all__ = ["Popularity", "popularity"]
