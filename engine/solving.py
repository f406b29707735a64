"""Symmetric positive definite systems, by Cholesky factors and by conjugate gradients, and derivatives of optima."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int32

Linear = Callable[[Array], Array]

_ZERO = 1e-6  # what is left of a sum in float32 once all of it has been taken off


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
    scale = jnp.where(diagonal > 0, lax.rsqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 0.0)
    unit = matrix * scale[:, None] * scale[None, :]
    unit = jnp.where(jnp.eye(n, dtype=bool), 1.0, unit)
    lower = jnp.linalg.cholesky(unit, symmetrize_input=False)
    # Of a singular matrix there is no factor; that of one with a little more on the diagonal tells which feature it is.
    singular = ~jnp.all(jnp.isfinite(lower))

    def with_more(unit):
        more = 1e-6 * (4 + n**0.5) * jnp.eye(n, dtype=unit.dtype)
        return jnp.linalg.cholesky(unit + more, symmetrize_input=False)

    return Factor(lax.cond(singular, with_more, lambda unit: lower, unit), scale, singular)


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
    spread = jnp.matmul(information, shift, precision=lax.Precision.HIGHEST)
    intercept = jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1.0) + jnp.dot(shift, spread), 0.0)
    return jnp.maximum(variances, 0.0), intercept, jnp.trace(hat)


def conjugate_gradients(
    slope_at: Linear,
    matrix: Linear,
    precondition: Linear,
    x: Float[Array, "n t"],
    slope: Float[Array, "n t"],
    goal: Float[Array, " t"],
    steps: int,
) -> tuple[Float[Array, "n t"], Float[Array, "n t"], Int32[Array, ""]]:
    """Moves x, at which the slope is `slope`, to where no slope is above its goal; each column by steps of its own.

    `slope_at(x)` is a constant less `matrix(x)`. Begins anew from the true slope whenever it has come down a
    thousandfold, as rounding makes the one carried along drift, and stops where that gains nothing.

    Returns:
        `(x, slope there, steps taken)`.
    """

    def step(state):
        number, x, residual, direction, moment = state
        product = matrix(direction)
        length = _ratio(moment, jnp.sum(direction * product, axis=0))
        x = x + length[None, :] * direction
        residual = residual - length[None, :] * product
        conditioned = precondition(residual)
        after = jnp.sum(residual * conditioned, axis=0)
        direction = conditioned + _ratio(after, moment)[None, :] * direction
        return number + 1, x, residual, direction, after

    def descend(state):
        number, x, slope, _ = state
        size = jnp.max(jnp.abs(slope), axis=0)
        near = jnp.maximum(goal, 1e-3 * size)
        direction = precondition(slope)

        def unfinished(state):
            return (state[0] < steps) & jnp.any(jnp.max(jnp.abs(state[2]), axis=0) > near)

        start = number, jnp.zeros_like(x), slope, direction, jnp.sum(slope * direction, axis=0)
        number, change, *_ = lax.while_loop(unfinished, step, start)
        after = slope_at(x + change)
        better = jnp.max(jnp.abs(after), axis=0) < size
        x = jnp.where(better[None, :], x + change, x)
        after = jnp.where(better[None, :], after, slope)
        return number, x, after, jnp.max(jnp.abs(after), axis=0) < 0.5 * size

    def unfinished(state):
        number, _, slope, gained = state
        return (number < steps) & jnp.any((jnp.max(jnp.abs(slope), axis=0) > goal) & gained)

    start = jnp.int32(0), x, slope, jnp.ones(slope.shape[1], bool)
    number, x, slope, _ = lax.while_loop(unfinished, descend, start)
    return x, slope, number


class Diagonal(NamedTuple):
    """A diagonal matrix, of which 0 counts as 1."""

    entries: Float[Array, " n"]

    def solve(self, right: Float[Array, "n t"]) -> Float[Array, "n t"]:
        """The inverse times the right sides."""
        return right / jnp.where(self.entries > 0, self.entries, 1.0)[:, None]


@runtime_checkable
class Minimum(Protocol):
    """What is to be minimised, a pytree of what may be differentiated by."""

    def slope(self, x: Float[Array, "n t"]) -> Float[Array, "n t"]:
        """Down which it goes: the negative gradient."""
        ...

    def curvature(self, x: Float[Array, "n t"], direction: Float[Array, "n t"]) -> Float[Array, "n t"]:
        """The Hessian at x times a direction."""
        ...


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def differentiable(
    x: Float[Array, "n t"], problem: Minimum, preconditioner: Factor | Diagonal, steps: int
) -> Float[Array, "n t"]:
    """The optimum x of a problem, with its derivative: by the implicit function theorem, as the slope stays 0."""
    return x


@differentiable.defjvp
def _differentiable_jvp(steps, primals, tangents):
    x, problem, preconditioner = primals
    _, drift = jax.jvp(lambda problem: problem.slope(x), (problem,), (tangents[1],))

    def solve(matrix, right):
        goal = 1e-6 * jnp.max(jnp.abs(right), axis=0)
        nothing = jnp.zeros_like(right)
        return conjugate_gradients(
            lambda x: right - matrix(x), matrix, preconditioner.solve, nothing, right, goal, steps
        )[0]

    curvature = functools.partial(problem.curvature, x)
    return x, lax.custom_linear_solve(curvature, drift, solve, symmetric=True)


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
