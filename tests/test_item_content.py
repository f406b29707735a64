"""Items by their content: columns as modalities, and networks that know items of which training has no event."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

from affinax import Recommender, models
from affinax.engine.data import (
    FeatureError,
    InteractionError,
    Interactions,
    Modalities,
    Sequences,
    Vocabulary,
    item_modalities,
)
from affinax.engine.factorization import fit
from affinax.engine.retrieval import fold_in, recommend, similar_items
from affinax.models.item_vectors import ItemVectors

RNG = np.random.default_rng(0)
FILMS = pl.DataFrame(
    {
        "title": ["Alien (1979)", "Aliens (1986)", "Fargo (1996)", None],
        "genres": ["Horror|Sci-Fi", "Sci-Fi", "Crime", "Crime"],
        "labels": [["a", "b"], [], None, ["b"]],
        "year": [1979, 1986, 1996, None],
        "length": [117.0, 137.0, 98.0, None],
        "vector": [[1.0, 2.0], [3.0, 4.0], None, [5.0, 6.0]],
        "patches": pl.Series([[[1.0, 2.0]] * 3] * 4, dtype=pl.Array(pl.Float32, (3, 2))),
    }
)


def test_columns_become_modalities_by_their_type():
    found = item_modalities(FILMS, ",".join(FILMS.columns))
    assert {name: a.shape for name, a in found.inputs.items()} == {
        "title": (4, 256),
        "genres": (4, 2),
        "labels": (4, 2),
        "year": (4, 1),
        "length": (4, 1),
        "vector": (4, 2),
        "patches": (4, 3, 2),
    }
    np.testing.assert_array_equal(found.inputs["genres"], [[1, 2], [2, -1], [0, -1], [0, -1]])
    np.testing.assert_array_equal(found.inputs["labels"], [[0, 1], [-1, -1], [-1, -1], [1, -1]])
    np.testing.assert_array_equal(found.inputs["year"][:, 0], [0, 1, 2, -1])
    lengths = np.array([117.0, 137.0, 98.0])
    np.testing.assert_allclose(found.inputs["length"][:3, 0], (lengths - lengths.mean()) / lengths.std(), rtol=1e-5)
    np.testing.assert_array_equal(found.inputs["vector"], [[1, 2], [3, 4], [0, 0], [5, 6]])
    missing = {"title": 3, "labels": 2, "year": 3, "length": 3, "vector": 2}
    assert {name: np.flatnonzero(~there).tolist() for name, there in found.where.items()} == {
        name: [row] for name, row in missing.items()
    }
    assert found.spec() == {
        "vectors": (("title", 256), ("length", 1), ("vector", 2)),
        "tokens": (("patches", 2),),
        "ids": (("genres", (3,)), ("labels", (2,)), ("year", (3,))),
    }
    pandas = item_modalities(FILMS.select("title", "genres").to_pandas(), ["title", "genres"])
    np.testing.assert_array_equal(pandas.inputs["title"], found.inputs["title"])


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([None, None], "column 'c' has no value at all"),
        ([[1.0, 2.0], [1.0]], r"row 1: a vector of shape \[1\], where row 0 has \[2\]"),
        ([[1.0, 2.0], [np.nan, 1.0]], "row 1: nan is no finite float32"),
        ([[1.0, 2.0], [1e300, 1.0]], r"row 1: 1e\+300 is no finite float32"),
        ([1.0, np.inf], "row 1: inf is no finite float32"),
        ([0.1, 0.1], "column 'c' is 0.1 in all rows that have it, which says nothing"),
        (["|", " | "], "has no label at all"),
        (["[0.1, -2e-3]", None, "[.5, 1]"], r"holds vectors as texts, such as '\[0.1, -2e-3\]': give lists of numbers"),
        (["0.1 2", "3.5 -1"], "holds vectors as texts, such as '0.1 2'"),
        ([[[[1.0]]], [[[2.0]]]], r"row 0: \[1, 1, 1\] is no vector"),
        (pl.Series([b"a", b"b"]), "column 'c' is Binary; content is of texts"),
    ],
)
def test_columns_that_are_no_modality(column, message):
    with pytest.raises(FeatureError, match=message):
        item_modalities(pl.DataFrame({"c": column}), ["c"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["none"], "no column 'none'"),
        ([], r"columns \[\] must name one or more, each once"),
        ("title, title", "must name one or more, each once"),
        ("title,", "must name one or more, each once"),
    ],
)
def test_columns_that_are_not_there(columns, message):
    with pytest.raises(FeatureError, match=message):
        item_modalities(FILMS, columns)


def test_labels_are_bare():
    found = item_modalities(pl.DataFrame({"c": ["Crime| Drama", "Drama", "Crime|", ""]}), "c")
    np.testing.assert_array_equal(found.inputs["c"], [[0, 1], [1, -1], [0, -1], [-1, -1]])
    # Texts of which most are different have words; the same ones are categories.
    assert item_modalities(pl.DataFrame({"c": ["Alien", "Aliens", "Fargo", None]}), "c").spec()["vectors"]
    assert item_modalities(pl.DataFrame({"c": ["new", "old", "old", "new"]}), "c").spec()["ids"]


def test_a_modality_that_is_no_array_of_rows():
    with pytest.raises(ValueError, match=r"modality 'a' is float32\[3\]"):
        Modalities({"a": np.ones(3, np.float32)}, {}).spec()


SPEC = {"vectors": (("vector", 4),), "ids": (("genre", (3,)),), "dropout": 0.0}


def content(n):
    return Modalities(
        {
            "vector": jnp.asarray(RNG.normal(size=(n, 4)), jnp.float32),
            "genre": jnp.asarray(RNG.integers(-1, 3, (n, 2)), jnp.int32),
            "item": jnp.where(jnp.arange(n) % 5 == 0, -1, jnp.arange(n, dtype=jnp.int32))[:, None],
        },
        {"vector": jnp.asarray(RNG.random(n) < 0.7)},
    )


def test_many_items_are_fused_by_parts(monkeypatch):
    model = ItemVectors(23, 8, marks=1, fusion=SPEC, rngs=nnx.Rngs(0))
    given = content(23)
    whole = jax.jit(ItemVectors.table)(model, given)
    monkeypatch.setattr("affinax.models.item_vectors._AT_ONCE", 7)
    table = jax.jit(lambda m, given, key=None: m.table(given, key=key))
    np.testing.assert_allclose(table(model, given), whole, rtol=1e-4, atol=1e-5)
    slopes = jax.jit(jax.grad(lambda m: jnp.sum(m(jnp.array([3, 23, -1]), m.table(given)) ** 2)))(model)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(slopes))
    # Places look up what is fused, and the mark; nothing is at -1.
    found = model(jnp.array([[3, 23], [-1, 0]]), whole)
    np.testing.assert_allclose(found[0, 0], whole[3], rtol=1e-6)
    np.testing.assert_allclose(found[0, 1], model.embedding.table[...][23], rtol=1e-6)
    assert (found[1, 0] == 0).all()
    with pytest.raises(InteractionError, match=r"id 24 at \[0\] is outside \[0, 24\)"):
        model(jnp.array([24]), whole)
    with pytest.raises(ValueError, match="give those of all, as a table"):
        model(jnp.array([3]))
    with pytest.raises(ValueError, match="made to read modalities"):
        model.table()
    with pytest.raises(ValueError, match="made to read no modalities"):
        ItemVectors(3, 4, rngs=nnx.Rngs(0)).table(given)
    with pytest.raises(ValueError, match="has 22 rows for 23 items"):
        model.table(jax.tree.map(lambda rows: rows[:22], given))
    one, other = (table(model, given, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(one, other)  # nothing is left out by itself
    dropping = ItemVectors(23, 8, fusion={**SPEC, "modality_dropout": 0.5}, rngs=nnx.Rngs(0))
    one, other = (table(dropping, given, jax.random.key(seed)) for seed in (0, 1))
    assert 4 < (one != other).any(axis=1).sum() < 23
    # Those of content alone are not told apart by their ids.
    moved = model.embedding.table[...].at[:23].add(1.0)
    ids = np.asarray(given.inputs["item"])[:, 0]
    model.embedding.table[...] = moved
    np.testing.assert_allclose(np.asarray(table(model, given) - whole), np.tile((ids >= 0)[:, None], 8), atol=1e-5)


@pytest.mark.parametrize("build", [models.SASRec, models.BERT4Rec, models.HSTU])
def test_a_network_on_fused_items_has_gradients_and_forwards_one_example(build):
    model, given = build(23, width=8, length=5, dropout=0.0, fusion=SPEC, rngs=nnx.Rngs(0)), content(23)
    items = jnp.asarray(RNG.integers(-1, 23, (3, 5)), jnp.int32)
    if build is models.BERT4Rec:
        items = items.at[:, -1].set(23)

    def scores(m):
        table = m.items.table(given)
        places = m(items, table=table)
        bias = 0.0 if m.item_bias() is None else m.item_bias()[None, None]
        return places, jnp.einsum("btd,nd->btn", places, m.item_table(table), precision="highest") + bias

    places, products = jax.jit(scores)(model)
    one = jax.jit(jax.vmap(lambda row: model(row, table=model.items.table(given))))(items)
    np.testing.assert_allclose(one, places, rtol=1e-4, atol=1e-5)
    mix = jnp.asarray(RNG.normal(size=products.shape), jnp.float32)
    slopes = jax.jit(jax.grad(lambda m: jnp.sum(mix * scores(m)[1])))(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(np.asarray(leaf)).all(), name
        assert np.abs(np.asarray(leaf)).max() > 0, name


def groups(n_users=80, n_groups=4, of_each=8):
    """Everybody goes round the items of one group; the last item of each group is met by nobody."""
    rng = np.random.default_rng(1)
    group = rng.integers(0, n_groups, n_users)
    order = np.stack([rng.permutation(of_each - 1)[:5] for _ in range(n_users)])
    users, items = np.repeat(np.arange(n_users), 5), (group[:, None] * of_each + order).reshape(-1)
    n_items = n_groups * of_each
    kinds = np.arange(n_items) // of_each
    centres = rng.normal(size=(n_groups, 6))
    table = pl.DataFrame(
        {
            "kind": [f"kind {k}" for k in kinds],
            "vector": [(centres[k] + 0.1 * rng.normal(size=6)).tolist() for k in kinds],
        }
    )
    events = Sequences.from_events(users, items, np.tile(np.arange(5), n_users), n_items=n_items)
    return replace(events, item_features=table), group, of_each


QUICK = {"width": 16, "batch_size": 8, "learning_rate": 0.01, "content": "kind, vector", "modality_dropout": 0.4}
ALGORITHMS = {  # each once, so that its step compiles once
    "SASRec": models.sequence_retriever(models.SASRec, length=8, dropout=0.0, **QUICK),
    "SASRec, gated, sampled": models.sequence_retriever(
        models.SASRec, length=8, dropout=0.0, fusion="gated", loss="sampled_softmax", negatives=8, **QUICK
    ),
    "BERT4Rec, late": models.sequence_retriever(
        models.BERT4Rec, length=8, dropout=0.0, norm="pre", fusion="late", **QUICK
    ),
    "towers": models.tower_retriever(**QUICK),
    "towers of histories": models.tower_retriever(history=True, **(QUICK | {"batch_size": 32})),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_items_without_an_event_are_known_by_their_content(name):
    x, group, of_each = groups()
    data = x.interactions() if name.startswith("towers") else x
    model, history = fit(ALGORITHMS[name], data, key=jax.random.key(0), epochs=40)
    assert history.loss[-1] < history.loss[0]
    cold = np.zeros(x.n_items, bool)
    cold[of_each - 1 :: of_each] = True
    users = np.arange(40)
    found, _ = recommend(model, users, k=1, allow=cold)
    assert np.mean(np.asarray(found)[:, 0] // of_each == group[users]) > 0.9
    warm, _ = recommend(model, users, k=2, allow=~cold, seen=x.interactions())
    assert np.mean(np.asarray(warm) // of_each == group[users][:, None]) > 0.9
    near, _ = similar_items(model, np.flatnonzero(cold), k=3)
    assert np.mean(np.asarray(near) // of_each == np.arange(4)[:, None]) > 0.7


@pytest.mark.parametrize("name", ["SASRec", "SASRec, gated, sampled", "towers of histories"])
def test_training_does_not_see_items_without_an_event(name):
    """Their content may be anything: nothing else becomes of it, and no id of theirs counts."""
    x, _, of_each = groups()
    cold = np.zeros(x.n_items, bool)
    cold[of_each - 1 :: of_each] = True
    alone = [f"only {i}" if cold[i] else kind for i, kind in enumerate(x.item_features["kind"])]
    tables = [x.item_features.with_columns(pl.Series("kind", alone))]
    vectors = np.array(tables[0]["vector"].to_list())
    vectors[cold] = 100.0
    tables.append(tables[0].with_columns(pl.Series("vector", vectors.tolist())))
    found = []
    for table in tables:
        data = replace(x, item_features=table)
        data = data.interactions() if name.startswith("towers") else data
        model, _ = fit(ALGORITHMS[name], data, key=jax.random.key(0), steps=3)
        found.append(model)
    for one, other in zip(*(jax.tree.leaves(model.network) for model in found), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (np.asarray(found[0].modalities.inputs["kind"])[cold] == -1).all()
    ids = found[0].item_fields[:, 0] if name.startswith("towers") else found[0].modalities.inputs["item"][:, 0]
    np.testing.assert_array_equal(np.asarray(ids) == -1, cold)
    if name == "towers of histories":
        both = Interactions.from_coo([0, 1, 1], [0, 0, 7], n_items=x.n_items)
        of_both = fold_in(found[0], both)
        np.testing.assert_array_equal(of_both[0], of_both[1])  # which knows nothing of the cold item 7


def test_items_in_no_last_window_have_no_id_of_their_own():
    x, _, _ = groups()
    last = models.sequence_retriever(models.SASRec, length=2, **QUICK)
    every = models.sequence_retriever(models.SASRec, length=2, windows="all", **QUICK)
    short = x.select(np.tile([True] * 5, x.n_users) & ((x.items != 0) | (np.arange(len(x)) % 5 == 0)))
    for algorithm, known in ((last, False), (every, True)):
        model, _ = fit(algorithm, short, key=jax.random.key(0), steps=1)
        assert (int(model.modalities.inputs["item"][0, 0]) == 0) == known


def test_a_recommender_saves_and_loads_what_it_knows_of_items(tmp_path):
    x, _, _ = groups()
    x = replace(x, item_features=x.item_features.rename({"kind": "network"}))  # as a part of a model is called
    for algorithm in ("sasrec", "two-tower"):
        length = {"length": 8} if algorithm == "sasrec" else {}
        settings = QUICK | {"content": "network, vector", "epochs": 2} | length
        recommender = Recommender(algorithm, **settings).fit(x.interactions())
        recommender.save(tmp_path / algorithm)
        loaded = Recommender.load(tmp_path / algorithm)
        one, other = (r.recommend([0, 1], k=3) for r in (recommender, loaded))
        assert one.equals(other)
        if algorithm == "sasrec":
            assert loaded.recommend(history=[7, 15], k=2).height == 2  # items that nobody met
            assert loaded.fold_in([7, 15]).shape == (16,)
        else:
            with pytest.raises(ValueError, match="read no histories"):
                loaded.fold_in([7, 15])


def test_items_of_which_nothing_is_known_are_not_recommended():
    """Neither an event nor a value, or one that no met item has: training has them among what is not next."""
    rng = np.random.default_rng(0)
    items = (rng.integers(0, 38, 100)[:, None] + np.arange(6)) % 38
    users, times = np.repeat(np.arange(100), 6), np.tile(np.arange(6), 100)
    x = Sequences.from_events(users, items.ravel(), times, n_items=40)
    x = replace(x, item_features=pl.DataFrame({"kind": [f"k{i % 4}" for i in range(38)] + [None, "zz"]}))
    quick = {"width": 16, "length": 8, "batch_size": 8, "learning_rate": 0.01, "content": ["kind"]}
    model, _ = fit(models.sequence_retriever(models.SASRec, **quick), x, key=jax.random.key(0), epochs=20)
    assert not np.isin(recommend(model, np.arange(100), k=5)[0], [38, 39]).any()


@pytest.mark.parametrize("name", ["item", "codes"])
def test_names_that_are_not_free(name):
    x = Sequences.from_events([0, 0], [0, 1])
    x = replace(x, item_features=pl.DataFrame({name: ["a", "b"]}))
    algorithm = models.sequence_retriever(models.SASRec, **(QUICK | {"content": [name], "batch_size": 1}))
    with pytest.raises(FeatureError, match=f"column '{name}' cannot be content"):
        fit(algorithm, x, key=jax.random.key(0), steps=1)


def test_content_needs_a_side_table():
    x, _, _ = groups()
    bare = replace(x, item_features=None)
    for algorithm, data in (("SASRec", bare), ("towers", bare.interactions())):
        with pytest.raises(InteractionError, match="names columns of the items' side table, and these data have none"):
            fit(ALGORITHMS[algorithm], data, key=jax.random.key(0), steps=1)
    named = replace(x, item_features=pl.DataFrame({"item": np.arange(x.n_items) // 2}))
    with pytest.raises(FeatureError, match="rename it"):
        fit(models.sequence_retriever(models.SASRec, content="item"), named, key=jax.random.key(0), steps=1)
    with pytest.raises(InteractionError, match="item_features has 1 rows for 32 items"):
        replace(x, item_features=pl.DataFrame({"a": [1]}))
    towers = models.TwoTower([3], [4], width=4, history=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="made without modalities"):
        towers.item(jnp.array([1]), content(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "early"}, "fusion='early' must be one of"),
        ({"modality_dropout": 7.0}, r"modality_dropout=7.0 must be in \[0, 1\)"),
        ({"content": 5}, "content=5 must name columns"),
        ({"content": None}, "content=None must name columns"),
        ({"content": ["a", 1]}, "must name columns"),
    ],
)
def test_settings_out_of_range(options, message):
    for build in (lambda **o: models.sequence_retriever(models.SASRec, **o), models.tower_retriever):
        with pytest.raises(ValueError, match=message):
            build(**options)
    with pytest.raises(ValueError, match="must be a network on sequences"):
        models.sequence_retriever("sasrec")


def test_a_recommender_takes_side_tables_with_ids(tmp_path):
    """In any order, of items that nobody met as well, as a frame or a file."""
    x, group, of_each = groups()
    names = np.array([f"i{k}" for k in range(x.n_items)])
    frame = x.item_features.with_columns(pl.Series("item", names)).sample(fraction=1.0, shuffle=True, seed=1)
    events = pl.DataFrame({"user": x.users, "item": names[x.items], "timestamp": x.timestamps})
    frame.write_parquet(tmp_path / "items.parquet")
    found = []
    for table in (frame, frame.to_pandas(), tmp_path / "items.parquet"):
        recommender = Recommender("sasrec", **(QUICK | {"epochs": 60, "length": 8, "dropout": 0.0}))
        recommender.fit(events, item_features=table)
        allow = names[of_each - 1 :: of_each].tolist()
        found.append(recommender.recommend(list(range(40)), k=1, allow=allow)["item"].to_list())
    assert found[0] == found[1] == found[2]
    assert np.mean([int(item[1:]) // of_each for item in found[0]] == group[:40]) > 0.9
    with pytest.raises(ValueError, match="item_features go with raw data, whose ids they have"):
        recommender.fit(x, item_features=frame)
    with pytest.raises(InteractionError, match="not in the given vocabulary"):
        recommender.fit(events, item_features=frame.head(5))


def test_a_recommender_takes_sequences_with_repetitions():
    lengths = np.arange(3, 13)
    users = np.repeat(np.arange(10), lengths)
    items = np.concatenate([(np.arange(length) + user) % 2 for user, length in enumerate(lengths)])
    events = Sequences.from_events(users, items, n_items=3)
    recommender = Recommender("sasrec", width=8, length=12, dropout=0.0, learning_rate=0.02, epochs=60).fit(events)
    found = recommender.recommend(list(range(10)), k=1, exclude_seen=False)
    np.testing.assert_array_equal(found["item"].to_numpy(), (np.arange(10) + lengths) % 2)
    assert recommender.train.nnz == 20
    assert Recommender("popularity").fit(events).recommend(0, k=1)["item"].to_list() == [2]


def test_side_tables_in_another_order_are_refused():
    ids = Vocabulary(np.array(["i0", "i1", "i10"]))
    x = replace(Interactions.from_coo([0, 0, 0], [0, 1, 2]), item_ids=ids)
    mixed = pl.DataFrame({"item": ["i0", "i10", "i1"], "name": ["a", "b", "c"]})
    message = "item_features, row 1, is of item 'i10' by its column 'item', and index 1 is 'i1': sort the table"
    with pytest.raises(InteractionError, match=message):
        replace(x, item_features=mixed)
    assert replace(x, item_features=mixed.sort("item")).item_features["name"].to_list() == ["a", "c", "b"]
    assert replace(x, item_features=mixed.drop("item")).item_features is not None
    for wrong in ("items.csv", {"name": [1, 2, 3]}, mixed.lazy()):
        with pytest.raises(InteractionError, match="a frame of polars is accepted"):
            replace(x, item_features=wrong)


def test_interactions_carry_the_side_table_to_sequences_and_back():
    x, _, _ = groups()
    known, test = x.leave_last()
    assert known.item_features is x.item_features
    assert test.item_features is x.item_features
    assert isinstance(test, Interactions)
    assert Sequences.from_interactions(x.interactions()).item_features is x.item_features
