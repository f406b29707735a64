"""Matrix factorization by stochastic gradient descent on pairs of what a user met and what not, one epoch a step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ...kernels import embedding, sampling, sgd
from ...kernels.csr import CSR, SparseMatrix
from ...kernels.op import Implementation
from .algorithm import Algorithm, Factors, Info
from .objectives import BprSgd, LogisticSgd, RankingSgd, SoftmaxSgd
from .parts import check_shape_parameters, require_at_least, scalar
from .settings import with_settings
from .sgd import Execution, epoch, execution_of, objective_with, start, with_slots

_STAGES, _LEAST_POOL = 16, 64  # of an epoch; and items that negatives are drawn from


@with_settings
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
    optimizer: embedding.Optimizer = "sgd",
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
    objective = objective_with(BprSgd, learning_rate, l2)
    execution = execution_of(hogwild, batch_size, optimizer, implementation)
    step = _ranking_step("bpr", negatives, verify_negatives, biases, execution)
    return _ranking("BPR", rank, init_std, objective, popularity_exponent, step, execution)


@with_settings
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
    optimizer: embedding.Optimizer = "sgd",
    implementation: Implementation = "auto",
) -> Algorithm:
    """Matrix factorization under the logistic loss: interactions against sampled negatives.

    A step goes down the gradient of `softplus(-s(u, i)) + sum_j softplus(s(u, j))`, plus l2 as in `bpr`, of every
    interaction once, in random order, each with freshly drawn negatives j.

    Args, Returns, Raises:
        As `bpr`; users have a bias as well.

    Source: Rendle, Krichene, Zhang, Anderson 2020, "Neural Collaborative Filtering vs. Matrix Factorization Revisited".
    """
    objective = objective_with(LogisticSgd, learning_rate, l2, negatives=scalar(negatives), user_biases=scalar(biases))
    execution = execution_of(hogwild, batch_size, optimizer, implementation)
    step = _ranking_step("logistic", negatives, verify_negatives, biases, execution)
    return _ranking("logistic MF", rank, init_std, objective, popularity_exponent, step, execution)


@with_settings
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
    optimizer: embedding.Optimizer = "sgd",
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
    objective = objective_with(SoftmaxSgd, learning_rate, l2, negatives=scalar(negatives))
    execution = execution_of(hogwild, batch_size, optimizer, implementation)
    step = _ranking_step("softmax", negatives, verify_negatives, biases, execution)
    return _ranking("softmax MF", rank, init_std, objective, popularity_exponent, step, execution)


@functools.cache
def _ranking_step(
    loss: sgd.Loss, negatives: int, verify: bool, biases: bool, execution: Execution
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
            pools = groups, group_of[rows.indices]
        none = CSR(jnp.zeros_like(rows.indptr), rows.indices[:0], rows.values)
        drawn = sampling.negatives(
            negative_key,
            rows if verify else none,
            None if verify else jnp.zeros(rows.nnz, jnp.int32),
            n_items,
            negatives,
            weights=getattr(state.objective, "popularity", None),
            pools=pools,
            implementation=implementation,
        )
        return epoch(state, rows, order, drawn[order], bounds, loss, biases, execution)

    return step


def _ranking(
    name: str,
    rank: int,
    init_std: float,
    objective: RankingSgd,
    popularity_exponent: float,
    step: Callable[..., tuple[Factors, Info]],
    execution: Execution,
) -> Algorithm:
    check_shape_parameters(rank, init_std)
    require_at_least(0, popularity_exponent=popularity_exponent)

    def init(key: PRNGKeyArray, data: SparseMatrix) -> Factors:
        popularity = None
        if popularity_exponent:
            popularity = jnp.diff(data.by_item.indptr).astype(jnp.float32) ** popularity_exponent
        goal = objective._replace(popularity=popularity)
        return start(key, data, rank, init_std, scalar(0.0), goal, execution)

    return Algorithm(init, step, name, resume=functools.partial(with_slots, execution))
