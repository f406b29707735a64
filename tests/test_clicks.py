"""Metrics of clicks against naive ones, against scikit-learn, and at their edges."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from scipy.special import expit
from sklearn import metrics as sklearn_metrics

from affinax.engine.errors import InteractionError
from affinax.engine.evaluation import auc, calibration, evaluate_clicks, log_loss


def _clicks(seed: int, n: int = 200, distinct: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities with ties and weights, some of them 0."""
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(1, distinct, n) / distinct
    return (rng.random(n) < probabilities).astype(int), probabilities, rng.integers(0, 4, n) / 2


def _naive_auc(labels, scores, weights) -> float:
    total = pairs = 0.0
    for i in np.flatnonzero(labels):
        for j in np.flatnonzero(labels == 0):
            pair = weights[i] * weights[j]
            total += pair * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
            pairs += pair
    return total / pairs


def _naive_log_loss(labels, probabilities, weights) -> float:
    rows = zip(labels, probabilities, weights, strict=True)
    return -sum(w * math.log(p if y else 1 - p) for y, p, w in rows) / weights.sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("distinct", [2, 5, 1000])
def test_equals_the_naive_and_scikit_learn(seed, distinct):
    labels, probabilities, weights = _clicks(seed, distinct=distinct)
    ones = np.ones(len(labels))
    for given, w in ((None, ones), (weights, weights)):
        found = auc(labels, probabilities, weights=given)
        assert found == pytest.approx(_naive_auc(labels, probabilities, w), rel=1e-12)
        assert found == pytest.approx(sklearn_metrics.roc_auc_score(labels, probabilities, sample_weight=w), rel=1e-12)
        found = log_loss(labels, probabilities, weights=given)
        assert found == pytest.approx(_naive_log_loss(labels, probabilities, w), rel=1e-12)
        assert found == pytest.approx(sklearn_metrics.log_loss(labels, probabilities, sample_weight=w), rel=1e-12)


def test_auc_by_hand():
    assert auc([0, 0, 1, 1], [1, 2, 3, 4]) == 1.0
    assert auc([1, 1, 0, 0], [1, 2, 3, 4]) == 0.0
    assert auc([1, 0, 1, 0], [7, 7, 7, 7]) == 0.5
    assert auc([0, 1, 0], [-np.inf, np.inf, np.inf]) == 0.75
    # A weight counts as that many rows.
    assert auc([0, 1, 0], [1, 2, 3], weights=[3, 5, 1]) == auc([0] * 3 + [1] * 5 + [0], [1] * 3 + [2] * 5 + [3]) == 0.75
    # Only the order matters, and whole numbers that float64 cannot tell apart are none the less different.
    assert auc([0, 1], [2**60, 2**60 + 1]) == 1.0
    labels, probabilities, _ = _clicks(9)
    assert auc(labels, probabilities) == auc(labels, np.exp(50 * probabilities)) == 1 - auc(1 - labels, probabilities)


@pytest.mark.parametrize("kind", [list, pl.Series, jnp.asarray, lambda values: np.asarray(values, np.float32)])
def test_anything_like_an_array(kind):
    labels, scores = [0, 1, 1, 0], [0.25, 0.5, 0.75, 0.5]
    assert auc(kind(labels), kind(scores)) == 0.875
    assert auc(np.array(labels, bool), kind(scores)) == 0.875
    assert log_loss(kind(labels), kind(scores)) == pytest.approx(-math.log(0.75 * 0.5 * 0.75 * 0.5) / 4)
    assert auc(labels, jnp.asarray(scores, jnp.bfloat16)) == 0.875


def test_certainty():
    assert log_loss([1, 0], [1.0, 0.0]) == 0.0
    assert log_loss([1, 0], [0.0, 0.5]) == math.inf
    assert log_loss([1, 0], [0.5, 1.0]) == math.inf
    assert log_loss([1, 0], [0.0, 0.5], weights=[0, 1]) == pytest.approx(math.log(2))
    # Where 1 - p rounds to 1.
    assert log_loss([0], [1e-20]) == pytest.approx(1e-20)


def test_calibration_by_hand():
    found = calibration([0, 1, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.8, 0.9], bins=3)
    np.testing.assert_allclose(found.predicted, [0.15, 0.35, 0.85])
    np.testing.assert_allclose(found.observed, [0.5, 0.5, 1.0])
    np.testing.assert_array_equal(found.count, [2, 2, 2])
    assert found.ratio == pytest.approx(2.7 / 4)
    assert found.error == pytest.approx((0.35 + 0.15 + 0.15) / 3)
    whole = calibration([0, 1, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.4, 0.8, 0.9], bins=1)
    assert whole.error == pytest.approx(abs(2.7 - 4) / 6)


@pytest.mark.parametrize("n", [1, 9, 10, 11, 997])
def test_bins_of_equal_counts(n):
    rng = np.random.default_rng(n)
    probabilities, labels = rng.random(n), rng.integers(0, 2, n)
    found = calibration(labels, probabilities)
    assert found.count.sum() == n
    assert len(found.count) == min(n, 10)
    assert np.ptp(found.count) <= 1
    expected = 0.0
    for rows in np.split(np.argsort(probabilities), np.cumsum(found.count)[:-1]):
        expected += len(rows) / n * abs(probabilities[rows].mean() - labels[rows].mean())
    assert found.error == pytest.approx(expected, rel=1e-12)


