"""The best items of each query: product, mask and selection in one, never holding all scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from . import top_k_numba
from .best_of_rows import best_of_rows
from .csr import CSR, nothing_seen
from .op import Implementation, Op, dispatch

_SCORES_HELD = 1 << 25  # scores of one block of queries
_SEEN_AT_ONCE = 64  # entries of a row that are masked together


def search(
    queries: Float[Array, "batch width"],
    items: Float[Array, "n_items width"],
    k: int,
    *,
    seen: CSR | None = None,
    seen_rows: Int32[Array, " batch"] | None = None,
    exclude: Int32[Array, "batch h"] | None = None,
    allow: Bool[Array, " n_items"] | None = None,
    implementation: Implementation = "auto",
) -> tuple[Int32[Array, "batch k"], Float[Array, "batch k"]]:
    """Items with the highest products `queries[b] . items[i]`, best first.

    Differentiable in `queries` and `items` through the scores.

    Args:
        queries: float32.
        items: float32.
        k: At least 1; may exceed the number of items.
        seen: Sparse rows of items to leave out, ascending within a row.
        seen_rows: The row of it that belongs to each query.
        exclude: Further items to leave out of each query's answer, padded with -1.
        allow: The items that may be answered.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `(ids, scores)`. Equal scores go by lower id. Where fewer than k items remain, or a score is NaN or -inf,
        the rest is id -1 and score -inf.

    Raises:
        ValueError: k below 1 or widths that differ.

    >>> ids, scores = search(jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 5.0], [3.0, 0.0], [1.0, 0.0]]), 4)
    >>> ids.tolist(), scores.tolist()
    ([[1, 0, 2, -1]], [[3.0, 1.0, 1.0, -inf]])
    """
    if k < 1:
        raise ValueError(f"kernels.top_k: {k=} must be at least 1")
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"kernels.top_k: queries have width {queries.shape[1]}, items {items.shape[1]}")
    batch = queries.shape[0]
    if seen is None or seen_rows is None:
        seen, seen_rows = nothing_seen(batch)
    if exclude is None:
        exclude = jnp.zeros((batch, 0), jnp.int32)
    if allow is None:
        allow = jnp.zeros(0, bool)
    arguments = map(jnp.asarray, (queries, items, seen.indptr, seen.indices, seen_rows, exclude, allow))
    return _search((k, implementation), *arguments)


def _reference(queries, items, seen_indptr, seen_indices, seen_rows, exclude, allow, *, k: int):
    def scores_of(rows):
        return jnp.matmul(queries[rows], items.T, precision=lax.Precision.HIGHEST)

    masks = seen_indptr, seen_indices, seen_rows, exclude, allow
    return best_of_scores(scores_of, (queries.shape[0], items.shape[0]), *masks, k=k)


def best_of_scores(
    scores_of: Callable[[Array], Array], shape: tuple[int, int], *masks: Array, k: int
) -> tuple[Array, Array]:
    """`search` of any scores, `scores_of(rows) -> [block, n_items]` of some queries at a time."""

    def answer(rows):
        scores = scores_of(rows)
        scores = masked(jnp.where(jnp.isnan(scores), -jnp.inf, scores), rows, *masks, left_out=-jnp.inf)
        return best_of_rows(scores, k)

    return in_blocks(answer, shape, k)


def in_blocks(answer: Callable[[Array], tuple[Array, Array]], shape: tuple[int, int], k: int) -> tuple[Array, Array]:
    """`search` by `answer(rows) -> (ids, scores)` of some queries at a time, that their scores may be held."""
    batch, n_items = shape
    if batch == 0 or n_items == 0:
        return jnp.full((batch, k), -1, jnp.int32), jnp.full((batch, k), -jnp.inf, jnp.float32)
    block = max(1, min(batch, _SCORES_HELD // n_items))

    def one_block(first):
        return answer(jnp.minimum(first + jnp.arange(block, dtype=jnp.int32), batch - 1))

    ids, scores = lax.map(one_block, jnp.arange(0, batch, block, dtype=jnp.int32))
    return ids.reshape(-1, k)[:batch], scores.reshape(-1, k)[:batch]


def masked(
    scores: Array,
    rows: Array,
    seen_indptr: Array,
    seen_indices: Array,
    seen_rows: Array,
    exclude: Array,
    allow: Array,
    *,
    left_out: int | float,
) -> Array:
    """`[block, n_items]` of these queries, with `left_out` at the items that are not to be answered."""
    n_items = scores.shape[1]
    if allow.shape[0]:
        scores = jnp.where(allow[None], scores, left_out)
    here = jnp.arange(len(rows), dtype=jnp.int32)[:, None]
    if exclude.shape[1]:
        out = exclude[rows]
        scores = scores.at[here, jnp.where(out < 0, n_items, out)].set(left_out, mode="drop")
    if seen_indices.shape[0] == 0:
        return scores
    begin, end = seen_indptr[seen_rows[rows]], seen_indptr[seen_rows[rows] + 1]

    def mask(carry):
        offset, scores = carry
        entry = begin[:, None] + offset + jnp.arange(_SEEN_AT_ONCE, dtype=jnp.int32)[None]
        valid = entry < end[:, None]
        out = jnp.where(valid, seen_indices[jnp.where(valid, entry, 0)], n_items)
        return offset + _SEEN_AT_ONCE, scores.at[here, out].set(left_out, mode="drop")

    longest = jnp.max(end - begin)
    return lax.while_loop(lambda carry: carry[0] < longest, mask, (jnp.int32(0), scores))[1]


def _supports(queries, items, *_, k: int) -> str | None:
    if queries.dtype != jnp.float32 or items.dtype != jnp.float32:
        return f"queries of {queries.dtype} and items of {items.dtype} must both be float32"
    return None


OP = Op("top_k", _reference, _supports, numba=top_k_numba.search_rows)


def _dispatched(static, *arguments):
    k, implementation = static
    return dispatch(OP, *arguments, implementation=implementation, k=k)


_search: Any = jax.custom_vjp(_dispatched, nondiff_argnums=(0,))


def _search_forward(static, *arguments):
    ids, scores = _search(static, *arguments)
    return (ids, scores), (arguments[:2], ids)


def _search_backward(static, residuals, cotangent):
    (queries, items), ids = residuals
    found = ids >= 0
    weight = jnp.where(found, cotangent[1], 0.0)[..., None]
    place = jnp.where(found, ids, 0)
    queries_bar = jnp.sum(weight * items[place], axis=1)
    items_bar = jnp.zeros_like(items).at[place].add(weight * queries[:, None, :])
    return queries_bar, items_bar, None, None, None, None, None


_search.defvjp(_search_forward, _search_backward)
