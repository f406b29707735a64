"""Matrix factorization by stochastic gradient descent, one epoch a step: of ratings; `ranking` has the rankers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ...kernels import embedding, sampling, sgd
from ...kernels.csr import CSR, SparseMatrix
from ...kernels.op import Implementation
from . import minibatch
from .algorithm import Algorithm, Factors, Info
from .objectives import BprSgd, LogisticSgd, RankingSgd, RatingSgd, SoftmaxSgd
from .parts import check_shape_parameters, info_of, random_rows, require_at_least, scalar
from .settings import with_settings

_Objective = TypeVar("_Objective", RatingSgd, BprSgd, LogisticSgd, SoftmaxSgd)


class Execution(NamedTuple):
    """How the steps of an epoch are taken: by the kernel, one after the other, or by batches in JAX."""

    hogwild: bool
    batch_size: int | None
    optimizer: embedding.Optimizer
    implementation: Implementation


@with_settings
def biased_mf(
    rank: int,
    *,
    learning_rate: Any = 0.01,
    l2: Any = 0.05,
    init_std: float = 0.3,
    hogwild: bool = False,
    batch_size: int | None = None,
    optimizer: embedding.Optimizer = "sgd",
    implementation: Implementation = "auto",
) -> Algorithm:
    """Funk's SVD with biases: `r ~ mean + user_bias + item_bias + x_u . y_i`.

    A step goes down the gradient of `(r - s)^2 / 2 + l2 / 2 (|x_u|^2 + |y_i|^2 + biases^2)` of every rating once, in
    the random order of `kernels.sampling.stages`, in which several threads never meet.

    Args:
        rank: Length of the vectors.
        learning_rate: At least 0.
        l2: At least 0.
        init_std: The first vectors are normal with this standard deviation over sqrt(rank).
        hogwild: A fully random order, on several threads without locks, so that no two runs are alike. Else the key
            decides, on as many threads.
        batch_size: Entries at once, one step down the sum of their gradients, in JAX: for accelerators, for `vmap` over
            learning rates, and for programs of your own. The larger the batch, the more often it holds one user, and
            the smaller the learning rate has to be. None: one after the other, by a kernel, which is faster on CPU and
            has no like on an accelerator.
        optimizer: Of the rows that a batch moves: "sgd", "adagrad", "rowwise_adagrad" or "adam"; see
            `kernels.embedding.update_rows`.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `Algorithm` whose state is `Factors`, and whose loss is the sum of the squared errors met on the way, halved.

    Raises:
        ValueError: A parameter out of its range.

    Source: Koren, Bell, Volinsky 2009, "Matrix Factorization Techniques for Recommender Systems", eq. 5.

    >>> import jax
    >>> from affinax.engine.data import Interactions
    >>> data = Interactions.from_coo([0, 0, 1], [0, 1, 0], [5.0, 1.0, 4.0]).to_device()
    >>> mf = biased_mf(2, learning_rate=0.1)
    >>> state = mf.init(jax.random.key(0), data)
    >>> losses = [mf.step(jax.random.key(1), state, data)[1].loss]
    >>> for key in jax.random.split(jax.random.key(2), 20):
    ...     state, info = mf.step(key, state, data)
    >>> bool(info.loss < losses[0] / 10)
    True
    """
    check_shape_parameters(rank, init_std)
    objective = objective_with(RatingSgd, learning_rate, l2)
    execution = execution_of(hogwild, batch_size, optimizer, implementation)

    def init(key: PRNGKeyArray, data: SparseMatrix) -> Factors:
        return start(key, data, rank, init_std, jnp.mean(data.by_user.values), objective, execution)

    return Algorithm(init, _rating_step(execution), "biased MF", resume=functools.partial(with_slots, execution))


@functools.cache
def _rating_step(execution: Execution) -> Callable[..., tuple[Factors, Info]]:
    implementation = execution.implementation

    def step(key: PRNGKeyArray, state: Factors, data: SparseMatrix) -> tuple[Factors, Info]:
        rows, bounds = data.by_user, None
        if execution.hogwild or execution.batch_size is not None:
            order = sampling.permutation(key, rows.nnz, implementation=implementation)
        else:
            order, bounds, _ = sampling.stages(key, rows, data.shape[1], implementation=implementation)
        none = jnp.zeros((order.shape[0], 0), jnp.int32)
        return epoch(state, rows, order, none, bounds, "squared", True, execution)

    return step


def start(
    key: PRNGKeyArray,
    data: SparseMatrix,
    rank: int,
    std: float,
    mean: Array,
    objective: RatingSgd | RankingSgd,
    execution: Execution,
) -> Factors:
    """Random vectors, biases of 0, and what the optimizer of batches remembers."""
    users, items = random_rows(key, data, rank, std)
    # Nothing moves the vector of a user without interactions, so it must not be a random one.
    users = jnp.where((jnp.diff(data.by_user.indptr) > 0)[:, None], users, 0.0)
    of_user, of_item = jnp.zeros(data.shape[0], jnp.float32), jnp.zeros(data.shape[1], jnp.float32)
    return with_slots(execution, Factors(users, items, of_user, of_item, mean, objective))


def with_slots(execution: Execution, state: Factors, data: Any = None) -> Factors:
    """The same with what the optimizer of batches remembers, where it lacks that: nothing yet."""
    of_user, of_item = state.user_bias, state.item_bias
    if execution.batch_size is None or state.slots is not None or of_user is None or of_item is None:
        return state
    sides = (state.users, of_user), (state.items, of_item)
    users, items = (minibatch.start_slots(side, execution.optimizer) for side in sides)
    return state._replace(slots=(users, items))


def epoch(
    state: Factors,
    rows: CSR,
    order: Array,
    negatives: Array,
    bounds: Array | None,
    loss: sgd.Loss,
    biases: bool,
    execution: Execution,
) -> tuple[Factors, Info]:
    """All entries in this order, with their negatives, one after the other or by batches."""
    objective = state.objective
    if not isinstance(objective, RankingSgd | RatingSgd) or state.user_bias is None or state.item_bias is None:
        raise ValueError("the state was not made by biased_mf, bpr, logistic_mf or softmax_mf")
    tables = sgd.Tables(state.users, state.items, state.user_bias, state.item_bias)
    options = {
        "loss": loss,
        "learning_rate": objective.learning_rate,
        "l2": objective.l2,
        "mean": state.mean,
        "biases": biases,
    }
    slots, batch_size = state.slots, execution.batch_size
    if batch_size is not None:
        if slots is None:
            raise ValueError("the state lacks what batches remember; make it by the init or resume of this algorithm")
        new, slots, total = minibatch.sweep(
            tables, slots, rows, order, negatives, batch_size=batch_size, optimizer=execution.optimizer, **options
        )
    else:
        new, total = sgd.sweep(
            tables,
            rows,
            order,
            negatives,
            bounds,
            hogwild=execution.hogwild,
            implementation=execution.implementation,
            **options,
        )
    return state._replace(**new._asdict(), slots=slots), info_of(total, new.users, new.items)


def execution_of(
    hogwild: bool, batch_size: int | None, optimizer: embedding.Optimizer, implementation: Implementation
) -> Execution:
    """The execution that the options name, if they go together."""
    if batch_size is None:
        if optimizer != "sgd":
            raise ValueError(f"{optimizer=} moves rows by batches and needs a batch_size, such as 1024")
    else:
        require_at_least(1, batch_size=batch_size)
        embedding.start_slots(jnp.zeros(0), optimizer)  # which knows the names
        if hogwild:
            raise ValueError(f"{batch_size=} and {hogwild=} exclude each other: a batch is one step")
    return Execution(hogwild, batch_size, optimizer, implementation)


def objective_with(kind: type[_Objective], learning_rate: Any, l2: Any, **further: Array) -> _Objective:
    """An objective of this kind, its numbers checked."""
    require_at_least(0, learning_rate=learning_rate, l2=l2)
    return kind(scalar(learning_rate), scalar(l2), **further)
