"""Logistic regression, by Newton's method or L-BFGS."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array

from ...kernels.csr import CSR
from ..errors import FeatureError
from ..solving import Diagonal, differentiable, errors_of, factorize
from .checking import COLLINEAR, checked_model, checked_problem, is_concrete
from .designs import Design, column_squares, gramian, times, transposed_times
from .linear_models import Convergence, LinearModel
from .separation import refuse_separated

SOLVERS = ("newton", "lbfgs")
_HALVINGS = 20  # of a step that does not lower the loss
_STILL = 0.1  # a step that moves no row's log-odds by more comes to an end; of separated rows, each moves some by 1
_CERTAIN = 12.0  # log-odds that few but separated rows have


def logistic_regression(
    design: Any,
    targets: Any,
    *,
    l2: Any = 1.0,
    intercept: bool = True,
    n_features: int | None = None,
    solver: str = "auto",
    standard_errors: bool = True,
    steps: int = 500,
    tolerance: float = 1e-6,
) -> LinearModel:
    """The log-odds of a yes as a linear function of features.

    Minimises `sum log(1 + exp(s)) - y s + l2 / 2 |w|^2` with `s = X w + b`; the intercept b is not penalised. Works
    under jit (all but `design`, `targets`, `l2` and `tolerance` static), vmap and grad (that of the optimum).

    Args:
        design: X: `[n_rows, n_features]`, `Features`, a sparse matrix of scipy, or a `CSR`, for which `n_features` must
            be given.
        targets: y: `[n_rows]`, each 0 or 1.
        l2: At least 0; 1 / C of scikit-learn.
        intercept: Whether to have b.
        n_features: The width of a `CSR`.
        solver: "newton" factorizes the `[n_features, n_features]` matrix, and finds standard errors and collinear
            features; "lbfgs" holds vectors only, for wide sparse designs, and needs l2 > 0; "auto" is the former up to
            4,096 features.
        standard_errors: Whether "newton" finds them, which takes as long as several steps.
        steps: The most of either.
        tolerance: Of the slope that may be left, as a share of `sum_i |x_ij|`, the greatest that it can be.

    Returns:
        `LinearModel` whose scores are log-odds.

    Raises:
        FeatureError: A design or targets that cannot be used; with l2 = 0 also constant and collinear features, of
            which the first is named, and targets that the features separate, wholly or in part.
        DivergenceError: The tolerance was not reached.
        ValueError: A parameter out of its range.

    Source: Hastie, Tibshirani, Friedman 2009, "The Elements of Statistical Learning", section 4.4.1; Nocedal 1980,
    "Updating Quasi-Newton Matrices with Limited Storage"; of separation, Albert, Anderson 1984, "On the Existence of
    Maximum Likelihood Estimates in Logistic Regression Models".

    >>> model = logistic_regression(jnp.array([[0.0], [0.0], [1.0], [1.0]]), jnp.array([0, 1, 1, 1]), l2=0.5)
    >>> np.asarray(model.scores(jnp.array([[0.0], [1.0]]))).astype(float).round(2).tolist()
    [0.77, 1.5]
    """
    problem = checked_problem(design, targets, l2, n_features, solver, SOLVERS, steps, tolerance)
    design, targets, l2 = problem.design, problem.targets, problem.l2
    _check_targets(targets)
    statics = {"intercept": intercept, "solver": problem.solver, "steps": steps, "n_features": problem.n_features}
    model, moved = _solved(design, targets, l2, tolerance, standard_errors=standard_errors, **statics)
    if is_concrete(model, l2) and float(l2) == 0 and not (model.convergence.own_variance < COLLINEAR).any():
        scores = model.scores(design)
        greatest = float(jnp.max(jnp.abs(scores)))
        if not (moved <= _STILL and greatest <= _CERTAIN and model.convergence.gradient <= tolerance):
            refuse_separated(design, targets, problem.n_features, intercept, scores)
    return checked_model(model, l2, tolerance, "logistic regression")


def _check_targets(targets: Array) -> None:
    if targets.ndim != 1:
        raise FeatureError(f"targets.shape={targets.shape} must be (n_rows,)")
    if not is_concrete(targets):
        return
    concrete = np.asarray(targets)
    wrong = (concrete != 0) & (concrete != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise FeatureError(f"targets: {concrete[row]} at row {row:,} must be 0 or 1 ({int(wrong.sum())} such)")
    if len(np.unique(concrete)) < 2:
        raise FeatureError(f"targets: all {len(concrete):,} are {concrete[0]:g}; there must be both 0 and 1")


class _Problem(NamedTuple):
    """What is minimised, by theta `[width, 1]`: the weights, then the intercept, where there is one.

    Attributes:
        design: X.
        targets: y, `[n_rows, 1]`.
        penalty: `[n_features]`, that of each weight.
    """

    design: Design
    targets: Array
    penalty: Array

    @property
    def n_features(self) -> int:
        return self.penalty.shape[0]

    def scores(self, theta: Array) -> Array:
        found = times(self.design, theta[: self.n_features])
        return found + theta[self.n_features :] if theta.shape[0] > self.n_features else found

    def backward(self, rows: Array, width: int) -> Array:
        found = transposed_times(self.design, rows, self.n_features)
        return jnp.concatenate([found, jnp.sum(rows, axis=0)[None, :]]) if width > self.n_features else found

    def penalized(self, theta: Array) -> Array:
        rest = jnp.zeros((theta.shape[0] - self.n_features, 1), jnp.float32)
        return jnp.concatenate([self.penalty[:, None] * theta[: self.n_features], rest])

    def loss(self, theta: Array, scores: Array) -> Array:
        return jnp.sum(jax.nn.softplus(scores) - self.targets * scores) + 0.5 * jnp.sum(self.penalized(theta) * theta)

    def slope_of(self, theta: Array, scores: Array) -> Array:
        """Down which theta goes, given its scores."""
        return self.backward(self.targets - jax.nn.sigmoid(scores), theta.shape[0]) - self.penalized(theta)

    def slope(self, theta: Array) -> Array:
        return self.slope_of(theta, self.scores(theta))

    def curvature(self, theta: Array, direction: Array) -> Array:
        rows = _variances(self.scores(theta)) * self.scores(direction)
        return self.backward(rows, theta.shape[0]) + self.penalized(direction)

    def information(self, scores: Array, width: int) -> tuple[Array, Array, Array]:
        """That about the weights, the columns' means, and that about the intercept, by the rows' variances."""
        variances = _variances(scores)
        matrix = gramian(self.design, variances[:, 0], self.n_features)
        if width == self.n_features:
            return matrix, jnp.zeros(self.n_features), jnp.float32(0)
        total = jnp.maximum(jnp.sum(variances), jnp.finfo(jnp.float32).tiny)
        centre = transposed_times(self.design, variances, self.n_features)[:, 0] / total
        return matrix - total * centre[:, None] * centre[None, :], centre, total


def _variances(scores: Array) -> Array:
    p = jax.nn.sigmoid(scores)
    return p * (1 - p)


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
) -> tuple[LinearModel, Array]:
    """The model, and how far its last step moved a row's log-odds."""
    means = jnp.zeros(n_features, jnp.float32)
    if intercept and not isinstance(design, CSR):  # less their means, columns depend less on the intercept
        means = jnp.mean(design, axis=0)
        design = design - means[None, :]
    given = _Problem(design, targets[:, None], jnp.full(n_features, l2))
    problem = lax.stop_gradient(given)
    n_rows, width = targets.shape[0], n_features + int(intercept)
    squares = column_squares(problem.design, n_features)
    bound = jnp.sqrt(jnp.max(squares) * n_rows)  # of the slope at 0
    bound = jnp.maximum(bound, float(n_rows)) if intercept else bound
    theta = jnp.zeros((width, 1), jnp.float32)
    if solver == "newton":
        theta, taken, own_variance, moved = _newton(problem, theta, steps, tolerance * bound, squares)
    else:
        theta, taken = _lbfgs(problem, theta, steps, tolerance * bound, squares)
        own_variance, moved = None, jnp.float32(0)
    scores = problem.scores(theta)
    left = jnp.max(jnp.abs(problem.slope_of(theta, scores))) / jnp.where(bound > 0, bound, 1.0)
    errors = intercept_error = None
    if own_variance is not None and standard_errors:
        matrix, centre, total = problem.information(scores, width)
        factor = factorize(matrix, problem.penalty, squares)
        variances, of_intercept, _ = errors_of(factor, matrix, centre + lax.stop_gradient(means), total)
        errors, intercept_error = jnp.sqrt(variances), jnp.sqrt(of_intercept)
    theta = differentiable(theta, given, Diagonal(_diagonal(problem, squares, width)), 10 * width)
    weights = theta[:n_features, 0]
    bias = theta[n_features, 0] - jnp.dot(means, weights) if intercept else jnp.float32(0)
    return LinearModel(weights, bias, errors, intercept_error, Convergence(taken, left, own_variance)), moved


