"""`clean` and value scaling: every source, every decision, every refusal."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from affinax.engine.data import InteractionError, Interactions, Vocabulary, clean, fit_scale

from . import naive

NAN = float("nan")
COLUMNS = {"user_id": ["bob", "ann", "bob"], "item_id": [7, 7, 9], "rating": [4.0, 2.0, 5.0], "timestamp": [3, 1, 2]}


def _rows(x):
    """`(user, item, value, time)` in outside ids, sorted."""
    values = [None] * x.nnz if x.values is None else x.values.tolist()
    times = [None] * x.nnz if x.timestamps is None else x.timestamps.tolist()
    users, items = x.user_ids.outside(x.users).tolist(), x.item_ids.outside(x.items).tolist()
    return sorted(zip(users, items, values, times, strict=True))


EXPECTED = [("ann", 7, 2.0, 1), ("bob", 7, 4.0, 3), ("bob", 9, 5.0, 2)]


@pytest.mark.parametrize(
    "source",
    [
        pd.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS).astype({"user_id": "category"}),
        pd.DataFrame(COLUMNS).astype({"user_id": object, "item_id": object, "rating": object}),
        pd.DataFrame(COLUMNS).convert_dtypes(),
        pl.DataFrame(COLUMNS),
        pl.DataFrame(COLUMNS).with_columns(pl.col("user_id").cast(pl.Categorical), pl.col("item_id").cast(pl.UInt8)),
        pa.table(COLUMNS),
        tuple(COLUMNS.values()),
        tuple(np.asarray(column) for column in COLUMNS.values()),
        (pl.Series(COLUMNS["user_id"]), *list(COLUMNS.values())[1:]),
    ],
    ids=["pandas", "category", "object", "nullable", "polars", "categorical", "pyarrow", "lists", "arrays", "series"],
)
def test_every_source_gives_the_same(source):
    assert _rows(clean(source)) == EXPECTED


@pytest.mark.parametrize("kind", ["csr_matrix", "coo_array"])
def test_scipy_source(kind):
    x = clean(getattr(scipy.sparse, kind)(np.array([[0, 2.0], [0, 0], [3.0, 1.0]])))
    assert _rows(x) == [(0, 1, 2.0, None), (2, 0, 3.0, None), (2, 1, 1.0, None)]


def test_columns_that_are_not_given_are_not_made_up():
    x = clean(([1, 2], [3, 4], None, [5, 6]))
    assert x.values is None
    assert x.timestamps.tolist() == [5, 6]


@pytest.mark.parametrize(
    "columns", [{"user": "who", "item": "what"}, {"user": 1, "item": 0}, ("item", "user"), ("item", "user", "skip")]
)
def test_columns_by_name_position_and_order(columns):
    frame = pd.DataFrame({"what": ["tea"], "who": ["ann"], 5: [1.0]})  # a name that is no text
    assert _rows(clean(frame, columns=columns)) == [("ann", "tea", None, None)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (None, "no user column among .*Say which column is what"),
        ({"user": "who"}, "no item column"),
        ({"user": "who", "item": "sku"}, "no column 'sku' for item; it has"),
        ({"user": 0, "item": 3}, "column 3 for item is outside"),
        ({"user": 0, "item": -1}, "column -1 for item is outside"),
        ({"user": 0, "item": 1, "rank": 1}, "column roles are .*got .'rank'"),
        (("user", "item", "value", "time"), "has 2 columns"),
        (("user", "user"), "different roles"),
        ("user", "different roles"),
    ],
)
def test_columns_that_are_not_there(columns, message):
    with pytest.raises(InteractionError, match=message):
        clean(pl.DataFrame({"who": ["ann"], "what": ["tea"]}), columns=columns)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (([], []), "has no rows"),
        (pl.DataFrame({"user": [], "item": []}), "has no rows"),
        (([1],), r"\(users, items\[, values"),
        ((None, [1]), "user ids; got None"),
        ((1, [1]), "user: a column must be a plain array or list; got int"),
        (([1, 2], [1]), "one length; got .*'user': 2, 'item': 1"),
        ((np.ones((1, 1), int), [1]), "user: a column must be one-dimensional"),
        ((np.ma.masked_array([1], [True]), [1]), "got MaskedArray"),
        (([1.0], [1]), "user ids must be whole numbers or text; the column is Float64"),
        (([True], [1]), "user ids must be whole numbers or text; the column is Boolean"),
        (([b"a"], [1]), "user ids must be whole numbers or text; the column is Binary"),
        (([1, "a"], [1, 1]), "position 1: user 'a' is of type str.* int: types must not mix"),
        (pd.DataFrame({"user": ["a", 1], "item": [1, 1]}), "position 1: user 1 is of type int"),
        (([1], [2**63]), "item id 9223372036854775808 does not fit int64"),
        (([1], [2**130]), "item: no column can hold"),
        ((["\ud800"], [1]), "user: no column can hold"),
        ((["a\0"], [1]), "NUL"),
        (([1], [1], [NAN]), "row 0: value is missing"),
        (([1, 1], [1, 2], [1.0, 1e39]), r"the data, row 1: value 1e\+39 is no finite float32 number"),
        (([1], [1], ["five"]), "row 0: value 'five' is no finite float32 number"),
        (([1], [1], ["inf"]), "value 'inf' is no finite"),
        (([1, 1], [1, 2], [1, "2"]), "value '2' is of type str"),
        (([1], [1], [[1]]), "values must be numbers; the column is List"),
        (([1], [1], [datetime.date(2020, 1, 1)]), "values must be numbers; the column is Date"),
        (([None, 1], [1, 1]), "row 0: user is missing"),
        ((["a", NAN], [1, 1]), "row 1: user is missing"),
        ((["a", ""], [1, 1]), "row 1: user is missing"),
        (([1], [1], [1.0], [float("inf")]), "time inf is no number"),
        (([1, 1], [1, 2], None, ["2020-01-01", "01/02/2020"]), "row 1: time '01/02/2020' is no number and no date"),
        (([1, 1], [1, 2], None, ["5", "x"]), "row 1: time 'x' is no number"),
        (([1], [1], None, np.array(["NaT"], "datetime64[s]")), "row 0: time is missing"),
        (([1], [1], None, [b"x"]), "times must be numbers or dates"),
        (pd.DataFrame([[1, 2, 3]], columns=["user", "item", "item"]), "unique column names"),
        ([1, 2], "cannot read interactions from list"),
        (pl.LazyFrame({"user": [1], "item": [1]}), "cannot read interactions from LazyFrame"),
    ],
)
def test_sources_that_are_refused(source, message):
    with pytest.raises(InteractionError, match=message):
        clean(source)


def test_text_keeps_its_zeros_and_numbers_stay_numbers():
    assert clean((["007", "7"], [1, 1])).user_ids.ids.tolist() == ["007", "7"]
    assert clean((["5"], ["6"])).user_ids.ids.tolist() == ["5"]
    assert clean(([-5], [2**62])).user_ids.ids.tolist() == [-5]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["10", " 9"], [10, 9]),
        (["1.5", "2"], [1.5, 2.0]),
        (["1970-01-01 00:01:00", "1970-01-02"], [60, 86400]),
        (["1970-01-01T00:00:00.250Z", "1970-01-01T01:00:00.000Z"], [0.25, 3600.0]),
        (["1970-01-01T02:00:00+02:00", "1970-01-01T00:00:01+00:00"], [0, 1]),
        ([datetime.date(1970, 1, 2), datetime.date(1969, 12, 31)], [86400, -86400]),
        (np.array(["1970-01-01T00:00:01", "1970-01-01"], "datetime64[s]"), [1, 0]),
        (pd.Series(["1970-01-01T00:00:01", "1970-01-01"]).astype("datetime64[ns]"), [1, 0]),
    ],
)
def test_times(times, expected):
    x = clean(([1, 2], [1, 1], None, times))
    assert x.timestamps.tolist() == expected
    assert x.timestamps.dtype == (np.int64 if isinstance(expected[0], int) else np.float64)


def test_missing_rows_dropped_on_request_and_noted():
    source = ([1, None, 3, 4], ["a", "b", "c", ""], [1.0, 2.0, NAN, 3.0])
    x = clean(source, missing="drop")
    assert _rows(x) == [(1, "a", 1.0, None)]
    assert x.notes == ("3 rows with missing or non-finite values left out",)
    with pytest.raises(InteractionError, match=r"no interactions are left \(1 row with missing"):
        clean(([None], [1]), missing="drop")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 9), st.integers(0, 3)), min_size=1),
    st.sampled_from(["last", "sum", "mean"]),
)
def test_duplicates_are_merged(rows, how):
    users, items, values, times = (list(column) for column in zip(*rows, strict=True))
    expected = naive.merge(users, items, values, times, how)
    merged = {
        (user, item): (value, time)
        for user, item, value, time in _rows(clean((users, items, values, times), duplicates=how))
    }
    assert merged == {pair: (np.float32(value), time) for pair, (value, time) in expected.items()}


def test_duplicates_without_values_count_when_summed():
    source = (["ann", "bob", "ann"], ["tea", "tea", "tea"])
    assert clean(source, duplicates="sum").values.tolist() == [2, 1]
    assert clean(source, duplicates="last").values is None
    with pytest.raises(InteractionError, match=r"row 2: user 'ann', item 'tea' occurs again \(1 repetition here"):
        clean(source)


def test_value_thresholds():
    source = ([1, 1, 2], [1, 2, 1], [1.0, 3.0, 5.0])
    x = clean(source, min_value=3, max_value=4)
    assert _rows(x) == [(1, 2, 3.0, None)]
    assert x.notes == ("2 rows outside the value thresholds left out",)
    assert clean(clean(source), min_value=3, max_value=4).notes == (
        *x.notes,
        "1 users, 1 items and 0 interactions below the minimum counts left out",
    )
    assert clean(source, min_value=1).notes == clean(clean(source), min_value=1).notes == ()
    with pytest.raises(InteractionError, match="no interactions are left"):
        clean(source, min_value=9)
    for without in (source[:2], clean(source[:2])):
        with pytest.raises(InteractionError, match="no values to hold against min_value"):
            clean(without, min_value=1)


def test_core_is_repeated_until_it_holds():
    # Item 3 has one user; without it user 30 has one item, which leaves item 2 with two users.
    source = ([10, 10, 20, 20, 30, 30], [1, 2, 1, 2, 2, 3], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1, 2, 3, 4, 5, 6])
    x = clean(source, min_per_user=2, min_per_item=2)
    assert _rows(x) == [(10, 1, 1.0, 1), (10, 2, 2.0, 2), (20, 1, 3.0, 3), (20, 2, 4.0, 4)]
    assert x.notes == ("1 users, 1 items and 2 interactions below the minimum counts left out",)
    assert _rows(clean(clean(source), min_per_user=2, min_per_item=2)) == _rows(x)
    with pytest.raises(InteractionError, match="no user has 3 interactions"):
        clean(source, min_per_user=3)


@settings(deadline=None, max_examples=40)
@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1), st.integers(1, 3), st.integers(1, 3))
def test_core_is_the_largest(pairs, min_per_user, min_per_item):
    core = set(pairs)
    while True:
        kept = {
            (u, i)
            for u, i in core
            if sum(v == u for v, _ in core) >= min_per_user and sum(j == i for _, j in core) >= min_per_item
        }
        if kept == core:
            break
        core = kept
    users, items = zip(*pairs, strict=True)
    if not core:
        with pytest.raises(InteractionError, match="no interactions are left"):
            clean((list(users), list(items)), min_per_user=min_per_user, min_per_item=min_per_item)
        return
    x = clean((list(users), list(items)), min_per_user=min_per_user, min_per_item=min_per_item)
    assert {(user, item) for user, item, _, _ in _rows(x)} == core


def test_interactions_lose_empty_rows_and_keep_names_and_features():
    x = Interactions.from_coo(
        [0, 2], [1, 1], [1.0, 2.0], user_ids=Vocabulary(np.array(["a", "b", "c"]), np.array(["A", "B", "C"]))
    )
    x = clean(replace(x, user_features=pl.DataFrame({"age": [1, 2, 3]})))
    assert x.shape == (2, 1)
    assert _rows(x) == [("a", 1, 1.0, None), ("c", 1, 2.0, None)]
    assert x.user_ids.titles.tolist() == ["A", "C"]
    assert x.user_features["age"].to_list() == [1, 3]


def test_given_vocabularies_keep_their_indices():
    train = clean((["a", "b", "c"], [1, 2, 3]))
    new = (["c", "z", "c", "b"], [3, 1, 1, 1])
    given = {"user_ids": train.user_ids, "item_ids": train.item_ids}
    x = clean(new, **given, unknown="drop")
    assert x.shape == (3, 3)
    assert _rows(x) == [("b", 1, None, None), ("c", 1, None, None), ("c", 3, None, None)]
    assert x.notes == ("1 row with unknown ids left out",)
    core = clean(new, **given, unknown="drop", min_per_user=2)
    assert core.user_ids.ids.tolist() == ["a", "b", "c"]
    assert core.shape == (3, 3)
    assert core.items_of(2).tolist() == [0, 2]
    with pytest.raises(InteractionError, match=r"row 1: user 'z' is not in the given vocabulary \(1 such row"):
        clean(new, **given)
    with pytest.raises(InteractionError, match=r"no interactions are left \(1 row with unknown ids"):
        clean((["z"], [1]), **given, unknown="drop")
    with pytest.raises(InteractionError, match="ids here are text"):
        clean(([1], [1]), **given, unknown="drop")


@pytest.mark.parametrize(
    "options",
    [{"missing": "skip"}, {"duplicates": "first"}, {"unknown": "new"}, {"min_per_user": 0}, {"min_per_item": -1}],
)
def test_unknown_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        clean(([1], [1]), **options)


@pytest.mark.parametrize("options", [{"columns": ("user", "item")}, {"user_ids": Vocabulary.fit([0])}])
def test_options_for_raw_data_are_not_dropped_for_interactions(options):
    with pytest.raises(ValueError, match="encoded already"):
        clean(Interactions.from_coo([0], [0]), **options)


values = st.lists(st.integers(-20, 20), min_size=6, max_size=6).filter(lambda v: len(set(v)) > 1)
USERS, ITEMS = [0, 0, 0, 1, 1, 3], [0, 1, 2, 0, 1, 2]


@settings(deadline=None, max_examples=40)
@given(values, st.sampled_from(["z-score", "min-max", "user-centred"]))
def test_scaling(values, kind):
    x = Interactions.from_coo(USERS, ITEMS, values, n_users=5)
    scale = fit_scale(x, kind)
    scaled = scale.apply(x).values
    if kind == "z-score":
        np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-5)
    elif kind == "min-max":
        assert (scaled.min(), scaled.max()) == (0, 1)
    else:
        np.testing.assert_allclose(np.bincount(USERS, scaled), 0, atol=1e-4)
        assert scale.invert(np.zeros(1), users=[4]) == pytest.approx(np.mean(values))  # no history: the global mean
    np.testing.assert_allclose(scale.invert(scaled, users=x.users), values, atol=1e-4)
    new = Interactions.from_coo([1], [3], [7.0], n_users=5)
    np.testing.assert_allclose(scale.invert(scale.apply(new).values, users=new.users), [7], atol=1e-4)


def test_scaling_refuses():
    x = Interactions.from_coo([0, 1, 2], [0, 0, 0], [0.1, 0.1, 0.1])
    for kind in ("z-score", "min-max"):
        with pytest.raises(InteractionError, match=r"all 3 values are 0\.1"):
            fit_scale(x, kind)
    centred = fit_scale(x, "user-centred")
    assert centred.apply(x).values.tolist() == [0, 0, 0]
    with pytest.raises(InteractionError, match="users beyond the 3"):
        centred.apply(Interactions.from_coo([3], [0], [1.0]))
    with pytest.raises(InteractionError, match="users beyond the 3"):
        centred.invert(np.zeros(1), users=[-1])
    with pytest.raises(ValueError, match="needs the user"):
        fit_scale(Interactions.from_coo([0], [0], [1.0]), "user-centred").invert(np.zeros(1))
    with pytest.raises(ValueError, match="kind='log'"):
        fit_scale(x, "log")
    for refused in (lambda: fit_scale(x.with_values(None), "min-max"), lambda: centred.apply(x.with_values(None))):
        with pytest.raises(InteractionError, match="needs values"):
            refused()
