"""What the programs of `kernels.quantized_rows` in Pallas share: scores of a tile of items, and the best of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from . import top_k
from .half_bytes import unpacked
from .int8 import something

_NOBODY = 2**30  # ids from here on are of places in a list that no item is in
_COLUMNS = 8  # exact ones, at most, for each is a step of its own


class Queries(NamedTuple):
    """Arrays, or what a program has of them.

    Attributes:
        codes: int8 `[b, width]`.
        scales: `[b]`.
        totals: `[b]`, the sum of each query's numbers; None where items have no offsets.
        columns: Those for the items' exact ones, `[b]` each.
    """

    codes: Any
    scales: Any
    totals: Any
    columns: tuple[Any, ...]


class Items(NamedTuple):
    """Arrays, or what a program has of them.

    Attributes:
        codes: int8 `[n, width]`: half bytes are unpacked before.
        scales: `[n]`.
        offsets: `[n]` or None.
        exact: `[n]` each.
    """

    codes: Any
    scales: Any
    offsets: Any
    exact: tuple[Any, ...]


def supports(most: int, deepest: int) -> Callable[..., str | None]:
    """Why a program that keeps so many answers of a query, of as many columns, cannot take these arrays, or None."""

    def reason(codes: Any, scales: Any, columns: Any, item_codes: Any, *_: Any, k: int) -> str | None:
        if k > most:
            return f"{k=} is more than the {most} answers that are kept"
        if codes.shape[1] > deepest:
            return f"{codes.shape[1]} columns are more than {deepest}"
        if columns.shape[1] > _COLUMNS:
            return f"{columns.shape[1]} exact columns are more than {_COLUMNS}"
        return something(codes, item_codes)

    return reason


def search_blocks(
    lists_of: Callable[[Queries, Items, Array, int], tuple[Array, Array]], sizes: Sequence[int], arguments: Any, k: int
) -> tuple[Array, Array]:
    """The answer of the operation, by a program that keeps lists of the best.

    Args:
        lists_of: `(queries, items, allowed, size) -> (ids, scores)`, lists `[b, any]` in any order. The number of
            queries is a multiple of `size`; `allowed` is int8 `[b, n_items]`, 0 for what is not to be answered.
        sizes: How many queries the program can take at a time, in rising order.
        arguments: Those of the operation.
        k: See there.
    """
    (codes, scales, columns, item_codes, item_scales, offsets, exact), masks = arguments[:7], arguments[7:]
    batch, n_items = codes.shape[0], item_codes.shape[0]
    item_codes = unpacked(item_codes, codes.shape[1])
    items = Items(item_codes, item_scales, offsets if offsets.shape[0] else None, tuple(exact.T))

    def answer(rows):
        size = next((size for size in sizes if size >= len(rows)), sizes[-1])

        def padded(array):
            return jnp.pad(array, [(0, -len(rows) % size)] + [(0, 0)] * (array.ndim - 1))

        own, scale = codes[rows], scales[rows]
        totals = jnp.sum(own, axis=1, dtype=jnp.int32).astype(jnp.float32) * scale
        queries = Queries(
            padded(own),
            padded(scale),
            padded(totals) if offsets.shape[0] else None,
            tuple(padded(column) for column in columns[rows].T),
        )
        allowed = padded(top_k.masked(jnp.ones((len(rows), n_items), jnp.int8), rows, *masks, left_out=0))
        ids, found = (a[: len(rows)] for a in lists_of(queries, items, allowed, size))
        below, ids = (a[:, :k] for a in lax.sort((-found, ids), num_keys=2))
        return jnp.where(below == jnp.inf, -1, ids), -below

    return top_k.in_blocks(answer, (batch, n_items), k)


def scores_of(sums: Array, queries: Queries, items: Items, allowed: Array) -> Array:
    """Those of a tile, `[b, n]`, -inf for what is not to be answered.

    Args:
        sums: Of products of codes.
        queries, items: Numbers of rows and of columns, in shapes that go with each other's.
        allowed: Of what can be answered.
    """
    found = sums.astype(jnp.float32) * (queries.scales * items.scales)
    if items.offsets is not None:
        found += queries.totals * items.offsets
    for column, exact in zip(queries.columns, items.exact, strict=True):
        found += column * exact
    return jnp.where(allowed & (found == found), found, -jnp.inf)


def empty_list(places: Array) -> tuple[Array, Array]:
    """Ids and scores of lists that nothing is in yet, of places numbered in each row."""
    # Both are made of the places, so that on a GPU the same thread has what belongs together.
    return places + _NOBODY, jnp.where(places < 0, 0.0, -jnp.inf)


def keep_best(scores: Array, first: Any, ids: Array, kept: Array, places: Array, in_list: Array) -> tuple[Array, Array]:
    """Lists of the best so far, `(ids, scores)`, with those of a tile, whose ids are above all in them.

    The best score of each query's tile takes the place of the worst in its list as long as it is above that: k times
    in the first tile, and ever more rarely afterwards, since few items are among the k best of all before them.

    Args:
        scores: `[b, n]`.
        first: The id of the first.
        ids, kept: `[b, length]`.
        places: Columns of the scores, numbered in each row.
        in_list: Which places of the lists are there, the first k.
    """

    def spread(numbers, like):
        return lax.broadcast_in_dim(numbers, like.shape, (0,))

    def ends(scores, kept):
        best, worst = jnp.max(scores, axis=1), -jnp.max(jnp.where(in_list, -kept, -jnp.inf), axis=1)
        return best, worst, jnp.max(jnp.where(best > worst, 1, 0))

    def exchange(carry):
        scores, ids, kept, best, worst, _ = carry
        where = -jnp.max(jnp.where(scores == spread(best, scores), -places, -scores.shape[1]), axis=1)
        # Of equal ones in the list that of the highest id goes.
        last = jnp.max(jnp.where(in_list & (kept == spread(worst, kept)), ids, -1), axis=1)
        gone = (ids == spread(last, ids)) & (spread(best, kept) > spread(worst, kept))
        ids, kept = jnp.where(gone, spread(first + where, ids), ids), jnp.where(gone, spread(best, kept), kept)
        scores = jnp.where(places == spread(where, scores), -jnp.inf, scores)
        return scores, ids, kept, *ends(scores, kept)

    carry = scores, ids, kept, *ends(scores, kept)
    _, ids, kept, *_ = lax.while_loop(lambda carry: carry[-1] > 0, exchange, carry)
    return ids, kept
