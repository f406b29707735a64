"""Bayesian matrix factorization of ratings: the mean of many drawn models instead of the best of one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ...kernels.csr import CSR, SparseMatrix, entries
from ...kernels.op import Implementation
from ...kernels.quantized_rows import Table, floats_of, with_columns
from .algorithm import Algorithm, Info
from .als import joined
from .gibbs import RowPrior, RowSystem, draw_prior, draw_rows, prior_means, prior_shapes, solved_rows
from .parts import check_shape_parameters, info_of, random_rows, require_at_least, scalar
from .settings import with_settings


class Chain(NamedTuple):
    """The last draw of all that is unknown; ratings less their mean, over their standard deviation, are its unit."""

    users: Float[Array, "n_users width"]
    items: Float[Array, "n_items width"]
    user_prior: RowPrior
    item_prior: RowPrior
    noise_precision: Float[Array, ""]


class BayesianFactors(NamedTuple):
    """The state of `bayesian_mf`, and a model: `score(u, i)` is the mean of the scores of the last draws.

    A mean of products of vectors is one product of the vectors end to end, so the model answers as `Factors` of rank
    `samples rank` would.

    Attributes:
        users: The users' vectors of each draw, end to end: their means, all else being as drawn.
        items: The items' vectors of each draw, end to end.
        user_bias: Of each draw, and
        item_bias: of each draw.
        user_priors: The users' prior of each draw, and
        noise_precisions: that of a rating: what newcomers need.
        mean: Of the ratings.
        scale: Their standard deviation, the unit of all above.
        taken: How many draws were taken so far; the last ones are kept.
        chain: The last draw.
    """

    users: Float[Array, "n_users samples*rank"]
    items: Float[Array, "n_items samples*rank"]
    user_bias: Float[Array, "n_users samples"]
    item_bias: Float[Array, "n_items samples"]
    user_priors: RowPrior
    noise_precisions: Float[Array, " samples"]
    mean: Float[Array, ""]
    scale: Float[Array, ""]
    taken: Int32[Array, ""]
    chain: Chain

    @property
    def n_users(self) -> int:
        return self.users.shape[-2]

    @property
    def n_items(self) -> int:
        return self.items.shape[-2]

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch queries_width"]:
        """As `Factors.queries`."""
        share = self.scale / jnp.clip(self.taken, 1, self.user_bias.shape[1]).astype(jnp.float32)
        bias = self.mean + share * jnp.sum(self.user_bias[users], axis=1)
        return jnp.concatenate([share * self.users[users], jnp.full((bias.shape[0], 1), share), bias[:, None]], axis=1)

    def item_table(self) -> Table:
        """As `Factors.item_table`."""
        bias = jnp.sum(self.item_bias, axis=1)
        return with_columns(self.items, bias, jnp.ones_like(bias))

    def with_history(self, history: CSR) -> BayesianFactors:
        """The model for users of these histories: in each draw at their means, all else being as drawn."""
        samples = self.user_bias.shape[1]
        rank = self.items.shape[1] // samples

        def one_draw(number: Array, draw: tuple[Array, Array, RowPrior, Array]) -> Array:
            vectors, bias, prior, noise_precision = draw
            system = RowSystem(history, self._standardized(history), joined(vectors, bias), prior, noise_precision)
            return jnp.where(number < self.taken, solved_rows(system, prior_means(system)), 0.0)

        vectors = floats_of(self.items).reshape(-1, samples, rank).swapaxes(0, 1)
        draws = vectors, self.item_bias.T, self.user_priors, self.noise_precisions
        rows = lax.map(lambda draw: one_draw(*draw), (jnp.arange(samples), draws)).swapaxes(0, 1)
        users = rows[:, :, :rank].reshape(-1, samples * rank)
        return self._replace(users=users, user_bias=rows[:, :, rank])

    def _standardized(self, rows: CSR) -> Float[Array, " nnz"]:
        return (entries(rows)[1] - self.mean) / self.scale


@with_settings
def bayesian_mf(
    rank: int, *, samples: int = 100, init_std: float = 1.0, implementation: Implementation = "auto"
) -> Algorithm:
    """Bayesian matrix factorization with feedback: `r ~ N(mean + user_bias + item_bias + x_u . y_i, noise)`, averaged.

    What regularizes is drawn along with the vectors, so that rank and `samples` are all there is to choose. Vectors and
    biases of a side come from one normal distribution whose mean, as in SVD++ but on both sides, is moved by which
    items a user rated and by which users rated an item; see `RowPrior`. A step draws each of these unknowns once from
    its distribution given all others (Gibbs sampling), and the model is the mean of the last `samples` draws: take some
    more steps than that, since the first draws are not yet typical.

    The priors, in units of the ratings' standard deviation: a side's precision Wishart(width I, width), which
    counts for rows whose squares sum to 1, and its mean normal about 0 with twice that precision; the precisions of the
    noise and of the feedback exponential with mean 1.

    Args:
        rank: Length of the vectors.
        samples: How many draws the model holds, at least 1; its memory is `samples` times that of one.
        init_std: The first vectors are normal with this standard deviation over sqrt(rank).
        implementation: Of the kernels.

    Returns:
        `Algorithm` whose state is `BayesianFactors`, and whose loss is the sum of the squared errors of the draw, which
        does not fall for ever.

    Raises:
        ValueError: A parameter out of its range.

    Source: Salakhutdinov, Mnih 2008, "Bayesian Probabilistic Matrix Factorization using Markov Chain Monte Carlo";
    Simm et al. 2015, "Macau: Scalable Bayesian Multi-relational Factorization with Side Information using MCMC" (the
    prior); Rendle, Zhang, Koren 2019, "On the Difficulty of Evaluating Baselines" (feedback of both sides).

    >>> from affinax.engine.data import Interactions
    >>> from affinax.engine.factorization import fit
    >>> from affinax.engine.retrieval import predict
    >>> x = Interactions.from_coo([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], [5.0, 3.0, 4.0, 2.0, 4.0])
    >>> model, history = fit(bayesian_mf(2, samples=50), x, key=jax.random.key(0), steps=100, progress=False)
    >>> bool(2 < predict(model, [2], [1])[0] < 4)
    True
    """
    check_shape_parameters(rank, init_std)
    require_at_least(1, samples=samples)

    def init(key: PRNGKeyArray, data: SparseMatrix) -> BayesianFactors:
        (n_users, n_items), width = data.shape, rank + 1
        users, items = random_rows(key, data, rank, init_std)
        values = entries(data.by_user)[1]
        mean, scale = jnp.mean(values), jnp.std(values)

        def prior(n_columns: int, *stacked: int) -> RowPrior:
            precision = jnp.broadcast_to(jnp.eye(width), (*stacked, width, width))
            feedback = jnp.zeros((*stacked, n_columns, width), jnp.float32)
            return RowPrior(jnp.zeros((*stacked, width), jnp.float32), precision, feedback, jnp.ones(stacked))

        chain = Chain(
            joined(users, jnp.zeros(n_users, jnp.float32)),
            joined(items, jnp.zeros(n_items, jnp.float32)),
            prior(n_items),
            prior(n_users),
            scalar(1.0),
        )
        return BayesianFactors(
            jnp.zeros((n_users, samples * rank), jnp.float32),
            jnp.zeros((n_items, samples * rank), jnp.float32),
            jnp.zeros((n_users, samples), jnp.float32),
            jnp.zeros((n_items, samples), jnp.float32),
            prior(n_items, samples),
            jnp.ones(samples),
            mean,
            jnp.where(scale > 0, scale, 1.0),
            jnp.int32(0),
            chain,
        )

    return Algorithm(init, _step(implementation), "Bayesian MF")


@functools.cache
def _step(implementation: Implementation) -> Callable[..., tuple[BayesianFactors, Info]]:
    def step(key: PRNGKeyArray, state: BayesianFactors, data: SparseMatrix) -> tuple[BayesianFactors, Info]:
        keys = jax.random.split(key, 5)
        users, items, user_prior, item_prior, noise_precision = state.chain
        (n_users, width), n_items = users.shape, items.shape[0]
        rank = width - 1
        # All at once: their generator takes longer to compile than all the rest of a step.
        of_item_prior, of_user_prior, of_noise = _gammas(
            keys[4],
            prior_shapes(n_items, n_users, width),
            prior_shapes(n_users, n_items, width),
            jnp.array([1 + data.by_user.nnz / 2]),
        )

        item_prior = draw_prior(keys[0], of_item_prior, items, item_prior, data.by_item, data.by_user, implementation)
        rest = state._standardized(data.by_item)
        system = RowSystem(data.by_item, rest, users, item_prior, noise_precision, implementation)
        items = draw_rows(keys[1], system)

        user_prior = draw_prior(keys[2], of_user_prior, users, user_prior, data.by_user, data.by_item, implementation)
        rest = state._standardized(data.by_user)
        system = RowSystem(data.by_user, rest, items, user_prior, noise_precision, implementation)
        users = draw_rows(keys[3], system)

        row_of, columns = entries(data.by_user)[0], data.by_user.indices
        scores = jnp.sum(users[row_of, :rank] * items[columns, :rank], axis=-1) + users[row_of, rank]
        loss = jnp.sum((rest - items[columns, rank] - scores) ** 2)
        means = solved_rows(system, prior_means(system))
        slot = state.taken % state.user_bias.shape[1]
        state = state._replace(
            users=_put(state.users, slot, means[:, :rank]),
            items=_put(state.items, slot, items[:, :rank]),
            user_bias=_put(state.user_bias, slot, means[:, rank:]),
            item_bias=_put(state.item_bias, slot, items[:, rank:]),
            user_priors=jax.tree.map(lambda all_, one: all_.at[slot].set(one), state.user_priors, user_prior),
            noise_precisions=state.noise_precisions.at[slot].set(noise_precision),
            taken=state.taken + 1,
            chain=Chain(users, items, user_prior, item_prior, of_noise[0] / (1 + loss / 2)),
        )
        return state, info_of(loss * state.scale**2, users, items)

    return step


def _put(table: Array, slot: Array, block: Array) -> Array:
    return lax.dynamic_update_slice_in_dim(table, block, slot * block.shape[1], axis=1)


def _gammas(key: PRNGKeyArray, *shapes: Float[Array, " _"]) -> list[Float[Array, " _"]]:
    ends = np.cumsum([len(a) for a in shapes])
    return jnp.split(jax.random.gamma(key, jnp.concatenate(shapes)), ends[:-1])
