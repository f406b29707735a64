"""Gradient descent on networks that are parts of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..engine.factorization.algorithm import Algorithm, Info
from ..engine.training.batches import Batches
from ..engine.training.gradient_descent import TrainingState, gradient_step, start_training

View = Callable[[Any], Any]


def network_algorithm(
    name: str,
    start: Callable[[PRNGKeyArray, Any], Any],
    inputs: Callable[[Any, Any], Any],
    loss: Callable[[Any, Any, PRNGKeyArray], Array],
    optimizer: Any,
    batches: Callable[[Any, np.ndarray], Batches],
    view: View | None = None,
) -> Algorithm:
    """Gradient descent on a network that is part of a model: the state is the model, with all that it answers by.

    The loss sees `view(network)`, if there is one, such as the network with rounded weights.
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

    def resume(model: Any) -> Any:
        return model if model.training is not None else _with_state(model, start_training(model.network, optimizer))

    return Algorithm(init, step, name, batches, resume)


def _with_state(model: Any, state: TrainingState) -> Any:
    """The parameters are in the model alone, once."""
    return model._replace(network=state.parameters, training=state._replace(parameters=None))


def require_positive(**numbers: float | None) -> None:
    """Raises ValueError where one is not above 0; `negatives` may be 0."""
    for name, number in numbers.items():
        if number is None:
            continue
        if not number >= 0 or (number == 0 and name != "negatives"):
            raise ValueError(f"{name}={number} must be {'at least' if name == 'negatives' else 'above'} 0")
