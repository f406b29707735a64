"""Items that training did not meet: their vectors from what is known of them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...kernels.quantized_kernel import is_quantized
from ..data.features import Features
from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import FeatureError, InteractionError
from ..factorization.algorithm import Factors
from ..regression.ridge import ridge_regression

_PENALTIES = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # tried, times the sum of squares of a mean feature
_FOLDS = 5  # of the items met, the first of which is predicted from the others


def with_content(model: Any, features: Any, met: Any, *, l2: float | None = None) -> Any:
    """The model in which items that training did not meet have the vectors that their content makes likely.

    A ridge regression of the vectors of the items met on their features tells. All other items stay as they are, so
    that they are recommended as before, but for those that come between them.

    Args:
        model: `Factors`; or a `SequenceNetwork` or `TowerNetwork` trained without content.
        features: `[n_items, n_features]`: `Features`, a scipy matrix, or an array such as embeddings of texts.
        met: The data that it was trained on; or which items these have, bool `[n_items]`.
        l2: Penalty of the regression. If None that of the least squared error at a fifth of the items met, among some
            that go with the size of the features.

    Raises:
        FeatureError: Features of other items, or what is no finite number.
        InteractionError: Data of other items, or of fewer than ten.
        ValueError: A model whose items have no vectors of their own to be set.

    Source: Gantner et al. 2010, "Learning Attribute-to-Feature Mappings for Cold-Start Recommendations".

    >>> items = jnp.concatenate([jnp.arange(10.0), jnp.zeros(1)])[:, None] * jnp.array([[1.0, 2.0]])
    >>> model = with_content(Factors(jnp.ones((1, 2)), items), np.arange(11.0)[:, None], np.arange(11) < 10, l2=0.0)
    >>> model.items[9:].round(3).tolist()
    [[9.0, 18.0], [10.0, 20.0]]
    """
    network: Any = model
    if isinstance(model, Factors):
        biases = jnp.zeros((model.n_items, 0)) if model.item_bias is None else model.item_bias[:, None]
        table = model.items
    elif hasattr(model, "with_item_table"):
        biases, table = jnp.zeros((model.n_items, 0)), network.item_table()
    else:
        raise ValueError(f"{type(model).__name__} has no vectors of items that content could give")
    if is_quantized(table):
        raise ValueError("the vectors of these items are quantized: give content first, then quantize")
    known, rows = _known(met, model.n_items), _rows(features, model.n_items)
    if known.all():
        return model
    table = jnp.concatenate([table, biases], axis=1)
    table = jnp.where(known[:, None], table, _likely(rows, table.astype(jnp.float32), known, l2).astype(table.dtype))
    if not isinstance(model, Factors):
        return network.with_item_table(table)
    if model.item_bias is None:
        return model._replace(items=table)
    return model._replace(items=table[:, :-1], item_bias=table[:, -1])


def _likely(rows: Any, table: Array, known: np.ndarray, l2: float | None) -> Float[Array, "n_items columns"]:
    """What a regression on the rows of the items met says of all."""
    places = np.flatnonzero(known)
    if l2 is None:
        order = np.random.default_rng(0).permutation(places)
        tried, fitted = np.split(order, [len(order) // _FOLDS])
        mean = float(rows[fitted].power(2).mean() if hasattr(rows, "power") else np.mean(rows[fitted] ** 2))
        errors = {}
        for penalty in _PENALTIES:
            own = penalty * max(mean, np.finfo(np.float32).tiny) * len(places)
            found = ridge_regression(rows[fitted], table[fitted], l2=own).scores(rows[tried])
            errors[own] = float(jnp.mean((found - table[tried]) ** 2))
        l2 = min(errors, key=lambda own: errors[own])
    return ridge_regression(rows[places], table[places], l2=l2).scores(rows)


def _known(met: Any, n_items: int) -> np.ndarray:
    if isinstance(met, Interactions | Sequences):
        if met.n_items != n_items:
            raise InteractionError(f"data of {met.n_items:,} items; the model has {n_items:,}")
        known = np.bincount(met.items, minlength=n_items) > 0
    else:
        known = np.asarray(met)
        if known.dtype != bool or known.shape != (n_items,):
            raise InteractionError(
                f"met is {known.dtype}{list(known.shape)}: Interactions, Sequences or bool [{n_items}] are accepted"
            )
    if known.sum() < 2 * _FOLDS:
        raise InteractionError(f"{known.sum()} items met are too few to learn vectors from: {2 * _FOLDS} are needed")
    return known


def _rows(features: Any, n_items: int) -> Any:
    """A matrix whose rows can be chosen, of numpy or scipy."""
    import scipy.sparse

    matrix: Any = features.matrix if isinstance(features, Features) else features
    matrix = scipy.sparse.csr_array(matrix) if scipy.sparse.issparse(matrix) else np.asarray(matrix, np.float32)
    if matrix.ndim != 2 or matrix.shape[0] != n_items:
        raise FeatureError(f"features of shape {list(matrix.shape)}; a row for each of the {n_items:,} items is needed")
    return matrix