def _diagonal(problem: _Problem, squares: Array, width: int) -> Array:
    """A bound of the curvature along each coordinate."""
    of_intercept = jnp.full(width - problem.n_features, problem.targets.shape[0] / 4, jnp.float32)
    return jnp.concatenate([squares / 4 + problem.penalty, of_intercept])


def _newton(
    problem: _Problem, theta: Array, steps: int, goal: Array, squares: Array
) -> tuple[Array, Array, Array, Array]:
    """`(theta, steps, own variance of each feature where all rows weigh the same, moved)`."""
    n_features, width = problem.n_features, theta.shape[0]

    def step(state):
        number, theta, scores, slope, own, _ = state
        matrix, centre, total = problem.information(scores, width)
        factor = factorize(matrix, problem.penalty, squares)
        if width > n_features:
            weights = factor.solve(slope[:n_features] - centre[:, None] * slope[n_features:])
            shift = slope[n_features:] / total - jnp.sum(centre[:, None] * weights)
            direction = jnp.concatenate([weights, shift])
        else:
            direction = factor.solve(slope)
        change = problem.scores(direction)
        before = problem.loss(theta, scores)
        enough = before + 1e-6 * jnp.abs(before)  # the loss itself is rounded

        def too_long(carry):
            halvings, length = carry
            after = problem.loss(theta + length * direction, scores + length * change)
            return (halvings < _HALVINGS) & ~(after <= enough)

        _, length = lax.while_loop(too_long, lambda carry: (carry[0] + 1, carry[1] / 2), (0, jnp.float32(1)))
        theta = theta + length * direction
        scores = problem.scores(theta)
        # The first step begins at 0, where every row weighs the same.
        own = jnp.where(number == 0, factor.own_variance, own)
        return number + 1, theta, scores, problem.slope_of(theta, scores), own, jnp.max(jnp.abs(length * change))

    def unfinished(state):
        number, _, _, slope, *_ = state
        return (number == 0) | ((number < steps) & jnp.any(jnp.abs(slope) > goal))

    scores = problem.scores(theta)
    start = jnp.int32(0), theta, scores, problem.slope_of(theta, scores), jnp.zeros(n_features), jnp.float32(0)
    number, theta, _, _, own, moved = lax.while_loop(unfinished, step, start)
    return theta, number, own, moved


