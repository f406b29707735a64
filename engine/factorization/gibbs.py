"""The draws of which a step of `bayesian_mf` is made: of rows, of their prior, and of what the prior holds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray

from ...kernels import least_squares, sparse_product
from ...kernels.csr import CSR, entries
from ...kernels.op import Implementation
from ..solving import conjugate_gradients
from .als import joined
from .svdpp import feedback_of

_MEAN_STRENGTH = 2.0  # how many rows the prior of a side's mean counts for, as in the source
_TOLERANCE, _STEPS = 1e-3, 200  # of the conjugate gradients, whose error stays far below the noise of a draw


class RowPrior(NamedTuple):
    """Where the rows of one side come from: `x ~ N(mean + |N|^-1/2 sum over j in N of feedback_j, precision^-1)`.

    N are the columns that the row has, `width` the rank and one more for the bias; a `feedback_j` itself comes from
    `N(0, (feedback_precision precision)^-1)`.
    """

    mean: Float[Array, "*samples width"]
    precision: Float[Array, "*samples width width"]
    feedback: Float[Array, "*samples n_columns width"]
    feedback_precision: Float[Array, "*samples"]


class RowSystem(NamedTuple):
    """From what the rows of one side are drawn: their ratings, the other side, and their prior."""

    rows: CSR
    ratings: Float[Array, " nnz"]
    other: Float[Array, "n_columns width"]
    prior: RowPrior
    noise_precision: Float[Array, ""]
    implementation: Implementation = "auto"


def prior_means(system: RowSystem) -> Float[Array, "n_rows width"]:
    """Where the rows would be by their prior alone."""
    return system.prior.mean[None] + feedback_of(system.rows, system.prior.feedback)


def draw_rows(key: PRNGKeyArray, system: RowSystem) -> Float[Array, "n_rows width"]:
    """Rows `~ N(P^-1 b, P^-1)`, P and b being those of their least-squares systems.

    Whoever perturbs b by noise of covariance P and solves, draws exactly so: noise of the ratings' own variance on each
    of them, and a mean drawn from the prior instead of the prior's.

    Source: Papandreou, Yuille 2010, "Gaussian Sampling by Local Perturbations".
    """
    of_ratings, of_prior = jax.random.split(key)
    means = prior_means(system)
    noise = jax.random.normal(of_ratings, system.ratings.shape) / jnp.sqrt(system.noise_precision)
    means = means + _correlated(jax.random.normal(of_prior, means.shape), jnp.linalg.cholesky(system.prior.precision))
    return solved_rows(system._replace(ratings=system.ratings + noise), means)


def solved_rows(system: RowSystem, means: Float[Array, "n_rows width"]) -> Float[Array, "n_rows width"]:
    """The rows at which the squares of errors and of distances from the prior's means, by precision, are least."""
    rows, other, gram = system.rows, system.other, system.prior.precision / system.noise_precision
    table, bias = other[:, :-1], other[:, -1]
    x = least_squares.solve(
        rows.indptr,
        rows.indices,
        jnp.ones(1, jnp.float32),
        system.ratings - bias[rows.indices],
        joined(table, jnp.ones(other.shape[0], jnp.float32)),
        gram,
        jnp.zeros(1, jnp.float32),
        rhs=_product(means, gram),
        solver="cholesky",
        implementation=system.implementation,
    ).x
    # The kernel answers 0 for a row without entries, of which only the prior is known.
    return jnp.where((jnp.diff(rows.indptr) > 0)[:, None], x, means)


def prior_shapes(n_rows: int, n_columns: int, width: int) -> Float[Array, " width_1"]:
    """Shapes of the gamma numbers that the draw of a side's prior takes: of its precision, then of its feedback's."""
    freedom = width + n_rows + n_columns - jnp.arange(width, dtype=jnp.float32)
    return jnp.append(freedom / 2, 1 + n_columns * width / 2)


