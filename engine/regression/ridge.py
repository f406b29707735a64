"""Ridge regression in closed form."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from ...kernels.csr import CSR
from ..solving import conjugate_gradients
from .designs import Design, checked_design, gramian, squared, times, transposed_times
from .linear_models import LinearModel, Progress, checked, checked_l2, errors_of, factorize

SOLVERS = ("auto", "cholesky", "cg")
_ROUNDING = 1e-6  # of a sum of squares less its mean's, against one of numbers less their mean
_MOST_FACTORIZED = 2048  # features up to which "auto" takes a Cholesky factor


def ridge_regression(
    design: Any,
    targets: Any,
    *,
    l2: Any = 1.0,
    intercept: bool = True,
    n_features: int | None = None,
    solver: str = "auto",
    steps: int = 1000,
    tolerance: float = 1e-6,
) -> LinearModel:
    """Least squares with a penalty on the weights.

    Minimises `|y - X w - b|^2 + l2 |w|^2`, so that `(Xc^T Xc + l2 I) w = Xc^T yc`, with the columns' means taken off:
    the intercept b is not penalised. Works under jit (with `intercept`, `n_features`, `solver` and `steps` static),
    grad and vmap, which gives a whole path of `l2`.

    Args:
        design: X: `[n_rows, n_features]`, `Features`, or a `CSR`, for which `n_features` must be given.
        targets: y: `[n_rows]`, or `[n_rows, n_targets]`, which are solved together.
        l2: At least 0.
        intercept: Whether to have b.
        n_features: The width of a `CSR`.
        solver: "cholesky" factorizes the `[n_features, n_features]` matrix, and finds standard errors and collinear
            features; "cg" holds vectors only, for wide sparse designs, and needs l2 > 0; "auto" is the former up to
            2,048 features.
        steps: The most conjugate-gradient steps ("cholesky" needs two or three).
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
    if solver not in SOLVERS:
        raise ValueError(f"{solver=} must be one of {SOLVERS}")
    if steps < 1 or not tolerance > 0:
        raise ValueError(f"{steps=} must be at least 1 and {tolerance=} above 0")
    design, targets, n_features = checked_design(design, targets, n_features)
    if solver == "auto":
        solver = "cholesky" if n_features <= _MOST_FACTORIZED else "cg"
    l2 = checked_l2(l2, solver, "cholesky")
    model = _solved(design, targets, l2, tolerance, intercept, n_features, solver, steps)
    advice = "More steps, a larger l2, or features of like size (numbers standardised) help"
    return checked(model, l2, tolerance, "ridge regression", advice)


@functools.partial(jax.jit, static_argnames=("intercept", "n_features", "solver", "steps"))
def _solved(
    design: Design,
    targets: Array,
    l2: Array,
    tolerance: Array,
    intercept: bool,
    n_features: int,
    solver: str,
    steps: int,
) -> LinearModel:
    y = targets.reshape(targets.shape[0], -1)
    n_rows = y.shape[0]
    ones = jnp.ones((n_rows, 1), jnp.float32)
    means, middle = jnp.zeros(n_features, jnp.float32), jnp.zeros(y.shape[1], jnp.float32)
    whole = transposed_times(squared(design), ones, n_features)[:, 0]
    offset, spread = means, 1.0
    if intercept:
        offset = means = transposed_times(design, ones, n_features)[:, 0] / n_rows
        middle = jnp.mean(y, axis=0)
        if not isinstance(design, CSR):  # a sparse one would not stay sparse
            design, offset, spread = design - means[None, :], jnp.zeros_like(means), _ROUNDING
    centred = y - middle[None, :]

    def forward(weights):
        return times(design, weights) - jnp.sum(offset[:, None] * weights, axis=0)[None, :]

    def backward(rows):
        return transposed_times(design, rows, n_features) - offset[:, None] * jnp.sum(rows, axis=0)[None, :]

    def matrix(weights):
        return backward(forward(weights)) + l2 * weights

    right = backward(centred)
    lengths = jnp.sqrt(whole)[:, None] * jnp.linalg.norm(centred, axis=0)[None, :]
    bound = jnp.max(lengths, axis=0)
    factor = information = None
    if solver == "cholesky":
        information = gramian(design, ones[:, 0], n_features) - n_rows * offset[:, None] * offset[None, :]
        factor = factorize(information, l2, whole * spread)
        precondition = jax.tree.map(lax.stop_gradient, factor).solve
    else:
        squares = lax.stop_gradient(jnp.maximum(whole - n_rows * offset**2, 0.0) + l2)

        def precondition(rows):
            return rows / jnp.where(squares > 0, squares, 1.0)[:, None]

    def slope_at(weights):
        return backward(centred - forward(weights)) - l2 * weights

    weights, taken = conjugate_gradients(matrix, right, precondition, tolerance, steps)
    # Ratings are few numbers, whose sums round to one side; residuals are many, so that the slope of these is truer.
    change, more = conjugate_gradients(matrix, slope_at(weights), precondition, 1e-2, steps)
    weights = weights + change
    slope = jnp.max(jnp.abs(slope_at(weights)), axis=0)
    left = jnp.max(slope / jnp.where(bound > 0, bound, 1.0))
    errors = intercept_error = None
    if factor is not None and information is not None:
        total = jnp.float32(n_rows if intercept else 0)
        variances, of_intercept, used = errors_of(factor, information, means, total)
        freedom = n_rows - used - intercept
        noise = jnp.sum((centred - forward(weights)) ** 2, axis=0) / jnp.where(freedom > 1e-3, freedom, 0.0)
        errors = jnp.sqrt(variances[:, None] * noise[None, :]).reshape(n_features, *targets.shape[1:])
        intercept_error = jnp.sqrt(of_intercept * noise).reshape(targets.shape[1:])
    bias = middle - jnp.sum(means[:, None] * weights, axis=0)
    return LinearModel(
        weights.reshape(n_features, *targets.shape[1:]),
        bias.reshape(targets.shape[1:]),
        errors,
        intercept_error,
        Progress(taken + more, left, None if factor is None else factor.own_variance),
    )
