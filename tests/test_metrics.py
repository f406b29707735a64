"""Metrics against naive ones, against ir-measures, and at their edges; bootstrap intervals."""

from __future__ import annotations

import math

import ir_measures
import numpy as np
import pytest
from ir_measures import AP, RR, P, R, Success, nDCG

from affinax.engine.data import Interactions
from affinax.engine.errors import InteractionError
from affinax.engine.evaluation import Evaluation, mae, rmse
from affinax.engine.evaluation.metrics import RANKING

from . import naive

N_ITEMS = 40


def _lists(seed: int, n: int = 60, length: int = 15) -> tuple[np.ndarray, list[np.ndarray]]:
    """Ranked lists without repetition, some padded at the end, and what was relevant, sometimes nothing."""
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(N_ITEMS)[:length] for _ in range(n)], np.int32)
    for row, filled in enumerate(rng.integers(0, length + 1, n)):
        if row % 3 == 0:
            ids[row, filled:] = -1
    relevant = [rng.permutation(N_ITEMS)[: rng.integers(0, 12)] for _ in range(n)]
    return ids, relevant


@pytest.mark.parametrize("k", [1, 5, 15, 25])
@pytest.mark.parametrize("name", RANKING)
def test_equals_the_naive_metric(name, k):
    ids, relevant = _lists(seed=k)
    expected = [getattr(naive, f"{name}_at_k")(row, truth, k) for row, truth in zip(ids, relevant, strict=True)]
    found = RANKING[name](ids, relevant, k)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isnan(found).any()


@pytest.mark.parametrize("name", RANKING)
def test_interactions_and_lists_say_the_same(name):
    ids, relevant = _lists(seed=3)
    users = np.repeat(np.arange(len(relevant)), [len(row) for row in relevant])
    x = Interactions.from_coo(users, np.concatenate(relevant), n_users=len(relevant), n_items=N_ITEMS)
    np.testing.assert_array_equal(RANKING[name](ids, x, 7), RANKING[name](ids, relevant, 7))


@pytest.mark.parametrize("k", [3, 10])
@pytest.mark.parametrize("name", ["recall", "precision", "hit_rate", "ndcg", "map", "mrr"])
def test_equals_ir_measures(name, k):
    ids, relevant = _lists(seed=11)
    kept = [row for row in range(len(ids)) if len(relevant[row])]
    truth = {str(row): {str(item): 1 for item in relevant[row]} for row in kept}
    run = {
        str(row): {str(item): float(-place) for place, item in enumerate(ids[row]) if item >= 0} or {"none": 0.0}
        for row in kept
    }
    theirs = {"recall": R, "precision": P, "hit_rate": Success, "ndcg": nDCG, "map": AP, "mrr": RR}[name] @ k
    values = {found.query_id: found.value for found in ir_measures.iter_calc([theirs], truth, run)}
    expected = [values[str(row)] for row in kept]
    np.testing.assert_allclose(RANKING[name](ids, relevant, k)[kept], expected, rtol=1e-6)


@pytest.mark.parametrize("name", RANKING)
def test_values_worked_by_hand(name):
    # Relevant are 4 and 9; 9 is found at rank 2, 4 not at all.
    expected = {
        "recall": 1 / 2,
        "precision": 1 / 3,
        "hit_rate": 1.0,
        "ndcg": (1 / math.log2(3)) / (1 + 1 / math.log2(3)),
        "map": (1 / 2) / 2,
        "mrr": 1 / 2,
    }
    assert RANKING[name]([[1, 9, 5]], [[4, 9]], 3) == pytest.approx([expected[name]])


@pytest.mark.parametrize("name", RANKING)
def test_a_perfect_list_is_worth_one(name):
    perfect = 4 / 6 if name == "precision" else 1.0
    assert RANKING[name]([[8, 2, 5, 1, 0, 3]], [[1, 2, 5, 8]], 6) == pytest.approx([perfect])


