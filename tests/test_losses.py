"""Losses against their formulas in float64, with weights and masks everywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.engine.training import losses

RNG = np.random.default_rng(0)
N, M, WIDTH = 6, 3, 4
POSITIVE, NEGATIVE = RNG.normal(size=N) * 2, RNG.normal(size=(N, M)) * 2
WEIGHTS, WHERE = RNG.uniform(0.1, 2, N), np.array([True, False, True, True, False, True])
KEPT = RNG.random((N, M)) < 0.7
KEPT[:, 0] = True
LABELS = RNG.uniform(0, 1, N)


def softplus(x):
    return np.logaddexp(0, x)


def mean(values, weights=None, where=None):
    weights = np.ones_like(values) if weights is None else np.broadcast_to(weights, values.shape).copy()
    weights = weights * (1 if where is None else where)
    return (weights * values).sum() / weights.sum()


def huber(delta=0.7):
    error = np.abs(POSITIVE - LABELS)
    return np.where(error <= delta, error**2 / 2, delta * (error - delta / 2))


def sampled(log_q=0.0, negative_log_q=0.0, kept=True):
    logits = np.where(kept, NEGATIVE - negative_log_q, -np.inf)
    own = POSITIVE - log_q
    return np.logaddexp(own, np.logaddexp.reduce(logits, axis=1)) - own


def gbce(kept=True, n_items=20, t=0.6):
    rate = M / (n_items - 1)
    beta = rate * (t * (1 - 1 / rate) + 1 / rate)
    others = np.where(kept, softplus(NEGATIVE), 0).sum(axis=1)
    return (beta * softplus(-POSITIVE) + others) / (M + 1)


def contrastive(kept=True, margin=0.2, weight=3.0):
    excess = np.where(kept, np.maximum(NEGATIVE - margin, 0), 0)
    return 1 - POSITIVE + weight * excess.sum(axis=1) / np.broadcast_to(kept, NEGATIVE.shape).sum(axis=1)


SCORES = RNG.normal(size=(N, 5))
CLASSES = RNG.integers(0, 5, N)
CROSS = np.logaddexp.reduce(SCORES, axis=1) - SCORES[np.arange(N), CLASSES]
PLAIN = {  # arguments, and the loss of each example
    "squared_error": ((POSITIVE, LABELS), {}, (POSITIVE - LABELS) ** 2),
    "huber": ((POSITIVE, LABELS), {"delta": 0.7}, huber()),
    "binary_cross_entropy": ((POSITIVE, LABELS), {}, softplus(POSITIVE) - LABELS * POSITIVE),
    "softmax": ((SCORES, CLASSES), {}, CROSS),
    "sampled_softmax": ((POSITIVE, NEGATIVE), {}, sampled()),
    "generalized_bce": ((POSITIVE, NEGATIVE), {"n_items": 20, "calibration": 0.6}, gbce()),
    "cosine_contrastive": ((POSITIVE, NEGATIVE), {"margin": 0.2, "negative_weight": 3.0}, contrastive()),
}


def call(name, arguments, options):
    arguments = [jnp.asarray(a, jnp.int32 if a.dtype.kind == "i" else jnp.float32) for a in arguments]
    return float(getattr(losses, name)(*arguments, **options))


@pytest.mark.parametrize("name", PLAIN)
def test_a_loss_is_its_formula(name):
    arguments, options, expected = PLAIN[name]
    assert call(name, arguments, options) == pytest.approx(mean(expected), rel=1e-5)
    some = {"weights": jnp.asarray(WEIGHTS, jnp.float32), "where": jnp.asarray(WHERE)}
    assert call(name, arguments, options | some) == pytest.approx(mean(expected, WEIGHTS, WHERE), rel=1e-5)


def test_bpr_is_a_mean_over_pairs():
    expected = softplus(NEGATIVE - POSITIVE[:, None])
    assert call("bpr", (POSITIVE, NEGATIVE), {}) == pytest.approx(mean(expected), rel=1e-5)
    some = {"weights": WEIGHTS, "where": WHERE, "negatives_where": jnp.asarray(KEPT)}
    expected = mean(expected, WEIGHTS[:, None], WHERE[:, None] & KEPT)
    assert call("bpr", (POSITIVE, NEGATIVE), some) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("sampled_softmax", {}, sampled(kept=KEPT)),
        ("generalized_bce", {"n_items": 20, "calibration": 0.6}, gbce(KEPT)),
        ("cosine_contrastive", {"margin": 0.2, "negative_weight": 3.0}, contrastive(KEPT)),
    ],
)
def test_negatives_that_take_no_part(name, options, expected):
    found = call(name, (POSITIVE, NEGATIVE), options | {"negatives_where": jnp.asarray(KEPT)})
    assert found == pytest.approx(mean(expected), rel=1e-5)


def test_sampled_softmax_corrects_for_frequency_and_accidental_hits():
    log_q, negative_log_q = RNG.normal(size=N), RNG.normal(size=(N, M))
    ids, negative_ids = np.arange(N), np.tile(np.arange(M), (N, 1))
    options = {"positive_log_q": log_q, "negative_log_q": negative_log_q}
    options |= {"positive_ids": jnp.asarray(ids), "negative_ids": jnp.asarray(negative_ids)}
    expected = sampled(log_q, negative_log_q, ids[:, None] != negative_ids)
    assert call("sampled_softmax", (POSITIVE, NEGATIVE), options) == pytest.approx(mean(expected), rel=1e-5)
    with pytest.raises(ValueError, match="both or neither"):
        call("sampled_softmax", (POSITIVE, NEGATIVE), {"positive_ids": jnp.asarray(ids)})


def test_a_corrected_sample_tends_to_the_full_softmax():
    """All classes as negatives of equal frequency, the accidental hit removed, are the full softmax itself."""
    everything = np.tile(np.arange(5), (N, 1))
    own = SCORES[np.arange(N), CLASSES]
    hits = {"positive_ids": jnp.asarray(CLASSES), "negative_ids": jnp.asarray(everything)}
    assert call("sampled_softmax", (own, SCORES), hits) == pytest.approx(CROSS.mean(), rel=1e-5)


def test_in_batch_softmax():
    queries, items = RNG.normal(size=(2, N, WIDTH))
    ids, log_q, temperature = np.array([3, 1, 3, 2, 0, 5]), np.log(RNG.uniform(0.1, 0.9, N)), 0.5
    logits = queries @ items.T / temperature
    own = np.diagonal(logits) - log_q
    others = np.where(ids[:, None] == ids[None], -np.inf, logits - log_q[None])
    others = np.where(WHERE[None], others, -np.inf)
    expected = mean(np.logaddexp(own, np.logaddexp.reduce(others, axis=1)) - own, WEIGHTS, WHERE)
    options = {"item_ids": jnp.asarray(ids, jnp.int32), "log_q": jnp.asarray(log_q, jnp.float32)}
    options |= {"temperature": temperature, "weights": WEIGHTS, "where": WHERE}
    assert call("in_batch_softmax", (queries, items), options) == pytest.approx(expected, rel=1e-5)


def test_no_negative_at_all_costs_nothing():
    none = jnp.zeros((N, M), bool)
    assert call("sampled_softmax", (POSITIVE, NEGATIVE), {"negatives_where": none}) == 0


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_masked_may_be_anything(name):
    """Its loss and gradient are 0, were it NaN."""
    (scores, other), options, _ = PLAIN[name]
    scores = jnp.asarray(np.where(WHERE if scores.ndim == 1 else WHERE[:, None], scores, np.nan), jnp.float32)
    other = jnp.asarray(other, jnp.int32 if other.dtype.kind == "i" else jnp.float32)

    def loss(scores):
        return getattr(losses, name)(scores, other, where=jnp.asarray(WHERE), **options)

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.nan_to_num(scores))
    assert np.isfinite(value)
    assert np.isfinite(loss(scores))
    assert (np.asarray(gradient)[~WHERE] == 0).all()


@pytest.mark.parametrize("name", PLAIN)
def test_low_precision_is_summed_in_float32(name):
    arguments, options, expected = PLAIN[name]
    arguments = [jnp.asarray(a, jnp.int32 if a.dtype.kind == "i" else jnp.bfloat16) for a in arguments]
    found = getattr(losses, name)(*arguments, **options)
    assert found.dtype == jnp.float32
    assert float(found) == pytest.approx(mean(expected), rel=0.05)


def test_nothing_to_average():
    with pytest.raises(ValueError, match="no example counts: of 6 all are masked"):
        call("squared_error", (POSITIVE, LABELS), {"where": np.zeros(N, bool)})
    with pytest.raises(ValueError, match="weights must not be negative; the least is -1"):
        call("squared_error", (POSITIVE, LABELS), {"weights": np.array([-1.0, 1, 1, 1, 1, 1])})
    masked = jax.jit(lambda where: losses.squared_error(jnp.ones(N), jnp.ones(N), where=where))
    assert np.isnan(masked(np.zeros(N, bool)))


def test_shapes_that_would_be_broadcast():
    for loss in (losses.squared_error, losses.huber):
        with pytest.raises(ValueError, match=r"targets has shape \[3\] and must have \[3, 1\]"):
            loss(jnp.zeros((3, 1)), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"labels has shape \[3\] and must have \[3, 1\]"):
        losses.binary_cross_entropy(jnp.zeros((3, 1)), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"positive has shape \[3\] and must have \[\]"):
        losses.bpr(jnp.zeros(3), jnp.zeros(3))


def test_labels_out_of_range():
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\]; they reach from 0 to 5"):
        losses.binary_cross_entropy(jnp.zeros(2), jnp.array([0.0, 5.0]))
    for label in (-1, 5):
        assert np.isnan(losses.softmax(jnp.zeros((1, 5)), jnp.array([label])))
    with pytest.raises(ValueError, match="n_items=1 must be at least 2"):
        losses.generalized_bce(jnp.zeros(1), jnp.zeros((1, 1)), n_items=1)
