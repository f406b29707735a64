"""Interactions: reading, cleaning, encoding and splitting."""

from ..errors import FeatureError, InteractionError
from .cleaning import clean
from .columns import kinds_of
from .features import FeatureEncoder, Features, fit_features, select_features
from .imputation import ColumnImputation, RatingImputation, fit_column_imputation, fit_imputation
from .interactions import Interactions
from .mapped import map_examples
from .modalities import Modalities, item_modalities
from .pairs import PairDesign, pair_design
from .reading import read_interactions, read_sequences
from .scaling import ValueScale, fit_scale
from .sequences import Sequences
from .side_tables import read_side_table
from .signals import hashed_texts, image_patches, log_mel_frames
from .splitting import split_at_time, split_leave_last, split_random
from .vocabulary import Vocabulary

__all__ = [
    "ColumnImputation",
    "FeatureEncoder",
    "FeatureError",
    "Features",
    "InteractionError",
    "Interactions",
    "Modalities",
    "PairDesign",
    "RatingImputation",
    "Sequences",
    "ValueScale",
    "Vocabulary",
    "clean",
    "fit_column_imputation",
    "fit_features",
    "fit_imputation",
    "fit_scale",
    "hashed_texts",
    "image_patches",
    "item_modalities",
    "kinds_of",
    "log_mel_frames",
    "map_examples",
    "pair_design",
    "read_interactions",
    "read_sequences",
    "read_side_table",
    "select_features",
    "split_at_time",
    "split_leave_last",
    "split_random",
]
