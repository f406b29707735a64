"""Retrieval: the contract of `recommend`, filters, similar items and fold-in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from affinax.engine.data import Interactions
from affinax.engine.errors import InteractionError
from affinax.engine.factorization import Factors, explicit_als, fit, implicit_als
from affinax.engine.neighbors import popularity
from affinax.engine.retrieval import (
    QueryModel,
    fixed_gramian,
    fold_in,
    predict,
    recommend,
    similar_items,
    top_k,
    with_history,
)

from . import naive

pytestmark = pytest.mark.usefixtures("strict_dtypes")
N_USERS, N_ITEMS = 20, 50


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    return Factors(*(jnp.asarray(rng.normal(size=(n, 6)), jnp.float32) for n in (N_USERS, N_ITEMS)))


@pytest.fixture(scope="module")
def seen():
    users, items = np.nonzero(np.random.default_rng(1).random((N_USERS, N_ITEMS)) < 0.3)
    return Interactions.from_coo(users, items, n_users=N_USERS, n_items=N_ITEMS)


def test_a_prediction_is_a_product():
    model = Factors(jnp.array([[0.7, 0.5]]), jnp.array([[0.5, 0.6]]))
    assert float(predict(model, [0], [0])[0]) == pytest.approx(0.65)
    assert float(recommend(model, [0], 1)[1][0, 0]) == pytest.approx(0.65)


def test_cosine_of_the_worked_example():
    model = Factors(jnp.zeros((1, 3)), jnp.array([[0.5, 0.6, 0.7], [0.4, 0.5, 0.6], [0.0, 0.0, 0.0]]))
    ids, scores = similar_items(model, [0, 2], 2)
    assert ids[0].tolist() == [1, 2]
    assert float(scores[0, 0]) == pytest.approx(0.9996, abs=5e-5)
    assert scores[1].tolist() == [0.0, 0.0]  # a zero vector is near nothing


def test_recommend_leaves_out_what_was_seen(model, seen):
    users = np.array([3, 0, 19, 3])
    rows = [seen.items_of(u) for u in users]
    expected, scores = naive.top_k(model.users[users], model.items, 8, seen=rows)
    for form in (seen, seen.to_device(), seen.to_device().by_user):
        ids, found = recommend(model, users, 8, seen=form)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(found, scores, rtol=1e-5)


def test_the_contract_holds_inside_jit(model, seen):
    users = np.arange(5)
    answer = jax.jit(recommend, static_argnames="k")(model, users, k=4, seen=seen.to_device())
    for a, b in zip(answer, recommend(model, users, 4, seen=seen), strict=True):
        np.testing.assert_array_equal(a, b)


def test_exclude_and_allow(model, seen):
    users = np.arange(6)
    rows = [seen.items_of(u) for u in users]
    exclude = np.array([[1, -1], [2, 3], [-1, -1], [49, 0], [5, 5], [7, 8]])
    mask = np.arange(N_ITEMS) % 2 == 0
    expected, _ = naive.top_k(model.users[users], model.items, 30, seen=rows, exclude=exclude, allow=mask)
    ids, scores = recommend(model, users, 30, seen=seen, exclude=exclude, allow=mask)
    np.testing.assert_array_equal(ids, expected)
    assert (np.asarray(scores)[np.asarray(ids) < 0] == -np.inf).all()
    # A list for each user, with padding and a repetition, answers as a mask would.
    listed = np.tile(np.concatenate([np.flatnonzero(mask)[::-1], [0, -1]]), (6, 1))
    ids, _ = recommend(model, users, 30, seen=seen, exclude=exclude, allow=listed)
    np.testing.assert_array_equal(ids, expected)


def test_fewer_than_k(model, seen):
    ids, scores = recommend(model, [0], N_ITEMS + 5)
    assert sorted(ids[0].tolist()) == [-1] * 5 + list(range(N_ITEMS))
    nothing = np.zeros(N_ITEMS, bool)
    ids, scores = recommend(model, [0, 1], 3, allow=nothing)
    assert (np.asarray(ids) == -1).all()
    assert (np.asarray(scores) == -np.inf).all()
    ids, _ = recommend(model, np.empty(0, np.int32), 3)
    assert ids.shape == (0, 3)


def test_ties_go_by_lower_id():
    model = Factors(jnp.ones((1, 1)), jnp.ones((9, 1)))
    assert recommend(model, [0], 4)[0].tolist() == [[0, 1, 2, 3]]
    assert recommend(model, [0], 2, allow=np.array([[8, 3, 5]]))[0].tolist() == [[3, 5]]


def test_batches_answer_as_single_users(model, seen):
    together, _ = recommend(model, np.arange(N_USERS), 5, seen=seen)
    alone = [recommend(model, [u], 5, seen=seen)[0][0] for u in range(N_USERS)]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_similar_items_leaves_out_itself_and_the_excluded(model):
    items = np.arange(N_ITEMS)
    ids, _ = similar_items(model, items, 5)
    assert not (np.asarray(ids) == items[:, None]).any()
    ids, _ = similar_items(model, [0], 5, metric="dot", exclude=np.array([[1, 2]]))
    assert not {0, 1, 2} & set(ids[0].tolist())


@pytest.mark.parametrize("biases", [True, False])
def test_biases_count(biases):
    rng = np.random.default_rng(2)
    users, items = np.nonzero(rng.random((30, 20)) < 0.6)
    x = Interactions.from_coo(users, items, rng.integers(1, 6, len(users)), n_users=30, n_items=20)
    model, _ = fit(explicit_als(4, biases=biases), x, key=jax.random.key(0), steps=5, progress=False)
    grid = np.indices((30, 20)).reshape(2, -1)
    scores = np.asarray(predict(model, *grid)).reshape(30, 20)
    dense = np.asarray(model.users) @ np.asarray(model.items).T
    if biases:
        dense = dense + np.asarray(model.user_bias)[:, None] + np.asarray(model.item_bias) + float(model.mean)
    np.testing.assert_allclose(scores, dense, rtol=1e-4, atol=1e-4)
    _, best = recommend(model, np.arange(30), 3)
    np.testing.assert_allclose(best, -np.sort(-scores, axis=1)[:, :3], rtol=1e-4, atol=1e-4)
    # The same people as newcomers: their biases come along.
    newcomers = with_history(model, x)
    error = np.abs(np.asarray(predict(newcomers, x.users, x.items)) - x.values).mean()
    assert error < np.abs(x.values - x.values.mean()).mean()


def test_fold_in_takes_every_form_of_history(seen):
    model, _ = fit(implicit_als(6), seen, key=jax.random.key(0), steps=3, progress=False)
    expected = fold_in(model, seen)
    for form in (seen.to_device(), seen.to_device().by_user, seen.to_scipy(), scipy.sparse.coo_array(seen.to_scipy())):
        np.testing.assert_allclose(fold_in(model, form), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fold_in(model, seen, gram=fixed_gramian(model)), expected, rtol=1e-5, atol=1e-6)
    items = fold_in(model, seen.to_device().by_item, side="items")
    assert items.shape == model.items.shape
    jitted = jax.jit(fold_in)(model, seen.to_device())
    np.testing.assert_allclose(jitted, expected, rtol=1e-4, atol=1e-6)


def test_newcomers_get_recommendations_without_retraining(seen):
    model, _ = fit(implicit_als(6), seen, key=jax.random.key(0), steps=3, progress=False)
    newcomers = Interactions.from_coo([1, 1], [4, 9], n_users=2, n_items=N_ITEMS)
    ids, _ = recommend(with_history(model, newcomers), [0, 1], 5, seen=newcomers)
    assert not {4, 9} & set(ids[1].tolist())
    assert not np.asarray(fold_in(model, newcomers))[0].any()  # no history: the zero vector


def test_fold_in_is_differentiable_in_history_and_items(seen):
    model, _ = fit(implicit_als(6, alpha=1.0), seen, key=jax.random.key(0), steps=3, progress=False)
    history = seen.to_device().by_user._replace(values=jnp.ones(seen.nnz))

    def loss(values, items):
        return jnp.sum(fold_in(model._replace(items=items), history._replace(values=values)) ** 2)

    by_values, by_items = jax.grad(loss, argnums=(0, 1))(history.values, model.items)
    assert np.abs(np.asarray(by_values)).max() > 0
    rng = np.random.default_rng(3)
    direction = rng.normal(size=model.items.shape).astype(np.float32)
    step = 1e-3
    ahead, behind = (loss(history.values, model.items + sign * step * direction) for sign in (1, -1))
    slope = float(jnp.sum(by_items * direction))
    assert slope == pytest.approx(float(ahead - behind) / (2 * step), rel=2e-2)


def test_popularity_is_a_model(seen):
    model = popularity(seen)
    assert isinstance(model, QueryModel)
    counts = np.bincount(seen.items, minlength=N_ITEMS)
    ids, _ = recommend(model, [0, 7], 4)
    np.testing.assert_array_equal(ids[1], np.argsort(-counts, kind="stable")[:4])


def test_top_k_of_bare_vectors(model):
    ids, _ = top_k(model.users[:3], model.items, 2)
    np.testing.assert_array_equal(ids, naive.top_k(model.users[:3], model.items, 2)[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m, s: recommend(m, [N_USERS], 3),
            InteractionError,
            r"users: 20 at position \(0,\) is outside \[0, 20\)",
        ),
        (lambda m, s: recommend(m, [-1], 3), InteractionError, "-1"),
        (lambda m, s: recommend(m, [0.5], 3), InteractionError, "whole numbers"),
        (lambda m, s: recommend(m, [[0]], 3), InteractionError, "shape"),
        (lambda m, s: recommend(m, [0], 0), ValueError, "k=0"),
        (lambda m, s: recommend(m, [0], 0, allow=np.array([[1]])), ValueError, "k=0"),
        (lambda m, s: recommend(m, [0], 3, allow=np.ones(3, bool)), ValueError, r"\(50,\)"),
        (lambda m, s: recommend(m, [0], 3, exclude=np.array([[99]])), InteractionError, "99"),
        (lambda m, s: recommend(m, [0], 3, exclude=np.array([1])), InteractionError, "shape"),
        (
            lambda m, s: recommend(m, [19], 3, seen=Interactions.from_coo([0], [0], n_items=N_ITEMS)),
            InteractionError,
            "row 19 is asked for",
        ),
        (lambda m, s: similar_items(m, [0], 3, metric="l3"), ValueError, "metric='l3'"),
        (lambda m, s: similar_items(m, [50], 3), InteractionError, "50"),
        (lambda m, s: fold_in(m, s), ValueError, "no least-squares objective"),
        (lambda m, s: predict(m, [0], [50]), InteractionError, "50"),
    ],
)
def test_wrong_questions_are_refused(model, seen, call, error, message):
    with pytest.raises(error, match=message):
        call(model, seen)


def test_fold_in_refuses_foreign_histories(seen):
    model, _ = fit(implicit_als(6), seen, key=jax.random.key(0), steps=1, progress=False)
    foreign = Interactions.from_coo([0], [N_ITEMS])
    with pytest.raises(InteractionError, match="item 50 is outside"):
        fold_in(model, foreign)
    with pytest.raises(InteractionError, match="got list"):
        fold_in(model, [[1, 2]])
    with pytest.raises(ValueError, match="side='both'"):
        fold_in(model, seen, side="both")