def _lbfgs(problem: _Problem, theta: Array, steps: int, goal: Array, squares: Array) -> tuple[Array, Array]:
    """`(theta, steps)`."""
    # In coordinates of like curvature: rare features would else take many more steps than frequent ones.
    diagonal = _diagonal(problem, squares, theta.shape[0])
    scale = jnp.where(diagonal > 0, lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 1.0)[:, None]
    optimizer = optax.lbfgs()

    @jax.custom_vjp
    def loss(x):
        return problem.loss(scale * x, problem.scores(scale * x))

    def with_gradient(x):
        theta = scale * x
        scores = problem.scores(theta)
        return problem.loss(theta, scores), -scale * problem.slope_of(theta, scores)

    loss.defvjp(with_gradient, lambda gradient, cotangent: (cotangent * gradient,))
    known = optax.value_and_grad_from_state(loss)  # by the line search before

    def step(state):
        number, x, value, gradient, inner = state
        updates, inner = optimizer.update(gradient, inner, x, value=value, grad=gradient, value_fn=loss)
        x = x + jnp.asarray(updates)
        return number + 1, x, *known(x, state=inner), inner

    def unfinished(state):
        number, _, _, gradient, _ = state
        return (number < steps) & jnp.any(jnp.abs(gradient) > goal * scale)

    start = jnp.int32(0), theta, *jax.value_and_grad(loss)(theta), optimizer.init(theta)
    number, x, *_ = lax.while_loop(unfinished, step, start)
    return scale * x, number
