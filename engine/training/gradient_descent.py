"""Any loss and any optimizer of optax as one more `Algorithm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32, PRNGKeyArray

from ...kernels.embedding import Optimizer, lookup, start_slots, update_rows
from ..factorization.algorithm import Algorithm, Info
from ..factorization.settings import with_settings
from .batches import Batches, Seed

Loss = Callable[[Any, Any, PRNGKeyArray], Array]


class Embedded(NamedTuple):
    """Parameters of which one part is a table that batches look rows up in.

    Attributes:
        table: `[n_rows, width]`; for a loss, the rows that were looked up, `[..., width]`.
        network: All other parameters, any pytree.
    """

    table: Any
    network: Any


class Rows(NamedTuple):
    """How the table of `Embedded` parameters is trained: only the rows that a batch looks up, whatever its size.

    Attributes:
        ids: `ids(batch)`: which rows it looks up, int32 of any shape, -1 for none.
        optimizer: "sgd", "adagrad", "rowwise_adagrad" or "adam"; see `kernels.embedding.update_rows`.
        learning_rate: Its step length: a number, or a schedule of optax.
    """

    ids: Callable[[Any], Int32[Array, "..."]]
    optimizer: Optimizer = "adagrad"
    learning_rate: float | Callable[[Any], Any] = 0.01


class TrainingState(NamedTuple):
    """What `gradient` trains.

    Attributes:
        parameters: As `init` gave them: float32 masters, whatever the loss computes in.
        optimizer: State of the optax chain.
        slots: What is remembered of each row of the table.
        step: Steps taken, int32.
    """

    parameters: Any
    optimizer: Any
    slots: Any
    step: Array


@with_settings
def gradient(
    loss: Loss,
    optimizer: Any,
    batches: Callable[[Any, Seed], Batches],
    *,
    init: Callable[[PRNGKeyArray], Any] | Any,
    rows: Rows | None = None,
    accumulate: int = 1,
    compute_dtype: Any = None,
    name: str = "gradient",
) -> Algorithm:
    """Stochastic gradient descent on any loss, as an algorithm that `fit` runs like any other.

    A step takes one batch. Where its loss or gradient is not finite, nothing is changed, and `fit` names the step.
    Clipping, schedules, weight decay and frozen parts are chains of optax (`clip_by_global_norm`, `multi_transform`).

    Args:
        loss: `loss(parameters, batch, key)`, a scalar; pure. With `rows`, `parameters` is `Embedded` and its table the
            rows that were looked up.
        optimizer: An `optax.GradientTransformation`, for all parameters but the table of `rows`.
        batches: Such as `example_batches(4096)`: a function of the data given to `fit` and of a seed.
        init: `init(key)` gives the parameters, any pytree, such as a module of `models`; or they themselves. With
            `rows`, `Embedded`.
        rows: Trains a table by the rows that are looked up.
        accumulate: In how many parts each batch is computed, one after the other, to save memory. The gradient is the
            mean of theirs.
        compute_dtype: Of the parameters inside the loss, such as `jnp.bfloat16`; as they are if None.
        name: What messages call it.

    Returns:
        An `Algorithm` with the state `TrainingState`.

    Raises:
        ValueError: `accumulate` below 1, or a batch that it does not divide.

    Least squares by batches:

    >>> import numpy as np, optax
    >>> from affinax.engine.factorization import fit
    >>> from affinax.engine.training import example_batches, losses
    >>> x = np.arange(8.0, dtype=np.float32)
    >>> line = lambda w, batch, key: losses.squared_error(w * batch["x"], batch["y"])
    >>> descent = gradient(line, optax.sgd(0.01), example_batches(4), init=jnp.zeros(()))
    >>> state, history = fit(descent, {"x": x, "y": 3 * x}, key=jax.random.key(0), steps=100)
    >>> round(float(state.parameters), 3)
    3.0
    """
    step = gradient_step(loss, optimizer, rows=rows, accumulate=accumulate, compute_dtype=compute_dtype)

    def start(key: PRNGKeyArray, data: Any) -> TrainingState:
        # A module can be called, too, but is a tree of parameters.
        drawn = callable(init) and jax.tree_util.all_leaves([init])
        return start_training(init(key) if drawn else init, optimizer, rows)

    return Algorithm(start, step, name, batches)


def start_training(parameters: Any, optimizer: Any, rows: Rows | None = None) -> TrainingState:
    """The state in which `gradient_step` begins; see `gradient`."""
    slots = None if rows is None else start_slots(parameters.table, rows.optimizer)
    trained = parameters if rows is None else parameters.network
    return TrainingState(parameters, optimizer.init(trained), slots, jnp.int32(0))


def gradient_step(
    loss: Loss, optimizer: Any, *, rows: Rows | None = None, accumulate: int = 1, compute_dtype: Any = None
) -> Callable[[PRNGKeyArray, TrainingState, Any], tuple[TrainingState, Info]]:
    """The step of `gradient`, `(key, state, batch) -> (state, info)`, for a training loop of your own."""
    if accumulate < 1:
        raise ValueError(f"{accumulate=} must be at least 1")

    def slope(parameters: Any, batch: Any, key: PRNGKeyArray) -> tuple[Array, Any, Any]:
        """Loss, gradient, and where there is a table: which rows were looked up, and the gradient of each."""
        ids = None
        if rows is not None:
            ids = rows.ids(batch)
            parameters = parameters._replace(table=lookup(parameters.table, ids))
        value, gradients = jax.value_and_grad(lambda p: loss(_cast(p, compute_dtype), batch, key).astype(jnp.float32))(
            parameters
        )
        return (value, gradients, None) if rows is None else (value, gradients.network, (ids, gradients.table))

    def in_parts(parameters: Any, batch: Any, key: PRNGKeyArray) -> tuple[Array, Any, Any]:
        def part(total, numbered):
            number, piece = numbered
            *found, looked_up = slope(parameters, piece, jax.random.fold_in(key, number))
            return jax.tree.map(jnp.add, total, tuple(found)), looked_up

        zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, parameters if rows is None else parameters.network)
        parts = jnp.arange(accumulate), jax.tree.map(lambda a: _parts(a, accumulate), batch)
        total, looked_up = lax.scan(part, zeros, parts)
        value, gradients = jax.tree.map(lambda a: a / accumulate, total)
        return value, gradients, None if looked_up is None else (looked_up[0], looked_up[1] / accumulate)

    def step(key: PRNGKeyArray, state: TrainingState, batch: Any) -> tuple[TrainingState, Info]:
        value, gradients, looked_up = (slope if accumulate == 1 else in_parts)(state.parameters, batch, key)
        leaves = jax.tree.leaves((gradients, None if looked_up is None else looked_up[1]))
        # Zeros sum to NaN where they were not finite; `jnp.all` takes half as long again.
        bad = jnp.sum(jnp.stack([~jnp.isfinite(jnp.sum(leaf * 0)) for leaf in leaves]), dtype=jnp.int32)
        good = jnp.isfinite(value) & (bad == 0)
        old = state.parameters if rows is None else state.parameters.network
        changes, memory = optimizer.update(gradients, state.optimizer, old)
        moved = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), old, changes)
        moved, memory = jax.tree.map(lambda a, b: jnp.where(good, a, b), (moved, memory), (old, state.optimizer))
        slots = state.slots
        if rows is not None and looked_up is not None:
            rate = rows.learning_rate(state.step) if callable(rows.learning_rate) else rows.learning_rate
            ids, of_rows = looked_up
            # A step that is not finite moves no row, which spares a copy of the table to put back.
            ids = jnp.where(good, ids, -1).reshape(-1)
            of_rows = of_rows.reshape(ids.shape[0], -1)
            rule = {"optimizer": rows.optimizer, "learning_rate": rate}
            table, slots = update_rows(state.parameters.table, slots, ids, of_rows, **rule)
            moved = Embedded(table, moved)
        info = Info(value, jnp.stack([bad, jnp.int32(0)]), jnp.full(2, -1, jnp.int32))
        return TrainingState(moved, memory, slots, state.step + good), info

    return step


def _cast(parameters: Any, dtype: Any) -> Any:
    if dtype is None:
        return parameters
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, parameters)


def _parts(array: Array, n: int) -> Array:
    if array.shape[0] % n:
        raise ValueError(f"a batch of {array.shape[0]} cannot be computed in {n} equal parts (accumulate={n})")
    return array.reshape(n, array.shape[0] // n, *array.shape[1:])
