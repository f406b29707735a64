"""The objectives of least-squares factorization: what an interaction weighs and what it aims at.

    sum over observed (u,i) of (w s^2 - 2 b s + const)  +  a0 * sum over all (u,i) of s^2
        + sum_u l_u |x_u|^2 + sum_i l_i |y_i|^2,      s = x_u . y_i,   l_u = l2 (n_u + a0 n_items)^nu

Every field is an array, so a grid of them trains under `vmap`; which objective it is, is the type.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Terms(NamedTuple):
    """What the observed interactions add to the objective; `weights` is of size 1 where it is constant."""

    weights: Float[Array, " nnz_or_1"]
    targets: Float[Array, " nnz_or_1"]
    constants: Float[Array, " nnz_or_1"]


class ExplicitObjective(NamedTuple):
    """Squared error on the observed values: w = 1, b = r, a0 = 0 (Zhou et al. 2008 with nu = 1)."""

    l2: Float[Array, ""]
    l2_exponent: Float[Array, ""]

    @property
    def unobserved_weight(self) -> Float[Array, ""]:
        return jnp.zeros_like(self.l2)

    def terms(self, values: Float[Array, " nnz_or_1"]) -> Terms:
        return Terms(jnp.ones(1, jnp.float32), values, values * values)


class ImplicitObjective(NamedTuple):
    """Squared error on all pairs, the unobserved ones aiming at 0.

    `alpha` None: w = b = 1 (Rendle et al. 2021). Else with confidence c = confidence_offset + alpha |r|: w = c - 1,
    b = c, which is Hu, Koren, Volinsky 2008 for offset 1 and the `implicit` library for offset 0. A negative value
    is a dislike: it weighs as much and aims at 0.
    """

    l2: Float[Array, ""]
    l2_exponent: Float[Array, ""]
    unobserved_weight: Float[Array, ""]
    alpha: Float[Array, ""] | None
    confidence_offset: Float[Array, ""]

    def terms(self, values: Float[Array, " nnz_or_1"]) -> Terms:
        liked = values >= 0
        if self.alpha is None:
            targets = jnp.where(liked, 1.0, 0.0)
            return Terms(jnp.ones(1, jnp.float32), targets, targets)
        confidence = self.confidence_offset + self.alpha * jnp.abs(values)
        targets = jnp.where(liked, confidence, 0.0)
        return Terms(confidence - 1.0, targets, targets)


class RatingSgd(NamedTuple):
    """Squared error and l2 of each observed value, by steps of the learning rate: what ALS solves with nu = 1."""

    learning_rate: Float[Array, ""]
    l2: Float[Array, ""]

    @property
    def l2_exponent(self) -> Float[Array, ""]:
        return jnp.ones_like(self.l2)

    @property
    def unobserved_weight(self) -> Float[Array, ""]:
        return jnp.zeros_like(self.l2)

    def terms(self, values: Float[Array, " nnz_or_1"]) -> Terms:
        return ExplicitObjective(self.l2, self.l2_exponent).terms(values)


class BprSgd(NamedTuple):
    """`softplus(s(u, j) - s(u, i))` of interactions i and sampled negatives j, and l2; no least squares.

    `popularity` is how often each item is drawn as a negative, relatively; None is alike.
    """

    learning_rate: Float[Array, ""]
    l2: Float[Array, ""]
    popularity: Float[Array, " n_items"] | None = None


class LogisticSgd(NamedTuple):
    """`softplus(-s(u, i))` of interactions, `softplus(s(u, j))` of the `negatives` sampled for each, and l2.

    `user_biases` is 1 where users have a bias, 0 where not; `popularity` as of `BprSgd`.
    """

    learning_rate: Float[Array, ""]
    l2: Float[Array, ""]
    negatives: Float[Array, ""]
    user_biases: Float[Array, ""]
    popularity: Float[Array, " n_items"] | None = None


class SoftmaxSgd(NamedTuple):
    """`log(1 + sum_j exp(s(u, j) - s(u, i)))` of interactions and the `negatives` sampled for each, and l2.

    `popularity` as of `BprSgd`.
    """

    learning_rate: Float[Array, ""]
    l2: Float[Array, ""]
    negatives: Float[Array, ""]
    popularity: Float[Array, " n_items"] | None = None


RankingSgd = BprSgd | LogisticSgd | SoftmaxSgd
