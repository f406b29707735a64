"""How models are tried: who is tested, against which items, and what is counted apart."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from affinax.engine.data import Interactions
from affinax.engine.errors import InteractionError
from affinax.engine.evaluation import evaluate, evaluate_ratings, evaluate_sampled, protocols
from affinax.engine.evaluation.metrics import RANKING
from affinax.engine.factorization import Factors
from affinax.engine.neighbors import popularity
from affinax.engine.retrieval import recommend

from . import naive

N_USERS, N_ITEMS = 30, 50


@pytest.fixture(scope="module")
def parts():
    """Random interactions; users 0-2 are only trained on, users 3-4 only tested, item 49 is only in the test part."""
    rng = np.random.default_rng(0)
    train, test = [], []
    for user in range(N_USERS):
        items = rng.permutation(N_ITEMS - 1)[:12]
        if user not in (3, 4):
            train += [(user, item) for item in items[:8]]
        if user > 2:
            test += [(user, item) for item in items[8:]]
    test.append((7, N_ITEMS - 1))
    return tuple(Interactions.from_coo(*np.array(pairs).T, n_users=N_USERS, n_items=N_ITEMS) for pairs in (train, test))


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(1)
    users, items = (jnp.asarray(rng.normal(size=(n, 16)), jnp.float32) for n in (N_USERS, N_ITEMS))
    return Factors(users, items)


def _scores(model) -> np.ndarray:
    return np.asarray(model.users, np.float64) @ np.asarray(model.items, np.float64).T


def test_full_catalogue_equals_the_naive_protocol(parts, model):
    train, test = parts
    scores = _scores(model)
    found = evaluate(model, test, train=train, k=10)
    assert found.users.tolist() == list(range(5, N_USERS))
    assert set(found.values) == {f"{name}_at_10" for name in RANKING}
    for place, user in enumerate(found.users):
        left = np.setdiff1d(np.arange(N_ITEMS), train.items_of(user))
        ranked = left[np.argsort(-scores[user, left])]
        for name in RANKING:
            expected = getattr(naive, f"{name}_at_k")(ranked, test.items_of(user), 10)
            assert found.values[f"{name}_at_10"][place] == pytest.approx(expected, rel=1e-12)
    assert found.means["recall_at_10"] == pytest.approx(found.values["recall_at_10"].mean())


def test_seen_items_are_never_returned(parts, model, monkeypatch):
    train, test = parts
    answers = []

    def watched(*arguments, **options):
        ids, scores = recommend(*arguments, **options)
        answers.append(np.asarray(ids))
        return ids, scores

    monkeypatch.setattr(protocols, "recommend", watched)
    found = evaluate(model, test, train=train, k=N_ITEMS)
    for user, ids in zip(found.users, np.concatenate(answers), strict=True):
        assert not np.isin(ids, train.items_of(user)).any()
        assert (ids >= 0).sum() == N_ITEMS - len(train.items_of(user))


def test_cold_users_and_items_are_counted_apart(parts, model):
    train, test = parts
    found = evaluate(model, test, train=train)
    assert list(found.untested.values()) == [2, 1]
    assert "2 users only in the test part, not ranked" in repr(found)
    assert "1 items only in the test part, counted as misses" in repr(found)
    # Without a training part there is nothing to tell who is new, and nothing is left out.
    alone = evaluate(model, test)
    assert alone.untested == {}
    assert alone.users.tolist() == list(range(3, N_USERS))


def test_batches_do_not_show(parts, model, monkeypatch):
    train, test = parts
    whole = evaluate(model, test, train=train), evaluate_sampled(model, test, train=train, n_negatives=20)
    monkeypatch.setattr(protocols, "_BATCH", 7)
    batched = evaluate(model, test, train=train), evaluate_sampled(model, test, train=train, n_negatives=20)
    for one, other in zip(whole, batched, strict=True):
        for name, values in one.values.items():
            np.testing.assert_array_equal(values, other.values[name])


def test_users_without_test_items_are_not_tested(parts, model):
    train, test = parts
    few = test.select(test.users == 9)
    assert evaluate(model, few, train=train).users.tolist() == [9]


@pytest.mark.parametrize("protocol", [evaluate, evaluate_sampled])
def test_refusals(parts, model, protocol):
    train, test = parts
    if protocol is evaluate_sampled:
        protocol = functools.partial(protocol, n_negatives=20)
    with pytest.raises(InteractionError, match=r"nobody to test: no user has both training and test"):
        protocol(model, test.select(test.users < 5), train=train)
    with pytest.raises(ValueError, match=r"metrics \['nope'\] must be among \['hit_rate', 'map'"):
        protocol(model, test, train=train, names=["ndcg", "nope"])
    with pytest.raises(ValueError, match="must be among"):
        protocol(model, test, train=train, names=[])
    with pytest.raises(ValueError, match="k=0"):
        protocol(model, test, train=train, k=0)
    other = Interactions.from_coo([0], [0], n_users=N_USERS, n_items=N_ITEMS + 1)
    with pytest.raises(InteractionError, match=r"train\.shape=\(30, 50\) and test\.shape=\(30, 51\) must be equal"):
        protocol(model, other, train=train)
    smaller = Factors(model.users, model.items[:-1])
    with pytest.raises(InteractionError, match="the model has 49 items and the test part 50"):
        protocol(smaller, test, train=train)


def test_what_was_trained_on_cannot_be_tested(parts, model):
    train, _ = parts
    with pytest.raises(InteractionError, match=f"all {train.nnz} tested interactions are in the training part"):
        evaluate(model, train, train=train)
    assert evaluate(model, train).means["hit_rate_at_10"] > 0  # where nothing is masked


def test_nobody_in_the_test_part(model):
    with pytest.raises(InteractionError, match="no user has test interactions"):
        evaluate(model, Interactions.from_coo([0], [0], n_users=N_USERS, n_items=N_ITEMS).select(np.zeros(1, bool)))


@pytest.mark.parametrize("n_negatives", [5, 30])  # drawn one by one, and from a permutation
def test_sampled_negatives(parts, model, monkeypatch, n_negatives):
    train, test = parts
    asked = []

    def watched(model, users, k, **options):
        asked.append((np.asarray(users), np.asarray(options["allow"])))
        return recommend(model, users, k, **options)

    monkeypatch.setattr(protocols, "recommend", watched)

    def candidates(seed: int) -> dict[int, np.ndarray]:
        asked.clear()
        found = evaluate_sampled(model, test, train=train, n_negatives=n_negatives, seed=seed)
        assert set(found.values) == {f"{n}_at_10_of_{n_negatives}_sampled" for n in ("hit_rate", "ndcg")}
        assert found.protocol == f"{n_negatives} sampled negatives a user"
        return {int(user): row[row >= 0] for users, rows in asked for user, row in zip(users, rows, strict=True)}

    first = candidates(seed=1)
    for user, row in first.items():
        truth = test.items_of(user)
        negatives = row[~np.isin(row, truth)]
        assert np.isin(truth, row).all()
        assert len(negatives) == n_negatives == len(set(negatives.tolist()))
        assert not np.isin(negatives, train.items_of(user)).any()
    again, other = candidates(seed=1), candidates(seed=2)
    assert all((first[user] == again[user]).all() for user in first)
    assert any((first[user] != other[user]).any() for user in first)


def test_sampled_metrics_equal_the_naive_ones(parts, model):
    train, test = parts
    one = test.select(np.append(True, test.users[1:] != test.users[:-1]))  # one item a user
    found = evaluate_sampled(model, one, train=train, n_negatives=41, k=N_ITEMS, names=["mrr"])
    scores = _scores(model)
    for user, value in zip(found.users, found.values["mrr_at_50_of_41_sampled"], strict=True):
        # 50 items less 8 seen and 1 tested: 41 negatives are all there are.
        left = np.setdiff1d(np.arange(N_ITEMS), train.items_of(user))
        ranked = left[np.argsort(-scores[user, left])]
        assert value == pytest.approx(naive.mrr_at_k(ranked, one.items_of(user), N_ITEMS))


def test_too_many_negatives(parts, model):
    train, test = parts
    with pytest.raises(InteractionError, match=r"user \d+ has 3\d items never met; n_negatives=60 are asked"):
        evaluate_sampled(model, test, train=train, n_negatives=60)
    with pytest.raises(ValueError, match="n_negatives=0 must be at least 1"):
        evaluate_sampled(model, test, train=train, n_negatives=0)


def test_ratings(model, parts):
    _, test = parts
    rated = test.with_values(np.random.default_rng(2).integers(1, 6, test.nnz))
    predicted = _scores(model)[rated.users, rated.items]
    found = evaluate_ratings(model, rated)
    assert found["rmse"] == pytest.approx(naive.rmse(predicted, rated.values), rel=1e-5)
    assert found["mae"] == pytest.approx(naive.mae(predicted, rated.values), rel=1e-5)
    clipped = evaluate_ratings(model, rated, low=1, high=5)
    assert clipped["rmse"] == pytest.approx(naive.rmse(np.clip(predicted, 1, 5), rated.values), rel=1e-5)
    with pytest.raises(InteractionError, match="need values"):
        evaluate_ratings(model, test)


def test_popularity_can_be_tried_like_any_model(parts):
    train, test = parts
    found = evaluate(popularity(train), test, train=train, k=5, names=["hit_rate"])
    assert list(found.values) == ["hit_rate_at_5"]
    assert 0 < found.means["hit_rate_at_5"] < 1