def test_equal_predictions_share_a_bin():
    labels = np.array([1, 0, 0, 0] * 25)
    for order in (np.arange(100), np.argsort(labels), np.argsort(-labels)):
        found = calibration(labels[order], np.full(100, 0.25))
        assert (found.error, found.ratio, len(found.count)) == (0.0, 1.0, 1)
    rng = np.random.default_rng(0)
    labels, probabilities, _ = _clicks(3, distinct=4)
    order = rng.permutation(len(labels))
    found, shuffled = calibration(labels, probabilities), calibration(labels[order], probabilities[order])
    assert len(found.count) == 3
    assert found.error == pytest.approx(shuffled.error, rel=1e-12)


def test_true_probabilities_are_calibrated():
    rng = np.random.default_rng(0)
    probabilities = rng.beta(1, 20, 200_000)
    found = calibration(rng.random(200_000) < probabilities, probabilities)
    assert found.error < 0.002
    assert found.ratio == pytest.approx(1, abs=0.03)
    doubled = calibration(rng.random(200_000) < probabilities / 2, probabilities)
    assert doubled.ratio == pytest.approx(2, abs=0.06)
    assert calibration([0, 0], [0.5, 0.5]).ratio == math.inf


def test_evaluate_clicks():
    labels, probabilities, _ = _clicks(5)
    logits = np.log(probabilities / (1 - probabilities))
    found = evaluate_clicks(labels, logits.astype(np.float32))
    assert list(found) == ["auc", "log_loss", "calibration_ratio", "calibration_error"]
    assert all(type(value) is float for value in found.values())
    assert found["auc"] == auc(labels, probabilities)
    assert found["log_loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-6)
    expected = calibration(labels, expit(logits))
    assert found["calibration_ratio"] == pytest.approx(expected.ratio, rel=1e-6)
    assert found["calibration_error"] == pytest.approx(expected.error, rel=1e-5)


def test_extreme_logits():
    found = evaluate_clicks([1, 0, 1, 0], [800.0, -800.0, 40.0, -1e300])
    assert 0 < found["log_loss"] < 1e-17
    # Wrong by 800: finite, though the probability rounds to 1. Ranked by logit, though both round to 1.
    found = evaluate_clicks([0, 1], [800.0, 900.0])
    assert found["log_loss"] == 400.0
    assert found["auc"] == 1.0
    assert evaluate_clicks([0, 1], [np.inf, 0.0])["log_loss"] == math.inf


_LABELS, _HALVES = [0, 1, 1], [0.5, 0.5, 0.5]


@pytest.mark.parametrize("metric", [auc, log_loss, calibration, evaluate_clicks])
def test_bad_inputs(metric):
    for labels, said in (
        ([0, 1, 2], r"labels has 2 at position 2 \(1 such\); 0 and 1 are accepted"),
        ([-1, 1, -1], r"labels has -1 at position 0 \(2 such\)"),
        ([0, 0.5, 1], r"labels has 0\.5 at position 1"),
        ([0, 1, np.nan], r"labels has nan at position 2"),
        ([0, 1, None], r"labels has nan at position 2"),
        (["no", "yes", "no"], "labels must be numbers; got <U3 such as .*'no'"),
        ([[0, 1, 1]], r"labels must be one-dimensional and not empty; got shape \(1, 3\)"),
        ([], r"not empty; got shape \(0,\)"),
        ([0, 1], r" are 3 for 2 labels; one a label is accepted"),
    ):
        with pytest.raises(InteractionError, match=said):
            metric(labels, _HALVES)
    with pytest.raises(InteractionError, match=r"has nan at position 1 \(1 such\); numbers .* are accepted"):
        metric(_LABELS, [0.5, np.nan, 0.5])
    with pytest.raises(InteractionError, match="must be numbers; got"):
        metric(_LABELS, ["a", "b", "c"])


@pytest.mark.parametrize("metric", [log_loss, calibration])
@pytest.mark.parametrize("wrong", [-1e-9, 1.0000001, np.inf, 3])
def test_probabilities_outside_their_range(metric, wrong):
    with pytest.raises(
        InteractionError, match=r"probabilities has .* at position 2 .*; numbers in \[0, 1\] are accepted"
    ):
        metric(_LABELS, [0.5, 0.5, wrong])


def test_one_label_only_has_no_auc():
    for label in (0, 1):
        with pytest.raises(InteractionError, match=f"auc needs both labels, 0 and 1; none of the 3 is {1 - label}$"):
            auc([label] * 3, _HALVES)
    with pytest.raises(InteractionError, match="none of the 3 is 0 of a weight above 0"):
        auc(_LABELS, _HALVES, weights=[0, 1, 1])
    with pytest.raises(InteractionError, match="auc needs both labels"):
        evaluate_clicks([1, 1, 1], _HALVES)


@pytest.mark.parametrize("metric", [auc, log_loss])
def test_bad_weights(metric):
    for weights, said in (
        ([1, -2, 1], r"weights has -2\.0 at position 1 \(1 such\); finite numbers of at least 0 are accepted"),
        ([1, 1, np.inf], r"weights has inf at position 2"),
        ([1, np.nan, 1], r"weights has nan at position 1"),
        ([1, 1], "weights are 2 for 3 labels"),
        ([0, 0, 0], "weights are all 0 at 3 positions"),
    ):
        with pytest.raises(InteractionError, match=said):
            metric(_LABELS, _HALVES, weights=weights)


def test_bad_bins():
    with pytest.raises(ValueError, match="bins=0 must be at least 1"):
        calibration(_LABELS, _HALVES, bins=0)
