"""Ridge regression in closed form."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ...kernels.csr import CSR
from ..solving import Diagonal, conjugate_gradients, differentiable, errors_of, factorize
from .checking import checked_model, checked_problem
from .designs import Design, column_squares, column_sums, gramian, times, transposed_times
from .linear_models import Convergence, LinearModel

SOLVERS = ("cholesky", "cg")
_ROUNDING = 1e-6  # of a sum of squares less its mean's, against one of numbers less their mean


def ridge_regression(
    design: Any,
    targets: Any,
    *,
    l2: Any = 1.0,
    intercept: bool = True,
    n_features: int | None = None,
    solver: str = "auto",
    standard_errors: bool = True,
    steps: int = 1000,
    tolerance: float = 1e-6,
) -> LinearModel:
    """Least squares with a penalty on the weights.

    Minimises `|y - X w - b|^2 + l2 |w|^2`, so that `(Xc^T Xc + l2 I) w = Xc^T yc`, with the columns' means taken off:
    the intercept b is not penalised. Works under jit (all but `design`, `targets`, `l2` and `tolerance` static), grad
    and vmap, which gives a whole path of `l2`.

    Args:
        design: X: `[n_rows, n_features]`, `Features`, a sparse matrix of scipy, or a `CSR`, for which `n_features` must
            be given.
        targets: y: `[n_rows]`, or `[n_rows, n_targets]`, which are solved together.
        l2: At least 0.
        intercept: Whether to have b.
        n_features: The width of a `CSR`.
        solver: "cholesky" factorizes the `[n_features, n_features]` matrix, and finds standard errors and collinear
            features; "cg" holds vectors only, for wide sparse designs, and needs l2 > 0; "auto" is the former up to
            4,096 features.
        standard_errors: Whether "cholesky" finds them, which takes longer than all the rest.
        steps: The most conjugate-gradient steps ("cholesky" needs none but for nearly collinear features).
        tolerance: Of the slope that may be left, as a share of `|x_j| |y|`, the greatest that it can be.

    Returns:
        `LinearModel`. Its standard errors are those of the estimate with the noise `|y - X w - b|^2 / (n_rows - p)`, p
        being the effective number of weights; infinite where there are as many of these as rows.

    Raises:
        FeatureError: A design or targets that cannot be used; with l2 = 0 also constant and collinear features, of
            which the first is named.
        DivergenceError: The tolerance was not reached.
        ValueError: A parameter out of its range.

    Source: Hoerl, Kennard 1970, "Ridge Regression: Biased Estimation for Nonorthogonal Problems".

    >>> model = ridge_regression(jnp.array([[0.0], [1.0], [2.0]]), jnp.array([1.0, 3.0, 5.0]), l2=0.0)
    >>> round(float(model.weights[0]), 4), round(float(model.intercept), 4)
    (2.0, 1.0)
    """
    problem = checked_problem(design, targets, l2, n_features, solver, SOLVERS, steps, tolerance)
    statics = {"intercept": intercept, "solver": problem.solver, "steps": steps, "n_features": problem.n_features}
    model = _solved(problem.design, problem.targets, problem.l2, tolerance, standard_errors=standard_errors, **statics)
    return checked_model(model, problem.l2, tolerance, "ridge regression")


@functools.partial(jax.jit, static_argnames=("intercept", "n_features", "solver", "standard_errors", "steps"))
def _solved(
    design: Design,
    targets: Array,
    l2: Array,
    tolerance: Array,
    *,
    intercept: bool,
    n_features: int,
    solver: str,
    standard_errors: bool,
    steps: int,
) -> LinearModel:
    y = targets.reshape(targets.shape[0], -1)
    n_rows = y.shape[0]
    whole = column_squares(lax.stop_gradient(design), n_features)
    means = offset = jnp.zeros(n_features, jnp.float32)
    middle, spread = jnp.zeros(y.shape[1], jnp.float32), 1.0
    if intercept:
        offset = means = column_sums(design, n_features) / n_rows
        middle = jnp.mean(y, axis=0)
        if not isinstance(design, CSR):  # a sparse one would not stay sparse
            design = design - means[None, :]
            offset = column_sums(design, n_features) / n_rows  # what rounding left
            means, spread = means + offset, _ROUNDING
    least = _LeastSquares(design, y - middle[None, :], l2, offset)
    fixed = lax.stop_gradient(least)
    bound = jnp.max(jnp.sqrt(whole)[:, None] * jnp.linalg.norm(fixed.targets, axis=0)[None, :], axis=0)
    weights = jnp.zeros((n_features, y.shape[1]), jnp.float32)
    slope = fixed.backward(fixed.targets)
    factor = information = None
    if solver == "cholesky":
        information = gramian(fixed.design, None, n_features) - n_rows * fixed.offset[:, None] * fixed.offset[None, :]
        factor = factorize(information, fixed.l2, whole * spread)
        for _ in range(2):  # the first leaves the rounding of the matrix, the second that of the slope
            weights = weights + factor.solve(slope)
            slope = fixed.slope(weights)
    preconditioner = factor or Diagonal(jnp.maximum(whole - n_rows * fixed.offset**2, 0.0) + fixed.l2)
    weights, slope, taken = conjugate_gradients(
        fixed.slope, fixed.matrix, preconditioner.solve, weights, slope, tolerance * bound, steps
    )
    left = jnp.max(jnp.max(jnp.abs(slope), axis=0) / jnp.where(bound > 0, bound, 1.0))
    errors = intercept_error = None
    if factor is not None and information is not None and standard_errors:
        total = jnp.float32(n_rows if intercept else 0)
        variances, of_intercept, used = errors_of(factor, information, lax.stop_gradient(means), total)
        freedom = n_rows - used - intercept
        squares = jnp.sum((fixed.targets - fixed.forward(weights)) ** 2, axis=0)
        noise = squares / jnp.where(freedom > 1e-3, freedom, 0.0)
        errors = jnp.sqrt(variances[:, None] * noise[None, :]).reshape(n_features, *targets.shape[1:])
        intercept_error = jnp.sqrt(of_intercept * noise).reshape(targets.shape[1:])
    weights = differentiable(weights, least, preconditioner, steps)
    bias = middle - jnp.sum(means[:, None] * weights, axis=0)
    return LinearModel(
        weights.reshape(n_features, *targets.shape[1:]),
        bias.reshape(targets.shape[1:]),
        errors,
        intercept_error,
        Convergence(taken, left, None if factor is None else factor.own_variance),
    )


class _LeastSquares(NamedTuple):
    """What is minimised, the columns of the design being less their `offset`."""

    design: Design
    targets: Array
    l2: Array
    offset: Array

    def forward(self, weights: Array) -> Array:
        return times(self.design, weights) - jnp.sum(self.offset[:, None] * weights, axis=0)[None, :]

    def backward(self, rows: Array) -> Array:
        found = transposed_times(self.design, rows, self.offset.shape[0])
        return found - self.offset[:, None] * jnp.sum(rows, axis=0)[None, :]

    def matrix(self, weights: Array) -> Array:
        return self.backward(self.forward(weights)) + self.l2 * weights

    def curvature(self, weights: Array, direction: Array) -> Array:
        return self.matrix(direction)

    def slope(self, weights: Array) -> Array:
        # Ratings are few numbers, whose sums round to one side; residuals are many, and the slope of these is truer.
        return self.backward(self.targets - self.forward(weights)) - self.l2 * weights
