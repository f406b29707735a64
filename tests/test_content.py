"""Content profiles against their definition, and as models."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import polars as pl
import pytest
import scipy.sparse

import affinax as afx
from affinax.engine.data import FeatureError, Interactions, fit_features
from affinax.engine.evaluation import evaluate
from affinax.engine.neighbors import content_profiles, popularity
from affinax.engine.retrieval import recommend, similar_items, with_history

from . import naive

N_USERS, N_ITEMS, WIDTH = 20, 40, 12


@pytest.fixture(scope="module")
def x():
    """Ratings; user 7 has none, and so have items 9 and 30."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((N_USERS, N_ITEMS)) < 0.2, rng.integers(1, 6, (N_USERS, N_ITEMS)), 0)
    dense[7], dense[:, [9, 30]] = 0, 0
    return Interactions.from_scipy(scipy.sparse.csr_array(dense.astype(np.float32)))


@pytest.fixture(scope="module", params=["sparse", "dense"])
def features(request):
    """Numbers that are mostly 0, with an item that has nothing; or vectors of both signs."""
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(N_ITEMS, WIDTH))
    if request.param == "dense":
        return dense
    dense = np.where(rng.random(dense.shape) < 0.2, np.abs(dense), 0)
    dense[5] = 0
    return dense


def cosines(matrix, features):
    """Of every weighted mean and item, in float64; 0 where either has no direction."""
    weight = np.abs(matrix).sum(1, keepdims=True)
    profiles = matrix @ features / np.where(weight > 0, weight, 1)
    lengths = np.outer(np.linalg.norm(profiles, axis=1), np.linalg.norm(features, axis=1))
    return profiles @ features.T / np.where(lengths > 1e-12, lengths, np.inf)


def answered(scores, features):
    """What may be answered: of sparse features, what shares something with the profile."""
    return np.where(scores > 1e-9, scores, -np.inf) if (features == 0).any() else scores


@pytest.mark.parametrize("signs", ["ratings", "centred", "none"])
def test_scores_are_cosines_of_weighted_means(x, features, signs):
    if signs == "centred":
        x = x.with_values(x.values - 3)
    x = x.with_values(None) if signs == "none" else x
    scores = cosines(x.to_scipy().toarray().astype(np.float64), features)
    seen = [x.items_of(user) for user in range(N_USERS)]
    _, expected = naive.best(answered(scores, features), 6, seen)
    model = content_profiles(x, features=features)
    ids, found = jax.jit(recommend, static_argnames="k")(model, np.arange(N_USERS), k=6, seen=x.to_device())
    known = np.arange(N_USERS) != 7
    np.testing.assert_allclose(np.asarray(found)[known], expected[known], rtol=1e-4, atol=1e-5)
    of_ids = np.where(np.asarray(ids) < 0, -np.inf, np.take_along_axis(scores, np.asarray(ids), axis=1))
    np.testing.assert_allclose(of_ids[known], expected[known], rtol=1e-4, atol=1e-5)  # equal ones in any order


def test_similar_items_by_cosine(x, features):
    scores = answered(cosines(np.eye(N_ITEMS), features), features)
    items = np.arange(N_ITEMS)
    _, expected = naive.best(scores, 4, exclude=items[:, None])
    ids, found = similar_items(content_profiles(x, features=features), items, 4)
    some = items != 5  # which may have nothing
    np.testing.assert_allclose(np.asarray(found)[some], expected[some], rtol=1e-4, atol=1e-5)
    of_ids = np.where(np.asarray(ids) < 0, -np.inf, np.take_along_axis(scores, np.asarray(ids), axis=1))
    np.testing.assert_allclose(of_ids[some], expected[some], rtol=1e-4, atol=1e-5)  # equal ones in any order
    assert (np.asarray(ids) != items[:, None]).all()


