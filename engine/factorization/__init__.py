"""Matrix factorization."""

from ..errors import DivergenceError
from .algorithm import Algorithm, Factors, Info
from .als import explicit_als, implicit_als
from .fitting import History, fit
from .objectives import ExplicitObjective, ImplicitObjective

__all__ = [
    "Algorithm",
    "DivergenceError",
    "ExplicitObjective",
    "Factors",
    "History",
    "ImplicitObjective",
    "Info",
    "explicit_als",
    "fit",
    "implicit_als",
]
