"""Neighbours, random walks and closed forms against dense oracles, and as models."""

from __future__ import annotations

from inspect import unwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from affinax.engine import memory
from affinax.engine.data import InteractionError, Interactions
from affinax.engine.evaluation import evaluate, evaluate_sampled
from affinax.engine.neighbors import (
    cosine_similarity,
    ease,
    gf_cf,
    item_knn,
    knn_baseline,
    popularity,
    random,
    rp3beta,
    user_knn,
)
from affinax.engine.retrieval import recommend, similar_items, with_history
from affinax.kernels.csr import CSR

from . import naive

N_USERS, N_ITEMS = 40, 60


@pytest.fixture(scope="module")
def x():
    """Ratings with an item and a user that nobody and nothing met."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((N_USERS, N_ITEMS)) < 0.2, rng.integers(1, 6, (N_USERS, N_ITEMS)), 0)
    dense[7], dense[:, 9] = 0, 0
    return Interactions.from_scipy(scipy.sparse.csr_array(dense.astype(np.float32)))


def dense_of(rows, n_columns):
    if not isinstance(rows, CSR):
        return np.asarray(rows)
    values = np.broadcast_to(np.asarray(rows.values), rows.nnz)
    shape = rows.n_rows, n_columns
    return scipy.sparse.csr_array((values, np.asarray(rows.indices), np.asarray(rows.indptr)), shape=shape).toarray()


def nearest(similarities, k):
    """The k greatest entries of each row that are above 0, the diagonal left out."""
    kept = np.zeros_like(similarities)
    similarities = similarities.copy()
    np.fill_diagonal(similarities, 0)
    for row, values in enumerate(similarities):
        best = [j for j in np.argsort(-values, kind="stable")[:k] if values[j] > 0]
        kept[row, best] = values[best]
    return kept


SIMILARITIES = [
    *[
        {"similarity": s, "shrink": shrink}
        for s in naive.SIMILARITIES
        for shrink in (0.0, 3.0)
        if (s, shrink) != ("dot", 3)
    ],
    {"similarity": "cosine", "weighting": "tf-idf"},
    {"similarity": "dot", "weighting": "bm25", "k1": 50.0, "b": 0.5},
]


@pytest.mark.parametrize("options", SIMILARITIES, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("side", ["items", "users"])
def test_the_nearest_are_those_of_the_dense_matrix(x, side, options):
    dense = x.to_scipy().toarray().astype(np.float64)
    model = (item_knn if side == "items" else user_knn)(x, neighbors=N_USERS + N_ITEMS, **options)
    found = dense_of(model.weights if side == "items" else model.neighbors, x.n_items if side == "items" else x.n_users)
    expected = nearest(naive.similarities(dense.T if side == "items" else dense, side=side, **options), 200)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("options", SIMILARITIES, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("side", ["items", "users"])
def test_without_values_every_interaction_counts_one(x, side, options):
    build = item_knn if side == "items" else user_knn
    bare, ones = (
        build(x.with_values(values), neighbors=N_USERS + N_ITEMS, **options)
        for values in (None, np.ones(x.nnz, np.float32))
    )
    found, expected = (m.weights if side == "items" else m.neighbors for m in (bare, ones))
    n = x.n_items if side == "items" else x.n_users
    np.testing.assert_allclose(dense_of(found, n), dense_of(expected, n), rtol=1e-5, atol=1e-6)
    assert np.asarray(bare.history.values if side == "items" else bare.interactions.by_item.values).tolist() == [1.0]


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_values_of_any_scale_are_compared(x, scale):
    found, expected = (item_knn(x.with_values(x.values * np.float32(by))).weights for by in (scale, 1))
    np.testing.assert_allclose(dense_of(found, N_ITEMS), dense_of(expected, N_ITEMS), rtol=1e-5)


@pytest.mark.parametrize("weighting", ["tf-idf", "bm25"])
def test_weightings_refuse_values_below_0_and_bear_zeros(x, weighting):
    values = x.values.copy()
    values[[5, 8]] = -1.5
    message = f"value -1.5 of user {x.users[5]}, item {x.items[5]} must be at least 0 .2 such"
    with pytest.raises(InteractionError, match=f"{weighting} weighs counts: {message}"):
        item_knn(x.with_values(values), weighting=weighting)
    assert user_knn(x.with_values(0 * x.values), weighting=weighting, b=1.0).neighbors.nnz == 0


def test_no_newcomers(x):
    for options in ({}, {"weighting": "bm25"}):
        nobody = with_history(user_knn(x, **options), csr_of(np.zeros((0, N_ITEMS))))
        assert nobody.n_users == 0


@pytest.mark.parametrize("build", [item_knn, user_knn, rp3beta])
def test_only_the_nearest_are_kept(x, build):
    kept, whole = build(x, neighbors=4), build(x, neighbors=100)
    rows = [m.neighbors if build is user_knn else m.weights for m in (kept, whole)]
    n = x.n_users if build is user_knn else x.n_items
    few, every = (dense_of(r, n) for r in rows)
    np.testing.assert_allclose(few, nearest(every, 4), rtol=1e-6)


@pytest.mark.on_cpu
def test_the_implementations_agree(x):
    for build in (item_knn, user_knn, rp3beta):
        found, expected = (jax.tree.leaves(build(x, implementation=name)) for name in ("numba", "reference"))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.6, 0.4)])
def test_walks(x, alpha, beta):
    met = x.with_values(None).to_scipy().toarray().astype(np.float64)
    to_item = (met / np.maximum(met.sum(1, keepdims=True), 1)) ** alpha
    to_user = (met / np.maximum(met.sum(0, keepdims=True), 1)) ** alpha
    expected = nearest(to_user.T @ to_item / np.maximum(met.sum(0), 1) ** beta, N_ITEMS)
    found = dense_of(rp3beta(x, neighbors=N_ITEMS, alpha=alpha, beta=beta).weights, N_ITEMS)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_ease_is_its_closed_form(x):
    dense = x.to_scipy().toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + 50 * np.eye(N_ITEMS))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(ease(x, l2=50.0).weights, expected, rtol=1e-4, atol=1e-6)
    binary = ease(x.with_values(None), l2=50.0).weights
    assert np.abs(np.asarray(binary) - expected).max() > 0.01


@pytest.mark.on_cpu
def test_large_arrays_are_not_copied():
    array = memory.aligned_zeros((33, 33), np.float32)
    assert memory.as_jax(array).unsafe_buffer_pointer() == array.ctypes.data


def test_more_neighbors_than_memory_are_refused_with_the_estimate(x, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1024)
    # Of item 9, which nobody met, there are none; the others come to at most 50.
    with pytest.raises(MemoryError, match=r"the 50 nearest of each of 60 rows needs .* KiB \(free here: 1.0 KiB"):
        item_knn(x, neighbors=50)


def test_the_neighbors_of_a_few_of_many_rows_take_little_memory(monkeypatch):
    """Three items of 100,000 share users: lists of 200 for each would be 153 MiB."""
    x = Interactions.from_coo([0, 0, 0], [0, 5, 99_999], n_items=100_000)
    monkeypatch.setattr(memory, "free_bytes", lambda: 10_000)
    model = rp3beta(x, neighbors=200)
    assert model.weights.nnz == 6


def test_more_items_than_memory_are_refused_with_the_estimate(x, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 10_000)
    with pytest.raises(MemoryError, match=r"EASE on 60 items needs .* KiB .*item_knn\(neighbors=200\) needs"):
        ease(x)


MODELS = {"item_knn": item_knn, "user_knn": user_knn, "rp3beta": rp3beta, "ease": ease}
each_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS.keys())


@each_model
class TestModels:
    def test_scores_are_rows_times_table(self, x, build):
        model = build(x)
        scores = dense_of(model.sparse_queries(), N_ITEMS if build is not user_knn else N_USERS) @ dense_of(
            model.score_table(), N_ITEMS
        )
        seen = [x.items_of(user) for user in range(N_USERS)]
        expected_ids, expected = naive.best(scores if build is ease else np.where(scores > 0, scores, -np.inf), 8, seen)
        ids, found = jax.jit(recommend, static_argnames="k")(model, jnp.arange(N_USERS), k=8, seen=x.to_device())
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)
        assert (np.asarray(ids) == expected_ids).mean() > 0.98

    def test_camps_are_kept_apart(self, build):
        users, items = np.nonzero(np.add.outer(np.arange(30), np.arange(20)) % 2)
        kept = np.random.default_rng(0).random(len(users)) < 0.6
        x = Interactions.from_coo(users[kept], items[kept], n_users=30, n_items=20)
        ids, _ = recommend(build(x), np.arange(30), 1, seen=x)
        assert ((np.asarray(ids)[:, 0] + np.arange(30)) % 2 == 1).all()
        assert (np.asarray(ids) >= 0).all()

    def test_filters(self, x, build):
        model, users = build(x), [1, 2]
        ids, _ = recommend(model, users, 5, seen=x)
        fewer, _ = recommend(model, users, 5, seen=x, exclude=np.asarray(ids)[:, :1])
        np.testing.assert_array_equal(np.asarray(fewer)[:, :4], np.asarray(ids)[:, 1:])
        among, _ = recommend(model, users, 2, allow=np.asarray(ids)[:, [3, 1, 0]])
        np.testing.assert_array_equal(among, np.asarray(ids)[:, :2])
        nothing, _ = recommend(model, users, 2, allow=np.zeros(N_ITEMS, bool))
        assert (np.asarray(nothing) == -1).all()

    def test_tiny_data(self, build):
        one = Interactions.from_coo([0], [0])
        assert recommend(build(one), [0], 3, seen=one)[0].tolist() == [[-1, -1, -1]]

    def test_protocols(self, x, build):
        train, test = x.split("random", test_fraction=0.3)
        model = build(train)
        assert 0 < evaluate(model, test, train=train).means["ndcg_at_10"] < 1
        assert 0 < evaluate_sampled(model, test, train=train, n_negatives=9).means["hit_rate_at_10_of_9_sampled"] <= 1

    @pytest.mark.on_cpu
    def test_is_the_same_again(self, x, build):
        for one, other in zip(jax.tree.leaves(build(x)), jax.tree.leaves(build(x)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("build", [item_knn, rp3beta, ease])
def test_newcomers_with_the_history_of_users_get_the_same(x, build):
    model = build(x)
    some = x.select(x.users < 5)
    some = some.with_values(None) if build is rp3beta else some  # which learned from bare pairs
    for answers in (
        recommend(with_history(model, some), np.arange(5), 6),
        recommend(model, np.arange(5), 6, history=some),
    ):
        np.testing.assert_array_equal(answers[0], recommend(model, np.arange(5), 6)[0])


@pytest.mark.parametrize("options", SIMILARITIES, ids=lambda o: "-".join(map(str, o.values())))
def test_newcomers_find_their_nearest_users(x, options):
    """Against the dense matrix with the newcomers below it, weighed as the users above are."""
    dense = x.to_scipy().toarray().astype(np.float64)
    rng = np.random.default_rng(5)
    new = np.where(rng.random((4, N_ITEMS)) < 0.2, rng.integers(1, 6, (4, N_ITEMS)), 0).astype(np.float64)
    new[1], new[3] = 0, dense[2]
    model = with_history(user_knn(x, neighbors=200, **options), scipy.sparse.csr_array(new.astype(np.float32)))
    assert model.n_users == 4
    expected = naive.similarities(dense, side="users", newcomers=new, **options)
    expected = np.where(expected > 0, expected, 0)
    np.testing.assert_allclose(dense_of(model.neighbors, N_USERS), expected, rtol=2e-4, atol=2e-5)
    ids, scores = recommend(model, np.arange(4), 6, seen=Interactions.from_scipy(scipy.sparse.csr_array(new)))
    totals = dense_of(model.neighbors, N_USERS) @ dense
    _, best = naive.best(np.where(totals > 0, totals, -np.inf), 6, [np.flatnonzero(row) for row in new])
    np.testing.assert_allclose(scores, best, rtol=1e-3, atol=1e-4)
    assert (np.asarray(ids)[1] == -1).all()  # nobody is near to someone without a history


def test_newcomers_who_equal_users_find_these_first(x):
    model, some = user_knn(x, neighbors=5), x.select(x.users < 6)
    newcomers = with_history(model, some)
    first = np.asarray(newcomers.neighbors.indptr)[:6]
    np.testing.assert_array_equal(np.asarray(newcomers.neighbors.indices)[first], np.arange(6))
    ids, _ = recommend(model, np.arange(6), 4, history=some, seen=some)
    jitted, _ = jax.jit(recommend, static_argnames="k")(newcomers, jnp.arange(6), k=4, seen=some.to_device())
    np.testing.assert_array_equal(jitted, ids)
    alone, _ = recommend(model, [0], 4, history=some.select(some.users == 0), seen=some)
    np.testing.assert_array_equal(alone[0], ids[0])
    with pytest.raises(NotImplementedError, match="call with_history outside jit"):
        jax.jit(lambda m, h: with_history(m, h))(model, some.to_device())


def test_newcomers_of_user_knn_do_as_well_as_its_users(movielens_100k):
    train, test = movielens_100k.with_values(None).split("random", test_fraction=0.2)
    new = np.random.default_rng(0).permutation(train.n_users)[:200]
    test = test.select(np.isin(test.users, new))
    known = train.select(~np.isin(train.users, new))
    names = {"train": train, "names": ("ndcg",)}
    trained = evaluate(user_knn(train), test, **names).means["ndcg_at_10"]
    folded = evaluate(with_history(user_knn(known), train), test, **names).means["ndcg_at_10"]
    assert folded > 0.93 * trained


def test_random_orders():
    x = Interactions.from_coo([0], [6], n_users=400)
    model = random(x, key=jax.random.key(0))
    ids = np.asarray(recommend(model, np.arange(400), 7)[0])
    assert (np.sort(ids, axis=1) == np.arange(7)).all()
    np.testing.assert_array_equal(ids, recommend(random(x, key=jax.random.key(0)), np.arange(400), 7)[0])
    np.testing.assert_array_equal(ids[[5, 9]], recommend(model, [5, 9], 7)[0])
    assert (ids != np.asarray(recommend(random(x, key=jax.random.key(1)), np.arange(400), 7)[0])).any(1).mean() > 0.99
    # Over keys, each item is as often at each place: 2,000 of 7 at 286, 16 standard deviations from 0 and 572.
    firsts = np.array([recommend(random(x, key=jax.random.key(k)), [k], 7)[0][0] for k in range(500)])
    counts = np.stack([np.bincount(place, minlength=7) for place in firsts.T])
    np.testing.assert_allclose(counts / 500, 1 / 7, atol=0.08)


def test_random_is_worth_what_chance_is(movielens_100k):
    train, test = movielens_100k.split("random", test_fraction=0.2)
    found = evaluate(random(train, key=jax.random.key(0)), test, train=train, names=("precision",)).means
    tested = np.diff(test.indptr) > 0
    tested &= np.diff(train.indptr) > 0
    chance = np.diff(test.indptr)[tested] / (train.n_items - np.diff(train.indptr)[tested])
    assert found["precision_at_10"] == pytest.approx(chance.mean(), rel=0.25)
    newcomers = recommend(random(train, key=jax.random.key(0)), [0, 1], 5, history=test, seen=test)[0]
    assert (np.asarray(newcomers) >= 0).all()


def test_similar_items_are_the_weights(x):
    model = item_knn(x, neighbors=5)
    ids, scores = similar_items(model, [3, 4], k=7)
    weights = dense_of(model.weights, N_ITEMS)
    expected_ids, expected = naive.best(np.where(weights[[3, 4]] > 0, weights[[3, 4]], -np.inf), 7)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert similar_items(ease(x), [3], k=N_ITEMS)[0][0, -1] == -1  # never itself
    with pytest.raises(ValueError, match="UserNeighbors compares users"):
        similar_items(user_knn(x), [0])
    with pytest.raises(InteractionError, match="items: 60 at position"):
        similar_items(model, [60])


def test_cosine_of_rows(monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(5, 7)), np.where(rng.random((4, 7)) < 0.4, 1.0, 0.0)
    b[2] = 0
    lengths = np.linalg.norm(a, axis=1)[:, None] * np.maximum(np.linalg.norm(b, axis=1), 1e-9)
    expected = a @ b.T / lengths
    forms = [jnp.asarray(a, jnp.float32), csr_of(a)], [jnp.asarray(b, jnp.float32), csr_of(b)]
    for one in forms[0]:
        for other in forms[1]:
            found = jax.jit(lambda p, q: cosine_similarity(p, q, n_columns=7))(one, other)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(cosine_similarity, in_axes=(0, None))(forms[0][0][:, None], forms[1][0])
    np.testing.assert_allclose(mapped[:, 0], expected, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda q: cosine_similarity(forms[0][0], q).sum())(forms[1][0])
    assert np.isfinite(np.asarray(slope)).all()
    sparse, dense = forms[0][1], forms[1][0]
    monkeypatch.setattr("affinax.engine.neighbors.similarity._PRODUCTS", 12)  # three entries at a time
    np.testing.assert_allclose(cosine_similarity(sparse, dense), expected, rtol=1e-5, atol=1e-6)
    of_dense = jax.grad(lambda q: (cosine_similarity(forms[0][0], q) ** 3).sum())(dense)
    of_sparse = jax.grad(lambda q: (cosine_similarity(sparse, q) ** 3).sum())(dense)
    np.testing.assert_allclose(of_sparse, of_dense, rtol=1e-4, atol=1e-5)
    whole = jnp.array([[100, 100], [3, 4]], jnp.int8)  # whose squares are beyond int8
    np.testing.assert_allclose(cosine_similarity(whole, whole)[0, 0], 1, rtol=1e-6)
    for wrong, message in ((dense[0], r"rows must be \[n, d\]; got shape"), (sparse, "have column 6, and n_columns=4")):
        with pytest.raises(ValueError, match=message):
            cosine_similarity(wrong, sparse, n_columns=4)
    with pytest.raises(TypeError, match=r"rows must be an array .* got csr_array"):
        unwrap(cosine_similarity)(scipy.sparse.csr_array(a), dense)
    for one, other in ((forms[0][0], jnp.ones((2, 6))), (forms[0][1], forms[1][1])):
        with pytest.raises(ValueError, match="one width"):
            cosine_similarity(one, other)


def csr_of(dense):
    matrix = scipy.sparse.csr_array(dense)
    return CSR(*(jnp.asarray(a, d) for a, d in zip((matrix.indptr, matrix.indices, matrix.data), "iif", strict=True)))


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (item_knn, {"neighbors": 0}, "neighbors=0 must be a whole number and at least 1"),
        (rp3beta, {"neighbors": 0}, "neighbors=0 must be a whole number"),
        (item_knn, {"similarity": "cosin"}, "similarity='cosin' must be one of"),
        (user_knn, {"weighting": "idf"}, "weighting='idf' must be one of"),
        (user_knn, {"weighting": "bm25", "similarity": "jaccard"}, "goes with similarity"),
        (item_knn, {"shrink": -1.0}, "shrink=-1.0 must be at least 0"),
        (item_knn, {"shrink": 1.0, "similarity": "dot"}, "and 0 with similarity"),
        (item_knn, {"k1": 0.0}, "k1=0.0 must be finite and above 0"),
        (item_knn, {"k1": float("inf")}, "k1=inf must be finite"),
        (rp3beta, {"alpha": -0.5}, "alpha=-0.5 must be finite"),
        (rp3beta, {"beta": float("nan")}, "beta=nan must be finite"),
        (ease, {"l2": 0.0}, "l2=0.0 must be finite and above 0"),
    ],
)
def test_wrong_parameters_are_refused(x, build, options, message):
    with pytest.raises(ValueError, match=message):
        unwrap(build)(x, **options)


@pytest.mark.parametrize("build", [popularity, item_knn, user_knn, rp3beta, ease, gf_cf, knn_baseline])
def test_what_is_no_interactions_is_refused(build):
    with pytest.raises(TypeError, match=rf"{build.__name__}: .* a scipy csr_array .* Interactions.from_scipy"):
        build(scipy.sparse.csr_array(np.eye(3, dtype=np.float32)))
