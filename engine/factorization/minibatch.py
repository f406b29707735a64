"""Stochastic gradient descent by batches, in JAX: gradients of the rows that a batch gathers, which alone are moved."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from ...kernels import embedding
from ...kernels.csr import CSR, entries
from ...kernels.embedding import Optimizer, Slots, update_rows
from ...kernels.sgd import Loss, Tables, costs


def start_slots(tables: tuple[Array, Array], optimizer: Optimizer) -> Slots:
    """What the optimizer remembers of the vectors of one side, then of its biases."""
    vectors, biases = tables
    return *embedding.start_slots(vectors, optimizer), *embedding.start_slots(biases, optimizer)


def _update(
    tables: tuple[Array, Array], slots: Slots, ids: Array, gradients: tuple[Array, Array], **rule: Any
) -> tuple[tuple[Array, Array], Slots]:
    """`embedding.update_rows` of the vectors of one side and of its biases."""
    half = len(slots) // 2
    (vectors, of_vectors), (biases, of_biases) = (
        update_rows(table, own, ids, gradient, **rule)
        for table, own, gradient in zip(tables, (slots[:half], slots[half:]), gradients, strict=True)
    )
    return (vectors, biases), of_vectors + of_biases


def sweep(
    tables: Tables,
    slots: tuple[Slots, Slots],
    rows: CSR,
    order: Int32[Array, " n"],
    negatives: Int32[Array, "n m"],
    *,
    loss: Loss,
    batch_size: int,
    optimizer: Optimizer,
    learning_rate: Any,
    l2: Any,
    mean: Any,
    biases: bool,
) -> tuple[Tables, tuple[Slots, Slots], Float[Array, ""]]:
    """As `kernels.sgd.sweep`, but `batch_size` entries at once: one step down the sum of their gradients.

    Args:
        slots: From `start_slots`, of the users and of the items.
        batch_size: Entries; the last batch takes what is left.
        optimizer: Of `kernels.embedding.update_rows`.
        tables, rows, order, negatives, loss, learning_rate, l2, mean, biases: Of `kernels.sgd.sweep`.

    Returns:
        `(tables, slots, total)`, the total being the sum of the losses, without the regularization.
    """
    values = rows.values[order if rows.values.shape[0] > 1 else jnp.zeros_like(order)]
    user_of, item_of = entries(rows)[0][order], jnp.concatenate([rows.indices[order][:, None], negatives], axis=1)
    own = 1.0 if loss in ("squared", "logistic") else 0.0  # whether users' biases and the mean are part of the score

    def objective(gathered, values, met):
        (p, of_user), (q, of_item) = gathered
        scores = jnp.einsum("bd,bmd->bm", p, q, precision=lax.Precision.HIGHEST) + of_item
        total = jnp.sum(costs(loss, scores + own * (of_user[:, None] + mean), values, met))
        # Each pair of a user with an item, or with an item and a negative, counts the squares of all that it holds.
        # For a softmax it is one term, of all that takes part.
        terms = met[:, 0] if loss == "softmax" else jnp.sum(met[:, 1:] if loss == "bpr" else met, axis=1)
        of_items = jnp.concatenate([terms[:, None], met[:, 1:]], axis=1) if loss == "bpr" else met
        squares = jnp.sum(terms * (jnp.sum(p * p, axis=1) + own * of_user**2))
        squares += jnp.sum(of_items * (jnp.sum(q * q, axis=2) + of_item**2))
        return total + 0.5 * l2 * squares, total

    def step(state, batch):
        tables, (user_slots, item_slots) = state
        users, items, values = batch
        met = items >= 0
        by_user, by_item = (tables.users, tables.user_bias), (tables.items, tables.item_bias)
        gathered = jax.tree.map(lambda a: a[users], by_user), jax.tree.map(lambda a: a[items], by_item)
        (user_rows, item_rows), total = jax.grad(objective, has_aux=True)(gathered, values, met.astype(jnp.float32))
        if not biases:
            user_rows, item_rows = ((vectors, jnp.zeros_like(bias)) for vectors, bias in (user_rows, item_rows))
        rule = {"optimizer": optimizer, "learning_rate": learning_rate}
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), item_rows)
        by_user, user_slots = _update(by_user, user_slots, jnp.where(met[:, 0], users, -1), user_rows, **rule)
        by_item, item_slots = _update(by_item, item_slots, items.ravel(), flat, **rule)
        tables = Tables(by_user[0], by_item[0], by_user[1], by_item[1])
        return (tables, (user_slots, item_slots)), total

    def batched(a, fill):
        padding = [(0, -a.shape[0] % batch_size)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, padding, constant_values=fill).reshape(-1, batch_size, *a.shape[1:])

    batches = batched(user_of, 0), batched(item_of, -1), batched(values, 0)
    (tables, slots), totals = lax.scan(step, (tables, slots), batches)
    return tables, slots, jnp.sum(totals)
