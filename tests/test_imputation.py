"""Imputed ratings against their definitions, and imputed columns against scikit-learn's own classes."""

from __future__ import annotations

import sys

import numpy as np
import polars as pl
import pytest
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer
from sklearn.linear_model import LinearRegression

from affinax.engine.data import FeatureError, InteractionError, Interactions, fit_column_imputation, fit_imputation
from affinax.engine.data.imputation import COLUMN_KINDS, RATING_KINDS

from . import naive


@pytest.fixture(scope="module")
def x():
    """Ratings of 12 users and 9 items: user 4 rated nothing, item 7 has no rating, user 5 rated once."""
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((12, 9)) < 0.5, rng.integers(1, 6, (12, 9)), 0)
    dense[4], dense[:, 7], dense[5] = 0, 0, 0
    dense[5, 2] = 5
    users, items = np.nonzero(dense)
    return Interactions.from_coo(users, items, dense[users, items], timestamps=users + items, n_users=12, n_items=9)


@pytest.fixture(scope="module")
def missing(x):
    there = np.zeros(x.shape, bool)
    there[x.users, x.items] = True
    return np.nonzero(~there)


@pytest.mark.parametrize("kind", RATING_KINDS)
def test_imputed_ratings_are_their_definition(x, missing, kind):
    expected = naive.imputed_ratings(x.users, x.items, x.values, x.shape, kind, *missing)
    np.testing.assert_allclose(fit_imputation(x, kind).values(*missing), expected, rtol=1e-5)


def test_regression_is_least_squares_on_the_means_of_others(x):
    found = fit_imputation(x, "regression")
    rows = []
    for k in range(x.nnz):
        others = np.arange(x.nnz) != k
        means = []
        for side in (x.users, x.items):
            same = others & (side == side[k])
            means.append(x.values[same].mean() if same.any() else x.values.mean())
        rows.append(means)
    line = LinearRegression().fit(np.array(rows, np.float64), x.values.astype(np.float64))
    np.testing.assert_allclose(found.weights, [line.intercept_, *line.coef_], rtol=1e-5)


def test_a_planted_plane_is_recovered():
    rng = np.random.default_rng(1)
    users, items = np.nonzero(rng.random((80, 60)) < 0.5)
    of_user, of_item = rng.normal(size=80), rng.normal(size=60)
    r = 3 + of_user[users] + of_item[items] + 0.05 * rng.normal(size=len(users))
    kept = rng.random(len(users)) < 0.8
    x = Interactions.from_coo(users[kept], items[kept], r[kept], n_users=80, n_items=60)
    error = {
        kind: np.sqrt(np.mean((fit_imputation(x, kind).values(users[~kept], items[~kept]) - r[~kept]) ** 2))
        for kind in RATING_KINDS
    }
    assert error["regression"] < 0.35 * min(error["user-mean"], error["item-mean"])
    assert max(error["user-mean"], error["item-mean"]) < error["global-mean"]


def test_missing_cells_are_filled_in_and_no_others(x, missing):
    users, items = (side[:7] for side in missing)
    fitted = fit_imputation(x, "item-mean")
    filled = fitted.apply(x, users, items)
    assert filled.nnz == x.nnz + 7
    dense = filled.to_scipy().toarray()
    np.testing.assert_array_equal(dense[x.users, x.items], x.values)
    np.testing.assert_array_equal(dense[users, items], fitted.values(users, items))
    assert filled.timestamps is None
    assert filled.notes[-1] == "7 values imputed by item-mean"
    # Fitted on one part, it is applied to any other of the same users and items.
    part = x.select(x.users % 2 == 0)
    np.testing.assert_array_equal(
        fitted.apply(part, users, items).to_scipy().toarray()[users, items], dense[users, items]
    )
    assert fitted.apply(x, [], []).nnz == x.nnz


