"""SVD++: a user is its own vector, and what the choice of its items says whatever their ratings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ...kernels import least_squares, sampling
from ...kernels import svd_plus_plus as kernel
from ...kernels.csr import CSR, SparseMatrix, entries
from ...kernels.op import Implementation
from ...kernels.quantized_rows import Table, floats_of
from .algorithm import Algorithm, Factors, Info
from .als import joined, ridge, separated
from .objectives import RatingSgd
from .parts import check_shape_parameters, info_of, random_rows, require_at_least, scalar
from .settings import with_settings


class FeedbackFactors(NamedTuple):
    """The state of `svd_plus_plus`, and a model.

    Attributes:
        factors: What scores: the vectors of users are their own and their feedback together.
        own: The users' own vectors.
        feedback: What having met an item adds.
    """

    factors: Factors
    own: Float[Array, "n_users rank"]
    feedback: Float[Array, "n_items rank"]

    @property
    def n_users(self) -> int:
        return self.factors.n_users

    @property
    def n_items(self) -> int:
        return self.factors.n_items

    @property
    def users(self) -> Float[Array, "n_users rank"]:
        return self.factors.users

    @property
    def items(self) -> Float[Array, "n_items rank"]:
        return self.factors.items

    @property
    def objective(self) -> Any:
        return self.factors.objective

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch width"]:
        """As `Factors.queries`."""
        return self.factors.queries(users)

    def item_table(self) -> Table:
        """As `Factors.item_table`."""
        return self.factors.item_table()

    def with_history(self, history: CSR) -> FeedbackFactors:
        """The model for users of these histories: their own vectors and biases minimise the error of their ratings."""
        factors, objective = self.factors, self.factors.objective
        if not isinstance(objective, RatingSgd) or factors.mean is None or factors.item_bias is None:
            raise ValueError("the model was not made by svd_plus_plus")
        items = floats_of(factors.items)
        given = feedback_of(history, floats_of(self.feedback))
        row_of, values = entries(history)
        of_feedback = jnp.sum(given[row_of] * items[history.indices], axis=-1)
        rest = values - factors.mean - factors.item_bias[history.indices] - of_feedback
        table = joined(items, jnp.ones(factors.n_items, jnp.float32))
        solved = least_squares.solve(
            history.indptr,
            history.indices,
            jnp.ones(1, jnp.float32),
            rest,
            table,
            jnp.zeros((table.shape[1], table.shape[1]), jnp.float32),
            ridge(history, factors.n_items, objective),
            solver="cholesky",
        ).x
        own, bias = separated(solved, self.own.shape[1])
        return self._replace(factors=factors._replace(users=own + given, user_bias=bias), own=own)


def feedback_of(rows: CSR, feedback: Float[Array, "n_items rank"]) -> Float[Array, "n_rows rank"]:
    """The sum of the feedback of each row's items over the root of their number; rows stay in blocks of memory."""
    n = jnp.maximum(jnp.diff(rows.indptr), 1).astype(jnp.float32)
    block = max(1, min(rows.nnz, 1 << 16))
    padding = -rows.nnz % block
    row_of = jnp.pad(entries(rows)[0], (0, padding), constant_values=rows.n_rows).reshape(-1, block)
    columns = jnp.pad(rows.indices, (0, padding)).reshape(-1, block)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        return total.at[part[0]].add(feedback[part[1]], mode="drop"), None

    zeros = jnp.zeros((rows.n_rows, feedback.shape[1]), jnp.float32)
    total, _ = jax.lax.scan(add, zeros, (row_of, columns))
    return total / jnp.sqrt(n)[:, None]


@with_settings
def svd_plus_plus(
    rank: int,
    *,
    learning_rate: Any = 0.007,
    l2: Any = 0.02,
    init_std: float = 0.2,
    batch_size: int = 1,
    implementation: Implementation = "auto",
) -> Algorithm:
    """SVD++: `r ~ mean + user_bias + item_bias + y_i . (x_u + |N(u)|^-1/2 sum over j in N(u) of z_j)`.

    N(u) are the items that u rated. A step goes down the gradient of `(r - s)^2 / 2` and l2 / 2 times the squares of
    all that takes part, of every rating once, user by user in random order, exactly as the source does, at a cost
    that grows with the ratings alone; see `kernels.svd_plus_plus`.

    Args:
        rank: Length of the vectors.
        learning_rate: At least 0.
        l2: At least 0.
        init_std: The first vectors are normal with this standard deviation over sqrt(rank).
        batch_size: Users side by side, each step taking the next rating of each: for accelerators, and for `vmap` over
            learning rates. One after the other, by a kernel, is faster on CPU.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `Algorithm` whose state is `FeedbackFactors`, and whose loss is the sum of the squared errors met on the way,
        halved.

    Raises:
        ValueError: A parameter out of its range.

    Source: Koren 2008, "Factorization Meets the Neighborhood: a Multifaceted Collaborative Filtering Model", eq. 15.

    >>> from affinax.engine.data import Interactions
    >>> data = Interactions.from_coo([0, 0, 1], [0, 1, 0], [5.0, 1.0, 4.0]).to_device()
    >>> mf = svd_plus_plus(2, learning_rate=0.1)
    >>> state, losses = mf.init(jax.random.key(0), data), []
    >>> for key in jax.random.split(jax.random.key(2), 20):
    ...     state, info = mf.step(key, state, data)
    ...     losses.append(info.loss)
    >>> bool(losses[-1] < losses[0] / 10)
    True
    """
    check_shape_parameters(rank, init_std)
    require_at_least(0, learning_rate=learning_rate, l2=l2)
    require_at_least(1, batch_size=batch_size)
    objective = RatingSgd(scalar(learning_rate), scalar(l2))

    def init(key: PRNGKeyArray, data: SparseMatrix) -> FeedbackFactors:
        vector_key, feedback_key = jax.random.split(key)
        own, items = random_rows(vector_key, data, rank, init_std)
        _, feedback = random_rows(feedback_key, data, rank, init_std)
        own = jnp.where((jnp.diff(data.by_user.indptr) > 0)[:, None], own, 0.0)
        zeros = jnp.zeros(data.shape[0], jnp.float32), jnp.zeros(data.shape[1], jnp.float32)
        users = own + feedback_of(data.by_user, feedback)
        return FeedbackFactors(Factors(users, items, *zeros, jnp.mean(data.by_user.values), objective), own, feedback)

    return Algorithm(init, _step(batch_size, implementation), "SVD++")


@functools.cache
def _step(batch_size: int, implementation: Implementation) -> Callable[..., tuple[FeedbackFactors, Info]]:
    def step(key: PRNGKeyArray, state: FeedbackFactors, data: SparseMatrix) -> tuple[FeedbackFactors, Info]:
        factors = state.factors
        objective = factors.objective
        if not isinstance(objective, RatingSgd) or factors.user_bias is None or factors.item_bias is None:
            raise ValueError("the state was not made by svd_plus_plus")
        order = sampling.permutation(key, data.by_user.n_rows, implementation=implementation)
        tables = kernel.Tables(state.own, factors.items, state.feedback, factors.user_bias, factors.item_bias)
        new, total = kernel.sweep(
            tables,
            data.by_user,
            order,
            learning_rate=objective.learning_rate,
            l2=objective.l2,
            mean=factors.mean,
            side_by_side=batch_size,
            implementation=implementation,
        )
        users = new.users + feedback_of(data.by_user, new.feedback)
        factors = factors._replace(users=users, items=new.items, user_bias=new.user_bias, item_bias=new.item_bias)
        return FeedbackFactors(factors, new.users, new.feedback), info_of(total, users, new.items)

    return step
