"""One pass of stochastic gradient descent for SVD++, user by user or by several side by side."""

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
    side_by_side: int = 1,
    implementation: Implementation = "auto",
) -> tuple[Tables, Float[Array, ""]]:
    """Updates the tables by all ratings: the rows in this order, the entries of each as they are stored.

    For each rating r goes down the gradient of `(r - s)^2 / 2` plus `l2 / 2` times the squares of all that takes part.
    Between two ratings of a user, the feedback vectors of all its items shrink by the same factor and gain the same
    vector: so their sum has a recurrence, and each is written once, when the user is done. That is the algorithm of
    the source to the letter, at a cost that grows with the ratings, not with the squares of their number a user.

    Of users side by side, a step takes the next rating of each. Users' rows and the sums of their feedback are their
    own, so that only items meet: those rows move by the sum of their gradients. Feedback vectors are written when all
    users of a batch are done.

    Args:
        tables: Where to begin.
        rows: Users' ratings.
        order: Each user once.
        learning_rate: Step length.
        l2: Regularization.
        mean: Of the scores; it is not learned.
        side_by_side: Users at once, of which the last batch takes what is left; above 1 by the reference alone.
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
    *new, total = dispatch(OP, *tables, *rows, order, numbers, implementation=implementation, side_by_side=side_by_side)
    return Tables(*new), total


def _reference(
    users, items, feedback, user_bias, item_bias, indptr, indices, values, order, numbers, *, side_by_side: int
):
    n_users, n_items = users.shape[0], items.shape[0]
    rate, l2, mean = numbers
    keep, step = 1 - rate * l2, jnp.int32(values.shape[0] > 1)
    batches = jnp.pad(order, (0, -order.shape[0] % side_by_side), constant_values=n_users).reshape(-1, side_by_side)

    def batch(carry, at):
        (users, items, feedback, user_bias, item_bias), total = carry
        first = indptr.at[at].get(mode="clip")
        n = indptr.at[at + 1].get(mode="clip") - first
        most, root = jnp.max(n), jnp.sqrt(jnp.maximum(n, 1).astype(jnp.float32))

        def items_of(k):
            """The k-th item of each user; one beyond the table where a user has no more."""
            return jnp.where(k < n, indices.at[first + k].get(mode="clip"), n_items)

        def add_feedback(k, everything):
            return everything + feedback.at[items_of(k)].get(mode="fill", fill_value=0)

        def rating(k, carry):
            own, of_user, everything, gained, items, item_bias, total = carry
            i = items_of(k)
            kept = jnp.where(k < n, keep, 1.0)
            q, of_item = (a.at[i].get(mode="fill", fill_value=0) for a in (items, item_bias))
            context = own + everything / root[:, None]
            score = mean + of_user + of_item + jnp.einsum("bd,bd->b", q, context, precision=lax.Precision.HIGHEST)
            error = jnp.where(k < n, values.at[(first + k) * step].get(mode="clip") - score, 0.0)
            pull, shrunk = rate * error, kept[:, None]
            items = items.at[i].add(pull[:, None] * context + (shrunk - 1) * q, mode="drop")
            item_bias = item_bias.at[i].add(pull + (kept - 1) * of_item, mode="drop")
            gain = (pull / root)[:, None] * q
            everything = shrunk * everything + (root**2)[:, None] * gain
            own, of_user = shrunk * own + pull[:, None] * q, kept * of_user + pull
            return own, of_user, everything, shrunk * gained + gain, items, item_bias, total + 0.5 * jnp.sum(error**2)

        own, of_user = (a.at[at].get(mode="fill", fill_value=0) for a in (users, user_bias))
        everything = lax.fori_loop(0, most, add_feedback, jnp.zeros_like(own))
        begin = own, of_user, everything, jnp.zeros_like(own), items, item_bias, total
        own, of_user, _, gained, items, item_bias, total = lax.fori_loop(0, most, rating, begin)
        lost = (keep ** n.astype(jnp.float32) - 1)[:, None]

        def write(k, written):
            i = items_of(k)
            return written.at[i].add(lost * feedback.at[i].get(mode="fill", fill_value=0) + gained, mode="drop")

        feedback = lax.fori_loop(0, most, write, feedback)
        users, user_bias = users.at[at].set(own, mode="drop"), user_bias.at[at].set(of_user, mode="drop")
        return ((users, items, feedback, user_bias, item_bias), total), None

    begin = (users, items, feedback, user_bias, item_bias), jnp.float32(0)
    (new, total), _ = lax.scan(batch, begin, batches)
    return (*new, total)


def _supports(users, *_: Any, side_by_side: int) -> str | None:
    if side_by_side > 1:
        return f"{side_by_side} users side by side are beyond the kernels, which take one after the other"
    if users.shape[1] > svd_plus_plus_numba.MAX_RANK:
        return f"rank {users.shape[1]} is above {svd_plus_plus_numba.MAX_RANK}"
    return None


OP = Op("svd_plus_plus", _reference, _supports, numba=svd_plus_plus_numba.sweep)
