"""Fold-in: vectors for users and items that were not there in training, from their history alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from ...kernels import least_squares
from ...kernels.csr import CSR, SparseMatrix
from ...kernels.op import Implementation
from ...kernels.quantized_rows import floats_of
from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import InteractionError
from ..factorization.algorithm import Factors
from ..factorization.als import gramian, joined, objective_of, rating_system, ridge, separated
from ..factorization.bayesian import BayesianFactors
from ..factorization.objectives import RankingSgd
from ..factorization.svdpp import FeedbackFactors
from .ranking_rows import fold_in_by_ranking

History = CSR | SparseMatrix | Interactions


def fold_in(
    model: Any,
    history: Any,
    *,
    side: str = "users",
    gram: Float[Array, "rank rank"] | None = None,
    key: PRNGKeyArray | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "batch rank"]:
    """Vectors of new users (or items): the training objective of their histories at its minimum, all else fixed.

    For a least-squares factorization that is one exact half sweep, differentiable in the histories' values and in the
    model; for `bpr`, `logistic_mf` and `softmax_mf` (new users only) see `fold_in_by_ranking`; of a network that reads
    histories it is what it makes of them.

    Args:
        model: `Factors`; or `FeedbackFactors`, `BayesianFactors`, `SequenceNetwork` or `TowerNetwork` (new users only).
        history: A row for each newcomer: `Interactions`, a scipy sparse matrix `[batch, n_items]`, or a `CSR`
            (for side "items", `[batch, n_users]`).
        side: "users", or "items" for new items from the users who met them.
        gram: `gramian` of the fixed side, to save its computation when few rows are folded in at a time.
        key: Of the negatives of a ranking loss, `jax.random.key(0)` if None; nothing else is random.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `[batch, rank]`; 0, or for `BayesianFactors` the prior's mean, for a newcomer without history. Of a network the
        `queries`: with a last column of 1 where items have a bias, and whatever it makes of an empty history.
        `with_history` gives newcomers as a model, biases included.

    Raises:
        InteractionError: A history that names rows the model does not have.
        ValueError: A model without vectors of users or without an objective, an unknown `side`, a ranking loss or a
            network with new items or `gram`, or an `implementation` for a model that has but one.

    With the explicit objective it is `R V (V^T V + l2 I)^-1`, here with l2 = 1:

    >>> from affinax.engine.factorization import ExplicitObjective
    >>> objective = ExplicitObjective(l2=jnp.float32(1), l2_exponent=jnp.float32(0))
    >>> model = Factors(jnp.zeros((1, 2)), jnp.array([[1.0, 0.0], [1.0, 1.0]]), objective=objective)
    >>> history = Interactions.from_coo([0, 0], [0, 1], [1.0, 4.0])
    >>> [round(x, 4) for x in fold_in(model, history)[0].tolist()]
    [1.2, 1.4]
    """
    of_network = hasattr(model, "network") and hasattr(model, "queries")
    if of_network or isinstance(model, FeedbackFactors | BayesianFactors):
        name = type(getattr(model, "network", model)).__name__
        if side != "users" or gram is not None:
            raise ValueError(f"{name} folds in users only, and needs no gram: {side=}")
        if implementation != "auto":
            raise ValueError(f"{name} folds in by one implementation, not by {implementation=}")
        folded = with_history(model, history)
        return folded.queries(jnp.arange(folded.n_users, dtype=jnp.int32)) if of_network else folded.users
    if not isinstance(model, Factors):
        raise ValueError(f"{type(model).__name__} has no vectors of users that histories give; with_history may serve")
    return _solved(model, history, side, gram, key, implementation)[0]


def with_history(
    model: Any, history: Any, *, key: PRNGKeyArray | None = None, implementation: Implementation = "auto"
) -> Any:
    """The model whose users are the newcomers of `history`, in order: what `recommend` and `predict` take.

    Args and Raises: as `fold_in`; a model that reads histories itself, such as `ItemWeights`, gets these.
    """
    if hasattr(model, "with_history"):
        if getattr(model, "in_order", False) and not isinstance(history, CSR):
            if not isinstance(history, Interactions | Sequences):
                raise InteractionError(
                    f"a history of {type(history).__name__} has no order of time, which this model reads: give "
                    "Sequences, Interactions with timestamps, or a CSR whose rows are in that order"
                )
            x = history if isinstance(history, Sequences) else Sequences.from_interactions(history)
            _as_rows(x, model.n_items, "item")  # which checks it
            return model.with_history(x)
        return model.with_history(_as_rows(history, model.n_items, "item"))
    users, bias = _solved(model, history, "users", None, key, implementation)
    return model._replace(users=users, user_bias=bias)


def fixed_gramian(model: Factors, side: str = "users") -> Float[Array, "rank rank"]:
    """The Gramian that `fold_in` of this side needs, to be computed once and passed as `gram`."""
    model = _in_floats(model)
    fixed = model.items if side == "users" else model.users
    bias = model.item_bias if side == "users" else model.user_bias
    return gramian(joined(fixed, bias), objective_of(model))


def _solved(
    model: Factors,
    history: Any,
    side: str,
    gram: Array | None,
    key: PRNGKeyArray | None,
    implementation: Implementation,
) -> tuple[Array, Array | None]:
    if side not in ("users", "items"):
        raise ValueError(f'{side=} must be "users" or "items"')
    model = _in_floats(model)
    if isinstance(model.objective, RankingSgd):
        if side == "items" or gram is not None:
            raise ValueError(f"a ranking loss has vectors for new users alone, and no gramian: {side=}, gram={gram}")
        key = jax.random.key(0) if key is None else key
        rows = _as_rows(history, model.n_items, "item")
        return fold_in_by_ranking(model, rows, key, implementation=implementation)
    objective = objective_of(model)
    n_columns = model.n_items if side == "users" else model.n_users
    rows = _as_rows(history, n_columns, "item" if side == "users" else "user")
    table, terms = rating_system(rows, model, side)
    solved = least_squares.solve(
        rows.indptr,
        rows.indices,
        terms.weights,
        terms.targets,
        table,
        gramian(table, objective) if gram is None else gram,
        ridge(rows, n_columns, objective),
        solver="cholesky",
        implementation=implementation,
    )
    return separated(solved.x, model.users.shape[1])


def _in_floats(model: Factors) -> Factors:
    """What quantized factors stand for."""
    return model._replace(users=floats_of(model.users), items=floats_of(model.items))


def _as_rows(history: Any, n_columns: int, side: str) -> CSR:
    if isinstance(history, SparseMatrix):
        history = history.by_user
    if hasattr(history, "tocsr"):
        history = Interactions.from_scipy(history)
    if isinstance(history, Interactions):
        values = np.ones(1, np.float32) if history.values is None else history.values
        history = CSR(jnp.asarray(history.indptr.astype(np.int32)), jnp.asarray(history.items), jnp.asarray(values))
    if isinstance(history, Sequences):
        indptr, items = jnp.asarray(history.indptr.astype(np.int32)), jnp.asarray(history.items)
        history = CSR(indptr, items, jnp.ones(1))
    if not isinstance(history, CSR):
        raise InteractionError(
            f"history must be Interactions, Sequences, a scipy matrix or CSR; got {type(history).__name__}"
        )
    if isinstance(history.indices, Tracer) or isinstance(history.indptr, Tracer):
        return history
    indptr, ids = np.asarray(history.indptr), np.asarray(history.indices)
    if not len(indptr) or indptr[0] != 0 or indptr[-1] > len(ids) or (np.diff(indptr) < 0).any():
        raise InteractionError(f"history: indptr must ascend from 0 to {len(ids)}, the number of entries, or below")
    wrong = (ids < 0) | (ids >= n_columns)
    if wrong.any():
        first = ids[int(np.argmax(wrong))]
        raise InteractionError(f"history: {side} {first} is outside [0, {n_columns}), the {side}s of the model")
    return history
