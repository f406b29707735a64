"""Ridge and logistic regression against closed forms in float64 and scikit-learn, and as recommenders."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression, Ridge

from affinax.engine.data import FeatureError, Interactions, fit_features, pair_design
from affinax.engine.data.features import device_rows
from affinax.engine.errors import DivergenceError
from affinax.engine.evaluation import evaluate, evaluate_ratings
from affinax.engine.regression import (
    as_recommender,
    logistic_recommender,
    logistic_regression,
    ridge_recommender,
    ridge_regression,
)
from affinax.engine.retrieval import predict, recommend, similar_items, with_history

from . import naive

N, D = 300, 8
REGRESSIONS = {"ridge": ridge_regression, "logistic": logistic_regression}
each_regression = pytest.mark.parametrize("regress", REGRESSIONS.values(), ids=REGRESSIONS.keys())


@pytest.fixture(scope="module")
def data():
    """Features of unlike means and spreads, and many zeros; numbers and yes or no as targets."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D)) * rng.uniform(0.3, 4, D) + rng.normal(size=D) * 3
    x = np.where(rng.random((N, D)) < 0.5, 0, x)
    y = x @ rng.normal(size=D) + 3 + rng.normal(size=N)
    return x, y, (rng.random(N) < 1 / (1 + np.exp((y.mean() - y) / 4))).astype(float)


