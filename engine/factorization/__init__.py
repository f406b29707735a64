"""Matrix factorization."""

from ..errors import DivergenceError
from .algorithm import Algorithm, Factors, Info
from .als import explicit_als, implicit_als
from .baseline import Baseline, baseline_estimates
from .fitting import History, fit
from .objectives import ExplicitObjective, ImplicitObjective, RankingSgd, RatingSgd
from .sgd import biased_mf, bpr, logistic_mf
from .svd import randomized_svd

__all__ = [
    "Algorithm",
    "Baseline",
    "DivergenceError",
    "ExplicitObjective",
    "Factors",
    "History",
    "ImplicitObjective",
    "Info",
    "RankingSgd",
    "RatingSgd",
    "baseline_estimates",
    "biased_mf",
    "bpr",
    "explicit_als",
    "fit",
    "implicit_als",
    "logistic_mf",
    "randomized_svd",
]
