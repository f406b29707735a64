"""Vectors of new users for models of a ranking loss: the loss of their own history at its minimum, items held fixed."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ...kernels import least_squares
from ...kernels.csr import CSR, contains
from ...kernels.op import Implementation
from ..data.interactions import Interactions
from ..factorization.algorithm import Factors
from ..factorization.objectives import LogisticSgd, RankingSgd, SoftmaxSgd

_NEGATIVES = 32  # for each interaction
_HALVINGS = 6
_AT_ONCE = 1 << 24  # numbers of the differences that are held together


def fold_in_by_ranking(
    model: Factors, history: CSR, key: PRNGKeyArray, *, iterations: int = 8, implementation: Implementation = "auto"
) -> tuple[Float[Array, "batch rank"], Float[Array, " batch"]]:
    """Vectors and biases of new users: where the training loss of their interactions and l2 are least.

    The loss is a sum of `softplus(-s)` with s linear in the vector, and convex: Newton's method, each step a weighted
    least squares, halved where a whole one would go too far. Negatives come from one random sequence of items, by the
    place of an interaction in its history, so that a newcomer gets the same alone and among others.

    Args:
        model: Factors of `bpr`, `logistic_mf` or `softmax_mf`.
        history: A row for each newcomer, ascending.
        key: Of the sequence.
        iterations: Newton steps; the last of 8 hardly moves a ranking.
        implementation: Of the kernel.

    Raises:
        ValueError: An l2 of 0, with which the minimum may lie at infinity.

    Source: Nelder, Wedderburn 1972, "Generalized Linear Models": iterative weighted least squares.
    """
    objective = _objective_of(model)
    if not isinstance(objective.l2, Tracer) and not float(objective.l2) > 0:
        raise ValueError("l2=0: the vector of a newcomer may have no finite minimum; train with l2 above 0")
    minimise = functools.partial(_minimised, iterations=iterations, implementation=implementation)
    if isinstance(history.indices, Tracer):
        return minimise(model, history, key)
    parts = [tuple(part[:n_rows] for part in minimise(model, block, key)) for n_rows, block in _blocks(history, model)]
    vectors, biases = zip(*parts, strict=True)
    return jnp.concatenate(vectors), jnp.concatenate(biases)


def _objective_of(model: Factors) -> RankingSgd:
    if not isinstance(model.objective, RankingSgd):
        raise ValueError(f"{type(model.objective).__name__} is not the objective of a ranking loss")
    return model.objective


def _blocks(history: CSR, model: Factors) -> Iterator[tuple[int, CSR]]:
    """Runs of newcomers whose differences fit the memory, with their number, in shapes that are powers of two."""
    indptr = np.asarray(history.indptr, np.int64)
    x = Interactions(indptr, np.asarray(history.indices), model.n_items)
    longest, fits = int(np.diff(indptr).max()), _AT_ONCE // (_NEGATIVES * (model.items.shape[-1] + 1))
    blocks = list(x.blocks(max(longest, fits)))
    ends = [first for first, _ in blocks[1:]] + [x.n_users]
    for (first, block), end in zip(blocks, ends, strict=True):
        rows, entries = (1 << (max(n, 1) - 1).bit_length() for n in (block.n_rows, block.nnz))
        starts = np.pad(np.asarray(block.indptr), (0, rows - block.n_rows), mode="edge")
        indices = np.pad(np.asarray(block.indices), (0, entries - block.nnz))
        yield end - first, CSR(jnp.asarray(starts), jnp.asarray(indices), jnp.ones(1, jnp.float32))


@functools.partial(jax.jit, static_argnames=("iterations", "implementation"))
def _minimised(
    model: Factors, rows: CSR, key: PRNGKeyArray, *, iterations: int, implementation: Implementation
) -> tuple[Array, Array]:
    objective, high = _objective_of(model), lax.Precision.HIGHEST
    entry = jnp.arange(rows.nnz, dtype=jnp.int32)
    row = jnp.clip(jnp.searchsorted(rows.indptr, entry, side="right").astype(jnp.int32) - 1, 0, rows.n_rows - 1)
    sequence = _sequence(key, objective.popularity, model.n_items)
    place = (entry - rows.indptr[row])[:, None] * _NEGATIVES + jnp.arange(_NEGATIVES, dtype=jnp.int32)[None]
    others = sequence[place % sequence.shape[0]]
    counts = jnp.where(contains(rows.indptr, rows.indices, row, others), 0.0, 1.0 / _NEGATIVES)
    own, other = model.items[rows.indices][:, None], model.items[others]
    bias = jnp.zeros(model.n_items, jnp.float32) if model.item_bias is None else model.item_bias
    mean = 0.0 if model.mean is None else model.mean
    own_bias, other_bias = bias[rows.indices][:, None], bias[others]
    if isinstance(objective, LogisticSgd):
        ones = jnp.full((*others.shape, 1), objective.user_biases)
        own, other = (jnp.concatenate([a, ones[:, : a.shape[1]]], axis=2) for a in (own, other))
        directions = jnp.concatenate([own, -other], axis=1)
        offsets = jnp.concatenate([own_bias + mean, -(other_bias + mean)], axis=1)
        counts = jnp.concatenate([jnp.ones_like(own_bias), objective.negatives * counts], axis=1)
    else:
        directions, offsets = own - other, own_bias - other_bias
        if isinstance(objective, SoftmaxSgd):
            # One more line for each interaction, which takes what its negatives have in common off the curvature.
            last = [(0, 0), (0, 1)]
            directions, offsets = jnp.pad(directions, [*last, (0, 0)]), jnp.pad(offsets, last)
            counts = jnp.pad(objective.negatives * counts, last)
    n_rows, (_, each, width) = rows.n_rows, directions.shape
    table, offsets, counts = directions.reshape(-1, width), offsets.ravel(), counts.ravel()
    starts, row = rows.indptr * each, jnp.repeat(row, each)
    counts = jnp.where(jnp.arange(counts.shape[0]) < starts[-1], counts, 0.0)
    if isinstance(objective, SoftmaxSgd):
        l2 = objective.l2 * jnp.diff(rows.indptr).astype(jnp.float32)
    else:
        l2 = objective.l2 * jax.ops.segment_sum(counts, row, n_rows)

    def costs(scores):
        """The loss of each number of the table; that of a softmax stands at the first negative."""
        if not isinstance(objective, SoftmaxSgd):
            return counts * jax.nn.softplus(-scores)
        return jnp.zeros_like(scores).at[::each].set(_surprise(scores.reshape(-1, each), counts.reshape(-1, each)))

    def loss(x, scores):
        return jax.ops.segment_sum(costs(scores), row, n_rows) + l2 / 2 * jnp.sum(x * x, axis=1)

    def improve(_, x):
        product = jnp.einsum("nw,nw->n", table, x[row], precision=high)
        if isinstance(objective, SoftmaxSgd):
            scores = (product + offsets).reshape(-1, each)
            surprise = _surprise(scores, counts.reshape(-1, each))
            missed = counts * jnp.exp(-scores - surprise[:, None]).ravel()
            common = jnp.einsum("em,emw->ew", missed.reshape(-1, each), directions, precision=high)
            lines = directions.at[:, -1].set(common).reshape(-1, width)
            curvature = missed.at[each - 1 :: each].set(jnp.where(entry < rows.indptr[-1], -1.0, 0.0))
            aimed = curvature * jnp.einsum("nw,nw->n", lines, x[row], precision=high) + missed
        else:
            lines = table
            missed = jax.nn.sigmoid(-product - offsets)
            curvature = counts * missed * (1 - missed)
            aimed = curvature * product + counts * missed
        newton = least_squares.solve(
            starts,
            jnp.arange(counts.shape[0], dtype=jnp.int32),
            curvature,
            aimed,
            lines,
            jnp.zeros((width, width), jnp.float32),
            jnp.maximum(l2, jnp.finfo(jnp.float32).tiny),  # of rows without entries
            solver="cholesky",
            implementation=implementation,
        ).x
        further = jnp.einsum("nw,nw->n", table, newton[row], precision=high) - product

        def shorter(halvings, found):
            best, least = found
            step = 0.5**halvings
            candidate = x + step * (newton - x)
            cost = loss(candidate, product + step * further + offsets)
            return jnp.where((cost < least)[:, None], candidate, best), jnp.minimum(cost, least)

        best, _ = lax.fori_loop(0, _HALVINGS, shorter, (x, loss(x, product + offsets)))
        return best

    x = lax.fori_loop(0, iterations, improve, jnp.zeros((n_rows, width), jnp.float32))
    rank = model.items.shape[1]
    return x[:, :rank], x[:, rank] if width > rank else jnp.zeros(n_rows, jnp.float32)


def _surprise(scores: Array, counts: Array) -> Array:
    """`log(1 + sum counts exp(-scores))` of each line."""
    weighted = jnp.where(counts > 0, jnp.log(jnp.where(counts > 0, counts, 1.0)) - scores, -jnp.inf)
    return jax.nn.logsumexp(jnp.pad(weighted, [(0, 0), (1, 0)]), axis=1)


def _sequence(key: PRNGKeyArray, popularity: Array | None, n_items: int) -> Int32[Array, " n"]:
    """Items in random order, each as often as its share of the draws, as evenly as can be."""
    order_key, start_key = jax.random.split(key)
    if popularity is None:
        return jax.random.permutation(order_key, n_items).astype(jnp.int32)
    n = max(n_items, 1 << 14)
    ends = jnp.cumsum(popularity / jnp.sum(popularity))
    points = (jnp.arange(n, dtype=jnp.float32) + jax.random.uniform(start_key)) / n
    drawn = jnp.minimum(jnp.searchsorted(ends, points, side="right"), n_items - 1)
    return jax.random.permutation(order_key, drawn.astype(jnp.int32))
