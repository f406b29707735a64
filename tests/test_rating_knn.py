"""k-NN with baselines against its formula, and as a model."""

from __future__ import annotations

from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from affinax.engine import memory
from affinax.engine.data import InteractionError, Interactions
from affinax.engine.evaluation import evaluate, evaluate_ratings
from affinax.engine.factorization import baseline_estimates
from affinax.engine.neighbors import item_knn, knn_baseline
from affinax.engine.retrieval import predict, recommend, similar_items, with_history

from . import naive

N_USERS, N_ITEMS = 30, 23
ALL = tuple(part.ravel() for part in np.indices((N_USERS, N_ITEMS)))


@pytest.fixture(scope="module")
def x():
    """Ratings, no two of them alike, with an item and a user that nobody and nothing met."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((N_USERS, N_ITEMS)) < 0.4, rng.uniform(1, 5, (N_USERS, N_ITEMS)), 0)
    dense[7], dense[:, 9] = 0, 0
    return Interactions.from_scipy(scipy.sparse.csr_array(dense.astype(np.float32)))


def test_baselines(x):
    mean, user_bias, item_bias = naive.baseline(x.to_scipy().toarray(), 3.0, 2.0, 4)
    model = jax.jit(lambda data: baseline_estimates(data, l2_users=3.0, l2_items=2.0, sweeps=4))(x.to_device())
    np.testing.assert_allclose(model.user_bias, user_bias, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.item_bias, item_bias, rtol=1e-4, atol=1e-6)
    expected = (mean + user_bias[:, None] + item_bias).ravel()
    np.testing.assert_allclose(predict(model, *ALL), expected, rtol=1e-5)
    grid = jax.vmap(lambda l2: baseline_estimates(x.to_device(), l2_users=l2).user_bias)(jnp.array([1.0, 50.0]))
    assert float(jnp.abs(grid[0]).sum()) > float(jnp.abs(grid[1]).sum())


@pytest.mark.on_cpu
@pytest.mark.parametrize("side", ["items", "users"])
@pytest.mark.parametrize(
    "options",
    [
        {"similarity": "pearson-baseline", "shrink": 100.0, "min_support": 2},
        {"similarity": "msd", "shrink": 0.0, "min_support": 1},
        {"similarity": "cosine", "shrink": 5.0, "min_support": 3},
    ],
    ids=lambda o: o["similarity"],
)
def test_predictions_are_those_of_the_formula(x, side, options):
    expected = naive.knn_baseline(x.to_scipy().toarray(), side, neighbors=4, **options)
    for implementation in ("numba", "reference"):
        model = knn_baseline(x, side=side, neighbors=4, implementation=implementation, **options)
        np.testing.assert_allclose(predict(model, *ALL), expected.ravel(), rtol=1e-4)
    ids, scores = recommend(model, np.arange(N_USERS), 6, seen=x)
    _, best = naive.best(expected, 6, [x.items_of(user) for user in range(N_USERS)])
    np.testing.assert_allclose(scores, best, rtol=1e-4)
    chosen = np.take_along_axis(expected, np.asarray(ids), axis=1)
    np.testing.assert_allclose(chosen, best, rtol=1e-4)


def test_few_candidates_are_the_nearest(x):
    every, few = knn_baseline(x, neighbors=2, candidates=99), knn_baseline(x, neighbors=2, candidates=3)
    for item in range(N_ITEMS):
        begin, end = every.weights.indptr[item : item + 2].tolist()
        kept = few.weights.indices[few.weights.indptr[item] : few.weights.indptr[item + 1]]
        np.testing.assert_array_equal(kept, every.weights.indices[begin : min(end, begin + 3)])


@pytest.mark.parametrize("side", ["items", "users"])
class TestModel:
    def test_works_in_jit_and_in_parts(self, x, side):
        model = knn_baseline(x, side=side, neighbors=3)
        np.testing.assert_allclose(jax.jit(predict)(model, *ALL), predict(model, *ALL), rtol=1e-6)
        whole = recommend(model, np.arange(N_USERS), 5, seen=x)
        single = [
            jax.jit(recommend, static_argnames="k")(model, jnp.array([u]), k=5, seen=x.to_device()) for u in (0, 9)
        ]
        for place, user in enumerate((0, 9)):
            np.testing.assert_array_equal(single[place][0][0], whole[0][user])

    def test_filters(self, x, side):
        model, users = knn_baseline(x, side=side), [1, 2]
        ids, _ = recommend(model, users, 5, seen=x)
        fewer, _ = recommend(model, users, 5, seen=x, exclude=np.asarray(ids)[:, :1])
        np.testing.assert_array_equal(np.asarray(fewer)[:, :4], np.asarray(ids)[:, 1:])
        among, _ = recommend(model, users, 2, allow=np.asarray(ids)[:, [3, 1, 0]])
        np.testing.assert_array_equal(among, np.asarray(ids)[:, :2])
        nothing, _ = recommend(model, users, 2, allow=np.zeros(N_ITEMS, bool))
        assert (np.asarray(nothing) == -1).all()

    def test_many_users_go_by_blocks(self, x, side, monkeypatch):
        model = knn_baseline(x, side=side)
        whole = recommend(model, np.arange(N_USERS), 4, seen=x, exclude=np.tile([[3]], (N_USERS, 1)))
        monkeypatch.setattr("affinax.engine.retrieval.search._SCORES_HELD", 7 * N_ITEMS)
        # Of another k, for which it is not compiled yet.
        parts = recommend(model, np.arange(N_USERS), 5, seen=x, exclude=np.tile([[3]], (N_USERS, 1)))
        np.testing.assert_array_equal(np.asarray(parts[0])[:, :4], whole[0])

    def test_protocols_and_tiny_data(self, x, side):
        train, test = x.split("random", test_fraction=0.3)
        model = knn_baseline(train, side=side)
        assert 0 < evaluate(model, test, train=train).means["ndcg_at_10"] < 1
        assert 0.5 < evaluate_ratings(model, test, low=1, high=5)["rmse"] < 2.5
        one = knn_baseline(Interactions.from_coo([0], [0], [3.0]), side=side)
        assert predict(one, [0], [0]).tolist() == [3.0]


def test_camps_are_told_apart():
    """Even users love even items and hate odd ones; odd users the other way round: no bias can say so."""
    users, items = (part.ravel() for part in np.indices((40, 30)))
    kept = np.random.default_rng(0).random(len(users)) < 0.5
    values = np.where((users + items) % 2, 1.0, 5.0).astype(np.float32)
    train = Interactions.from_coo(users[kept], items[kept], values[kept])
    test = Interactions.from_coo(users[~kept], items[~kept], values[~kept])
    assert evaluate_ratings(baseline_estimates(train.to_device()), test)["rmse"] > 1.9
    for side in ("items", "users"):
        assert evaluate_ratings(knn_baseline(train, side=side), test)["rmse"] < 0.2


def test_newcomers_with_the_ratings_of_users_get_the_same(x):
    model = knn_baseline(x)
    some = x.select(x.users < 5)
    np.testing.assert_allclose(
        predict(with_history(model, some), ALL[0][:99], ALL[1][:99]),
        predict(model, ALL[0][:99], ALL[1][:99]),
        rtol=1e-4,
    )


def test_similar_items_are_the_weights(x):
    model = knn_baseline(x, candidates=50)
    ids, scores = similar_items(model, [3], 4)
    begin = int(model.weights.indptr[3])
    np.testing.assert_allclose(scores[0], model.weights.values[begin : begin + 4], rtol=1e-6)
    assert 3 not in np.asarray(ids)
    with pytest.raises(ValueError, match="compares whole users"):
        similar_items(knn_baseline(x, side="users"), [0])


def test_models_that_only_rank_predict_nothing(x):
    with pytest.raises(ValueError, match="ItemWeights ranks items and predicts no values"):
        unwrap(predict)(item_knn(x), [0], [0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "rows"}, "side='rows' must be one of"),
        ({"similarity": "pearson"}, "similarity='pearson' must be one of"),
        ({"neighbors": 0}, "neighbors=0 must be a whole number and at least 1"),
        ({"neighbors": 2.5}, "neighbors=2.5 must be a whole number"),
        ({"candidates": 3}, "candidates=3 must be at least neighbors=40"),
        ({"shrink": -1.0}, "shrink=-1.0 must be finite and at least 0"),
        ({"min_support": 0}, "min_support=0 must be a whole number and at least 1"),
        ({"l2_items": -1.0}, "l2_items=-1.0 must be finite and at least 0"),
    ],
)
def test_wrong_parameters_are_refused(x, options, message):
    with pytest.raises(ValueError, match=message):
        unwrap(knn_baseline)(x, **options)


def test_more_candidates_than_memory_are_refused_with_the_estimate(x, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1024)
    # No more than the others that an item shares a user with: of an item that nobody met there are none.
    with pytest.raises(MemoryError, match=r"the 23 nearest of each of 23 rows needs 4.0 KiB \(free here: 1.0 KiB\)"):
        knn_baseline(x)


def test_ratings_are_needed(x):
    with pytest.raises(InteractionError, match="have no values"):
        knn_baseline(x.with_values(None))
    with pytest.raises(InteractionError, match="answers to ratings, and these histories have no values"):
        with_history(knn_baseline(x), x.with_values(None))


@pytest.mark.parametrize("similarity", ["pearson-baseline", "cosine", "msd"])
@pytest.mark.parametrize("side", ["items", "users"])
def test_ratings_that_are_all_the_same_are_predicted(x, side, similarity):
    model = knn_baseline(x.with_values(np.full(x.nnz, 3.5)), side=side, similarity=similarity)
    np.testing.assert_allclose(predict(model, *ALL), 3.5, rtol=1e-6)