def draw_prior(
    key: PRNGKeyArray,
    gammas: Float[Array, " width_1"],
    x: Float[Array, "n_rows width"],
    prior: RowPrior,
    rows: CSR,
    columns: CSR,
    implementation: Implementation = "auto",
) -> RowPrior:
    """The prior of a side's rows, drawn given them: its mean and precision, then its feedback, then the latter's.

    `gammas` are random, of `prior_shapes`.
    """
    of_rows, of_feedback = jax.random.split(key)
    feedback, strength = prior.feedback, prior.feedback_precision
    apart, centred = x - feedback_of(rows, feedback), jnp.sqrt(strength) * feedback
    mean, precision = draw_normal_wishart(of_rows, gammas[:-1], apart, centred)
    factor = jnp.linalg.cholesky(precision)
    feedback = draw_feedback(of_feedback, x - mean[None], factor, strength, rows, columns, implementation)
    # The precision of normal numbers with this sum of squares, an exponential prior with mean 1 before them.
    return RowPrior(mean, precision, feedback, gammas[-1] / (1 + jnp.sum(_product(feedback, factor) ** 2) / 2))


def draw_normal_wishart(
    key: PRNGKeyArray, gammas: Float[Array, " width"], x: Float[Array, "n width"], centred: Float[Array, "m width"]
) -> tuple[Float[Array, " width"], Float[Array, "width width"]]:
    """`(mean, precision)` of which x was drawn, and `centred` with mean 0: BPMF's eq. 14.

    `gammas` are random, of half the degrees of freedom of each row of Bartlett's decomposition.
    """
    normal_key, mean_key = jax.random.split(key)
    n, width = x.shape
    average = jnp.mean(x, axis=0)
    apart = x - average[None]
    scatter = _product(apart.T, apart) + _product(centred.T, centred)
    shrunk = _MEAN_STRENGTH * n / (_MEAN_STRENGTH + n) * jnp.outer(average, average)
    inverse_scale = jnp.eye(width) / width + scatter + shrunk
    # Bartlett's decomposition of Wishart(inverse_scale^-1, freedom).
    triangle = jnp.tril(jax.random.normal(normal_key, (width, width)), -1) + jnp.diag(jnp.sqrt(2 * gammas))
    root = _correlated(triangle.T, jnp.linalg.cholesky(inverse_scale))
    precision = _product(root.T, root)
    noise = _correlated(jax.random.normal(mean_key, (1, width)), jnp.linalg.cholesky(precision))[0]
    return n / (_MEAN_STRENGTH + n) * average + noise / jnp.sqrt(_MEAN_STRENGTH + n), precision


def draw_feedback(
    key: PRNGKeyArray,
    x: Float[Array, "n_rows width"],
    factor: Float[Array, "width width"],
    strength: Float[Array, ""],
    rows: CSR,
    columns: CSR,
    implementation: Implementation = "auto",
) -> Float[Array, "n_columns width"]:
    """B of `x ~ N(F B, precision^-1)`, F being `|N|^-1/2` where a row has a column, by perturbation as `draw_rows`.

    Args:
        key: Of the perturbation.
        x: The rows, less their mean.
        factor: Cholesky factor of the precision.
        strength: The feedback's precision over that of the rows.
        rows: The matrix by rows, and
        columns: by columns.
        implementation: Of `kernels.sparse_product`.
    """
    roots = 1 / jnp.sqrt(jnp.maximum(jnp.diff(rows.indptr), 1).astype(jnp.float32))
    by_row = rows._replace(values=roots[entries(rows)[0]])
    by_column = columns._replace(values=roots[columns.indices])

    def transposed_times(v: Array) -> Array:
        return sparse_product.multiply(v.T, by_row, columns.n_rows, implementation=implementation).T

    def gramian_times(b: Array) -> Array:
        product = sparse_product.multiply(b.T, by_column, rows.n_rows, implementation=implementation).T
        return transposed_times(product) + strength * b

    of_rows, of_feedback = jax.random.split(key)
    noise = _correlated(jax.random.normal(of_rows, x.shape), factor)
    own_noise = _correlated(jax.random.normal(of_feedback, (columns.n_rows, x.shape[1])), factor)
    right = transposed_times(x + noise) + jnp.sqrt(strength) * own_noise
    diagonal = transposed_times(roots[:, None]) + strength
    goal = _TOLERANCE * jnp.max(jnp.abs(right), axis=0)
    nothing = jnp.zeros_like(right)
    return conjugate_gradients(
        lambda b: right - gramian_times(b), gramian_times, lambda v: v / diagonal, nothing, right, goal, _STEPS
    )[0]


def _correlated(noise: Float[Array, "n width"], factor: Float[Array, "width width"]) -> Float[Array, "n width"]:
    """Rows of standard normal noise as rows `~ N(0, (factor factor^T)^-1)`."""
    return solve_triangular(factor, noise.T, lower=True, trans=1).T


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
