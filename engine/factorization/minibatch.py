"""Stochastic gradient descent by batches, in JAX: gradients of the rows that a batch gathers, which alone are moved."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from ...kernels.csr import CSR, entries
from ...kernels.sgd import Loss, Tables, costs

Optimizer = Literal["sgd", "adagrad", "adam"]
Slots = tuple[Array, ...]


def optimizer_of(name: Optimizer, learning_rate: Any) -> Any:
    """The `optax.GradientTransformation` of that name."""
    import optax

    makers = {"sgd": optax.sgd, "adagrad": optax.adagrad, "adam": optax.adam}
    if name not in makers:
        raise ValueError(f"optimizer {name!r} must be one of {sorted(makers)}")
    return makers[name](learning_rate)


def start_slots(table: Any, name: Optimizer) -> Slots:
    """What the optimizer remembers of each row at the start.

    Args:
        table: Arrays whose first axis are the rows.
        name: Of the optimizer.

    Returns:
        Arrays with the same first axis: none for "sgd", the sum of squares for "adagrad", the number of updates and
        both moments for "adam".
    """
    return tuple(jax.tree.leaves(jax.vmap(optimizer_of(name, 0.0).init)(table)))


def update_rows(
    table: Any, slots: Slots, ids: Int32[Array, " n"], gradients: Any, *, optimizer: Optimizer, learning_rate: Any
) -> tuple[Any, Slots]:
    """One step of an optimizer for the rows `ids`, as if every row had one of its own.

    The gradients of a row that occurs several times are added first. All other rows, and what is remembered of them,
    stay as they are: the moments of "adam" do not decay while a row is away, and its bias correction counts the
    row's own updates.

    Args:
        table: Arrays whose first axis are the rows.
        slots: From `start_slots`, or of the step before.
        ids: Rows; one beyond the table is passed over.
        gradients: Like `table`, the first axis being that of `ids`.
        optimizer: Of `optax`, by name.
        learning_rate: Its step length.

    Returns:
        `(table, slots)`.

    >>> table, slots = update_rows(jnp.ones(3), (), jnp.array([1, 1]), jnp.ones(2), optimizer="sgd", learning_rate=0.25)
    >>> table.tolist()
    [1.0, 0.5, 1.0]
    """
    n, n_rows = ids.shape[0], jax.tree.leaves(table)[0].shape[0]
    order = jnp.argsort(ids)
    ids = ids[order]
    group = jnp.cumsum(jnp.append(False, ids[1:] != ids[:-1]), dtype=jnp.int32)
    rows = jnp.full(n, n_rows, jnp.int32).at[group].set(ids)  # those that no group has are beyond the table
    whole = jax.tree.map(lambda g: jax.ops.segment_sum(g[order], group, n, indices_are_sorted=True), gradients)
    rule = optimizer_of(optimizer, learning_rate)
    structure = jax.tree.structure(jax.eval_shape(rule.init, jax.tree.map(lambda a: a[0], table)))
    mine, remembered = jax.tree.map(lambda a: a.at[rows].get(mode="fill", fill_value=0), (table, slots))
    change, new = jax.vmap(rule.update)(whole, jax.tree.unflatten(structure, remembered), mine)
    table = jax.tree.map(lambda a, c: a.at[rows].add(c, mode="drop"), table, change)
    return table, tuple(
        slot.at[rows].set(value, mode="drop") for slot, value in zip(slots, jax.tree.leaves(new), strict=True)
    )


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
        optimizer: Of `update_rows`.
        tables, rows, order, negatives, loss, learning_rate, l2, mean, biases: Of `kernels.sgd.sweep`.

    Returns:
        `(tables, slots, total)`, the total being the sum of the losses, without the regularization.
    """
    n_users, n_items = tables.users.shape[0], tables.items.shape[0]
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
        by_user, user_slots = update_rows(by_user, user_slots, jnp.where(met[:, 0], users, n_users), user_rows, **rule)
        by_item, item_slots = update_rows(by_item, item_slots, jnp.where(met, items, n_items).ravel(), flat, **rule)
        tables = Tables(by_user[0], by_item[0], by_user[1], by_item[1])
        return (tables, (user_slots, item_slots)), total

    def batched(a, fill):
        padding = [(0, -a.shape[0] % batch_size)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, padding, constant_values=fill).reshape(-1, batch_size, *a.shape[1:])

    batches = batched(user_of, 0), batched(item_of, -1), batched(values, 0)
    (tables, slots), totals = lax.scan(step, (tables, slots), batches)
    return tables, slots, jnp.sum(totals)
