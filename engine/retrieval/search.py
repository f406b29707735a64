"""Retrieval: the best items for users, the nearest items to items, predicted values of pairs."""

from __future__ import annotations

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from ...kernels import quantized_rows, sparse_top_k
from ...kernels import top_k as top_k_kernel
from ...kernels.csr import CSR
from ...kernels.op import Implementation
from ...kernels.quantized_rows import QuantizedRows, Table, floats_of
from .filters import Filters, Seen, as_ids, best_among, checked_filters
from .new_rows import with_history


@runtime_checkable
class QueryModel(Protocol):
    """A model that answers by products of query vectors with an item table."""

    @property
    def n_items(self) -> int: ...

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch width"]: ...

    def item_table(self) -> Table: ...


@runtime_checkable
class SparseModel(Protocol):
    """A model that answers by products of a sparse row for each user with a table of items."""

    @property
    def n_items(self) -> int: ...

    def sparse_queries(self) -> CSR: ...

    def score_table(self) -> CSR | Array: ...


@runtime_checkable
class ScoreModel(Protocol):
    """A model that answers with the scores of all items for a few users at a time."""

    @property
    def n_items(self) -> int: ...

    def scores(self, users: Int32[Array, " batch"]) -> Float[Array, "batch n_items"]: ...


@runtime_checkable
class PairModel(Protocol):
    """A model that predicts the values of pairs."""

    @property
    def n_items(self) -> int: ...

    def pair_scores(self, users: Int32[Array, " batch"], items: Int32[Array, " batch"]) -> Float[Array, " batch"]: ...


Model = QueryModel | SparseModel | ScoreModel

_SCORES_HELD = 1 << 22  # of a `ScoreModel`


def recommend(
    model: Model,
    users: Any,
    k: int = 10,
    *,
    history: Any = None,
    seen: Seen | None = None,
    exclude: Any = None,
    allow: Any = None,
    implementation: Implementation = "auto",
) -> tuple[Int32[Array, "batch k"], Float[Array, "batch k"]]:
    """The k best items for each user.

    Scores are tiled: memory does not grow with users times items. Works inside jit, with `k` static.

    Args:
        model: Anything with `queries` and `item_table`, such as `Factors`, with `sparse_queries` and `score_table`,
            such as `ItemWeights`, or with `scores`, such as `ItemRatings`.
        users: `[batch]` indices.
        k: How many, at least 1.
        history: Histories of users that are not the model's own, a row each, that `users` then count: what
            `with_history` takes.
        seen: Interactions whose items are left out of their users' answers: `Interactions` or what its
            `to_device` gives.
        exclude: `[batch, h]` further items to leave out, padded with -1.
        allow: `[n_items]` bool, or `[batch, a]` items for each user, padded with -1: only these are answered.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `(ids [batch, k] int32, scores [batch, k] float32)`, best first, equal scores by lower id; id -1 and score
        -inf where fewer than k items remain.

    Raises:
        InteractionError: A user outside the model (where users are concrete), or a filter of the wrong shape.
        ValueError: k below 1.

    >>> from affinax.engine.factorization import Factors
    >>> model = Factors(jnp.array([[0.7, 0.5]]), jnp.array([[0.5, 0.6], [1.0, 1.0], [0.0, 0.0]]))
    >>> ids, scores = recommend(model, [0], k=2)
    >>> ids.tolist(), [round(s, 3) for s in scores[0].tolist()]
    ([[1, 0]], [1.2, 0.65])
    """
    if history is not None:
        model = with_history(model, history)
    users = as_ids("users", users, getattr(model, "n_users", None))
    if isinstance(model, ScoreModel):
        filters = checked_filters(users.shape[0], model.n_items, seen, users, exclude, allow)
        return _best_scored(model, users, filters, k=k, implementation=implementation)
    if isinstance(model, SparseModel):
        return sparse_top_k.search(
            model.sparse_queries(),
            users,
            model.score_table(),
            k,
            n_columns=model.n_items,
            implementation=implementation,
            **checked_filters(users.shape[0], model.n_items, seen, users, exclude, allow)._asdict(),
        )
    return top_k(
        model.queries(users),
        model.item_table(),
        k,
        seen=seen,
        rows=users,
        exclude=exclude,
        allow=allow,
        implementation=implementation,
    )


