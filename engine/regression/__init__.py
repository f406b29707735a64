"""Linear models of features, and recommenders made of them."""

from .linear_models import Convergence, LinearModel
from .logistic import logistic_regression
from .recommenders import PairRegression, as_recommender, logistic_recommender, ridge_recommender
from .ridge import ridge_regression

__all__ = [
    "Convergence",
    "LinearModel",
    "PairRegression",
    "as_recommender",
    "logistic_recommender",
    "logistic_regression",
    "ridge_recommender",
    "ridge_regression",
]
