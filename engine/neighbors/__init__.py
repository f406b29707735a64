"""Recommenders that compare items or count them."""

from .popularity import Popularity, popularity

__all__ = ["Popularity", "popularity"]
