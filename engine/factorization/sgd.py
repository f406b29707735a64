"""Matrix factorization by stochastic gradient descent, one epoch a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ...kernels import sampling, sgd
from ...kernels.csr import CSR, SparseMatrix, entries
from ...kernels.op import Implementation
from . import minibatch
from .algorithm import Algorithm, Factors, Info
from .objectives import BprSgd, LogisticSgd, RankingSgd, RatingSgd, SoftmaxSgd
from .parts import check_shape_parameters, info_of, random_rows, require_at_least, scalar

_Objective = TypeVar("_Objective", RatingSgd, BprSgd, LogisticSgd, SoftmaxSgd)

_STAGES, _LEAST_POOL = 16, 64  # of an epoch; and items that negatives are drawn from


class _Execution(NamedTuple):
    """How the steps of an epoch are taken: by the kernel, one after the other, or by batches in JAX."""

    hogwild: bool
    batch_size: int | None
    optimizer: minibatch.Optimizer
    implementation: Implementation


def biased_mf(
    rank: int,
    *,
    learning_rate: Any = 0.01,
    l2: Any = 0.05,
    init_std: float = 0.3,
    hogwild: bool = False,
    batch_size: int | None = None,
    optimizer: minibatch.Optimizer = "sgd",
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
        optimizer: Of the rows that a batch moves: "sgd", "adagrad" or "adam"; see `minibatch.update_rows`.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `Algorithm` whose state is `Factors`, and whose loss is the sum of the squared errors met on the way, halved.

    Raises:
        ValueError: A parameter out of its range.

    Source: Koren, Bell, Volinsky 2009, "Matrix Factorization Techniques for Recommender Systems", eq. 5.

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
    objective = _objective(RatingSgd, learning_rate, l2)
    execution = _execution(hogwild, batch_size, optimizer, implementation)

    def init(key: PRNGKeyArray, data: SparseMatrix) -> Factors:
        return _start(key, data, rank, init_std, jnp.mean(data.by_user.values), objective, execution)

    return Algorithm(init, _rating_step(execution), "biased MF")


@functools.cache
def _rating_step(execution: _Execution) -> Callable[..., tuple[Factors, Info]]:
    implementation = execution.implementation

    def step(key: PRNGKeyArray, state: Factors, data: SparseMatrix) -> tuple[Factors, Info]:
        rows, bounds = data.by_user, None
        if execution.hogwild or execution.batch_size is not None:
            order = sampling.permutation(key, rows.nnz, implementation=implementation)
        else:
            order, bounds, _ = sampling.stages(key, rows, data.shape[1], implementation=implementation)
        none = jnp.zeros((order.shape[0], 0), jnp.int32)
        return _sweep(state, rows, order, none, bounds, "squared", True, execution)

    return step


def bpr(
    rank: int,
    *,
    learning_rate: Any = 0.05,
    l2: Any = 0.01,
    negatives: int = 1,
    popularity_exponent: float = 0.0,
    verify_negatives: bool = True,
    biases: bool = True,
    init_std: float = 1.0,
    hogwild: bool = False,
    batch_size: int | None = None,
    optimizer: minibatch.Optimizer = "sgd",
    implementation: Implementation = "auto",
) -> Algorithm:
    """Bayesian personalized ranking: what a user met above what it did not.

    A step goes down the gradient of `softplus(s(u, j) - s(u, i)) + l2 / 2 (|x_u|^2 + |y_i|^2 + |y_j|^2 + biases^2)` of
    every interaction once, in random order, each with freshly drawn negatives j. Of 1,024 items or more, the order is
    that of `kernels.sampling.stages`, and negatives are drawn from the items of the block, a sixteenth chosen at random
    anew each time, so that several threads never meet.

    Args:
        rank: Length of the vectors.
        learning_rate: At least 0.
        l2: At least 0.
        negatives: Drawn for each interaction, at least 1.
        popularity_exponent: Negatives are drawn as often as items were met, to this power; 0 is uniform.
        verify_negatives: Whether negatives are only what their user never met; else all items, as some recipes have it.
        biases: Whether items have a bias.
        init_std: As in `biased_mf`.
        hogwild: A fully random order, and negatives from all items, on several threads without locks, so that no two
            runs are alike. Else the key decides.
        batch_size, optimizer, implementation: As in `biased_mf`.

    Returns:
        `Algorithm` whose state is `Factors`.

    Raises:
        ValueError: A parameter out of its range.

    Source: Rendle, Freudenthaler, Gantner, Schmidt-Thieme 2009, "BPR: Bayesian Personalized Ranking from Implicit
    Feedback".
    """
    objective = _objective(BprSgd, learning_rate, l2)
    execution = _execution(hogwild, batch_size, optimizer, implementation)
    step = _ranking_step("bpr", negatives, verify_negatives, biases, execution)
    return _ranking("BPR", rank, init_std, objective, popularity_exponent, step, execution)


def logistic_mf(
    rank: int,
    *,
    learning_rate: Any = 0.01,
    l2: Any = 0.005,
    negatives: int = 8,
    popularity_exponent: float = 0.0,
    verify_negatives: bool = True,
    biases: bool = True,
    init_std: float = 1.0,
    hogwild: bool = False,
    batch_size: int | None = None,
    optimizer: minibatch.Optimizer = "sgd",
    implementation: Implementation = "auto",
) -> Algorithm:
    """Matrix factorization under the logistic loss: interactions against sampled negatives.

    A step goes down the gradient of `softplus(-s(u, i)) + sum_j softplus(s(u, j))`, plus l2 as in `bpr`, of every
    interaction once, in random order, each with freshly drawn negatives j.

    Args, Returns, Raises:
        As `bpr`; users have a bias as well.

    Source: Rendle, Krichene, Zhang, Anderson 2020, "Neural Collaborative Filtering vs. Matrix Factorization Revisited".
    """
    objective = _objective(LogisticSgd, learning_rate, l2, negatives=scalar(negatives), user_biases=scalar(biases))
    execution = _execution(hogwild, batch_size, optimizer, implementation)
    step = _ranking_step("logistic", negatives, verify_negatives, biases, execution)
    return _ranking("logistic MF", rank, init_std, objective, popularity_exponent, step, execution)


def softmax_mf(
    rank: int,
    *,
    learning_rate: Any = 0.05,
    l2: Any = 1e-3,
    negatives: int = 64,
    popularity_exponent: float = 0.0,
    verify_negatives: bool = True,
    biases: bool = True,
    init_std: float = 0.3,
    hogwild: bool = False,
    batch_size: int | None = None,
    optimizer: minibatch.Optimizer = "sgd",
    implementation: Implementation = "auto",
) -> Algorithm:
    """Matrix factorization under a sampled softmax: the item that was met, chosen among many negatives at once.

    A step goes down the gradient of `log(1 + sum_j exp(s(u, j) - s(u, i))) + l2 / 2 (|x_u|^2 + |y_i|^2 + sum_j |y_j|^2
    + biases^2)` of every interaction once, in the order and with the negatives of `bpr`. The negatives nearest to the
    top count most. An epoch takes as much longer than one of `bpr` as there are more negatives, and fewer are needed.

    Args, Returns, Raises:
        As `bpr`.

    Source: Wu, Wang, Gao, Chen, Fu, Qiu 2022, "On the Effectiveness of Sampled Softmax Loss for Item Recommendation".
    """
    objective = _objective(SoftmaxSgd, learning_rate, l2, negatives=scalar(negatives))
    execution = _execution(hogwild, batch_size, optimizer, implementation)
    step = _ranking_step("softmax", negatives, verify_negatives, biases, execution)
    return _ranking("softmax MF", rank, init_std, objective, popularity_exponent, step, execution)


@functools.cache
def _ranking_step(
    loss: sgd.Loss, negatives: int, verify: bool, biases: bool, execution: _Execution
) -> Callable[..., tuple[Factors, Info]]:
    require_at_least(1, negatives=negatives)
    implementation = execution.implementation

    def step(key: PRNGKeyArray, state: Factors, data: SparseMatrix) -> tuple[Factors, Info]:
        order_key, negative_key = jax.random.split(key)
        rows, n_items = data.by_user, data.shape[1]
        bounds = pools = None
        if execution.hogwild or execution.batch_size is not None or n_items < _STAGES * _LEAST_POOL:
            order = sampling.permutation(order_key, rows.nnz, implementation=implementation)
        else:
            # Negatives from the items of the block, which are a random group, so that no other thread meets them.
            order, bounds, groups = sampling.stages(order_key, rows, n_items, _STAGES, implementation=implementation)
            numbers = jnp.broadcast_to(jnp.arange(_STAGES, dtype=jnp.int32)[:, None], groups.shape)
            group_of = jnp.zeros(n_items, jnp.int32)
            group_of = group_of.at[jnp.where(groups < 0, n_items, groups)].set(numbers, mode="drop")
            pools = groups, group_of[rows.indices[order]]
        none = CSR(jnp.zeros_like(rows.indptr), rows.indices[:0], rows.values)
        drawn = sampling.negatives(
            negative_key,
            rows if verify else none,
            entries(rows)[0][order],
            n_items,
            negatives,
            weights=getattr(state.objective, "popularity", None),
            pools=pools,
            implementation=implementation,
        )
        return _sweep(state, rows, order, drawn, bounds, loss, biases, execution)

    return step


def _ranking(
    name: str,
    rank: int,
    init_std: float,
    objective: RankingSgd,
    popularity_exponent: float,
    step: Callable[..., tuple[Factors, Info]],
    execution: _Execution,
) -> Algorithm:
    check_shape_parameters(rank, init_std)
    require_at_least(0, popularity_exponent=popularity_exponent)

    def init(key: PRNGKeyArray, data: SparseMatrix) -> Factors:
        popularity = None
        if popularity_exponent:
            popularity = jnp.diff(data.by_item.indptr).astype(jnp.float32) ** popularity_exponent
        start = objective._replace(popularity=popularity)
        return _start(key, data, rank, init_std, scalar(0.0), start, execution)

    return Algorithm(init, step, name)


def _start(
    key: PRNGKeyArray,
    data: SparseMatrix,
    rank: int,
    std: float,
    mean: Array,
    objective: RatingSgd | RankingSgd,
    execution: _Execution,
) -> Factors:
    users, items = random_rows(key, data, rank, std)
    # Nothing moves the vector of a user without interactions, so it must not be a random one.
    users = jnp.where((jnp.diff(data.by_user.indptr) > 0)[:, None], users, 0.0)
    of_user, of_item = jnp.zeros(data.shape[0], jnp.float32), jnp.zeros(data.shape[1], jnp.float32)
    slots = None
    if execution.batch_size is not None:
        name = execution.optimizer
        slots = minibatch.start_slots((users, of_user), name), minibatch.start_slots((items, of_item), name)
    return Factors(users, items, of_user, of_item, mean, objective, slots)


def _sweep(
    state: Factors,
    rows: CSR,
    order: Array,
    negatives: Array,
    bounds: Array | None,
    loss: sgd.Loss,
    biases: bool,
    execution: _Execution,
) -> tuple[Factors, Info]:
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
            raise ValueError("the state was made without a batch_size; make it by the init of this algorithm")
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


def _execution(
    hogwild: bool, batch_size: int | None, optimizer: minibatch.Optimizer, implementation: Implementation
) -> _Execution:
    if batch_size is None:
        if optimizer != "sgd":
            raise ValueError(f"{optimizer=} moves rows by batches and needs a batch_size, such as 1024")
    else:
        require_at_least(1, batch_size=batch_size)
        minibatch.optimizer_of(optimizer, 0.0)  # which knows the names
        if hogwild:
            raise ValueError(f"{batch_size=} and {hogwild=} exclude each other: a batch is one step")
    return _Execution(hogwild, batch_size, optimizer, implementation)


def _objective(kind: type[_Objective], learning_rate: Any, l2: Any, **further: Array) -> _Objective:
    require_at_least(0, learning_rate=learning_rate, l2=l2)
    return kind(scalar(learning_rate), scalar(l2), **further)
