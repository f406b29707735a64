"""Interactions: reading, cleaning, encoding and splitting."""

from ..errors import FeatureError, InteractionError
from .cleaning import clean
from .imputation import ColumnImputation, RatingImputation, fit_column_imputation, fit_imputation
from .interactions import Interactions
from .reading import read_interactions
from .scaling import ValueScale, fit_scale
from .splitting import split_at_time, split_leave_last, split_random
from .vocabulary import Vocabulary

__all__ = [
    "ColumnImputation",
    "FeatureError",
    "InteractionError",
    "Interactions",
    "RatingImputation",
    "ValueScale",
    "Vocabulary",
    "clean",
    "fit_column_imputation",
    "fit_imputation",
    "fit_scale",
    "read_interactions",
    "split_at_time",
    "split_leave_last",
    "split_random",
]
