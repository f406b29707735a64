"""Symmetric positive definite systems, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

Linear = Callable[[Array], Array]


def conjugate_gradients(
    matrix: Linear, right: Float[Array, "n t"], precondition: Linear, tolerance: Any, steps: int
) -> tuple[Float[Array, "n t"], Int32[Array, ""]]:
    """Solves `matrix(x) = right`, each column by steps of its own, until no residual is above its share of the right.

    Begins anew from the true residual whenever it has come down a thousandfold, as rounding makes the one carried along
    drift, and stops where that gains nothing. Differentiable by one more solve with the same matrix.

    Returns:
        `(x, steps taken)`.
    """

    def solve(matrix, right):
        goal = tolerance * jnp.max(jnp.abs(right), axis=0)

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
            number, x, residual, _ = state
            size = jnp.max(jnp.abs(residual), axis=0)
            near = jnp.maximum(goal, 1e-3 * size)
            direction = precondition(residual)

            def unfinished(state):
                return (state[0] < steps) & jnp.any(jnp.max(jnp.abs(state[2]), axis=0) > near)

            start = number, jnp.zeros_like(x), residual, direction, jnp.sum(residual * direction, axis=0)
            number, change, *_ = lax.while_loop(unfinished, step, start)
            after = right - matrix(x + change)
            better = jnp.max(jnp.abs(after), axis=0) < size
            x = jnp.where(better[None, :], x + change, x)
            after = jnp.where(better[None, :], after, residual)
            return number, x, after, jnp.max(jnp.abs(after), axis=0) < 0.5 * size

        def unfinished(state):
            number, _, residual, gained = state
            return (number < steps) & jnp.any((jnp.max(jnp.abs(residual), axis=0) > goal) & gained)

        start = jnp.int32(0), jnp.zeros_like(right), right, jnp.ones(right.shape[1], bool)
        number, x, *_ = lax.while_loop(unfinished, descend, start)
        return x, number

    return lax.custom_linear_solve(matrix, right, solve, symmetric=True, has_aux=True)


def _ratio(a: Array, b: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
