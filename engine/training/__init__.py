"""Training: the choice of algorithm and parameters."""

from .selection import Selection, Trial, select

__all__ = ["Selection", "Trial", "select"]
