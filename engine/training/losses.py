"""Losses: pure functions of scores or vectors, each a weighted mean over the examples that count.

All of them compute in float32, whatever comes in. `weights` says how much an example counts, `where` whether it counts
at all, so that a batch may be padded. The mean of nothing is refused where the numbers are concrete; inside a trace it
is NaN, which `fit` reports with its step.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

Mask = Any  # bool, of the shape of what it masks
_NEVER = -1e30  # a logit that takes no part; -inf would make NaN of its gradient


def weighted_mean(losses: Array, weights: Any = None, where: Mask = None) -> Float[Array, ""]:
    """`sum(w_i loss_i) / sum(w_i)` over what `where` allows.

    Args:
        losses: `[...]`.
        weights: Broadcast to `losses`; 1 if None. They must not be negative.
        where: Bool, broadcast to `losses`; a loss that is masked may be anything, NaN included.

    Raises:
        ValueError: All are masked, or weights that are negative or sum to 0; where they are concrete.

    >>> float(weighted_mean(jnp.array([1.0, 3.0, 9.0]), where=jnp.array([True, True, False])))
    2.0
    """
    weights = jnp.ones(losses.shape, jnp.float32) if weights is None else jnp.asarray(weights, jnp.float32)
    weights = jnp.broadcast_to(weights, losses.shape)
    losses = losses.astype(jnp.float32)
    if where is not None:
        where = jnp.broadcast_to(where, losses.shape)
        weights, losses = jnp.where(where, weights, 0.0), jnp.where(where, losses, 0.0)
    total = jnp.sum(weights)
    if not isinstance(total, Tracer):
        if not bool(jnp.all(weights >= 0)):
            raise ValueError(f"weights must not be negative; the least is {float(jnp.min(weights))}")
        if not float(total) > 0:
            raise ValueError(f"no example counts: of {losses.size} all are masked or have weight 0")
    return jnp.sum(weights * losses) / total


def squared_error(
    predictions: Float[Array, "..."], targets: Float[Array, "..."], *, weights: Any = None, where: Mask = None
) -> Float[Array, ""]:
    """Mean of `(prediction - target)^2`.

    Raises:
        ValueError: Shapes that differ; so in all that follows.

    >>> float(squared_error(jnp.array([1.0, 4.0]), jnp.array([1.0, 2.0])))
    2.0
    """
    _require_shape("targets", targets, jnp.shape(predictions))
    return weighted_mean(jnp.square(_float32(predictions) - _float32(targets)), weights, where)


def huber(
    predictions: Float[Array, "..."],
    targets: Float[Array, "..."],
    *,
    delta: float = 1.0,
    weights: Any = None,
    where: Mask = None,
) -> Float[Array, ""]:
    """Mean of `e^2 / 2` where `|e| <= delta`, else `delta (|e| - delta / 2)`, with `e = prediction - target`.

    Source: Huber 1964, "Robust Estimation of a Location Parameter".

    >>> float(huber(jnp.array([0.5, 3.0]), jnp.zeros(2)))
    1.3125
    """
    _require_shape("targets", targets, jnp.shape(predictions))
    error = jnp.abs(_float32(predictions) - _float32(targets))
    quadratic = jnp.minimum(error, delta)
    return weighted_mean(0.5 * quadratic**2 + delta * (error - quadratic), weights, where)


def binary_cross_entropy(
    logits: Float[Array, "..."], labels: Float[Array, "..."], *, weights: Any = None, where: Mask = None
) -> Float[Array, ""]:
    """Mean of `-y log s(x) - (1 - y) log s(-x)`, s the logistic function and y in [0, 1].

    Raises:
        ValueError: Labels of another shape, or, where they are concrete, out of range.

    >>> round(float(binary_cross_entropy(jnp.array([0.0, 2.0]), jnp.array([1.0, 1.0]))), 4)
    0.41
    """
    _require_shape("labels", labels, jnp.shape(logits))
    logits, labels = _float32(logits), _float32(labels)
    if not isinstance(labels, Tracer) and not isinstance(where, Tracer):
        counted = np.where(True if where is None else where, labels, 0.0)
        if not ((counted >= 0) & (counted <= 1)).all():
            raise ValueError(f"labels must be in [0, 1]; they reach from {counted.min():g} to {counted.max():g}")
    return weighted_mean(jax.nn.softplus(logits) - labels * logits, weights, where)


def bpr(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch m"],
    *,
    weights: Any = None,
    where: Mask = None,
    negatives_where: Mask = None,
) -> Float[Array, ""]:
    """Bayesian personalised ranking: mean of `-log s(positive - negative)` over all pairs.

    Args:
        positive: Scores of what was chosen.
        negative: Scores of the negatives of each.
        weights: Of the examples.
        where: Which examples count.
        negatives_where: Which negatives do.

    Source: Rendle et al. 2009, "BPR: Bayesian Personalized Ranking from Implicit Feedback".

    >>> round(float(bpr(jnp.array([1.0]), jnp.array([[1.0, 1.0]]))), 4)
    0.6931
    """
    _require_shape("positive", positive, jnp.shape(negative)[:-1])
    losses = jax.nn.softplus(_float32(negative) - _float32(positive)[..., None])
    where = _both(_last(where), negatives_where)
    return weighted_mean(losses, _last(weights), where)


def softmax(
    logits: Float[Array, "*batch n"], labels: Int[Array, "*batch"], *, weights: Any = None, where: Mask = None
) -> Float[Array, ""]:
    """Cross entropy over all n classes: mean of `log sum_j exp(x_j) - x_label`; NaN for a label that is no class.

    >>> round(float(softmax(jnp.zeros((1, 4)), jnp.array([2]))), 4)
    1.3863
    """
    logits = _float32(logits)
    # A negative one would count from the end.
    labels = jnp.where(labels < 0, logits.shape[-1], labels)
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="fill")[..., 0]
    return weighted_mean(jax.nn.logsumexp(logits, axis=-1) - chosen, weights, where)


def sampled_softmax(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch m"],
    *,
    positive_log_q: Any = None,
    negative_log_q: Any = None,
    positive_ids: Any = None,
    negative_ids: Any = None,
    negatives_where: Mask = None,
    weights: Any = None,
    where: Mask = None,
) -> Float[Array, ""]:
    """Cross entropy of the positive among sampled negatives.

    `log(exp(x'_+) + sum_j exp(x'_j)) - x'_+` with `x' = x - log q`, q being how often an item is drawn: with this
    correction it tends to the full softmax as the negatives grow in number.

    Args:
        positive: Logits of what was chosen.
        negative: Logits of the negatives of each, or `[m]`-fold shared ones.
        positive_log_q: Logarithm of the sampling frequency of each positive; no correction if None.
        negative_log_q: The same of the negatives, broadcast to them.
        positive_ids: With
        negative_ids: removes accidental hits: negatives that are the positive itself.
        negatives_where: Which negatives take part.
        weights: Of the examples.
        where: Which examples count.

    Source: Bengio, Senecal 2008, "Adaptive Importance Sampling"; Yi et al. 2019, "Sampling-Bias-Corrected Neural
    Modeling for Large Corpus Item Recommendations", equation 3.

    >>> hit = {"positive_ids": jnp.array([7]), "negative_ids": jnp.array([[7, 3]])}
    >>> round(float(sampled_softmax(jnp.zeros(1), jnp.zeros((1, 2)), **hit)), 4)
    0.6931
    """
    positive, negative = _float32(positive), _float32(negative)
    if positive_log_q is not None:
        positive = positive - positive_log_q
    if negative_log_q is not None:
        negative = negative - negative_log_q
    if (positive_ids is None) != (negative_ids is None):
        raise ValueError("accidental hits are found by positive_ids and negative_ids: give both or neither")
    if positive_ids is not None and negative_ids is not None:
        negatives_where = _both(negatives_where, jnp.asarray(positive_ids)[..., None] != negative_ids)
    if negatives_where is not None:
        negative = jnp.where(negatives_where, negative, _NEVER)
    rest = jax.nn.logsumexp(negative, axis=-1)
    return weighted_mean(jax.nn.softplus(rest - positive), weights, where)


def in_batch_softmax(
    queries: Float[Array, "batch width"],
    items: Float[Array, "batch width"],
    *,
    item_ids: Int[Array, " batch"] | None = None,
    log_q: Float[Array, " batch"] | None = None,
    temperature: float | Array = 1.0,
    weights: Any = None,
    where: Mask = None,
) -> Float[Array, ""]:
    """Cross entropy of each query's own item among the items of the whole batch: `sampled_softmax` with these.

    Args:
        queries: A vector for each example.
        items: That of its item.
        item_ids: Removes accidental hits where an item occurs twice.
        log_q: Logarithm of how often each item is in a batch: of its share of the interactions.
        temperature: Logits are products over it.
        weights: Of the examples.
        where: Which examples count, as queries and as negatives of others.

    >>> vectors = jnp.eye(2)
    >>> round(float(in_batch_softmax(vectors, vectors)), 4)
    0.3133
    """
    high = {"precision": lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    logits = jnp.einsum("bd,cd->bc", queries, items, **high) / temperature
    own = jnp.arange(logits.shape[0])
    others = own[:, None] != own[None, :]
    if item_ids is not None:
        others &= item_ids[:, None] != item_ids[None, :]
    if where is not None:
        others &= where[None, :]
    return sampled_softmax(
        jnp.diagonal(logits),
        logits,
        positive_log_q=log_q,
        negative_log_q=None if log_q is None else log_q[None, :],
        negatives_where=others,
        weights=weights,
        where=where,
    )


def generalized_bce(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch m"],
    *,
    n_items: int,
    calibration: float = 0.75,
    negatives_where: Mask = None,
    weights: Any = None,
    where: Mask = None,
) -> Float[Array, ""]:
    """gBCE: mean of `-(beta log s(positive) + sum_j log(1 - s(negative_j))) / (m + 1)`.

    `beta = a (t (1 - 1/a) + 1/a)`, with `a = m / (n_items - 1)` the sampling rate and t the calibration: at t = 0 it is
    binary cross entropy, at t = 1 the probabilities are not inflated by the sampling.

    Args:
        positive: Logits of what was chosen.
        negative: Logits of m uniform negatives of each.
        n_items: Size of the catalogue, above 1.
        calibration: t in [0, 1].
        negatives_where: Which negatives take part.
        weights: Of the examples.
        where: Which examples count.

    Source: Petrov, Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
    Sampling", equations 12 and 13.

    >>> even = generalized_bce(jnp.zeros(1), jnp.zeros((1, 1)), n_items=5, calibration=0.0)
    >>> round(float(even), 4)
    0.6931
    """
    m = negative.shape[-1]
    beta = positive_weight(m, n_items, calibration)
    others = jax.nn.softplus(_float32(negative))
    if negatives_where is not None:
        others = jnp.where(negatives_where, others, 0.0)
    losses = (beta * jax.nn.softplus(-_float32(positive)) + jnp.sum(others, axis=-1)) / (m + 1)
    return weighted_mean(losses, weights, where)


def positive_weight(m: int, n_items: int, calibration: float) -> float:
    """The `beta` of `generalized_bce`.

    >>> positive_weight(256, 3416, 0.0), round(positive_weight(256, 3416, 0.75), 4)
    (1.0, 0.3062)
    """
    if n_items < 2 or not 0 <= calibration <= 1:
        raise ValueError(f"{n_items=} must be at least 2 and {calibration=} in [0, 1]")
    rate = m / (n_items - 1)
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def cosine_contrastive(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch m"],
    *,
    margin: float = 0.5,
    negative_weight: float = 1.0,
    negatives_where: Mask = None,
    weights: Any = None,
    where: Mask = None,
) -> Float[Array, ""]:
    """Mean of `1 - cos_+ + negative_weight * mean_j max(0, cos_j - margin)`.

    Args:
        positive: Cosines with what was chosen.
        negative: Cosines with the negatives of each.
        margin: Negatives below it cost nothing.
        negative_weight: Of all negatives of an example together.
        negatives_where: Which negatives take part.
        weights: Of the examples.
        where: Which examples count.

    Source: Mao et al. 2021, "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", equation 1.

    >>> float(cosine_contrastive(jnp.array([1.0]), jnp.array([[0.75, 0.0]])))
    0.125
    """
    excess = jax.nn.relu(_float32(negative) - margin)
    count = jnp.float32(negative.shape[-1])
    if negatives_where is not None:
        excess = jnp.where(negatives_where, excess, 0.0)
        count = jnp.maximum(jnp.sum(negatives_where, axis=-1).astype(jnp.float32), 1.0)
    losses = 1.0 - _float32(positive) + negative_weight * jnp.sum(excess, axis=-1) / count
    return weighted_mean(losses, weights, where)


def _require_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    """An array of another shape would be broadcast, and the mean be that of pairs that are none."""
    if jnp.shape(array) != shape:
        raise ValueError(f"{name} has shape {list(jnp.shape(array))} and must have {list(shape)}")


def _float32(x: Array) -> Array:
    return jnp.asarray(x, jnp.float32)


def _last(x: Any) -> Any:
    """With one more axis, for what each example has several of."""
    return None if x is None else jnp.asarray(x)[..., None]


def _both(a: Mask, b: Mask) -> Mask:
    if a is None or b is None:
        return a if b is None else b
    return a & b
