"""Matrix factorization."""

from ..errors import DivergenceError
from .algorithm import Algorithm, Factors, Info
from .als import explicit_als, implicit_als
from .feedback import FeedbackFactors, svd_plus_plus
from .fitting import History, fit
from .objectives import ExplicitObjective, ImplicitObjective, RankingSgd, RatingSgd
from .sgd import biased_mf, bpr, logistic_mf

__all__ = [
    "Algorithm",
    "DivergenceError",
    "ExplicitObjective",
    "Factors",
    "FeedbackFactors",
    "History",
    "ImplicitObjective",
    "Info",
    "RankingSgd",
    "RatingSgd",
    "biased_mf",
    "bpr",
    "explicit_als",
    "fit",
    "implicit_als",
    "logistic_mf",
    "svd_plus_plus",
]