def test_cold_items_are_recommended_and_cold_users_by_their_history(x, features):
    model = content_profiles(x, features=features)
    of_cold = np.asarray(features[9])
    taste = int(np.argsort(-cosines(np.eye(N_ITEMS)[[9]], features)[0])[1])  # what is nearest to item 9
    newcomer = Interactions.from_coo([0], [taste], n_users=1, n_items=N_ITEMS)
    ids, _ = recommend(model, [0], 3, history=newcomer, seen=newcomer)
    assert 9 in np.asarray(ids)[0]
    same = recommend(with_history(model, x), np.arange(N_USERS), 5)
    for a, b in zip(same, recommend(model, np.arange(N_USERS), 5), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    # Items that were not in the catalogue at all, one of them like item 9.
    others = model.with_items(np.stack([-of_cold, of_cold]))
    ids, _ = recommend(with_history(others, Interactions.from_coo([0], [1])), [0], 1)
    assert ids.tolist() == [[1]]
    with pytest.raises(FeatureError, match="5 item features; the profiles have 12"):
        model.with_items(np.ones((2, 5)))


def test_users_without_history_get_nothing_of_sparse_features(x):
    sparse = np.eye(N_ITEMS)[:, :WIDTH]
    ids, _ = recommend(content_profiles(x, features=sparse), [7], 3)
    assert ids.tolist() == [[-1] * 3]


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_features_of_any_scale_are_compared(x, features, scale):
    found, expected = (recommend(content_profiles(x, features=features * by), [0, 1], 5) for by in (scale, 1))
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4)


def test_repeated_entries_of_sparse_features_add_up(x):
    rows = np.arange(N_ITEMS)
    twice = scipy.sparse.csr_array(
        (np.ones(2 * N_ITEMS), np.repeat(rows % 5, 2), np.append(2 * rows, 2 * N_ITEMS)), shape=(N_ITEMS, 5)
    )
    found, expected = (jax.tree.leaves(content_profiles(x, features=f)) for f in (twice, twice.toarray()))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_forms_of_features_are_one(x):
    dense = np.abs(np.where(np.random.default_rng(2).random((N_ITEMS, 6)) < 0.3, 1.5, 0))
    expected = jax.tree.leaves(content_profiles(x, features=dense))
    frame = pl.DataFrame({"v": pl.Series(dense.tolist())})
    encoded = fit_features(frame, {"v": "embedding"}).apply(frame)
    side = replace(x, item_features=frame)
    for model in (
        content_profiles(x, features=scipy.sparse.csr_matrix(dense)),
        content_profiles(x, features=encoded),
        content_profiles(side),
        content_profiles(side, columns={"v": "embedding"}),
    ):
        for a, b in zip(jax.tree.leaves(model), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, FeatureError, "needs item features, and these interactions have none"),
        ({"features": np.ones((3, 2))}, FeatureError, "features of 3 items; the interactions have 40"),
        ({"features": np.ones(N_ITEMS)}, FeatureError, "must be .n_items, n_features.; got shape"),
        ({"features": np.full((N_ITEMS, 2), np.nan)}, FeatureError, "nan in row 0 is not a finite"),
        ({"features": np.full((N_ITEMS, 2), 1j)}, FeatureError, "must be real numbers: got complex128"),
        ({"features": [["a"]] * N_ITEMS}, FeatureError, "must be real numbers: could not convert string to float"),
        ({"features": np.ma.masked_equal(np.eye(N_ITEMS), 1)}, FeatureError, "features are masked at 40 places"),
        ({"features": np.ones((N_ITEMS, 2)), "columns": {"a": "text"}}, ValueError, "nothing to make"),
    ],
)
def test_what_is_refused(x, options, error, message):
    with pytest.raises(error, match=message):
        content_profiles(x, **options)


def test_genres_and_titles_of_movielens(movielens_100k):
    train, test = movielens_100k.split("leave-last")
    rec = afx.Recommender("content-profiles").fit(train)
    near = rec.similar_items("Star Wars (1977)", k=10)
    assert len(set(near["title"]) & {"Empire Strikes Back, The (1980)", "Return of the Jedi (1983)"}) >= 1
    assert len(rec.recommend(196)) == 10
    assert "Aliens (1986)" in rec.recommend(history=["Alien (1979)"], k=30)["title"].to_list()
    assert rec.evaluate(test).means["ndcg_at_10"] > 0
    # A film that nobody has rated is found by what it is like.
    alien = int(movielens_100k.item_ids.resolve(["Alien (1979)"])[0])
    cold = train.select(train.items != alien)
    aliens = int(movielens_100k.item_ids.resolve(["Aliens (1986)"])[0])
    fans = Interactions.from_coo([0], [aliens], n_users=1, n_items=cold.n_items)
    model = content_profiles(cold, columns={"genres": "multi-hot", "title": "text"})
    assert alien in np.asarray(recommend(model, [0], 40, history=fans, seen=fans)[0])[0]
    assert popularity(cold).counts[alien] == 0
    assert evaluate(model, test, train=cold, names=("recall",)).means["recall_at_10"] > 0
