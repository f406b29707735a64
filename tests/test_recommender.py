"""The front door: outside ids in, frames out."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse

import affinax as afx
from affinax.algorithms import ALGORITHMS, parameters_of
from affinax.engine.data import Interactions
from affinax.engine.errors import InteractionError, ModelFileError
from affinax.engine.evaluation import Evaluation
from affinax.engine.storage import save_arrays

RANK = 16
TITLES = {item: f"Film {item} ({1980 + item})" for item in range(20)}


def _ratings() -> pl.DataFrame:
    """Twenty people, twenty films, in two camps that see nothing of each other's films; three gaps each."""
    rng = np.random.default_rng(0)
    rows = [
        (f"user {user}", item, 1.0 + (user + item) % 5, 1_000_000 + int(rng.integers(1000)))
        for user in range(20)
        for item in range(20)
        if user % 2 == item % 2 and rng.random() < 0.7
    ]
    return pl.DataFrame(rows, schema=["user", "item", "rating", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def data() -> Interactions:
    """The same with titles and side tables."""
    x = afx.clean(_ratings())
    camp = [int(user.split()[1]) % 2 for user in x.user_ids.ids.tolist()]
    return replace(
        x,
        item_ids=x.item_ids.with_titles(TITLES),
        user_features=pl.DataFrame({"camp": camp}, schema={"camp": pl.Float64}),
        item_features=pl.DataFrame({"genres": [["Drama", "War"][item % 2 : item % 2 + 1] for item in range(20)]}),
    )


@pytest.fixture(scope="module")
def fitted(data) -> afx.Recommender:
    return afx.Recommender("implicit-als", rank=RANK, epochs=8, l2=0.01).fit(data)


def test_the_snippet_of_the_readme(movielens_100k, tmp_path):
    films = movielens_100k
    train, test = films.split("leave-last")
    rec = afx.Recommender("implicit-als", rank=RANK, epochs=4).fit(train)

    top = rec.recommend(196, k=5)
    assert top.columns == ["rank", "item", "title", "score"]
    assert top["rank"].to_list() == [1, 2, 3, 4, 5]
    assert (top["score"].diff().drop_nulls() <= 0).all()
    seen = train.items_of(int(train.user_ids.indices([196])[0]))
    assert not set(top["item"]) & set(train.item_ids.outside(seen))

    newcomer = rec.recommend(history=["Alien (1979)", "Fargo (1996)"])
    assert len(newcomer) == 10
    assert not {"Alien (1979)", "Fargo (1996)"} & set(newcomer["title"])
    near = rec.similar_items("Star Wars (1977)", k=3)
    assert near["title"][0] == "Return of the Jedi (1983)"

    found = rec.evaluate(test)
    popular = afx.Recommender("popularity").fit(train).evaluate(test)
    assert isinstance(found, Evaluation)
    assert found.means["ndcg_at_10"] > 1.3 * popular.means["ndcg_at_10"]

    rec.save(tmp_path / "films.afx")
    again = afx.Recommender.load(tmp_path / "films.afx")
    assert again.recommend(196, k=5).equals(top)
    assert again.evaluate(test).means == found.means


def test_one_user_and_several(fitted):
    one = fitted.recommend("user 3", k=4)
    assert one.columns == ["rank", "item", "title", "score"]
    for several in (["user 8", "user 3"], ("user 8", "user 3"), np.array(["user 8", "user 3"])):
        both = fitted.recommend(several, k=4)
        assert both.columns == ["user", "rank", "item", "title", "score"]
        assert both["user"].to_list() == ["user 8"] * both["user"].to_list().count("user 8") + ["user 3"] * len(one)
        last = both.filter(pl.col("user") == "user 3").drop("user")
        assert last.drop("score").equals(one.drop("score"))
        np.testing.assert_allclose(last["score"], one["score"], rtol=1e-5)
    for frame in (pl.Series(["user 8", "user 3"]), pd.Series(["user 8", "user 3"])):
        assert fitted.recommend(frame, k=4)["user"].unique(maintain_order=True).to_list() == ["user 8", "user 3"]


def test_camps_get_films_of_their_own(fitted):
    """Where a camp has unseen films left, they come first."""
    for user in range(20):
        frame = fitted.recommend(f"user {user}", k=1)
        assert frame["item"][0] % 2 == user % 2


def test_filters(fitted, data):
    everything = fitted.recommend("user 0", k=100)
    seen = data.items_of(int(data.user_ids.indices(["user 0"])[0]))
    assert len(everything) == 20 - len(seen)  # k larger than the catalogue
    assert len(fitted.recommend("user 0", k=100, exclude_seen=False)) == 20

    first = everything["item"][0]
    for exclude in ([first], first, TITLES[first], [TITLES[first]]):
        assert fitted.recommend("user 0", k=100, exclude=exclude)["item"].to_list() == everything["item"].to_list()[1:]
    allowed = everything["item"].to_list()[2:4]
    assert fitted.recommend("user 0", k=100, allow=[*allowed, TITLES[allowed[0]]])["item"].to_list() == allowed
    several = fitted.recommend(["user 0", "user 0"], k=100, exclude=[first])
    assert several["item"].to_list() == everything["item"].to_list()[1:] * 2


def test_everything_filtered_out(fitted):
    for frame in (
        fitted.recommend("user 0", allow=[]),
        fitted.recommend(history=[1, 3], allow=[1, 3]),
        fitted.recommend("user 0", exclude=list(range(20))),
    ):
        assert frame.columns == ["rank", "item", "title", "score"]
        assert len(frame) == 0
    assert fitted.recommend(["user 0"], allow=[]).schema == fitted.recommend(["user 0"]).schema


def test_a_newcomer(fitted):
    by_title = fitted.recommend(history=[TITLES[1], TITLES[3], TITLES[5]], k=5)
    assert by_title.equals(fitted.recommend(history=[1, 3, 5, 5], k=5))
    assert (by_title["item"][:3] % 2 == 1).all()
    assert not set(by_title["item"]) & {1, 3, 5}
    assert set(fitted.recommend(history=[1, 3, 5], k=20, exclude_seen=False)["item"]) == set(range(20))
    assert fitted.recommend(history=1).equals(fitted.recommend(history=[TITLES[1]]))
    vector = fitted.fold_in([1, 3, 5])
    assert vector.shape == (RANK,)
    np.testing.assert_allclose(np.asarray(fitted.model.items)[by_title["item"]] @ vector, by_title["score"], rtol=1e-4)


def test_a_newcomer_with_the_history_of_a_user_gets_the_same(fitted, data):
    user = int(data.user_ids.indices(["user 4"])[0])
    known, folded = fitted.recommend("user 4"), fitted.recommend(history=data.items_of(user))
    assert known["item"].to_list()[:3] == folded["item"].to_list()[:3]


def test_similar_items(fitted):
    one = fitted.similar_items(4, k=3)
    assert one.columns == ["rank", "item", "title", "score"]
    assert (one["item"] % 2 == 0).all()
    assert 4 not in one["item"]
    several = fitted.similar_items([TITLES[4], 7], k=3)
    assert several["similar_to"].to_list() == [TITLES[4]] * 3 + ["7"] * 3
    assert several["item"].to_list()[:3] == one["item"].to_list()
    assert len(fitted.similar_items(4, k=50)) == 19
    with pytest.raises(ValueError, match='metric=\'euclid\' must be "cosine" or "dot"'):
        fitted.similar_items(4, metric="euclid")


def test_unknown_ids_and_titles(fitted):
    with pytest.raises(InteractionError, match=r"user 'user 33' is .*did you mean 'user .*history=\[items\]"):
        fitted.recommend("user 33")
    with pytest.raises(InteractionError, match=r"2 of 3 users unknown"):
        fitted.recommend(["user 1", "nobody", "no one"])
    with pytest.raises(InteractionError, match=r"ids here are text, such as .*; got whole numbers, such as"):
        fitted.recommend(3)
    with pytest.raises(
        InteractionError, match=r"'Film 4' is neither an id nor a title here; did you mean 'Film 4 \(1984"
    ):
        fitted.similar_items("Film 4")
    for call in (
        lambda: fitted.recommend(history=["Flim 4 (1984)"]),
        lambda: fitted.recommend(history="Flim 4 (1984)"),
        lambda: fitted.recommend("user 0", exclude="Flim 4 (1984)"),
        lambda: fitted.recommend("user 0", allow=["Flim 4 (1984)"]),
        lambda: fitted.fold_in("Flim 4 (1984)"),
    ):
        with pytest.raises(InteractionError, match=r"'Flim 4 \(1984\)' is neither .*did you mean 'Film 4 \(1984\)'"):
            call()
    with pytest.raises(
        InteractionError, match=r"99 is neither an id nor a title here; ids are whole numbers, such as \[0, 1, 2\]"
    ):
        fitted.similar_items(99)


def test_arguments_that_do_not_fit_together(fitted):
    for arguments in ({}, {"users": "user 0", "history": [1]}):
        with pytest.raises(ValueError, match="give either users or history"):
            fitted.recommend(**arguments)
    with pytest.raises(InteractionError, match="history is empty"):
        fitted.recommend(history=[])
    with pytest.raises(ValueError, match="k=0"):
        fitted.recommend("user 0", k=0)


def test_not_fitted():
    rec = afx.Recommender("implicit-als")
    assert repr(rec) == "<Recommender implicit-als, not fitted>"
    for call in (
        lambda: rec.recommend(1),
        lambda: rec.recommend(history=[1]),
        lambda: rec.similar_items(1),
        lambda: rec.fold_in([1]),
        lambda: rec.evaluate(([1], [2])),
        lambda: rec.save("nowhere"),
    ):
        with pytest.raises(ValueError, match=r"not fitted; call fit\(data\) first"):
            call()


def test_names_and_parameters():
    with pytest.raises(
        ValueError,
        match=r"algorithm 'als' must be one of \['bayesian-mf', 'bert4rec', 'biased-mf', 'bpr', 'content-profiles'",
    ):
        afx.Recommender("als")
    with pytest.raises(ValueError, match=r"implicit-als has no parameter 'factors'; it has \['alpha', .*'rank'"):
        afx.Recommender("implicit-als", factors=8)
    with pytest.raises(ValueError, match="popularity has no parameter 'rank'; it has none"):
        afx.Recommender("popularity", rank=8)
    for wrong in ({"rank": 8.0}, {"rank": "8"}, {"epochs": 2.5}, {"rank": True}):
        (name, value), *_ = wrong.items()
        with pytest.raises(ValueError, match=rf"implicit-als: {name}={value!r} must be a whole number"):
            afx.Recommender("implicit-als", **wrong)
    afx.Recommender("implicit-als", rank=np.int64(8), epochs=2)
    with pytest.raises(ValueError, match=r"rank=0 must be finite and at least 1"):
        afx.Recommender("implicit-als", rank=0).fit(([0], [0]))
    with pytest.raises(ValueError, match=r"l2=-1"):
        afx.Recommender("implicit-als", l2=-1).fit(([0], [0]))
    with pytest.raises(ValueError, match=r"epochs=0"):
        afx.Recommender("implicit-als", epochs=0).fit(([0], [0]))


def test_options_that_would_do_nothing(data):
    with pytest.raises(ValueError, match=r"popularity is not trained in epochs, so that \['callback'\] would do"):
        afx.Recommender("popularity").fit(data, callback=print)
    afx.Recommender("popularity").fit(data, progress=False)


def test_values_where_they_are_needed(data):
    with pytest.raises(ValueError, match=r"explicit-als learns from values, .*have none; try implicit-als"):
        afx.Recommender("explicit-als").fit(data.with_values(None))


def test_what_can_be_trained_on(tmp_path):
    frame = _ratings()
    frame.write_csv(tmp_path / "ratings.csv")
    expected = afx.Recommender("popularity").fit(frame).recommend("user 3")
    for data in (
        frame.to_pandas(),
        frame.to_arrow(),
        tmp_path / "ratings.csv",
        str(tmp_path / "ratings.csv"),
        afx.clean(frame),
        (frame["user"].to_numpy(), frame["item"].to_numpy()),
    ):
        assert afx.Recommender("popularity").fit(data).recommend("user 3").equals(expected)
    matrix = scipy.sparse.csr_matrix(np.array([[1, 0, 1], [0, 1, 1]]))
    assert afx.Recommender("popularity").fit(matrix).recommend(0)["item"].to_list() == [1]
    indices = Interactions.from_coo([0, 0, 1], [0, 2, 2])  # without ids of its own
    rec = afx.Recommender("popularity").fit(indices)
    assert rec.recommend(1, k=2)["item"].to_list() == [0, 1]
    assert rec.recommend([1], k=1).to_dicts() == [{"user": 1, "rank": 1, "item": 0, "score": 1.0}]
    with pytest.raises(InteractionError, match="cannot read interactions from dict"):
        afx.Recommender("popularity").fit({"user": 1})


NETWORKS = ("dcn", "deepfm", "din", "dlrm", "factorization-machine", "mlp", "neumf", "two-tower")
SEQUENTIAL = ("bert4rec", "hstu", "sasrec")
READ_HISTORIES = ("din", "two-tower", *SEQUENTIAL)


@pytest.mark.parametrize("algorithm", NETWORKS + SEQUENTIAL)
def test_networks_by_name(algorithm, data, tmp_path):
    small = {"factorization-machine": {}, "two-tower": {"history": True}, "hstu": {"inner": 3}}
    small = small.get(algorithm, {"hidden": 8}) | {"batch_size": 1 if algorithm in SEQUENTIAL else 16}
    rec = afx.Recommender(algorithm, seed=3, epochs=2, width=4, **small).fit(data)
    assert rec.model.training is None
    found = rec.recommend(["user 3", "user 0"])
    assert found["score"].is_finite().all()
    rec.save(tmp_path / "model")
    again = afx.Recommender.load(tmp_path / "model")
    assert again.recommend(["user 3", "user 0"]).equals(found)
    assert jax.tree.structure(again.model) == jax.tree.structure(rec.model)
    if algorithm in READ_HISTORIES:
        newcomer = rec.recommend(history=[TITLES[2], TITLES[4]])
        assert not set(newcomer["item"]) & {2, 4}
        assert again.similar_items(2).equals(rec.similar_items(2))
    else:
        with pytest.raises(ValueError, match="reads no histories"):
            rec.recommend(history=[TITLES[2]])


def test_settings_of_networks():
    assert afx.Recommender("deepfm", hidden=[16, 8]).parameters["hidden"] == (16, 8)
    assert {"negatives", "width", "dropout", "columns", "epochs"} <= parameters_of("deepfm").keys()
    assert not {"sizes", "rngs", "network", "length", "implementation"} & parameters_of("deepfm").keys()
    for algorithm, settings, message in [
        ("deepfm", {"hidden": "wide"}, "deepfm: hidden='wide' must be whole numbers above 0"),
        ("deepfm", {"hidden": [8, 0]}, "must be whole numbers above 0"),
        ("deepfm", {"dropout": 1.5}, r"dropout=1.5 must be in \[0, 1\)"),
        ("neumf", {"negatives": 0}, "negatives=0 above 0 for clicks"),
        ("two-tower", {"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ("two-tower", {"factors": None}, "two-tower has no parameter 'factors'"),
    ]:
        with pytest.raises(ValueError, match=message):
            afx.Recommender(algorithm, **settings)
    with pytest.raises(ValueError, match="mlp learns from values, and these interactions have none"):
        afx.Recommender("mlp").fit(Interactions.from_coo([0, 1], [0, 1]))


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS.keys() - {*NETWORKS, *SEQUENTIAL}))
def test_saved_and_loaded(algorithm, data, tmp_path):
    vectors = ALGORITHMS[algorithm].epochs > 0
    parameters = {"rank": RANK, "epochs": 3} if vectors else {}
    if vectors and "l2" in parameters_of(algorithm):
        parameters["l2"] = np.float32(0.25)
    rec = afx.Recommender(algorithm, seed=3, **parameters).fit(data)
    rec.save(tmp_path / "model")
    again = afx.Recommender.load(tmp_path / "model")
    assert repr(again) == repr(rec).replace("np.float32(0.25)", "0.25")
    assert again.seed == 3
    assert again.history is None
    assert jax.tree.structure(again.model) == jax.tree.structure(rec.model)
    for loaded, value in zip(jax.tree.leaves(again.model), jax.tree.leaves(rec.model), strict=True):
        assert loaded.dtype == value.dtype
        np.testing.assert_array_equal(loaded, value)
    assert again.recommend(["user 3", "user 0"]).equals(rec.recommend(["user 3", "user 0"]))
    newcomer = rec.recommend(history=[TITLES[2], TITLES[4]])
    assert len(newcomer) > 0
    assert not set(newcomer["item"]) & {2, 4}
    assert again.recommend(history=[TITLES[2], TITLES[4]]).equals(newcomer)
    if algorithm not in ("popularity", "random", "user-knn"):
        assert again.similar_items(2).equals(rec.similar_items(2))
    if vectors:
        np.testing.assert_array_equal(again.fold_in([2, 4]), rec.fold_in([2, 4]))
    again.save(tmp_path / "second")
    assert afx.Recommender.load(tmp_path / "second").recommend("user 3").equals(rec.recommend("user 3"))


def test_saved_without_ids(tmp_path):
    rec = afx.Recommender("popularity").fit(Interactions.from_coo([0, 0, 1], [0, 2, 2]))
    rec.save(tmp_path / "model")
    assert afx.Recommender.load(tmp_path / "model").recommend(1).equals(rec.recommend(1))


def test_folders_that_hold_no_recommender(tmp_path):
    with pytest.raises(ModelFileError, match="no saved model"):
        afx.Recommender.load(tmp_path)
    save_arrays(tmp_path / "other", {"x": np.ones(3)}, {"something": "else"})
    with pytest.raises(ModelFileError, match="does not hold a recommender of this version: KeyError"):
        afx.Recommender.load(tmp_path / "other")


def test_popularity_says_what_it_cannot_do(data):
    rec = afx.Recommender("popularity").fit(data)
    with pytest.raises(ValueError, match="popularity has neither item vectors nor item-item weights to compare"):
        rec.similar_items(2)
    with pytest.raises(ValueError, match="popularity has no vectors to fold a history into"):
        rec.fold_in([2])
    assert 2 not in rec.recommend(history=[2], k=20)["item"]


def test_user_knn_says_what_it_cannot_do(data):
    rec = afx.Recommender("user-knn").fit(data)
    with pytest.raises(ValueError, match="user-knn has neither item vectors nor item-item weights"):
        rec.similar_items(2)
    with pytest.raises(ValueError, match="user-knn has no vectors to fold a history into"):
        rec.fold_in([2])


@pytest.mark.parametrize("algorithm", ["bpr", "logistic-mf", "softmax-mf", "user-knn"])
def test_newcomers_get_films_of_their_own_camp(algorithm, data):
    options = {} if algorithm == "user-knn" else {"rank": RANK, "epochs": 60, "learning_rate": 0.1, "l2": 1e-2}
    rec = afx.Recommender(algorithm, **options).fit(data)
    for camp in (0, 1):
        found = rec.recommend(history=[camp, camp + 4, camp + 8, camp + 10], k=3)
        assert (found["item"] % 2 == camp).all(), found


def test_chance_is_by_the_seed(data):
    def items(seed):
        return afx.Recommender("random", seed=seed).fit(data).recommend("user 0")["item"].to_list()

    assert items(1) == items(1)
    assert items(1) != items(2)
    with pytest.raises(ValueError, match="random has no parameter 'key'; it has none"):
        afx.Recommender("random", key=3)


def test_evaluation_of_frames_and_files(data, tmp_path):
    train, test = data.split("random", test_fraction=0.3)
    rec = afx.Recommender("implicit-als", rank=RANK, epochs=4, l2=0.01).fit(train)
    expected = rec.evaluate(test, k=3)
    frame = pl.DataFrame({"user": test.user_ids.outside(test.users), "item": test.item_ids.outside(test.items)})
    unknown = pl.DataFrame({"user": ["nobody", "user 1"], "item": [3, 99]}, schema=frame.schema)
    pl.concat([frame, unknown]).write_csv(tmp_path / "test.csv")
    for part in (tmp_path / "test.csv", pl.concat([frame, unknown])):
        found = rec.evaluate(part, k=3)
        assert found.means == expected.means
        assert found.notes == ("2 rows with unknown ids left out",)
        assert "2 rows with unknown ids left out" in repr(found)


def test_interactions_with_other_ids_are_not_evaluated(data, fitted):
    other = afx.clean(_ratings().with_columns(pl.col("user").str.replace("user", "person")))
    assert other.shape == data.shape
    with pytest.raises(InteractionError, match="the test part has other users than the training data"):
        fitted.evaluate(other)


def test_the_seed_decides(data):
    def first(seed):
        return afx.Recommender("implicit-als", seed=seed, rank=RANK, epochs=1).fit(data).recommend("user 0")

    assert first(1).equals(first(1))
    assert not first(1).equals(first(2))
