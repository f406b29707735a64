"""What a regression finds: weights, an intercept, their standard errors, and how far the solver came."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int32

from ...kernels.csr import CSR
from ..data.features import Features
from ..errors import DivergenceError, FeatureError
from .designs import times

if TYPE_CHECKING:
    import polars as pl

COLLINEAR = 3e-5  # the share of its variance that a feature must have of its own, given those before it
_ZERO = 1e-6  # what is left of a sum in float32 once all of it has been taken off


class Progress(NamedTuple):
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
        standard_errors: Those of the weights, of the same shape; None where the solver does not find them.
        intercept_error: That of the intercept, likewise.
        progress: How the solver ended.
    """

    weights: Float[Array, "n_features ..."]
    intercept: Float[Array, ...]
    standard_errors: Float[Array, "n_features ..."] | None
    intercept_error: Float[Array, ...] | None
    progress: Progress

    def scores(self, design: Any) -> Float[Array, "n_rows ..."]:
        """Predicted values of the rows of a design; log-odds, where the regression is logistic."""
        if isinstance(design, Features):
            design = design.to_device()
        elif not isinstance(design, CSR):
            design = jnp.asarray(design, jnp.float32)
        several = self.weights.reshape(self.weights.shape[0], -1)
        found = times(design, several) + self.intercept.reshape(1, -1)
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


class Factor(NamedTuple):
    """A Cholesky factor of a symmetric matrix whose rows and columns were scaled to a unit diagonal."""

    lower: Float[Array, "n n"]
    scale: Float[Array, " n"]
    singular: Bool[Array, ""]

    def solve(self, right: Float[Array, "n t"]) -> Float[Array, "n t"]:
        """The inverse times the right sides."""
        scaled = cho_solve((self.lower, True), right * self.scale[:, None])
        return scaled * self.scale[:, None]

    @property
    def own_variance(self) -> Float[Array, " n"]:
        """What is left of each diagonal entry, as a share of it, once the coordinates before it are known."""
        pivots = jnp.diagonal(self.lower) ** 2
        least = jnp.arange(pivots.shape[0]) == jnp.argmin(pivots)
        pivots = jnp.where((self.scale == 0) | (self.singular & least), 0.0, pivots)
        return jnp.where(jnp.isfinite(pivots), pivots, -1.0)


def factorize(matrix: Float[Array, "n n"], ridge: Array, whole: Float[Array, " n"]) -> Factor:
    """The factor of `matrix + ridge I`.

    A coordinate whose diagonal is nothing but rounding of `whole`, the sum that it was taken from, counts as 0.
    """
    n = matrix.shape[0]
    diagonal = jnp.diagonal(matrix)
    diagonal = jnp.where(diagonal > _ZERO * whole, diagonal, 0.0) + ridge
    scale = jnp.where(diagonal > 0, jax.lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 0.0)
    unit = matrix * scale[:, None] * scale[None, :]
    unit = unit * (1 - jnp.eye(n, dtype=unit.dtype)) + jnp.eye(n, dtype=unit.dtype)
    lower = jnp.linalg.cholesky(unit, symmetrize_input=False)
    # Of a singular matrix there is no factor; that of one with a little more on the diagonal tells which feature it is.
    singular = ~jnp.all(jnp.isfinite(lower))
    more = 1e-6 * (4 + n**0.5) * jnp.eye(n, dtype=unit.dtype)
    lower = jnp.where(singular, jnp.linalg.cholesky(unit + more, symmetrize_input=False), lower)
    return Factor(lower, scale, singular)


def errors_of(
    factor: Factor, information: Float[Array, "n n"], means: Float[Array, " n"], total: Array
) -> tuple[Array, Array, Array]:
    """`(variance of the weights [n], variance of the intercept, effective number of weights)`, per unit of noise.

    With A the penalised matrix and G the information, `A^-1 G A^-1`: that of the estimates, not of a belief about
    them; `A^-1` itself where there is no penalty. `total` is the information about the intercept, 0 without one.

    Source: Hoerl, Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems", eq. 4.3.
    """
    hat = factor.solve(information)
    inverse = factor.solve(jnp.eye(information.shape[0], dtype=information.dtype))
    variances = jnp.sum(hat * inverse.T, axis=1)
    shift = factor.solve(means[:, None])[:, 0]
    spread = jnp.matmul(information, shift, precision=jax.lax.Precision.HIGHEST)
    intercept = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1.0) + jnp.dot(shift, spread), 0.0)
    return jnp.maximum(variances, 0.0), intercept, jnp.trace(hat)


def checked_l2(l2: Any, solver: str, direct: str) -> Float[Array, ""]:
    """`l2` as float32; solvers that cannot tell collinear features want it above 0."""
    if not isinstance(l2, Tracer):
        value = float(l2)
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{l2=} must be finite and at least 0")
        if value == 0 and solver != direct:
            raise ValueError(
                f"{l2=}: {solver=} cannot tell whether features are collinear, and needs l2 > 0; {direct!r} can"
            )
    return jnp.asarray(l2, jnp.float32)


def checked(model: LinearModel, l2: Array, tolerance: float, name: str, advice: str) -> LinearModel:
    """The model, once it is sure that it is one; where it is traced, `progress` tells the caller.

    Raises:
        FeatureError: Collinear or constant features without a penalty.
        DivergenceError: Numbers that are not finite, or a slope that has not come down; `state` has the model.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((model, l2))):
        return model
    own = model.progress.own_variance
    if own is not None and float(l2) == 0:
        least = np.asarray(own)
        if (least < COLLINEAR).any():
            feature, count = int(np.argmax(least < COLLINEAR)), int((least < COLLINEAR).sum())
            which = f"feature {feature} is constant or a linear combination of those before it ({count} such)"
            if least[0] < 0:
                which = "the features are collinear"
            raise FeatureError(
                f"{name}: {which}, so that with l2 = 0 the weights are not determined. Pass l2 > 0, or leave it out"
            )
    gradient = float(model.progress.gradient)
    finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in (model.weights, model.intercept))
    if not finite or not gradient <= tolerance:
        what = (
            "met numbers that are not finite" if not finite else f"left {gradient:.1e} of the slope, above {tolerance=}"
        )
        raise DivergenceError(
            f"{name}: {int(model.progress.steps)} steps {what} (l2={float(l2):g}). {advice}. The model as it is "
            "is in error.state",
            model,
        )
    return model