def forms(x, zeros=False):
    """The same design, dense and sparse; with its zeros stored, designs of one shape are one program."""
    n, d = x.shape
    stored = (x.ravel(), np.tile(np.arange(d), n), np.arange(n + 1) * d)
    sparse = scipy.sparse.csr_array(stored, shape=x.shape) if zeros else scipy.sparse.csr_array(x)
    return {"dense": (x, {}), "sparse": (device_rows(sparse), {"n_features": d})}


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("l2", [0.0, 0.7, 50.0])
@pytest.mark.parametrize("form", ["dense", "sparse"])
class TestAgainstOracles:
    def test_ridge(self, data, form, l2, intercept):
        x, y, _ = data
        design, width = forms(x)[form]
        expected = naive.ridge(x, y, l2, intercept)
        for solver in ("cholesky", "cg") if l2 else ("cholesky",):
            found = ridge_regression(design, y, l2=l2, intercept=intercept, solver=solver, **width)
            np.testing.assert_allclose(found.weights, expected["weights"], rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(found.intercept, expected["intercept"], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(found.scores(design), expected["scores"], rtol=1e-3, atol=1e-3)
            if solver == "cholesky":
                np.testing.assert_allclose(found.standard_errors, expected["errors"], rtol=1e-3)
                np.testing.assert_allclose(found.intercept_error, expected["intercept_error"], rtol=1e-3)
        peer = Ridge(alpha=l2, fit_intercept=intercept).fit(x, y)
        np.testing.assert_allclose(found.weights, peer.coef_, rtol=2e-4, atol=2e-5)

    def test_logistic(self, data, form, l2, intercept):
        x, _, y = data
        design, width = forms(x)[form]
        expected = naive.logistic(x, y, l2, intercept)
        for solver in ("newton", "lbfgs") if l2 else ("newton",):
            found = logistic_regression(design, y, l2=l2, intercept=intercept, solver=solver, **width)
            np.testing.assert_allclose(found.weights, expected["weights"], rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(found.intercept, expected["intercept"], rtol=1e-3, atol=1e-3)
            if solver == "newton":
                np.testing.assert_allclose(found.standard_errors, expected["errors"], rtol=2e-3)
                np.testing.assert_allclose(found.intercept_error, expected["intercept_error"], rtol=2e-3)
        if l2:
            peer = LogisticRegression(C=1 / l2, fit_intercept=intercept, tol=1e-8, max_iter=1000).fit(x, y)
            np.testing.assert_allclose(found.weights, peer.coef_[0], rtol=2e-3, atol=2e-4)


def test_many_targets_at_once(data):
    x, y, other = data
    several = np.stack([y, other, -2 * y], axis=1)
    for form, solver in (("dense", "cholesky"), ("sparse", "cg")):
        design, width = forms(x)[form]
        found = ridge_regression(design, several, l2=0.5, solver=solver, **width)
        for column in range(3):
            one = ridge_regression(design, several[:, column], l2=0.5, solver=solver, **width)
            np.testing.assert_allclose(found.weights[:, column], one.weights, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(found.intercept[column], one.intercept, rtol=1e-4, atol=1e-5)
        if solver == "cholesky":
            np.testing.assert_allclose(found.standard_errors[:, 2], one.standard_errors, rtol=1e-4)
        np.testing.assert_allclose(found.scores(design)[:, 2], one.scores(design), rtol=1e-3, atol=1e-4)


SOLVERS = [(ridge_regression, "cholesky"), (ridge_regression, "cg"), (logistic_regression, "newton")]
SOLVERS += [(logistic_regression, "lbfgs")]


@pytest.mark.parametrize(("regress", "solver"), SOLVERS, ids=[solver for _, solver in SOLVERS])
class TestTransformations:
    def targets(self, data, regress):
        return data[1] if regress is ridge_regression else data[2]

    def test_a_grid_of_l2_under_jit_and_vmap(self, data, regress, solver):
        y = self.targets(data, regress)
        for design, width in forms(data[0]).values():

            def weights(l2, design=design, width=width):
                return regress(design, y, l2=l2, solver=solver, **width).weights

            grid = jnp.array([0.5, 20.0])
            together = jax.jit(jax.vmap(weights))(grid)
            for place in range(2):
                np.testing.assert_allclose(together[place], weights(grid[place]), rtol=1e-3, atol=1e-4)

    def test_gradients_are_those_of_the_optimum(self, data, regress, solver):
        x, y = data[0][:60], self.targets(data, regress)[:60]
        oracle = naive.ridge if regress is ridge_regression else naive.logistic
        row, column, step = 7, 2, 1e-4

        def first(l2, x):
            return regress(x, jnp.asarray(y, jnp.float32), l2=l2, solver=solver).weights[0]

        of_l2, of_x = jax.grad(first, argnums=(0, 1))(3.0, jnp.asarray(x, jnp.float32))
        moved = [oracle(x, y, 3.0 + sign * step, True)["weights"][0] for sign in (1, -1)]
        np.testing.assert_allclose(of_l2, (moved[0] - moved[1]) / (2 * step), rtol=2e-3)
        moved = []
        for sign in (1, -1):
            other = x.copy()
            other[row, column] += sign * step
            moved.append(oracle(other, y, 3.0, True)["weights"][0])
        np.testing.assert_allclose(of_x[row, column], (moved[0] - moved[1]) / (2 * step), rtol=1e-2, atol=1e-6)

    def test_is_the_same_again(self, data, regress, solver):
        one, other = (regress(data[0], self.targets(data, regress), solver=solver) for _ in range(2))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)


@each_regression
@pytest.mark.parametrize("form", ["dense", "sparse"])
class TestWhatIsNotDetermined:
    def test_collinear_and_constant_features_need_a_penalty(self, data, regress, form):
        x, *both = data
        y = both[regress is logistic_regression]
        ones = np.ones((N, 1))
        for place, wrong in (
            (D, np.hstack([x, x[:, 1:2] + x[:, 4:5]])),
            (3, np.hstack([x[:, :3], 7 * ones, x[:, 3:]])),
            (0, np.hstack([0 * ones, x])),
            (8, np.hstack([x, x[:, 2:3]])),
        ):
            design, width = forms(wrong, zeros=True)[form]
            with pytest.raises(FeatureError, match=rf"feature {place} is constant or .* Pass l2 > 0"):
                regress(design, y, l2=0.0, **width)
            assert np.isfinite(np.asarray(regress(design, y, l2=1.0, **width).weights)).all()

    def test_a_constant_feature_weighs_nothing_under_a_penalty(self, data, regress, form):
        x, *both = data
        y = both[regress is logistic_regression]
        design, width = forms(np.hstack([x, np.full((N, 1), 7.0)]))[form]
        bare, narrow = forms(x)[form]
        found, expected = regress(design, y, l2=2.0, **width), regress(bare, y, l2=2.0, **narrow)
        assert abs(float(found.weights[-1])) < 1e-3
        np.testing.assert_allclose(found.weights[:-1], expected.weights, rtol=1e-3, atol=1e-3)

    def test_one_hot_ids_and_an_intercept(self, data, regress, form):
        rng, n = np.random.default_rng(1), 40
        design, width = forms(np.eye(n)[rng.integers(0, n, N)])[form]
        y = data[1 + (regress is logistic_regression)]
        with pytest.raises(FeatureError, match=r"feature \d+ is constant or a linear combination"):
            regress(design, y, l2=0.0, **width)


def test_solvers_that_cannot_tell_want_a_penalty(data):
    x, y, yes = data
    for regress, solver, direct, targets in (
        (ridge_regression, "cg", "cholesky", y),
        (logistic_regression, "lbfgs", "newton", yes),
    ):
        with pytest.raises(ValueError, match=f"solver='{solver}' cannot tell .*needs l2 > 0; '{direct}' can"):
            regress(x, targets, l2=0.0, solver=solver)


def test_what_did_not_converge_is_reported_with_the_model(data):
    x, y, yes = data
    with pytest.raises(DivergenceError, match=r"ridge regression: \d+ steps left .* above tolerance=1e-06 ") as e:
        ridge_regression(x, y, l2=0.1, solver="cg", steps=1)
    assert e.value.state.weights.shape == (D,)
    with pytest.raises(DivergenceError, match="logistic regression: 2 steps left"):
        logistic_regression(x, yes, l2=0.1, solver="lbfgs", steps=2)
    model = jax.jit(lambda x: ridge_regression(x, y, l2=0.1, solver="cg", steps=1))(jnp.asarray(x, jnp.float32))
    assert float(model.convergence.gradient) > 1e-6  # where it is traced, the caller sees


@pytest.mark.parametrize("form", ["dense", "sparse"])
class TestSeparation:
    """Only a penalty keeps such weights finite; the features are told, and not called collinear."""

    def refused(self, x, y, form, message, **options):
        design, width = forms(x, zeros=True)[form]
        with pytest.raises(FeatureError, match=message):
            logistic_regression(design, y, l2=0.0, **width, **options)
        assert np.isfinite(np.asarray(logistic_regression(design, y, l2=0.5, **width, **options).weights)).all()

    def test_of_every_row(self, data, form):
        x, _, _ = data
        message = r"features? 0.* tells? every 1 from every 0 \(separation\), .* Pass l2 > 0"
        self.refused(x, x[:, 0] > x[:, 0].mean(), form, message)
        together = x[:, 1] + x[:, 2]
        message = r"features \d, \d.* together tell every 1 from every 0 \(separation\)"
        self.refused(x, together > together.mean(), form, message)

    @pytest.mark.parametrize("intercept", [True, False])
    def test_of_some_rows(self, data, form, intercept):
        """Those of a rare feature are all 1; of the others nothing is certain."""
        x, _, y = data
        rare = np.isin(np.arange(N), [3, 50, 77]).astype(float)
        y = np.where(rare == 1, 1.0, y)
        message = r"feature 8 tells for certain what 3 of the 300 rows are \(separation\), .* Pass l2 > 0"
        self.refused(np.column_stack([x, rare]), y, form, message, intercept=intercept)

    def test_collinear_features_are_called_collinear(self, data, form):
        x, _, y = data
        rare = np.isin(np.arange(N), [3, 50, 77]).astype(float)
        y = np.where(rare == 1, 1.0, y)
        self.refused(np.column_stack([x, x[:, 0] + x[:, 1]]), y, form, "feature 8 is constant or a linear combination")
        self.refused(np.column_stack([x, rare, rare]), y, form, "feature 9 is constant or a linear combination")

    def test_strong_features_are_not_separation(self, data, form):
        x, y, _ = data
        y = (y > y.mean()).astype(float)
        y[:6] = 1 - y[:6]
        design, width = forms(x * 30)[form]
        found = logistic_regression(design, y, l2=0.0, **width)
        np.testing.assert_allclose(found.weights, naive.logistic(x * 30, y, 0.0, True)["weights"], rtol=2e-3, atol=1e-4)


@each_regression
@pytest.mark.parametrize(
    ("design", "targets", "options", "message"),
    [
        (np.ones((3, 2)), [0, 1], {}, "targets.shape=.*must be"),
        (np.ones(3), [0, 1, 0], {}, "design.shape=.*must be"),
        (np.ones((0, 2)), [], {}, "targets.shape=.*must be"),
        (np.array([[1.0], [np.nan], [2.0]]), [0, 1, 0], {}, r"the design: nan at \(1, 0\)"),
        (np.array([[1.0], [3.0], [2.0]]), [0, np.inf, 0], {}, r"targets: inf at \(1,\)"),
        (np.eye(3), [0, 1, 0], {"l2": -1.0}, "l2=-1.0 must be finite and at least 0"),
        (np.eye(3), [0, 1, 0], {"l2": np.nan}, "l2=nan must be finite"),
        (np.eye(3), [0, 1, 0], {"solver": "svd"}, "solver='svd' must be one of"),
        (np.eye(3), [0, 1, 0], {"steps": 0}, "steps=0 must be at least 1"),
        (np.eye(3), [0, 1, 0], {"n_features": 4}, "n_features=4"),
        (device_rows(scipy.sparse.csr_array(np.eye(3))), [0, 1, 0], {}, "pass n_features"),
        (device_rows(scipy.sparse.csr_array(np.eye(3))), [0, 1, 0], {"n_features": 2}, "has column 2, outside"),
    ],
)
def test_what_is_refused(regress, design, targets, options, message):
    with pytest.raises(ValueError, match=message):
        regress(design, np.asarray(targets, float), **options)


def test_sparse_matrices_of_scipy_are_designs(data):
    x, y, _ = data
    matrix = scipy.sparse.coo_matrix(x)
    found = ridge_regression(matrix, y)
    np.testing.assert_array_equal(found.weights, ridge_regression(forms(x)["sparse"][0], y, n_features=D).weights)
    np.testing.assert_allclose(found.scores(matrix), found.scores(x), rtol=1e-4, atol=1e-4)


def test_designs_that_would_be_misread_are_refused(data):
    """JAX takes the last feature for any beyond it, and rows that are out of order would lose products."""
    x, y, _ = data
    found = ridge_regression(x, y)
    for design in (np.eye(D + 1), scipy.sparse.eye_array(D + 1), device_rows(scipy.sparse.csr_array(np.eye(D + 1)))):
        with pytest.raises(FeatureError, match=r"column 8, outside \[0, 8\)|design.shape=\(9, 9\) must be"):
            found.scores(design)
    rows = device_rows(scipy.sparse.csr_array(np.eye(3)))
    for columns, message in (([2, 0, 1], "entry 1: column 0 after 2 in one row"), ([-1, 0, 1], "column -1, outside")):
        wrong = rows._replace(indptr=jnp.array([0, 2, 2, 3], jnp.int32), indices=jnp.array(columns, jnp.int32))
        with pytest.raises(FeatureError, match=message):
            ridge_regression(wrong, [1, 2, 3], n_features=3)


def test_targets_of_a_logistic_regression_are_0_or_1():
    for targets, message in (
        ([0, 2, 1], "2.0 at row 1 must be 0 or 1"),
        ([1, 1, 1], "all 3 are 1; there must be both"),
        ([[0], [1], [0]], r"must be \(n_rows,\)"),
    ):
        with pytest.raises(FeatureError, match=message):
            logistic_regression(np.eye(3), np.asarray(targets, float))


def test_weights_as_an_explanation(data):
    x, y, _ = data
    found = ridge_regression(x, y, l2=1.0)
    table = found.table([f"x{k}" for k in range(D)])
    assert table.columns == ["feature", "weight", "standard_error", "z"]
    assert table["feature"].to_list() == ["(intercept)", *(f"x{k}" for k in range(D))]
    np.testing.assert_allclose(table["z"][1:], found.weights / found.standard_errors, rtol=1e-6)
    for options in ({"solver": "cg"}, {"standard_errors": False}):
        bare = ridge_regression(x, y, **options)
        assert bare.table([str(k) for k in range(D)]).columns == ["feature", "weight"]
        np.testing.assert_allclose(bare.weights, found.weights, rtol=1e-4, atol=1e-5)
    with pytest.raises(FeatureError, match="3 names for weights of shape"):
        found.table(["a", "b", "c"])


def test_no_more_rows_than_weights_have_no_standard_errors():
    found = ridge_regression(np.array([[0.0], [1.0]]), np.array([1.0, 3.0]), l2=0.0)
    np.testing.assert_allclose(found.weights, [2.0], rtol=1e-5)
    assert not np.isfinite(np.asarray(found.standard_errors)).any()


# As recommenders.


def _people(seed=0):
    """Women like dramas and men wars, beside what each person and film is worth; one of each is without ratings."""
    rng = np.random.default_rng(seed)
    n_users, n_items = 30, 24
    sex, drama = np.arange(n_users) % 2, np.arange(n_items) % 2
    truth = 3 + np.add.outer(rng.normal(0, 0.3, n_users), rng.normal(0, 0.3, n_items))
    truth = truth + np.where(sex[:, None] == drama[None, :], 1.0, -1.0)
    met = rng.random(truth.shape) < 0.6
    met[7], met[:, 9] = False, False
    users, items = np.nonzero(met)
    x = Interactions.from_coo(users, items, truth[users, items], n_users=n_users, n_items=n_items)
    return (
        replace(
            x,
            user_features=pl.DataFrame({"sex": np.where(sex, "m", "f"), "age": 20.0 + np.arange(n_users)}),
            item_features=pl.DataFrame({"genre": [["Drama"] if d else ["War"] for d in drama]}),
        ),
        truth,
    )


@pytest.fixture(scope="module")
def people():
    return _people()


RECOMMENDERS = {"ridge": ridge_recommender, "logistic": logistic_recommender}
each_recommender = pytest.mark.parametrize("build", RECOMMENDERS.values(), ids=RECOMMENDERS.keys())


@pytest.mark.parametrize("crosses", ["none", "features", "all"])
@each_recommender
def test_products_are_the_scores_of_the_regression(people, build, crosses):
    x, _ = people
    design = pair_design(x, crosses=crosses)
    users, items = np.indices(x.shape).reshape(2, -1)
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.normal(size=design.n_features), jnp.float32)
    linear = ridge_regression(np.eye(3), np.zeros(3))._replace(weights=weights, intercept=jnp.float32(0.7))
    model = as_recommender(linear, design)
    expected = design.rows(users, items).toarray().astype(np.float64) @ np.asarray(weights) + 0.7
    np.testing.assert_allclose(predict(model, users, items), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(FeatureError, match="for a design of"):
        as_recommender(linear._replace(weights=weights[:-1]), design)
    found = build(x, crosses=crosses)
    _, scores = jax.jit(recommend, static_argnames="k")(found, jnp.arange(4), k=5, seen=x.to_device())
    dense = np.asarray(predict(found, users, items)).reshape(x.shape)
    _, expected = naive.best(dense[:4], 5, seen=[x.items_of(u) for u in range(4)])
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)


def test_ridge_recovers_what_was_planted(people):
    x, truth = people
    users, items = np.indices(truth.shape).reshape(2, -1)
    found = np.asarray(predict(ridge_recommender(x, l2=0.1), users, items)).reshape(truth.shape)
    known = (np.arange(30) != 7)[:, None] & (np.arange(24) != 9)[None]
    assert np.sqrt(np.mean((found - truth)[known] ** 2)) < 0.05
    # The person and the film without ratings are served by their features: 7 is a man.
    assert (found[7, 1::2] > found[7, 0:8:2].max()).mean() > 0.9
    assert np.abs(found[7] - truth[7]).mean() < 0.5
    plain = np.asarray(predict(ridge_recommender(x, l2=0.1, crosses="none"), users, items)).reshape(truth.shape)
    assert np.sqrt(np.mean((plain - truth)[known] ** 2)) > 0.5


@each_recommender
class TestRecommenders:
    def test_newcomers_with_features(self, people, build):
        x, _ = people
        if build is logistic_recommender:  # which learns from what was met alone
            x = x.select((x.users + x.items) % 2 == 0)
        model = build(x)
        encoder = fit_features(x.user_features)
        new = encoder.apply(pl.DataFrame({"sex": ["f", "m"], "age": [33.0, 34.0]}))
        ids, _ = recommend(model.with_users(new), [0, 1], 4)
        assert (np.asarray(ids) % 2 == [[0], [1]]).all()
        genres = fit_features(x.item_features).apply(pl.DataFrame({"genre": [["War"], ["Drama"]]}))
        assert np.asarray(recommend(model.with_items(genres), [0, 1], 1)[0]).ravel().tolist() == [0, 1]
        with pytest.raises(FeatureError, match="2 user features; the model was trained on 3"):
            model.with_users(genres)

    def test_histories_change_nothing(self, people, build):
        x, _ = people
        ids, _ = recommend(with_history(build(x), x.select(x.users < 3)), np.arange(3), 5)
        assert (np.asarray(ids) == np.asarray(ids)[:1]).all()

    def test_similar_items_share_their_features(self, people, build):
        model = build(people[0])
        assert (np.asarray(similar_items(model, [4], 8)[0]) % 2 == 0).all()

    def test_without_side_tables(self, people, build):
        bare = replace(people[0], user_features=None, item_features=None)
        model = build(bare)
        assert np.isfinite(np.asarray(recommend(model, np.arange(30), 3)[1])).all()
        with pytest.raises(ValueError, match="no features of items by which to compare"):
            similar_items(model, [0])

    def test_protocols(self, people, build):
        train, test = people[0].split("random", test_fraction=0.3)
        assert 0 < evaluate(build(train), test, train=train).means["ndcg_at_10"] <= 1


def test_logistic_ranks_what_each_camp_meets(people):
    x, _ = people
    camps = x.select((x.users + x.items) % 2 == 0)
    ids, _ = recommend(logistic_recommender(camps, l2=0.1, negatives=2), np.arange(30), 1, seen=camps)
    assert ((np.asarray(ids)[:, 0] + np.arange(30)) % 2 == 0).mean() > 0.9
    one, other = (logistic_recommender(camps, key=jax.random.key(k)).item_weights for k in (0, 1))
    np.testing.assert_array_equal(one, logistic_recommender(camps).item_weights)
    assert not np.allclose(one, other)
    with pytest.raises(FeatureError, match="every user met every item"):
        logistic_recommender(Interactions.from_coo([0, 0], [0, 1]))
    with pytest.raises(ValueError, match="negatives=0 must be at least 1"):
        logistic_recommender(camps, negatives=0)
    with pytest.raises(FeatureError, match="these interactions have none"):
        ridge_recommender(x.with_values(None))


def test_movielens_features_and_ids_beat_the_mean(movielens_100k):
    train, test = movielens_100k.split("random", test_fraction=0.2)
    found = evaluate_ratings(ridge_recommender(train), test, low=1, high=5)["rmse"]
    spread = float(np.sqrt(np.mean((test.values - train.values.mean()) ** 2)))
    assert found < 0.95 < spread
