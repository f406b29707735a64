"""Matrix factorization."""

from ..errors import DivergenceError
from .algorithm import Algorithm, Factors, Info
from .als import explicit_als, implicit_als
from .baseline import Baseline, baseline_estimates
from .bayesian import BayesianFactors, bayesian_mf
from .fitting import History, fit
from .objectives import BprSgd, ExplicitObjective, ImplicitObjective, LogisticSgd, RatingSgd, SoftmaxSgd
from .ranking import bpr, logistic_mf, softmax_mf
from .sgd import biased_mf
from .svd import randomized_svd
from .svdpp import FeedbackFactors, svd_plus_plus

__all__ = [
    "Algorithm",
    "Baseline",
    "BayesianFactors",
    "BprSgd",
    "DivergenceError",
    "ExplicitObjective",
    "Factors",
    "FeedbackFactors",
    "History",
    "ImplicitObjective",
    "Info",
    "LogisticSgd",
    "RatingSgd",
    "SoftmaxSgd",
    "baseline_estimates",
    "bayesian_mf",
    "biased_mf",
    "bpr",
    "explicit_als",
    "fit",
    "implicit_als",
    "logistic_mf",
    "randomized_svd",
    "softmax_mf",
    "svd_plus_plus",
]
