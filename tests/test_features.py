"""Feature matrices from side tables: fitted on training rows, applied to others, and designs of pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from affinax.engine.data import (
    FeatureError,
    InteractionError,
    Interactions,
    fit_features,
    kinds_of,
    pair_design,
    select_features,
)
from affinax.engine.data import columns as columns_module
from affinax.engine.data.features import device_rows
from affinax.engine.data.pairs import crossed
from affinax.engine.neighbors import content_profiles
from affinax.engine.regression import logistic_recommender, ridge_recommender

KINDS = {
    "age": "numeric",
    "job": "categorical",
    "likes": "multi-hot",
    "tags": "multi-hot",
    "about": "text",
    "vector": "embedding",
}


def people(**columns):
    return pl.DataFrame(
        {
            "age": [20.0, 30.0, 40.0, 50.0],
            "job": ["cook", "judge", "cook", "nurse"],
            "likes": ["Drama|War", "War", "", "Crime | Drama"],
            "tags": [["a"], ["a", "b"], [], ["b"]],
            "about": ["red wine", "white wine", "red cars", "boats"],
            "vector": [[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [0.0, 0.5]],
        }
        | columns
    )


def test_every_kind_against_its_definition():
    frame = people()
    found = fit_features(frame, KINDS).apply(frame)
    dense = found.matrix.toarray()
    assert found.matrix.dtype == np.float32
    np.testing.assert_allclose(dense[:, 0], (np.array([20, 30, 40, 50]) - 35) / np.std([20, 30, 40, 50]), rtol=1e-6)
    assert found.names[1:9].tolist() == [
        *(f"job={job}" for job in ("cook", "judge", "nurse")),
        *(f"likes={label}" for label in ("Crime", "Drama", "War")),
        *(f"tags={tag}" for tag in "ab"),
    ]
    assert dense[:, 1:4].tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert dense[:, 4:7].tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]
    assert dense[:, 7:9].tolist() == [[1, 0], [1, 1], [0, 0], [0, 1]]
    words = TfidfVectorizer().fit(frame["about"].to_list())
    assert found.names[9:-2].tolist() == [f"about:{word}" for word in words.get_feature_names_out()]
    np.testing.assert_allclose(dense[:, 9:-2], words.transform(frame["about"].to_list()).toarray(), rtol=1e-6)
    np.testing.assert_array_equal(dense[:, -2:], np.array(frame["vector"].to_list()))
    rows = found.to_device()
    again = scipy.sparse.csr_array((rows.values, rows.indices, rows.indptr), shape=dense.shape).toarray()
    np.testing.assert_array_equal(again, dense)


def test_frames_of_every_library_are_the_same():
    frame = people()
    expected = fit_features(frame, KINDS).apply(frame).matrix.toarray()
    for other in (frame.to_pandas(), frame.to_arrow(), pd.DataFrame(frame.to_dict(as_series=False))):
        np.testing.assert_array_equal(fit_features(other, KINDS).apply(other).matrix.toarray(), expected)


def test_what_was_fitted_is_what_is_applied():
    encoder = fit_features(people(), KINDS)
    new = people(age=[35.0] * 4, job=["nurse"] * 4)
    found = encoder.apply(new[:1])
    assert found.matrix.toarray()[0, :4].tolist() == [0, 0, 0, 1]  # by the mean of training, and its categories
    assert found.names.tolist() == encoder.names.tolist()


def test_an_unseen_category_is_an_error_or_none():
    frame, new = people(), people(job=["cook", "pilot", "judge", "pilot"])
    encoder = fit_features(frame, {"job": "categorical"})
    with pytest.raises(FeatureError, match=r"column 'job', row 1: 'pilot' is none of the 3 values .*\(2 such\)"):
        encoder.apply(new)
    assert replace(encoder, unseen="zero").apply(new).matrix.toarray()[:, 0].tolist() == [1, 0, 0, 0]
    labels = fit_features(frame, {"likes": "multi-hot"}, unseen="zero")
    assert labels.apply(people(likes=["Jazz|War", "", "", ""])).matrix.toarray()[0].tolist() == [0, 0, 1]
    with pytest.raises(FeatureError, match="column 'likes', row 0: 'Jazz'"):
        replace(labels, unseen="error").apply(people(likes=["Jazz|War", "", "", ""]))


def test_missing_values_are_an_error_or_imputed():
    holes = people(
        age=[20.0, None, float("nan"), 50.0],
        job=["cook", None, "cook", "nurse"],
        likes=["War", None, "Drama", ""],
        vector=[[1.0, 0.0], None, [2.0, 2.0], [0.0, 1.0]],
        about=["red wine", None, "cars", "boats"],
    )
    for name in ("age", "job", "likes", "vector", "about"):
        with pytest.raises(FeatureError, match=rf"column '{name}', row 1: the value is missing .*missing=\"impute\""):
            fit_features(holes, {name: KINDS[name]})
    found = fit_features(holes, KINDS, missing="impute").apply(holes)
    dense = dict(zip(found.names.tolist(), found.matrix.toarray().T, strict=True))
    assert dense["age"][1:3].tolist() == [0, 0]  # the mean
    assert dense["job=cook"].tolist() == [1, 1, 1, 0]
    assert dense["likes=War"].tolist() == [1, 0, 0, 0]
    assert dense["vector[0]"].tolist() == [1, 1, 2, 0]
    assert dense["about:wine"][1] == 0


def test_nan_is_missing_in_every_kind():
    nan = float("nan")
    frame = people(code=[1.0, nan, 1.0, 2.0], vector=[[1.0, 0.0], [nan, nan], [2.0, 2.0], [0.0, 1.0]])
    for name, kind in (("code", "categorical"), ("vector", "embedding")):
        with pytest.raises(FeatureError, match=rf"column '{name}', row 1: the value is missing \(1 such\)"):
            fit_features(frame, {name: kind})
    found = fit_features(frame, {"code": "categorical", "vector": "embedding"}, missing="impute").apply(frame)
    assert found.matrix.toarray()[1].tolist() == [1, 0, 1, 1]
    with pytest.raises(FeatureError, match="row 1: nan is not finite"):
        fit_features(people(vector=[[1.0, 0.0], [nan, 1.0], [2.0, 2.0], [0.0, 1.0]]), {"vector": "embedding"})


def test_a_column_all_missing_and_constant_features():
    empty = people(age=[None] * 4, job=["cook"] * 4, likes=["War|Drama", "War", "War", "War"])
    kinds = {"age": "numeric", "likes": "multi-hot"}
    with pytest.raises(FeatureError, match=r"column 'age' is missing in all 4 rows\. constant=\"drop\""):
        fit_features(empty, kinds)
    with pytest.raises(FeatureError, match=r"feature 'likes=War' is the same in all 4 rows \(1 such\)"):
        fit_features(empty, {"likes": "multi-hot"})
    encoder = fit_features(empty, kinds, constant="drop")
    assert encoder.names.tolist() == ["likes=Drama"]
    assert len(encoder.notes) == 2
    assert encoder.apply(empty).matrix.toarray().ravel().tolist() == [1, 0, 0, 0]
    with pytest.raises(FeatureError, match="every feature is the same in all 4 rows"):
        fit_features(empty, {"job": "categorical"}, constant="drop")


@pytest.mark.parametrize(
    ("columns", "kinds", "message"),
    [
        ({}, {"height": "numeric"}, "no column 'height'; it has"),
        ({}, {"job": "numeric"}, "column 'job' is String, such as .*: not numeric"),
        ({}, {"age": "multi-hot"}, "column 'age' is Float64"),
        ({"age": [1.0, np.inf, 2.0, 3.0]}, {"age": "numeric"}, "column 'age', row 1: inf is not finite"),
        ({"vector": [[1.0], [1.0, 2.0], [1.0], [2.0]]}, {"vector": "embedding"}, "row 0: a vector of length 1"),
        ({"about": ["a", "b", "c", "d"]}, {"about": "text"}, "column 'about': empty vocabulary"),
        ({"job": [{"a": 1}] * 4}, {"job": "categorical"}, "column 'job' is Struct"),
    ],
)
def test_columns_that_cannot_be_encoded(columns, kinds, message):
    with pytest.raises(FeatureError, match=message):
        fit_features(people(**columns), kinds)


def test_arguments_that_are_refused(monkeypatch):
    for wrong in ({"missing": "drop"}, {"unseen": "none"}, {"constant": "keep"}):
        with pytest.raises(ValueError, match="must be one of"):
            fit_features(people(), {"age": "numeric"}, **wrong)
    with pytest.raises(ValueError, match="kind 'number' must be one of"):
        fit_features(people(), {"age": "number"})
    with pytest.raises(ValueError, match=r"columns=\['age'\] must be a mapping of columns to their kinds"):
        fit_features(people(), ["age"])
    with pytest.raises(FeatureError, match="frames of polars, pandas and pyarrow"):
        fit_features([1, 2])
    with pytest.raises(FeatureError, match="no rows"):
        fit_features(people()[:0], {"age": "numeric"})
    monkeypatch.setitem(__import__("sys").modules, "sklearn.impute", None)
    with pytest.raises(ValueError, match=r"need scikit-learn: pip install 'affinax\[features\]'"):
        columns_module.fit_column(people()["age"], "numeric", separator="|", max_terms=None, impute=False)


def test_vectors_of_another_length_are_refused():
    encoder = fit_features(people(), {"vector": "embedding"})
    with pytest.raises(FeatureError, match="vectors of length 3; in training they had 2"):
        encoder.apply(people(vector=[[1.0, 2.0, 3.0]] * 4))


def test_kinds_are_guessed_and_what_is_left_out_is_said(movielens_100k):
    x = movielens_100k
    assert kinds_of(x.item_features) == {"title": "text", "genres": "multi-hot"}
    assert kinds_of(x.user_features) == {"age": "numeric", "gender": "categorical", "occupation": "categorical"}
    encoder = fit_features(x.user_features)
    assert "column 'zip' left out: no kind suits it" in encoder.notes
    assert encoder.apply(x.user_features).matrix.shape == (943, 1 + 2 + 21)
    lists = pl.DataFrame({"labels": [[1, 2], [3]], "vectors": [[0.1, 0.2], [0.3, 0.4]], "nested": [[[1]], [[2]]]})
    assert kinds_of(lists) == {"labels": "multi-hot", "vectors": "embedding"}


class TestSelection:
    @pytest.fixture
    def frame(self):
        rng = np.random.default_rng(0)
        side = rng.integers(0, 2, 200)
        return pl.DataFrame(
            {
                "useful": np.where(side == 1, "yes", "no"),
                "noise": rng.choice(["p", "q", "r"], 200),
                "number": side + rng.normal(0, 0.3, 200),
                "rare": np.where(np.arange(200) == 7, "odd", "usual"),
            }
        ), side

    def test_the_best_by_information_and_chi_square(self, frame):
        table, side = frame
        kinds = {"useful": "categorical", "noise": "categorical"}
        encoder = fit_features(table, kinds)
        for by, targets in (("mutual-information", side), ("mutual-information", side + 0.5), ("chi-square", side)):
            chosen = select_features(encoder, table, by, targets=targets, k=2)
            assert chosen.names.tolist() == ["useful=no", "useful=yes"]
            assert chosen.apply(table).matrix.shape == (200, 2)
            assert chosen.notes[-1] == f"3 features left out by {by}"
        numbers = fit_features(table, {"number": "numeric", "noise": "categorical"})
        assert select_features(numbers, table, "mutual-information", targets=side, k=1).names.tolist() == ["number"]

    def test_by_variance(self, frame):
        table, _ = frame
        encoder = fit_features(table, {"rare": "categorical", "useful": "categorical"})
        chosen = select_features(encoder, table, "variance", threshold=0.1)
        assert chosen.names.tolist() == ["useful=no", "useful=yes"]
        with pytest.raises(FeatureError, match="no feature has a variance above threshold=9"):
            select_features(encoder, table, "variance", threshold=9)

    def test_what_is_refused(self, frame):
        table, side = frame
        encoder = fit_features(table, {"number": "numeric", "useful": "categorical"})
        for arguments, error, message in (
            ({"by": "luck"}, ValueError, "by='luck' must be one of"),
            ({"by": "chi-square"}, ValueError, "targets and k go with"),
            ({"by": "variance", "k": 2}, ValueError, "targets and k go with"),
            ({"by": "chi-square", "targets": side, "k": 9}, ValueError, r"k=9 must be in \[1, 3\]"),
            ({"by": "chi-square", "targets": side, "k": 1}, FeatureError, "never negative; 'number' is"),
            ({"by": "chi-square", "targets": side / 2, "k": 1}, FeatureError, "needs classes"),
            ({"by": "mutual-information", "targets": side[:3], "k": 1}, FeatureError, "one for each row"),
            ({"by": "mutual-information", "targets": side * np.nan, "k": 1}, FeatureError, "nan in row 0"),
        ):
            with pytest.raises(error, match=message):
                select_features(encoder, table, **arguments)


@pytest.fixture(scope="module")
def small():
    x = Interactions.from_coo([0, 1, 2, 2], [0, 1, 0, 2], [1.0, 2.0, 3.0, 4.0], n_users=4, n_items=4)
    users = pl.DataFrame({"sex": ["f", "m", "f", "m"]})
    items = pl.DataFrame({"genres": [["War"], ["War", "Drama"], ["Drama"], []]})
    return replace(x, user_features=users, item_features=items)


@pytest.mark.parametrize("crosses", ["none", "features", "all"])
def test_a_row_of_a_pair_is_its_terms(small, crosses):
    design = pair_design(small, crosses=crosses)
    users, items = np.array([0, 2, 1]), np.array([1, 3, 0])
    a, b = (side.matrix.toarray() for side in (design.users, design.items))
    for row, u, i in zip(design.rows(users, items).toarray(), users, items, strict=True):
        p, q = np.eye(4)[u], np.eye(4)[i]
        terms = [a[u], b[i], p, q]
        terms += [np.kron(a[u], b[i])] if crosses != "none" else []
        terms += [np.kron(p, b[i]), np.kron(q, a[u])] if crosses == "all" else []
        np.testing.assert_array_equal(row, np.concatenate(terms))
    assert len(design.names) == len(set(design.names)) == design.n_features == design.rows([0], [0]).shape[1]
    place = {name: k for k, name in enumerate(design.names.tolist())}
    row = design.rows([2], [1]).toarray()[0]
    expected = ["sex=f", "user=2", "item=1", "genres=War", "genres=Drama"]
    expected += ["sex=f x genres=War"] if crosses != "none" else []
    expected += ["user=2 x genres=Drama", "item=1 x sex=f"] if crosses == "all" else []
    assert all(row[place[name]] == 1 for name in expected)
    parts = design.parts(np.arange(design.n_features))
    assert {term: part.shape for term, part in parts.items()} == design.shapes


def test_missing_values_of_side_tables_are_imputed_where_that_is_asked_for(small):
    x = replace(small, item_features=pl.DataFrame({"genres": [["War"], None, ["Drama"], []]}))
    message = r"column 'genres', row 1: the value is missing \(1 such\)\. missing=\"impute\" fills them in"
    for build in (pair_design, ridge_recommender, logistic_recommender, content_profiles):
        with pytest.raises(FeatureError, match=message):
            build(x)
    assert pair_design(x, missing="impute").items.matrix.toarray().tolist() == [[0, 1], [0, 0], [1, 0], [0, 0]]
    for build in (ridge_recommender, logistic_recommender, content_profiles):
        assert build(x, missing="impute").n_items == 4


def test_pairs_of_nobody_are_refused(small):
    design = pair_design(small)
    for users, items, message in (
        ([-1], [0], r"user id -1 is outside \[0, 4\)"),
        ([0], [4], r"item id 4 is outside \[0, 4\)"),
        ([0, 1], [0], "2 users and 1 items do not make pairs"),
    ):
        with pytest.raises(InteractionError, match=message):
            design.rows(users, items)


def test_entries_that_occur_again_are_summed_and_the_matrix_stays_as_it_is():
    matrix = scipy.sparse.csr_array((np.array([1.0, 2.0, 3.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    rows = device_rows(matrix)
    assert (rows.indices.tolist(), rows.values.tolist()) == ([0, 2], [2.0, 4.0])
    assert matrix.indices.tolist() == [2, 0, 2]


def test_designs_without_side_tables_are_ids_alone(small):
    bare = replace(small, user_features=None, item_features=None)
    assert pair_design(bare, crosses="all").names.tolist() == [
        *(f"user={u}" for u in range(4)),
        *(f"item={i}" for i in range(4)),
    ]
    with pytest.raises(FeatureError, match=r"columns \['sex'\] are asked for"):
        pair_design(bare, user_columns={"sex": "categorical"})
    with pytest.raises(ValueError, match="crosses='some' must be one of"):
        pair_design(small, crosses="some")
    assert pair_design(small, item_columns={}).items.n_features == 0


def test_crosses_of_rows_with_nothing_in_them():
    left = scipy.sparse.csr_array(np.array([[0, 0], [1, 2], [0, 3]]))
    right = scipy.sparse.csr_array(np.array([[1, 1, 0], [0, 0, 0], [0, 4, 5]]))
    expected = [np.kron(a, b) for a, b in zip(left.toarray(), right.toarray(), strict=True)]
    np.testing.assert_array_equal(crossed(left, right).toarray(), expected)
