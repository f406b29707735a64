"""Logistic regression, by Newton's method or L-BFGS."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.core import Tracer
from jaxtyping import Array

from ...kernels.csr import CSR
from ..errors import FeatureError
from ..solving import conjugate_gradients
from .designs import Design, checked_design, gramian, squared, times, transposed_times
from .linear_models import LinearModel, Progress, checked, checked_l2, errors_of, factorize

SOLVERS = ("auto", "newton", "lbfgs")
_MOST_FACTORIZED = 1024  # features up to which "auto" takes Newton's steps
_HALVINGS = 20  # of a step that does not lower the loss


def logistic_regression(
    design: Any,
    targets: Any,
    *,
    l2: Any = 1.0,
    intercept: bool = True,
    n_features: int | None = None,
    solver: str = "auto",
    steps: int = 500,
    tolerance: float = 1e-6,
) -> LinearModel:
    """The log-odds of a yes as a linear function of features.

    Minimises `sum log(1 + exp(s)) - y s + l2 / 2 |w|^2` with `s = X w + b`; the intercept b is not penalised. Works
    under jit (with `intercept`, `n_features`, `solver` and `steps` static), vmap and grad (that of the optimum).

    Args:
        design: X: `[n_rows, n_features]`, `Features`, or a `CSR`, for which `n_features` must be given.
        targets: y: `[n_rows]`, each 0 or 1.
        l2: At least 0; 1 / C of scikit-learn.
        intercept: Whether to have b.
        n_features: The width of a `CSR`.
        solver: "newton" factorizes the `[n_features, n_features]` matrix, and finds standard errors and collinear
            features; "lbfgs" holds vectors only, for wide sparse designs, and needs l2 > 0; "auto" is the former up to
            1,024 features.
        steps: The most of either.
        tolerance: Of the slope that may be left, as a share of `sum_i |x_ij|`, the greatest that it can be.

    Returns:
        `LinearModel` whose scores are log-odds.

    Raises:
        FeatureError: A design or targets that cannot be used; with l2 = 0 also constant and collinear features, of
            which the first is named, and targets that the features separate.
        DivergenceError: The tolerance was not reached.
        ValueError: A parameter out of its range.

    Source: Hastie, Tibshirani, Friedman 2009, "The Elements of Statistical Learning", section 4.4.1; Nocedal 1980,
    "Updating Quasi-Newton Matrices with Limited Storage".

    >>> model = logistic_regression(jnp.array([[0.0], [0.0], [1.0], [1.0]]), jnp.array([0, 1, 1, 1]), l2=0.5)
    >>> np.asarray(model.scores(jnp.array([[0.0], [1.0]]))).astype(float).round(2).tolist()
    [0.77, 1.5]
    """
    if solver not in SOLVERS:
        raise ValueError(f"{solver=} must be one of {SOLVERS}")
    if steps < 1 or not tolerance > 0:
        raise ValueError(f"{steps=} must be at least 1 and {tolerance=} above 0")
    design, targets, n_features = checked_design(design, targets, n_features)
    _check_targets(targets)
    if solver == "auto":
        solver = "newton" if n_features <= _MOST_FACTORIZED else "lbfgs"
    l2 = checked_l2(l2, solver, "newton")
    model = _solved(design, targets, l2, tolerance, intercept, n_features, solver, steps)
    advice = "More steps, a larger l2, or features of like size (numbers standardised) help"
    # First, for where the weights grow without end, rows' variances go to 0, and features look collinear.
    concrete = not isinstance(l2, Tracer) and not isinstance(model.weights, Tracer)
    if concrete and float(l2) == 0 and bool(jnp.all((model.scores(design) > 0) == (targets > 0))):
        raise FeatureError(
            "logistic regression: the features tell every 1 from every 0, so that with l2 = 0 the weights grow "
            "without end. Pass l2 > 0"
        )
    return checked(model, l2, tolerance, "logistic regression", advice)


def _check_targets(targets: Array) -> None:
    if targets.ndim != 1:
        raise FeatureError(f"targets.shape={targets.shape} must be (n_rows,)")
    if isinstance(targets, Tracer):
        return
    concrete = np.asarray(targets)
    wrong = (concrete != 0) & (concrete != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise FeatureError(f"targets: {concrete[row]} at row {row:,} must be 0 or 1 ({int(wrong.sum())} such)")
    if len(np.unique(concrete)) < 2:
        raise FeatureError(f"targets: all {len(concrete):,} are {concrete[0]:g}; there must be both 0 and 1")


class _Problem(NamedTuple):
    """What is minimised. The intercept, where there is one, is the last weight: that of a column of ones."""

    design: Design
    targets: Array
    l2: Array
    tolerance: Array

    def penalty(self, theta: Array, n_features: int) -> Array:
        return jnp.where(jnp.arange(theta.shape[0]) < n_features, self.l2, 0.0)

    def scores(self, theta: Array, n_features: int) -> Array:
        found = times(self.design, theta[:n_features, None])[:, 0]
        return found + theta[n_features] if theta.shape[0] > n_features else found

    def loss(self, theta: Array, n_features: int) -> Array:
        s = self.scores(theta, n_features)
        ridge = 0.5 * jnp.sum(self.penalty(theta, n_features) * theta**2)
        return jnp.sum(jax.nn.softplus(s) - self.targets * s) + ridge

    def slope(self, theta: Array, n_features: int) -> Array:
        error = jax.nn.sigmoid(self.scores(theta, n_features)) - self.targets
        found = transposed_times(self.design, error[:, None], n_features)[:, 0]
        found = jnp.append(found, jnp.sum(error)) if theta.shape[0] > n_features else found
        return found + self.penalty(theta, n_features) * theta

    def squares(self, n_features: int) -> Array:
        """Sum of the squares of each column."""
        ones = jnp.ones((self.targets.shape[0], 1), jnp.float32)
        return transposed_times(squared(self.design), ones, n_features)[:, 0]

    def steepest(self, width: int, n_features: int) -> Array:
        """A bound of the slope at 0."""
        n_rows = self.targets.shape[0]
        bound = jnp.sqrt(jnp.max(self.squares(n_features)) * n_rows)
        return jnp.maximum(bound, float(n_rows)) if width > n_features else bound

    def information(self, theta: Array, n_features: int) -> tuple[Array, Array, Array]:
        """That about the weights, the columns' means, and that about the intercept, by the rows' variances."""
        p = jax.nn.sigmoid(self.scores(theta, n_features))
        variances = p * (1 - p)
        matrix = gramian(self.design, variances, n_features)
        if theta.shape[0] == n_features:
            return matrix, jnp.zeros(n_features), jnp.float32(0)
        total = jnp.maximum(jnp.sum(variances), jnp.finfo(jnp.float32).tiny)
        centre = transposed_times(self.design, variances[:, None], n_features)[:, 0] / total
        return matrix - total * centre[:, None] * centre[None, :], centre, total


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
    means = jnp.zeros(n_features, jnp.float32)
    if intercept and not isinstance(design, CSR):  # less their means, columns depend less on the intercept
        means = jnp.mean(design, axis=0)
        design = design - means[None, :]
    problem = _Problem(design, targets, l2, jnp.float32(tolerance))
    width = n_features + int(intercept)
    theta, taken = _optimum(problem, width, n_features, solver, steps)
    weights = theta[:n_features]
    bias = theta[n_features] - jnp.dot(means, weights) if intercept else jnp.float32(0)
    errors = intercept_error = own_variance = None
    if solver == "newton":
        matrix, centre, total = problem.information(theta, n_features)
        factor = factorize(matrix, l2, problem.squares(n_features))
        variances, of_intercept, _ = errors_of(factor, matrix, centre + means, total)
        errors, intercept_error = jnp.sqrt(variances), jnp.sqrt(of_intercept)
        own_variance = factor.own_variance
    bound = problem.steepest(width, n_features)
    left = jnp.max(jnp.abs(problem.slope(theta, n_features))) / jnp.where(bound > 0, bound, 1.0)
    return LinearModel(weights, bias, errors, intercept_error, Progress(taken.astype(jnp.int32), left, own_variance))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3, 4))
def _optimum(problem: _Problem, width: int, n_features: int, solver: str, steps: int) -> tuple[Array, Array]:
    """`(theta [width], steps)`."""
    walk = _newton if solver == "newton" else _lbfgs
    start = jnp.zeros(width, jnp.float32)
    goal = problem.tolerance * problem.steepest(width, n_features)
    theta, taken = walk(problem, start, n_features, steps, lambda slope: jnp.max(jnp.abs(slope)) <= goal)
    return theta, taken.astype(jnp.float32)  # for whole numbers have no derivative


@_optimum.defjvp
def _optimum_jvp(width, n_features, solver, steps, primals, tangents):
    """By the implicit function theorem: the slope stays 0."""
    (problem,) = primals
    theta, taken = _optimum(problem, width, n_features, solver, steps)
    _, drift = jax.jvp(lambda p: p.slope(theta, n_features), primals, tangents)

    p = jax.nn.sigmoid(problem.scores(theta, n_features))
    variances = (p * (1 - p))[:, None]

    def curvature(directions):
        weights, shift = directions[:n_features], directions[n_features:]
        rows = variances * (times(problem.design, weights) + jnp.sum(shift, axis=0)[None, :])
        found = transposed_times(problem.design, rows, n_features)
        if width > n_features:
            found = jnp.concatenate([found, jnp.sum(rows, axis=0)[None, :]])
        return found + problem.penalty(theta, n_features)[:, None] * directions

    moved, _ = conjugate_gradients(curvature, drift[:, None], lambda rows: rows, 1e-6, 10 * width)
    return (theta, taken), (-moved[:, 0], jnp.zeros_like(taken))


def _newton(problem: _Problem, start: Array, n_features: int, steps: int, finished) -> tuple[Array, Array]:
    whole = problem.squares(n_features)

    def step(state):
        number, theta, slope = state
        matrix, centre, total = problem.information(theta, n_features)
        factor = factorize(matrix, problem.l2, whole)
        if theta.shape[0] > n_features:
            right = slope[:n_features] - centre * slope[n_features]
            weights = factor.solve(right[:, None])[:, 0]
            direction = jnp.append(weights, slope[n_features] / total - jnp.dot(centre, weights))
        else:
            direction = factor.solve(slope[:, None])[:, 0]
        before = problem.loss(theta, n_features)
        enough = before + 1e-6 * jnp.abs(before)  # the loss itself is rounded

        def too_long(carry):
            return (carry[0] < _HALVINGS) & ~(problem.loss(theta - carry[1] * direction, n_features) <= enough)

        _, length = lax.while_loop(too_long, lambda carry: (carry[0] + 1, carry[1] / 2), (0, jnp.float32(1)))
        theta = theta - length * direction
        return number + 1, theta, problem.slope(theta, n_features)

    state = jnp.int32(0), start, problem.slope(start, n_features)
    number, theta, _ = lax.while_loop(lambda state: (state[0] < steps) & ~finished(state[2]), step, state)
    return theta, number


def _lbfgs(problem: _Problem, start: Array, n_features: int, steps: int, finished) -> tuple[Array, Array]:
    # In coordinates of like curvature: rare features would else take many more steps than frequent ones.
    n_rows, width = problem.targets.shape[0], start.shape[0]
    squares = jnp.append(problem.squares(n_features), jnp.full(width - n_features, float(n_rows)))
    curvature = squares / 4 + problem.penalty(start, n_features)
    scale = jnp.where(curvature > 0, lax.rsqrt(jnp.where(curvature > 0, curvature, 1.0)), 1.0)
    optimizer = optax.lbfgs()

    def loss(x):
        return problem.loss(scale * x, n_features)

    def step(state):
        number, x, inner = state
        value, slope = optax.value_and_grad_from_state(loss)(x, state=inner)
        updates, inner = optimizer.update(slope, inner, x, value=value, grad=slope, value_fn=loss)
        return number + 1, x + jnp.asarray(updates), inner

    def unfinished(state):
        return (state[0] < steps) & ~finished(problem.slope(scale * state[1], n_features))

    number, x, _ = lax.while_loop(unfinished, step, (jnp.int32(0), start, optimizer.init(start)))
    return scale * x, number
