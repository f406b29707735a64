"""Interactions: reading, cleaning, encoding and splitting."""

from ..errors import InteractionError
from .cleaning import clean
from .interactions import Interactions
from .reading import read_interactions
from .scaling import ValueScale, fit_scale
from .splitting import split_at_time, split_leave_last, split_random
from .vocabulary import Vocabulary

__all__ = [
    "InteractionError",
    "Interactions",
    "ValueScale",
    "Vocabulary",
    "clean",
    "fit_scale",
    "read_interactions",
    "split_at_time",
    "split_leave_last",
    "split_random",
]