@functools.partial(jax.jit, static_argnames=("k", "implementation"))
def _best_scored(
    model: ScoreModel, users: Array, filters: Filters, *, k: int, implementation: Implementation
) -> tuple[Array, Array]:
    """The best of all items, for as many users at a time as their scores can be held of."""
    batch = users.shape[0]
    if batch == 0:
        return jnp.zeros((0, k), jnp.int32), jnp.zeros((0, k), jnp.float32)
    block = max(1, min(batch, _SCORES_HELD // model.n_items))
    each = jnp.arange(block + 1, dtype=jnp.int32)
    one_hot = CSR(each, each[:-1], jnp.ones(1))

    def one_block(first):
        here = jnp.minimum(first + each[:-1], batch - 1)
        own = {
            name: rows if rows is None else rows[here] for name, rows in filters._asdict().items() if name in _BY_ROW
        }
        masks = filters._replace(**own)._asdict()
        scores = model.scores(users[here])
        return sparse_top_k.search(
            one_hot, each[:-1], scores, k, n_columns=model.n_items, implementation=implementation, **masks
        )

    ids, scores = lax.map(one_block, jnp.arange(0, batch, block, dtype=jnp.int32))
    return ids.reshape(-1, k)[:batch], scores.reshape(-1, k)[:batch]


_BY_ROW = ("seen_rows", "exclude", "among")  # filters with a row for each user


def top_k(
    queries: Float[Array, "batch width"],
    items: Table,
    k: int,
    *,
    seen: Seen | None = None,
    rows: Any = None,
    exclude: Any = None,
    allow: Any = None,
    implementation: Implementation = "auto",
) -> tuple[Int32[Array, "batch k"], Float[Array, "batch k"]]:
    """The k items with the highest products with each query: `recommend` for vectors of your own.

    Args:
        queries: Query vectors.
        items: Item vectors, or what `compression` makes of them; codes of `quantize_products` are numbers for the time.
        k: How many, at least 1.
        seen: As in `recommend`; with
        rows: the row of `seen` that belongs to each query, in order if None.
        exclude: As in `recommend`, and so
        allow: are the allowed items and
        implementation: the kernel.

    Returns:
        `(ids, scores)` as `recommend`.

    Raises:
        InteractionError, ValueError: As `recommend`.
    """
    queries = jnp.asarray(queries, jnp.float32)
    if not isinstance(items, QuantizedRows):
        items = jnp.asarray(floats_of(items), jnp.float32)
    filters = checked_filters(queries.shape[0], items.shape[0], seen, rows, exclude, allow)
    if filters.among is not None:
        return best_among(queries, items, k, filters)
    search: Any = quantized_rows.search if isinstance(items, QuantizedRows) else top_k_kernel.search
    return search(
        queries,
        items,
        k,
        seen=filters.seen,
        seen_rows=filters.seen_rows,
        exclude=filters.exclude,
        allow=filters.allow,
        implementation=implementation,
    )


def similar_items(
    model: Model, items: Any, k: int = 10, *, metric: str = "cosine", exclude: Any = None, allow: Any = None
) -> tuple[Int32[Array, "batch k"], Float[Array, "batch k"]]:
    """The k nearest items to each item, itself left out.

    Args:
        model: Anything with `item_table`, whose biases do not count where it has `items` of its own; with item-item
            `weights`, which then are the similarities; with `scores`, which then are those after the one item; or
            `ContentProfiles`, whose items have cosines only.
        items: `[batch]` indices.
        k: How many, at least 1.
        metric: "cosine" or "dot" of item vectors.
        exclude: As in `recommend`, and so
        allow: are the allowed items.

    Returns:
        `(ids, scores)` as `recommend`; an item whose vector is 0 has cosine 0 with every other.

    Raises:
        InteractionError, ValueError: As `recommend`, or an unknown metric.

    >>> from affinax.engine.factorization import Factors
    >>> model = Factors(jnp.zeros((1, 3)), jnp.array([[0.5, 0.6, 0.7], [0.4, 0.5, 0.6]]))
    >>> ids, scores = similar_items(model, [0], k=1)
    >>> ids.tolist(), round(scores.item(), 4)
    ([[1]], 0.9996)
    """
    if metric not in ("cosine", "dot"):
        raise ValueError(f'{metric=} must be "cosine" or "dot"')
    items = as_ids("items", items, model.n_items)
    own = items[:, None]
    if exclude is not None:
        exclude = as_ids("exclude", exclude, model.n_items, shape=(items.shape[0], None), padded=True)
        own = jnp.concatenate([own, exclude], axis=1)
    filters = checked_filters(items.shape[0], model.n_items, None, None, own, allow)
    item_rows = getattr(model, "item_rows", None)
    if item_rows is not None and isinstance(model, SparseModel):  # items by their features
        return sparse_top_k.search(
            item_rows(), items, model.score_table(), k, n_columns=model.n_items, **filters._asdict()
        )
    each = jnp.arange(items.shape[0] + 1, dtype=jnp.int32)
    one_hot = CSR(each, items, jnp.ones(1))
    weights = getattr(model, "weights", None)
    if weights is not None and not isinstance(model, QueryModel):
        return sparse_top_k.search(one_hot, each[:-1], weights, k, n_columns=model.n_items, **filters._asdict())
    if isinstance(model, ScoreModel):
        return recommend(model, each[:-1], k, history=one_hot, exclude=own, allow=allow)
    if isinstance(model, SparseModel):
        raise ValueError(f"{type(model).__name__} compares users and has no item-item weights")
    vectors = getattr(model, "items", None)
    table = jnp.asarray(floats_of(model.item_table() if vectors is None else vectors), jnp.float32)
    if metric == "cosine":
        norms = jnp.linalg.norm(table, axis=1, keepdims=True)
        table = table / jnp.where(norms > 0, norms, 1.0)
    return top_k(table[items], table, k, exclude=own, allow=allow)


def predict(model: QueryModel | PairModel, users: Any, items: Any) -> Float[Array, " batch"]:
    """Scores of pairs: the predicted rating where the model was trained on ratings.

    Args:
        model: Anything with `queries` and `item_table`, such as `Factors`, or with `pair_scores`, such as
            `ItemRatings`.
        users: `[batch]` indices.
        items: `[batch]` indices.

    Raises:
        InteractionError: An index outside the model, where it is concrete.
        ValueError: A model that only ranks.
    """
    users, items = as_ids("users", users, getattr(model, "n_users", None)), as_ids("items", items, model.n_items)
    if isinstance(model, PairModel):
        return model.pair_scores(users, items)
    if not isinstance(model, QueryModel):
        raise ValueError(f"{type(model).__name__} ranks items and predicts no values")
    return _pair_products(model, users, items)


@jax.jit
def _pair_products(model: QueryModel, users: Array, items: Array) -> Array:
    table, block = model.item_table(), 1 << 14
    padding = -users.shape[0] % block
    pairs = jnp.stack([jnp.pad(users, (0, padding)), jnp.pad(items, (0, padding))]).reshape(2, -1, block)
    pairs = jnp.moveaxis(pairs, 1, 0)
    scores = lax.map(lambda pair: jnp.sum(model.queries(pair[0]) * table[pair[1]], axis=-1), pairs)
    return scores.reshape(-1)[: users.shape[0]]
