"""Randomized singular vectors and the graph filter made of them, against dense decompositions."""

from __future__ import annotations

from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.engine.data import Interactions
from affinax.engine.evaluation import evaluate
from affinax.engine.factorization import randomized_svd
from affinax.engine.neighbors import gf_cf
from affinax.engine.retrieval import recommend, with_history

from . import naive

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def x():
    """Interactions with an item and a user that nobody and nothing met."""
    rng = np.random.default_rng(0)
    met = rng.random((40, 60)) < 0.15 + 0.4 * np.add.outer(np.arange(40) % 3 == 0, np.arange(60) % 3 == 0) / 2
    met[7], met[:, 9] = False, False
    users, items = np.nonzero(met)
    return Interactions.from_coo(users, items, n_users=40, n_items=60)


@pytest.mark.parametrize("implementation", ["numba", "reference"])
def test_singular_vectors_are_those_of_the_dense_matrix(implementation):
    rng = np.random.default_rng(1)
    dense = (
        np.where(rng.random((50, 30)) < 0.5, rng.normal(size=(50, 30)), 0) + np.outer(np.arange(50), np.ones(30)) / 20
    )
    users, items = np.nonzero(dense)
    data = Interactions.from_coo(users, items, dense[users, items].astype(np.float32)).to_device()

    def svd(key):
        return randomized_svd(key, data, 5, oversampling=10, power_iterations=10, implementation=implementation)

    u, s, v = jax.jit(svd)(KEY)
    left, values, right = np.linalg.svd(dense)
    np.testing.assert_allclose(s, values[:5], rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(u * left[:, :5], axis=0)), 1, rtol=1e-3)
    np.testing.assert_allclose(np.abs(np.sum(v * right[:5].T, axis=0)), 1, rtol=1e-3)
    np.testing.assert_allclose(v.T @ v, np.eye(5), atol=1e-5)
    np.testing.assert_array_equal(jax.jit(svd)(KEY)[0], u)


@pytest.mark.parametrize("implementation", ["numba", "reference"])
def test_scores_are_those_of_the_formula(x, implementation):
    met = x.to_scipy().toarray()
    model = gf_cf(x, key=KEY, rank=4, power_iterations=30, implementation=implementation)
    expected = naive.graph_filter(met, 4, 0.3)
    np.testing.assert_allclose(model.scores(jnp.arange(40)), expected, rtol=1e-3, atol=1e-4)
    ids, scores = jax.jit(recommend, static_argnames="k")(model, jnp.arange(40), k=6, seen=x.to_device())
    _, best = naive.best(expected, 6, [x.items_of(user) for user in range(40)])
    np.testing.assert_allclose(scores, best, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(expected, np.asarray(ids), axis=1), best, rtol=1e-3, atol=1e-4)


def test_users_go_by_blocks_where_the_graph_has_many(x, monkeypatch):
    model = gf_cf(x, key=KEY, rank=3)
    expected = model.scores(jnp.arange(40))
    monkeypatch.setattr("affinax.engine.neighbors.graph_filter._HELD", 7 * 40)
    found = model.scores(jnp.arange(40))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_all_singular_vectors_of_small_data(x):
    expected = naive.graph_filter(x.to_scipy().toarray(), 40, 0.5)
    np.testing.assert_allclose(gf_cf(x, key=KEY, alpha=0.5).scores(jnp.arange(40)), expected, rtol=1e-3, atol=1e-4)


def test_values_do_not_count(x):
    with_values = x.with_values(np.full(x.nnz, 3.0, np.float32))
    for one, other in zip(*(jax.tree.leaves(gf_cf(data, key=KEY, rank=3)) for data in (x, with_values)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_camps_are_kept_apart():
    users, items = np.nonzero(np.add.outer(np.arange(30), np.arange(20)) % 2)
    kept = np.random.default_rng(0).random(len(users)) < 0.6
    x = Interactions.from_coo(users[kept], items[kept], n_users=30, n_items=20)
    ids, _ = recommend(gf_cf(x, key=KEY, rank=2), np.arange(30), 1, seen=x)
    assert ((np.asarray(ids)[:, 0] + np.arange(30)) % 2 == 1).all()


def test_newcomers_with_the_history_of_users_get_the_same(x):
    model, some = gf_cf(x, key=KEY, rank=3), x.select(x.users < 5)
    expected = recommend(model, np.arange(5), 6)[0]
    rated = some.with_values(1 + np.arange(some.nnz) % 5)  # values do not count
    np.testing.assert_array_equal(recommend(model, np.arange(5), 6, history=rated)[0], expected)
    np.testing.assert_array_equal(recommend(with_history(model, some), np.arange(5), 6)[0], expected)
    np.testing.assert_array_equal(recommend(model, np.arange(5), 6, history=some)[0], expected)


def test_protocols_and_tiny_data(x):
    train, test = x.split("random", test_fraction=0.3)
    assert 0 < evaluate(gf_cf(train, key=KEY, rank=4), test, train=train).means["ndcg_at_10"] < 1
    assert recommend(gf_cf(train, key=KEY, rank=4), np.zeros(0, np.int32), 3)[0].shape == (0, 3)
    one = Interactions.from_coo([0], [0])
    assert recommend(gf_cf(one, key=KEY), [0], 3, seen=one)[0].tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 must be a whole number and at least 1"),
        ({"rank": 2.5}, "rank=2.5 must be a whole number"),
        ({"alpha": -0.1}, "alpha=-0.1 must be finite and at least 0"),
        ({"power_iterations": -1}, "power_iterations=-1 must be a whole number and at least 0"),
    ],
)
def test_wrong_parameters_are_refused(x, options, message):
    with pytest.raises(ValueError, match=message):
        unwrap(gf_cf)(x, key=KEY, **options)


def test_a_rank_above_the_matrix_is_refused(x):
    with pytest.raises(ValueError, match="rank=35 and oversampling=10 must add up to at most 40"):
        unwrap(randomized_svd)(KEY, x.to_device(), 35)