def test_millions_of_possible_cells_are_never_held():
    x = Interactions.from_coo([0, 999_999], [0, 999_999], [1.0, 5.0], n_users=1_000_000, n_items=1_000_000)
    filled = fit_imputation(x, "user-mean").apply(x, [0, 500_000], [999_999, 7])
    assert filled.values.tolist() == [1.0, 1.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: fit_imputation(x, "median"), ValueError, "kind='median' must be one of"),
        (lambda x: fit_imputation(x.with_values(None), "user-mean"), InteractionError, "needs values"),
        (
            lambda x: fit_imputation(x, "user-mean").values([12], [0]),
            InteractionError,
            r"user id 12 is outside \[0, 12\)",
        ),
        (lambda x: fit_imputation(x, "user-mean").values([0, 1], [0]), InteractionError, "2 users for 1 items"),
        (
            lambda x: fit_imputation(x, "user-mean").apply(x, x.users[3:5], x.items[3:5]),
            InteractionError,
            r"user \d+, item \d+ at position 0 is not missing \(2 such\)",
        ),
        (lambda x: fit_imputation(x, "user-mean").apply(x, [4, 4], [1, 1]), InteractionError, "occurs more than once"),
        (
            lambda x: fit_imputation(x, "user-mean").apply(Interactions.from_coo([0], [0], [1.0]), [4], [1]),
            InteractionError,
            r"ratings of shape \(1, 1\); this imputation was fitted on \(12, 9\)",
        ),
        (lambda x: fit_imputation(x, "user-mean").apply(x.with_values(None), [4], [1]), InteractionError, "no values"),
    ],
)
def test_wrong_ratings_are_refused(x, call, error, message):
    with pytest.raises(error, match=message):
        call(x)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(2)
    age = rng.normal(40, 10, 60)
    income = 100 * age + rng.normal(0, 50, 60)
    frame = pl.DataFrame({"city": ["Bonn", None] * 30, "age": age, "income": income, "visits": rng.integers(0, 9, 60)})
    gone = [pl.Series(rng.random(60) < 0.2) for _ in range(3)]
    return frame.with_columns(
        pl.when(~gone[0]).then(pl.col("age")).alias("age"),
        pl.when(~gone[1]).then(pl.col("income")).otherwise(float("nan")).alias("income"),
        pl.when(~gone[2]).then(pl.col("visits")).alias("visits"),
    )


@pytest.mark.parametrize("kind", COLUMN_KINDS)
def test_columns_are_imputed_as_scikit_learn_does(table, kind):
    names = ["age", "income", "visits"]
    numbers = table.select(names).cast(pl.Float64).fill_null(float("nan")).to_numpy()
    theirs = IterativeImputer(random_state=0) if kind == "regression" else SimpleImputer(strategy=kind)
    known, new = table[:40], table[40:]
    found = fit_column_imputation(known, kind).apply(new)
    np.testing.assert_allclose(found.select(names).to_numpy(), theirs.fit(numbers[:40]).transform(numbers[40:]))
    assert found["city"].equals(new["city"])
    assert found.columns == new.columns
    one = fit_column_imputation(known, kind, columns=["age"]).apply(new)
    assert one["age"].null_count() == 0
    assert one["visits"].equals(new["visits"])


def test_regression_knows_more_than_the_mean(table):
    truth = table.filter(pl.col("age").is_not_null() & pl.col("income").is_not_nan())
    holes = truth.with_columns(pl.when(pl.int_range(pl.len()) % 4 > 0).then("income").alias("income"))
    error = {
        kind: np.abs(fit_column_imputation(holes, kind).apply(holes)["income"] - truth["income"]).max()
        for kind in ("mean", "regression")
    }
    assert error["regression"] < 0.3 * error["mean"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t: fit_column_imputation(t.with_columns(age=pl.lit(None, pl.Float64)), "mean"),
            "column 'age': all 60 values are missing",
        ),
        (lambda t: fit_column_imputation(t, "mean", columns="age"), "columns='age' must be a list of names"),
        (lambda t: fit_column_imputation(t, "mean", columns=["age", "age"]), "must be a list of names, each once"),
        (lambda t: fit_column_imputation(t.to_pandas(), "mean"), "must be a polars DataFrame; got pandas"),
        (lambda t: fit_column_imputation(t, "mean").apply(t.to_pandas()), "must be a polars DataFrame; got pandas"),
        (lambda t: fit_column_imputation(t, "mean", columns=["town"]), "the table has no column 'town'"),
        (lambda t: fit_column_imputation(t, "mean", columns=["city"]), "column 'city' is String; only numbers"),
        (lambda t: fit_column_imputation(t.select("city"), "mean"), r"no numeric column to impute among \['city'\]"),
        (
            lambda t: fit_column_imputation(t, "mean").apply(t.with_columns(age=pl.lit(float("inf")))),
            "column 'age', row 0: inf is not finite",
        ),
        (lambda t: fit_column_imputation(t, "mean").apply(t.drop("age")), "the table has no column 'age'"),
    ],
)
def test_wrong_tables_are_refused(table, call, message):
    with pytest.raises(FeatureError, match=message):
        call(table)


def test_without_scikit_learn_it_says_what_to_install(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.impute", None)
    with pytest.raises(
        ValueError, match=r"imputation of columns needs scikit-learn: pip install 'affinax\[features\]'"
    ):
        fit_column_imputation(table, "mean")
    with pytest.raises(ValueError, match="kind='mode' must be one of"):
        fit_column_imputation(table, "mode")


def test_on_films(movielens_100k):
    train, test = movielens_100k.split("random", test_fraction=0.2)
    error = {
        kind: naive.rmse(fit_imputation(train, kind).values(test.users, test.items), test.values)
        for kind in RATING_KINDS
    }
    assert error["regression"] < 0.97 < error["item-mean"] < error["user-mean"] < error["global-mean"]