@pytest.mark.parametrize("name", RANKING)
def test_edges(name):
    metric = RANKING[name]
    assert np.isnan(metric([[1, 2]], [[]], 2)).all()
    assert metric([[-1, -1]], [[3]], 2) == [0.0]
    assert metric([[2, -1]], [[3]], 2) == [0.0]
    assert metric(np.empty((1, 0), np.int32), [[3]], 2) == [0.0]
    assert metric(np.empty((0, 2), np.int32), [], 2).shape == (0,)
    # Padding of the relevant items is no item, and padding of the list does not meet it.
    assert metric([[2, -1]], [[3, -1]], 2) == [0.0]
    # A list shorter than k has misses behind it: it equals the same list padded.
    np.testing.assert_array_equal(metric([[3, 2]], [[2, 5]], 9), metric([[3, 2] + [-1] * 7], [[2, 5]], 9))
    # The last item of one row and the first of the next do not run into each other.
    np.testing.assert_array_equal(metric([[0], [4]], [[4], [0]], 1), [0.0, 0.0])
    # A relevant item named twice is one item.
    np.testing.assert_array_equal(metric([[3, 2]], [[2, 2]], 2), metric([[3, 2]], [[2]], 2))


@pytest.mark.parametrize("name", RANKING)
def test_refusals(name):
    metric = RANKING[name]
    with pytest.raises(InteractionError, match="row 1: item 7 is ranked twice"):
        metric([[1, 2, 3], [7, 4, 7]], [[1], [2]], 3)
    assert len(metric([[7, 4, 7]], [[1]], 2)) == 1  # not among the first k
    with pytest.raises(InteractionError, match="2 rows for 1 rows of ids"):
        metric([[1]], [[1], [2]], 1)
    with pytest.raises(InteractionError, match="whole numbers"):
        metric([[1.0]], [[1]], 1)
    with pytest.raises(InteractionError, match=r"whole numbers; got float64 such as .*1\.5"):
        metric([[1]], [[1.5]], 1)
    with pytest.raises(InteractionError, match=r"\[n, K\]"):
        metric([1, 2], [[1]], 1)
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        metric([[1]], [[1]], 0)


def test_rating_metrics():
    rng = np.random.default_rng(0)
    predicted, actual = rng.normal(size=500).astype(np.float32), rng.integers(1, 6, 500)
    assert rmse(predicted, actual) == pytest.approx(naive.rmse(predicted, actual), rel=1e-12)
    assert mae(predicted, actual) == pytest.approx(naive.mae(predicted, actual), rel=1e-12)
    for metric in (rmse, mae):
        with pytest.raises(InteractionError, match=r"\(2,\).*\(1,\)"):
            metric([1.0, 2.0], [1.0])
        with pytest.raises(InteractionError, match="not empty"):
            metric([], [])


def _evaluation(n: int) -> Evaluation:
    rng = np.random.default_rng(1)
    values = {"ndcg_at_10": rng.beta(2, 5, n), "hit_rate_at_10": (rng.random(n) < 0.3).astype(float)}
    return Evaluation(values, np.arange(n), "test")


def test_bootstrap_intervals():
    widths = []
    for n in (50, 5000):
        found = _evaluation(n)
        intervals = found.intervals()
        for name, mean in found.means.items():
            low, high = intervals[name]
            assert low < mean < high
            normal = 2 * 1.96 * found.values[name].std() / math.sqrt(n)
            assert high - low == pytest.approx(normal, rel=0.15)
        widths.append(intervals["ndcg_at_10"][1] - intervals["ndcg_at_10"][0])
    assert widths[1] < widths[0] / 5


def test_intervals_go_by_seed_and_confidence():
    found = _evaluation(200)
    assert found.intervals(seed=4) == found.intervals(seed=4) != found.intervals(seed=5)
    (low, high), (lower, higher) = (found.intervals(confidence=c)["ndcg_at_10"] for c in (0.5, 0.99))
    assert lower < low < high < higher
    for confidence in (0.0, 1.0, 95):
        with pytest.raises(ValueError, match=r"confidence=.* must be in \(0, 1\)"):
            found.intervals(confidence=confidence)


def test_one_user_has_an_interval_of_no_width():
    found = Evaluation({"recall_at_10": np.array([0.25])}, np.array([3]), "test")
    assert found.intervals() == {"recall_at_10": (0.25, 0.25)}


def test_an_evaluation_shows_what_was_left_out():
    found = Evaluation(
        {"recall_at_10": np.ones(3)}, np.arange(3), "full catalogue", {"new users": 2, "none": 0}, ("x",)
    )
    assert repr(found).splitlines()[:3] == ["full catalogue, 3 users", "  x", "  2 new users"]
    assert "1.0000  [1.0000, 1.0000]" in repr(found)
