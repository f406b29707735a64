"""Gradient descent on networks that are parts of models."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..engine.errors import InteractionError
from ..engine.factorization.algorithm import Algorithm, Info
from ..engine.training.batches import Batches
from ..engine.training.gradient_descent import TrainingState, gradient_step, start_training

View = Callable[[Any], Any]
_COUNTS = ("negatives", "batch_size", "length")


def network_algorithm(
    name: str,
    start: Callable[[PRNGKeyArray, Any], Any],
    inputs: Callable[[Any, Any], Any],
    loss: Callable[[Any, Any, PRNGKeyArray], Array],
    optimizer: Any,
    batches: Callable[[Any, np.ndarray], Batches],
    renewed: Callable[[Any, Any], Any],
    view: View | None = None,
) -> Algorithm:
    """Gradient descent on a network that is part of a model: the state is the model, with all that it answers by.

    `renewed(model, data)` is a trained model that answers by other data. The loss sees `view(network)`, if there is
    one, such as the network with rounded weights.
    """

    def seen(network: Any, batch: Any, key: PRNGKeyArray) -> Array:
        return loss(network if view is None else view(network), batch, key)

    descend = gradient_step(seen, optimizer)

    def init(key: PRNGKeyArray, x: Any) -> Any:
        model = start(key, x)
        return _with_state(model, start_training(model.network, optimizer))

    def step(key: PRNGKeyArray, model: Any, batch: Any) -> tuple[Any, Info]:
        state = model.training._replace(parameters=model.network)
        state, info = descend(key, state, inputs(model, batch))
        return _with_state(model, state), info

    def resume(model: Any, x: Any) -> Any:
        model = renewed(model, x)
        fresh = _with_state(model, start_training(model.network, optimizer))
        return model if _alike(model.training, fresh.training) else fresh  # which is of another optimizer

    return Algorithm(init, step, name, batches, resume)


def _with_state(model: Any, state: TrainingState) -> Any:
    """The parameters are in the model alone, once."""
    return model._replace(network=state.parameters, training=state._replace(parameters=None))


def _alike(one: Any, other: Any) -> bool:
    """Whether two pytrees have arrays of the same names, shapes and dtypes."""
    kinds = [[(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)] for tree in (one, other)]
    return jax.tree.structure(one) == jax.tree.structure(other) and kinds[0] == kinds[1]


def require_same(model: Any, x: Any, *sides: str) -> None:
    """Raises InteractionError where data have other numbers of users or items than a model that is trained on."""
    for side in sides:
        own, other = getattr(model, f"n_{side}"), getattr(x, f"n_{side}")
        if own != other:
            raise InteractionError(
                f"the state has {own:,} {side} and the data {other:,}: give data with the ids of the first, or no state"
            )


def require_positive(**numbers: float | None) -> None:
    """Raises ValueError where one is not above 0, or not whole where it counts something; `negatives` may be 0."""
    for name, number in numbers.items():
        if number is None:
            continue
        if not 0 <= number < math.inf or (number == 0 and name != "negatives"):
            raise ValueError(f"{name}={number} must be {'at least' if name == 'negatives' else 'above'} 0, and finite")
        if name in _COUNTS and number != int(number):
            raise ValueError(f"{name}={number} must be a whole number")


def require_optimizer(optimizer: Any) -> None:
    """Raises ValueError for what is no transformation of gradients; None is Adam."""
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"{optimizer=} must be an optax.GradientTransformation, such as optax.adam(1e-3)")
