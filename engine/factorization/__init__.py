"""Matrix factorization."""

from ..errors import DivergenceError
from .algorithm import Algorithm, Factors, Info
from .als import explicit_als, implicit_als
from .fitting import History, fit
from .objectives import BprSgd, ExplicitObjective, ImplicitObjective, LogisticSgd, RatingSgd
from .sgd import biased_mf, bpr, logistic_mf

__all__ = [
    "Algorithm",
    "BprSgd",
    "DivergenceError",
    "ExplicitObjective",
    "Factors",
    "History",
    "ImplicitObjective",
    "Info",
    "LogisticSgd",
    "RatingSgd",
    "biased_mf",
    "bpr",
    "explicit_als",
    "fit",
    "implicit_als",
    "logistic_mf",
]
