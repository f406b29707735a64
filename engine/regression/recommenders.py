"""Regressions over pairs of users and items, as models that recommend."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ...kernels import sampling
from ...kernels.csr import CSR
from ...kernels.quantized_rows import Table
from ..data.features import Features, device_rows
from ..data.interactions import Interactions, takes_interactions
from ..data.pairs import PairDesign, pair_design
from ..errors import FeatureError
from ..factorization.algorithm import Factors
from .linear_models import LinearModel
from .logistic import logistic_regression
from .ridge import ridge_regression


class PairRegression(NamedTuple):
    """A linear model over ids, features and their crosses, which is a product of a user's and an item's vector.

    With the weights of `engine.data.PairDesign`'s terms, `score(u, i) = intercept + bias_u + bias_i + a . (W b + z_i) +
    v_u . b`: a user's vector is `[a, v_u]`, an item's `[W b + z_i, b]`.

    Attributes:
        factors: These vectors and biases.
        user_weights: `[n_user_features]` weights of a, and
        item_weights: `[n_item_features]` of b, and
        cross_weights: `[n_user_features, n_item_features]` W.
    """

    factors: Factors
    user_weights: Float[Array, " a"]
    item_weights: Float[Array, " b"]
    cross_weights: Float[Array, "a b"]

    @property
    def n_users(self) -> int:
        return self.factors.n_users

    @property
    def n_items(self) -> int:
        return self.factors.n_items

    @property
    def items(self) -> Float[Array, "n_items width"]:
        """What makes items alike: their features, and what users' features make of them."""
        if self.factors.items.shape[-1] == 0:
            raise ValueError("this regression knows no features of items by which to compare them")
        return self.factors.items

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch width"]:
        return self.factors.queries(users)

    def item_table(self) -> Table:
        return self.factors.item_table()

    def with_history(self, history: CSR) -> PairRegression:
        """For users of whom nothing but a history is known: what the model says of anyone, whatever it is."""
        factors = self.factors
        nobody = jnp.zeros((history.n_rows, factors.users.shape[-1]), jnp.float32)
        return self._replace(factors=factors._replace(users=nobody, user_bias=jnp.zeros(history.n_rows)))

    def with_users(self, features: Features) -> PairRegression:
        """The model whose users are newcomers with these features, in order.

        Raises:
            FeatureError: Not the features that it was trained on.
        """
        a = _dense(features, self.user_weights, "user")
        own = jnp.zeros((a.shape[0], self.factors.users.shape[-1] - a.shape[1]), jnp.float32)
        users = jnp.concatenate([a, own], axis=1) if self.factors.users.shape[-1] else own
        return self._replace(factors=self.factors._replace(users=users, user_bias=_product(a, self.user_weights)))

    def with_items(self, features: Features) -> PairRegression:
        """The model whose items are new ones with these features, in order.

        Raises:
            FeatureError: As `with_users`.
        """
        b = _dense(features, self.item_weights, "item")
        factors = self.factors
        vectors = jnp.concatenate([_product(b, self.cross_weights.T), b], axis=1)
        vectors = vectors[:, : factors.items.shape[-1]]
        return self._replace(factors=factors._replace(items=vectors, item_bias=_product(b, self.item_weights)))


@takes_interactions
def ridge_recommender(
    interactions: Interactions,
    *,
    l2: float = 5.0,
    crosses: str = "features",
    user_columns: dict[str, str] | None = None,
    item_columns: dict[str, str] | None = None,
    missing: str = "error",
    steps: int = 1000,
) -> PairRegression:
    """Predicts values by a ridge regression over ids, features and their crosses.

    Args:
        interactions: What to learn from, with values; their side tables, where there are any, give the features.
        l2: Above 0: ids and an intercept are collinear.
        crosses: "none", "features" or "all"; see `engine.data.PairDesign`.
        user_columns: The kinds of the columns of the side tables; see `engine.data.pair_design`.
        item_columns: Likewise.
        missing: What a value that is missing in these tables does: "error" or "impute"; see `engine.data.fit_features`.
        steps: The most conjugate-gradient steps.

    Returns:
        `PairRegression`. Users and items without interactions are served by their features.

    Raises:
        FeatureError, DivergenceError, ValueError: As `ridge_regression` and `pair_design`; or no values.

    >>> x = Interactions.from_coo([0, 0, 1], [0, 1, 0], [5.0, 3.0, 4.0])
    >>> model = ridge_recommender(x, l2=1e-3)
    >>> (model.queries(jnp.array([1])) @ model.item_table().T).round(1).tolist()
    [[4.0, 2.0]]
    """
    if interactions.values is None:
        raise FeatureError("ridge regression predicts values, and these interactions have none")
    columns = {"user_columns": user_columns, "item_columns": item_columns}
    design = pair_design(interactions, crosses=crosses, missing=missing, **columns)
    rows = device_rows(design.rows(interactions.users, interactions.items))
    options = {"l2": l2, "n_features": design.n_features, "standard_errors": False, "steps": steps}
    found = ridge_regression(rows, interactions.values, **options)
    return as_recommender(found, design)


@takes_interactions
def logistic_recommender(
    interactions: Interactions,
    *,
    key: PRNGKeyArray | None = None,
    l2: float = 5.0,
    negatives: int = 3,
    crosses: str = "features",
    user_columns: dict[str, str] | None = None,
    item_columns: dict[str, str] | None = None,
    missing: str = "error",
    steps: int = 500,
) -> PairRegression:
    """Tells the items that users met from others, by a logistic regression over ids, features and their crosses.

    Args:
        interactions: What was met, whatever its value.
        key: Of the negatives; `jax.random.key(0)` if None.
        l2: Above 0.
        negatives: Items drawn for each interaction, uniformly from those that its user did not meet.
        crosses: As in `ridge_recommender`, and so are
        user_columns: these and
        item_columns: these and
        missing: this.
        steps: The most of the solver.

    Returns:
        `PairRegression` whose scores are log-odds against the negatives.

    Raises:
        FeatureError, DivergenceError, ValueError: As `logistic_regression` and `pair_design`; or no negatives.
    """
    if negatives < 1:
        raise ValueError(f"{negatives=} must be at least 1")
    x = interactions
    columns = {"user_columns": user_columns, "item_columns": item_columns}
    design = pair_design(x, crosses=crosses, missing=missing, **columns)
    positives = CSR(jnp.asarray(x.indptr.astype(np.int32)), jnp.asarray(x.items), jnp.ones(1))
    key = jax.random.key(0) if key is None else key
    drawn = np.asarray(sampling.negatives(key, positives, jnp.asarray(x.users), x.n_items, negatives))
    there = drawn >= 0
    if not there.any():
        raise FeatureError("every user met every item: there are no negatives to tell them from")
    users = np.concatenate([x.users, np.repeat(x.users, there.sum(axis=1))])
    items = np.concatenate([x.items, drawn[there]])
    targets = np.arange(len(users)) < x.nnz
    found = logistic_regression(
        device_rows(design.rows(users, items)),
        targets,
        l2=l2,
        n_features=design.n_features,
        standard_errors=False,
        steps=steps,
    )
    return as_recommender(found, design)


def as_recommender(model: LinearModel, design: PairDesign) -> PairRegression:
    """A regression over the rows of a design of pairs, as a model that recommends: the same scores, by products.

    Raises:
        FeatureError: A model of another design.
    """
    if model.weights.shape != (design.n_features,):
        raise FeatureError(f"weights of shape {model.weights.shape} for a design of {design.n_features} features")
    parts = {term: jnp.asarray(part) for term, part in design.parts(np.asarray(model.weights)).items()}
    a, b = (jnp.asarray(side.matrix.toarray()) for side in (design.users, design.items))
    alpha, beta = parts["user features"], parts["item features"]
    cross = parts.get("user features x item features", jnp.zeros((a.shape[1], b.shape[1]), jnp.float32))
    if design.crosses == "none":
        a_vectors, b_vectors = a[:, :0], b[:, :0]
    else:
        own = parts.get("users x item features", jnp.zeros((a.shape[0], b.shape[1]), jnp.float32))
        others = parts.get("items x user features", jnp.zeros((b.shape[0], a.shape[1]), jnp.float32))
        a_vectors = jnp.concatenate([a, own], axis=1)
        b_vectors = jnp.concatenate([_product(b, cross.T) + others, b], axis=1)
    factors = Factors(
        a_vectors,
        b_vectors,
        parts["users"] + _product(a, alpha),
        parts["items"] + _product(b, beta),
        jnp.asarray(model.intercept),
    )
    return PairRegression(factors, alpha, beta, cross)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _dense(features: Features, weights: Array, side: str) -> Array:
    if features.n_features != weights.shape[-1]:
        raise FeatureError(f"{features.n_features} {side} features; the model was trained on {weights.shape[-1]}")
    return jnp.asarray(features.matrix.toarray())
