"""Random walks on the graph of users and items."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ...kernels.op import Implementation
from ..data.interactions import Interactions, takes_interactions
from .lists import nearest_rows
from .models import ItemWeights


@takes_interactions
def rp3beta(
    interactions: Interactions,
    *,
    neighbors: int = 100,
    alpha: float = 0.6,
    beta: float = 0.4,
    implementation: Implementation = "auto",
) -> ItemWeights:
    """Walks of three steps, user to item to user to item, with popular items held down.

    `weights[i, j] = sum over users u of p(u | i)^alpha p(j | u)^alpha / n_j^beta`, where a step takes any entry of its
    row alike, so that `p(u | i) = 1 / n_i` and `p(j | u) = 1 / n_u`. The first step, from the user to an item of the
    history, is the same for all items of the user and left out.

    Args:
        interactions: What to learn from; only who met what counts, not the values.
        neighbors: Items kept for each item; at least 1.
        alpha: Power of the probabilities, at least 0.
        beta: At least 0; 0 is P3alpha, where popular items lead.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `ItemWeights` with sparse weights, whose users are those of the interactions; the values of newcomers'
        histories, where they have any, weigh.

    Raises:
        ValueError: A parameter out of its range.

    Source: Paudel, Christoffel, Newell, Bernstein 2017, "Updatable, Accurate, Diverse, and Scalable Recommendations for
    Interactive Applications".

    >>> x = Interactions.from_coo([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
    >>> rp3beta(x, neighbors=2).weights.indices.tolist()
    [1, 0]
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not (value >= 0 and np.isfinite(value)):
            raise ValueError(f"{name}={value} must be finite and at least 0")
    x = interactions.with_values(None)
    data = x.to_device()
    user_counts, item_counts = np.diff(x.indptr), np.bincount(x.items, minlength=x.n_items)
    leaving = np.repeat(_power(item_counts, -alpha), item_counts)
    arriving = _power(user_counts, -alpha)[x.users] * _power(item_counts, -beta)[x.items]
    weights = nearest_rows(
        data.by_item._replace(values=jnp.asarray(leaving, jnp.float32)),
        data.by_user._replace(values=jnp.asarray(arriving, jnp.float32)),
        neighbors,
        implementation=implementation,
    )
    return ItemWeights(data.by_user, weights)


def _power(counts: np.ndarray, exponent: float) -> np.ndarray:
    return np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** exponent, 0.0)
