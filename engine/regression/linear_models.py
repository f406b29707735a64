"""What a regression finds: weights, an intercept, their standard errors, and how far the solver came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int32

from ..errors import FeatureError
from .designs import as_design, times

if TYPE_CHECKING:
    import polars as pl


class Convergence(NamedTuple):
    """How the solver ended.

    Attributes:
        steps: How many it took.
        gradient: The greatest slope left, as a share of that at the start; 0 is the optimum.
        own_variance: `[n_features]`, the share of each feature's variance that those before it do not explain, or None
            where the solver does not find it.
    """

    steps: Int32[Array, ""]
    gradient: Float[Array, ""]
    own_variance: Float[Array, " n_features"] | None = None


class LinearModel(NamedTuple):
    """`score = features . weights + intercept`, for one target or for several.

    Attributes:
        weights: `[n_features]`, or `[n_features, n_targets]`.
        intercept: `[]` or `[n_targets]`; 0 where it was not asked for.
        standard_errors: Those of the weights, of the same shape; None where they were not asked for, or the solver does
            not find them. To differentiation they are constants.
        intercept_error: That of the intercept, likewise.
        convergence: How the solver ended.
    """

    weights: Float[Array, "n_features ..."]
    intercept: Float[Array, ...]
    standard_errors: Float[Array, "n_features ..."] | None
    intercept_error: Float[Array, ...] | None
    convergence: Convergence

    def scores(self, design: Any) -> Float[Array, "n_rows ..."]:
        """Predicted values of the rows of a design; log-odds, where the regression is logistic.

        Raises:
            FeatureError: A design of another width.
        """
        rows, n_features = as_design(design, self.weights.shape[0])
        found = times(rows, self.weights.reshape(n_features, -1)) + self.intercept.reshape(1, -1)
        return found.reshape(-1, *self.weights.shape[1:])

    def table(self, names: Any) -> pl.DataFrame:
        """The weights as an explanation: feature, weight, standard_error and their quotient z, the intercept first.

        Args:
            names: `[n_features]`, such as those of `Features`.

        Raises:
            FeatureError: Another number of names, or a model of several targets.
        """
        import polars as pl

        if self.weights.ndim != 1 or len(names) != self.weights.shape[0]:
            raise FeatureError(f"{len(names)} names for weights of shape {self.weights.shape}")
        columns = {"feature": ["(intercept)", *map(str, names)], "weight": _with_first(self.intercept, self.weights)}
        if self.standard_errors is not None and self.intercept_error is not None:
            columns["standard_error"] = _with_first(self.intercept_error, self.standard_errors)
            columns["z"] = _quotient(columns["weight"], columns["standard_error"])
        return pl.DataFrame(columns)


def _with_first(first: Array, rest: Array) -> np.ndarray:
    return np.concatenate([np.asarray(first)[None], np.asarray(rest)])


def _quotient(weight: np.ndarray, error: np.ndarray) -> np.ndarray:
    return np.where(error > 0, weight / np.where(error > 0, error, 1), 0)
