"""One pass of stochastic gradient descent for SVD++, user by user."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from . import svd_plus_plus_numba
from .csr import CSR
from .op import Implementation, Op, dispatch


class Tables(NamedTuple):
    """What is learned: `score(u, i) = mean + user_bias[u] + item_bias[i] + items[i] . (users[u] + feedback of u)`.

    The feedback of u is the sum of `feedback[j]` over the items j it met, over the root of their number.
    """

    users: Float[Array, "n_users rank"]
    items: Float[Array, "n_items rank"]
    feedback: Float[Array, "n_items rank"]
    user_bias: Float[Array, " n_users"]
    item_bias: Float[Array, " n_items"]


def sweep(
    tables: Tables,
    rows: CSR,
    order: Int32[Array, " n_users"],
    *,
    learning_rate: Any,
    l2: Any,
    mean: Any,
    implementation: Implementation = "auto",
) -> tuple[Tables, Float[Array, ""]]:
    """Updates the tables by all ratings: the rows in this order, the entries of each as they are stored.

    For each rating r goes down the gradient of `(r - s)^2 / 2` plus `l2 / 2` times the squares of all that takes part.
    Between two ratings of a user, the feedback vectors of all its items shrink by the same factor and gain the same
    vector: so their sum has a recurrence, and each is written once, when the user is done. That is the algorithm of
    the source to the letter, at a cost that grows with the ratings, not with the squares of their number a user.

    Args:
        tables: Where to begin.
        rows: Users' ratings.
        order: Each user once.
        learning_rate: Step length.
        l2: Regularization.
        mean: Of the scores; it is not learned.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `(tables, total)`: the new tables, and half the sum of the squared errors met on the way.

    Source: Koren 2008, "Factorization Meets the Neighborhood", section 4.

    >>> one = CSR(jnp.array([0, 1], jnp.int32), jnp.array([0], jnp.int32), jnp.array([3.0]))
    >>> start = Tables(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.zeros(1), jnp.zeros(1))
    >>> new, total = sweep(start, one, jnp.zeros(1, jnp.int32), learning_rate=0.5, l2=0.0, mean=0.0)
    >>> new.users.tolist(), new.feedback.tolist(), total.item()
    ([[2.0]], [[1.0]], 2.0)
    """
    numbers = jnp.stack([jnp.asarray(v, jnp.float32) for v in (learning_rate, l2, mean)])
    *new, total = dispatch(OP, *tables, *rows, order, numbers, implementation=implementation)
    return Tables(*new), total


def _reference(users, items, feedback, user_bias, item_bias, indptr, indices, values, order, numbers):
    rate, l2, mean = numbers
    keep = 1 - rate * l2
    step = jnp.int32(values.shape[0] > 1)

    def user(carry, u):
        first, last = indptr[u], indptr[u + 1]
        root = jnp.sqrt(jnp.maximum(last - first, 1).astype(jnp.float32))
        feedback = carry[2]
        start = lax.fori_loop(first, last, lambda k, s: s + feedback[indices[k]], jnp.zeros_like(feedback[0]))

        def rating(k, carry):
            (users, items, feedback, user_bias, item_bias), total, gained, everything = carry
            i, p, q = indices[k], users[u], items[indices[k]]
            context = p + everything / root
            score = mean + user_bias[u] + item_bias[i] + jnp.dot(q, context, precision=lax.Precision.HIGHEST)
            error = values[k * step] - score
            users = users.at[u].set(keep * p + rate * error * q)
            items = items.at[i].set(keep * q + rate * error * context)
            user_bias = user_bias.at[u].set(keep * user_bias[u] + rate * error)
            item_bias = item_bias.at[i].set(keep * item_bias[i] + rate * error)
            gain = rate * error / root * q
            everything = keep * everything + root * root * gain
            tables = users, items, feedback, user_bias, item_bias
            return tables, total + 0.5 * error * error, keep * gained + gain, everything

        begin = carry, jnp.float32(0), jnp.zeros_like(start), start
        tables, total, gained, _ = lax.fori_loop(first, last, rating, begin)
        shrunk = keep ** (last - first).astype(jnp.float32)

        def written(k, feedback):
            return feedback.at[indices[k]].set(shrunk * feedback[indices[k]] + gained)

        users, items, feedback, user_bias, item_bias = tables
        return (users, items, lax.fori_loop(first, last, written, feedback), user_bias, item_bias), total

    new, totals = lax.scan(user, (users, items, feedback, user_bias, item_bias), order)
    return (*new, jnp.sum(totals))


def _supports(users, *_: Any) -> str | None:
    if users.shape[1] > svd_plus_plus_numba.MAX_RANK:
        return f"rank {users.shape[1]} is above {svd_plus_plus_numba.MAX_RANK}"
    return None


OP = Op("svd_plus_plus", _reference, _supports, numba=svd_plus_plus_numba.sweep)
