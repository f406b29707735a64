"""`kernels.embedding` in `jax.numpy`: what its implementations mean, on every platform."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Those of optax, whose optimizers these are.
ADAGRAD_START, ADAGRAD_EPSILON = 0.1, 1e-7
ADAM_DECAYS, ADAM_EPSILON = (0.9, 0.999), 1e-8


def lookup(table, ids):
    """The reference of `embedding.LOOKUP`."""
    # Negative ones would count from the end, those beyond it would be clipped to it.
    rows = table.at[jnp.where(ids < 0, table.shape[0], ids)].get(mode="fill", fill_value=jnp.nan)
    return jnp.where((ids < 0)[:, None], jnp.zeros_like(rows), rows)


def lookup_gradient(cotangent, ids, *, n_rows: int, dtype):
    """The reference of `embedding.LOOKUP_GRADIENT`."""
    sums = jnp.zeros((n_rows, cotangent.shape[1]), jnp.float32)
    ids = jnp.where(ids < 0, n_rows, ids)
    return sums.at[ids].add(cotangent.astype(jnp.float32), mode="drop").astype(dtype)


def pool(table, indptr, indices, values):
    """The reference of `embedding.POOL`."""
    n_bags = indptr.shape[0] - 1
    bag, ids, weights = _entries(indptr, indices, values)
    gathered = lookup(table, ids).astype(jnp.float32)
    sums = jax.ops.segment_sum(weights[:, None] * gathered, bag, n_bags)
    return sums, jax.ops.segment_sum(weights, bag, n_bags)


def _entries(indptr, indices, values):
    """Bag, row and weight of each entry; one that does not count is in a bag beyond all, and dropped there."""
    n_bags, entry = indptr.shape[0] - 1, jnp.arange(indices.shape[0], dtype=jnp.int32)
    bag = jnp.searchsorted(indptr, entry, side="right").astype(jnp.int32) - 1
    counts = (indices >= 0) & (bag >= 0) & (bag < n_bags)
    weights = jnp.where(counts, jnp.broadcast_to(values, indices.shape), 0.0)
    return jnp.where(counts, bag, n_bags), jnp.where(counts, indices, -1), weights


def table_gradient(cotangent, indptr, indices, values, *, n_rows: int, dtype):
    """The reference of `embedding.TABLE_GRADIENT`."""
    table = jax.ShapeDtypeStruct((n_rows, cotangent.shape[1]), dtype)
    return jax.linear_transpose(lambda table: pool(table, indptr, indices, values)[0], table)(cotangent)[0]


def weight_gradient(table, indptr, indices, values, cotangent, of_totals):
    """The reference of `embedding.WEIGHT_GRADIENT`."""
    pooled = jax.linear_transpose(lambda weights: pool(table, indptr, indices, weights), values)
    return pooled((cotangent, of_totals))[0]


def update_bags(table, indptr, indices, values, gradients, learning_rate, *slots, optimizer: str):
    """The reference of `embedding.UPDATE_BAGS`."""
    bag, ids, weights = _entries(indptr, indices, values)
    of_entries = weights[:, None] * gradients.at[bag].get(mode="fill", fill_value=0).reshape(ids.shape[0], -1)
    of_entries = of_entries.reshape(ids.shape + table.shape[1:])
    return update_rows(table, ids, of_entries, learning_rate, *slots, optimizer=optimizer)


def update_rows(table, ids, gradients, learning_rate, *slots, optimizer: str):
    """The reference of `embedding.UPDATE`."""
    n, n_rows = ids.shape[0], table.shape[0]
    if n == 0:
        return table, *slots
    ids = jnp.where((ids >= 0) & (ids < n_rows), ids, n_rows)
    order = jnp.argsort(ids)
    ids = ids[order]
    group = jnp.cumsum(jnp.append(False, ids[1:] != ids[:-1]), dtype=jnp.int32)
    rows = jnp.full(n, n_rows, jnp.int32).at[group].set(ids)  # those that no group has are beyond the table
    whole = jax.ops.segment_sum(gradients[order].astype(jnp.float32), group, n, indices_are_sorted=True)
    mine, *remembered = (a.at[rows].get(mode="fill", fill_value=0) for a in (table, *slots))
    step, remembered = _RULES[optimizer](whole, *remembered)
    mine = (mine.astype(jnp.float32) - learning_rate * step).astype(table.dtype)
    return tuple(
        old.at[rows].set(new, mode="drop") for old, new in zip((table, *slots), (mine, *remembered), strict=True)
    )


def _sgd(gradient):
    return gradient, ()


def _adagrad(gradient, squares):
    squares = squares + gradient**2
    return gradient / jnp.sqrt(squares + ADAGRAD_EPSILON), (squares,)


def _rowwise_adagrad(gradient, squares):
    squares = squares + jnp.mean(gradient.reshape(len(gradient), -1) ** 2, axis=1)
    root = jnp.sqrt(squares + ADAGRAD_EPSILON)
    return gradient / _like_rows(root, gradient), (squares,)


def _adam(gradient, count, mean, squares):
    (keep, keep_square), count = ADAM_DECAYS, count + 1
    mean = keep * mean + (1 - keep) * gradient
    squares = keep_square * squares + (1 - keep_square) * gradient**2
    corrected, corrected_squares = (
        moment / _like_rows(1 - decay ** count.astype(jnp.float32), gradient)
        for moment, decay in ((mean, keep), (squares, keep_square))
    )
    return corrected / (jnp.sqrt(corrected_squares) + ADAM_EPSILON), (count, mean, squares)


_RULES = {"sgd": _sgd, "adagrad": _adagrad, "rowwise_adagrad": _rowwise_adagrad, "adam": _adam}


def _like_rows(numbers, rows):
    return numbers.reshape(-1, *[1] * (rows.ndim - 1))
