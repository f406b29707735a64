"""One pass of stochastic gradient descent over sampled interactions, one after the other."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from . import sgd_numba
from .csr import CSR
from .op import Implementation, Op, dispatch

Loss = Literal["squared", "logistic", "bpr", "softmax"]
_CHUNK = 1024  # entries in a block of a lock-free sweep


class Tables(NamedTuple):
    """What is learned: `score(u, i) = mean + user_bias[u] + item_bias[i] + users[u] . items[i]`."""

    users: Float[Array, "n_users rank"]
    items: Float[Array, "n_items rank"]
    user_bias: Float[Array, " n_users"]
    item_bias: Float[Array, " n_items"]


def sweep(
    tables: Tables,
    rows: CSR,
    order: Int32[Array, " n"],
    negatives: Int32[Array, "n m"],
    bounds: Int32[Array, "stages blocks_1"] | None = None,
    *,
    loss: Loss,
    learning_rate: Any,
    l2: Any,
    mean: Any = 0.0,
    biases: bool = True,
    hogwild: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Tables, Float[Array, ""]]:
    """Updates the tables by the entries `order` of `rows`, in that order.

    For each entry, with user u, item i and value r, and `s` the score:

    - "squared": down the gradient of `(r - s(u, i))^2 / 2`;
    - "logistic": of `softplus(-s(u, i))`, then of `softplus(s(u, j))` for each negative j;
    - "bpr": of `softplus(s(u, j) - s(u, i))` for each negative j;
    - "softmax": of `log(1 + sum_j exp(s(u, j) - s(u, i)))` over all negatives j at once;

    plus `l2 / 2` times the squares of all that takes part. Rows of both sides move at once.

    Args:
        tables: Where to begin.
        rows: Users' interactions.
        order: Entries of `rows`, in `[0, nnz)`.
        negatives: Items for each of them; -1 is passed over.
        bounds: Where the entries fall into stages, one after the other, and those into blocks that share no row and no
            column, so that several threads may work them off at once: block b of stage t is
            `order[bounds[t, b] : bounds[t, b + 1]]`. See `sampling.stages`. One block of all entries if None.
        loss: See above.
        learning_rate: Step length.
        l2: Regularization.
        mean: Of the scores; it is not learned.
        biases: Whether biases are learned.
        hogwild: Several threads at once on blocks that do share rows, without locks (Niu, Recht et al. 2011): faster,
            and no two runs alike. Only without `bounds`.
        implementation: See `kernels.op.dispatch`. The reference does the same, one entry at a time.

    Returns:
        `(tables, total)`: the new tables, and the sum of the losses met on the way, without the regularization.

    >>> one = CSR(jnp.array([0, 1], jnp.int32), jnp.array([0], jnp.int32), jnp.array([3.0]))
    >>> start = Tables(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.zeros(1), jnp.zeros(1))
    >>> first, none = jnp.zeros(1, jnp.int32), jnp.zeros((1, 0), jnp.int32)
    >>> new, total = sweep(start, one, first, none, loss="squared", learning_rate=0.5, l2=0.0, biases=False)
    >>> new.users.tolist(), total.item()
    ([[2.0]], 2.0)
    """
    if loss not in get_args(Loss):
        raise ValueError(f"kernels.sgd: {loss=} must be one of {get_args(Loss)}")
    if bounds is None:
        ends = [*range(0, order.shape[0], _CHUNK if hogwild else max(order.shape[0], 1)), order.shape[0]]
        bounds = jnp.asarray([ends], jnp.int32)
    elif hogwild:
        raise ValueError("kernels.sgd: blocks given by bounds need no hogwild")
    numbers = jnp.stack([jnp.asarray(v, jnp.float32) for v in (learning_rate, l2, mean)])
    new, total = dispatch(
        OP,
        *tables,
        *rows,
        order,
        negatives,
        bounds,
        numbers,
        implementation=implementation,
        loss=loss,
        biases=biases,
    )
    return Tables(*new), total


def squared(score: Any, value: Any) -> Any:
    """The cost of a score where `value` was observed."""
    return 0.5 * (value - score) ** 2


def liked(score: Any) -> Any:
    """The logistic cost of a score that should be high: minus the logarithm of its sigmoid."""
    return jax.nn.softplus(-score)


def costs(
    loss: Loss,
    scores: Float[Array, "batch m_plus_1"],
    values: Float[Array, " batch"],
    met: Float[Array, "batch m_plus_1"],
) -> Float[Array, " batch"]:
    """The losses of `sweep`, of entries in whose lines the scores of the item and of its negatives stand.

    `met` is 1 where there is such an item, 0 where not.
    """
    first, others = scores[:, 0], scores[:, 1:]
    if loss == "bpr":
        return jnp.sum(met[:, 1:] * liked(first[:, None] - others), axis=1)
    if loss == "softmax":
        above = jnp.where(met[:, 1:] > 0, others - first[:, None], -jnp.inf)
        return jax.nn.logsumexp(jnp.pad(above, [(0, 0), (1, 0)]), axis=1)
    own = squared(first, values) if loss == "squared" else liked(first)
    return met[:, 0] * own + jnp.sum(met[:, 1:] * liked(-others), axis=1)


def _reference(
    users,
    items,
    user_bias,
    item_bias,
    indptr,
    indices,
    values,
    order,
    negatives,
    bounds,
    numbers,
    *,
    loss: str,
    biases: bool,
):
    learning_rate, l2, mean = numbers
    row_of = jnp.searchsorted(indptr, order, side="right").astype(jnp.int32) - 1
    value_of = values[order if values.shape[0] > 1 else jnp.zeros_like(order)]

    def move(tables, u, plus, minus, valid, cost_of):
        """One step up `pull` times the gradient of the score of `plus`, less that of `minus` where there is one."""
        users, items, user_bias, item_bias = tables
        p, q, b = users[u], items[plus], item_bias[plus]
        if minus is not None:
            q, b = q - items[minus], b - item_bias[minus]
        score = jnp.dot(p, q, precision=lax.Precision.HIGHEST) + b
        if minus is None:
            score = score + mean + user_bias[u]
        cost, slope = jax.value_and_grad(cost_of)(score)
        pull = -slope
        rate = jnp.where(valid, learning_rate, 0.0)
        bias_rate = rate if biases else 0.0
        users = users.at[u].add(rate * (pull * q - l2 * p))
        items = items.at[plus].add(rate * (pull * p - l2 * items[plus]))
        item_bias = item_bias.at[plus].add(bias_rate * (pull - l2 * item_bias[plus]))
        if minus is None:
            user_bias = user_bias.at[u].add(bias_rate * (pull - l2 * user_bias[u]))
        else:
            items = items.at[minus].add(rate * (-pull * p - l2 * items[minus]))
            item_bias = item_bias.at[minus].add(bias_rate * (-pull - l2 * item_bias[minus]))
        return (users, items, user_bias, item_bias), jnp.where(valid, cost, 0.0)

    def choice(tables, u, i, others):
        """One step down the "softmax" of the item among its negatives."""
        users, items, user_bias, item_bias = tables
        ids, met = jnp.append(i, jnp.maximum(others, 0)), jnp.append(True, others >= 0)
        p, q = users[u], items[ids]
        scores = jnp.matmul(q, p, precision=lax.Precision.HIGHEST) + item_bias[ids]

        def cost_of(scores):
            return costs("softmax", scores[None], jnp.zeros(1), met[None].astype(jnp.float32))[0]

        cost, slopes = jax.value_and_grad(cost_of)(scores)

        def contender(carry, sample):
            items, item_bias = carry
            j, slope, valid = sample
            rate = jnp.where(valid, learning_rate, 0.0)
            items = items.at[j].add(-rate * (slope * p + l2 * items[j]))
            item_bias = item_bias.at[j].add(-(rate if biases else 0.0) * (slope + l2 * item_bias[j]))
            return (items, item_bias), None

        (items, item_bias), _ = lax.scan(contender, (items, item_bias), (ids, slopes, met))
        slope = jnp.matmul(slopes, q, precision=lax.Precision.HIGHEST)
        return (users.at[u].add(-learning_rate * (slope + l2 * p)), items, user_bias, item_bias), cost

    def entry(tables, sample):
        u, i, value, others = sample
        if loss == "softmax":
            return choice(tables, u, i, others)
        total = jnp.float32(0)
        if loss != "bpr":
            cost_of = functools.partial(squared, value=value) if loss == "squared" else liked
            tables, total = move(tables, u, i, None, True, cost_of)
        if loss == "squared":
            return tables, total

        def negative(tables, j):
            place = jnp.maximum(j, 0)
            if loss == "bpr":
                return move(tables, u, i, place, j >= 0, liked)
            return move(tables, u, place, None, j >= 0, lambda s: liked(-s))

        tables, paid = lax.scan(negative, tables, others)
        return tables, total + jnp.sum(paid)

    new, totals = lax.scan(entry, (users, items, user_bias, item_bias), (row_of, indices[order], value_of, negatives))
    return new, jnp.sum(totals)


def _supports(users, items, *_, **static) -> str | None:
    if users.shape[1] > sgd_numba.MAX_RANK:
        return f"rank {users.shape[1]} is above {sgd_numba.MAX_RANK}"
    return None


OP = Op("sgd", _reference, _supports, numba=sgd_numba.sweep)
