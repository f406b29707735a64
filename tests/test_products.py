"""Vectors put together from parts, ids that share rows, and what is said of models that were made smaller."""

from __future__ import annotations

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from flax import nnx

import affinax as afx
from affinax import models
from affinax.engine.compression import (
    CompressionError,
    ProductRows,
    codes_by_order,
    compare,
    dequantize,
    quantize_model,
    quantize_products,
)
from affinax.engine.errors import InteractionError
from affinax.engine.factorization import Factors
from affinax.engine.retrieval import recommend, top_k
from affinax.kernels.embedding import lookup
from affinax.models.layers import FieldEmbedding
from affinax.options import compressed, storage_rules
from affinax.reporting import print_bills

from .test_pruning import X

RNG = np.random.default_rng(0)
TABLE = jnp.asarray(RNG.normal(size=(300, 12)), jnp.float32)


# Products of parts


def test_rows_are_the_nearest_of_their_parts():
    rows = quantize_products(TABLE, 4, 16, exact=0)
    assert (rows.codes.dtype, rows.codes.shape, rows.centroids.shape) == (jnp.uint8, (300, 4), (4, 16, 3))
    parts, centroids = np.asarray(TABLE, np.float64).reshape(300, 4, 3), np.asarray(rows.centroids, np.float64)
    distances = ((parts[:, :, None] - centroids[None]) ** 2).sum(axis=-1)
    chosen = np.take_along_axis(distances, np.asarray(rows.codes)[..., None].astype(int), axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, distances.min(axis=-1), atol=1e-5)
    assert (chosen.sum(axis=1) ** 0.5).mean() < 0.75 * np.linalg.norm(np.asarray(TABLE), axis=1).mean()
    for part in range(4):  # no centroid is nobody's
        assert len(np.unique(np.asarray(rows.codes)[:, part])) == 16


def test_rows_are_indexed_as_an_array_is():
    rows = quantize_products(jnp.concatenate([TABLE, 5 * TABLE[:, :1]], axis=1), 3, 8, exact=1)
    whole = rows.floats()
    assert (rows.shape, rows.nbytes) == ((300, 13), 300 * 3 + 3 * 8 * 4 * 4 + 300 * 4)
    np.testing.assert_array_equal(whole[:, -1], 5 * TABLE[:, 0])
    with pytest.raises(IndexError, match="row 300 of 300"):
        rows[np.int64(300)]
    np.testing.assert_array_equal(rows[5:9].floats(), whole[5:9])
    np.testing.assert_array_equal(rows[jnp.array([[7, 0]])], whole[jnp.array([[7, 0]])])
    np.testing.assert_array_equal(lookup(rows, jnp.array([7, -1]))[0], whole[7])
    np.testing.assert_array_equal(dequantize(rows), whole)
    slope = jax.grad(lambda c: jnp.sum(ProductRows(rows.codes, c, rows.exact).floats()))(rows.centroids)
    counts = [np.bincount(np.asarray(rows.codes)[:, part], minlength=8) for part in range(3)]
    np.testing.assert_array_equal(slope[..., 0], counts)
    queries = jnp.asarray(RNG.normal(size=(2, 13)), jnp.float32)
    for one, other in zip(top_k(queries, rows, 5), top_k(queries, whole, 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_few_distinct_rows_come_back_exactly():
    table = jnp.asarray(RNG.integers(0, 2, (40, 4)), jnp.float32)
    np.testing.assert_array_equal(quantize_products(table, 2, 8).floats(), table)
    np.testing.assert_array_equal(quantize_products(jnp.zeros((3, 4)), 2, 2).floats(), np.zeros((3, 4)))


def test_models_are_put_together_by_the_same_key():
    key = jax.random.key(3)
    small = quantize_model(Factors(TABLE, TABLE), {"items": ("product", 4)}, key=key)
    rows = quantize_products(TABLE, 4, 256, key=key)
    np.testing.assert_array_equal(small.item_table().codes, rows.codes)
    assert (quantize_products(TABLE, 4, 256).codes != rows.codes).any()


def test_codes_by_order():
    vectors = np.array([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [9.0, 0.0], [8.0, 0.0]])
    codes = codes_by_order(vectors, 3)
    assert codes[:, 0].tolist() == [1, 0, 1, 0, 2, 2]
    assert sorted(codes[:, 1].tolist()) == [0, 0, 1, 1, 2, 2]  # equal ones are told apart


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantize_products(TABLE, 5), "parts=5 must be a whole number that divides the 12 columns"),
        (lambda: quantize_products(TABLE, 4, 257), "n_codes=257 must be a whole number of 2 to 256"),
        (lambda: quantize_products(TABLE[:9], 4, 16), "n_codes=16 is more than the 9 rows"),
        (lambda: quantize_products(TABLE[:0], 4, 16), "has no rows of numbers"),
        (lambda: quantize_products(quantize_products(TABLE, 4, 16), 4, 16), "these rows are products already"),
        (lambda: codes_by_order(np.array([[np.nan]]), 4), "row 0, column 0 is nan"),
        (
            lambda: quantize_model(Factors(TABLE, TABLE), {"items": ("product", 5)}),
            "items: parts=5 must be a whole number that divides",
        ),
        (
            lambda: quantize_model(Factors(TABLE, TABLE), {"items": ("parts", 4)}),
            r"must be int8, int4, float8, bfloat16 or",
        ),
    ],
)
def test_products_that_cannot_be(call, message):
    with pytest.raises(CompressionError, match=message):
        call()


@pytest.mark.parametrize("name", ["sasrec", "bert4rec"])
def test_networks_on_products(name, tmp_path):
    settings = {"length": 8, "width": 16, "products": (4, 8), "learning_rate": 0.01, "epochs": 10}
    rec = afx.Recommender(name, **settings).fit(X, progress=False)
    third = len(rec.history.loss) // 3  # one step's loss is of few masks
    assert rec.history.loss[-third:].mean() < rec.history.loss[:third].mean()
    assert rec.model.network.items.embedding is None
    assert rec.model.modalities.inputs["codes"].dtype == jnp.uint8
    rec.save(tmp_path / "model")
    asked = [2, 5]
    assert rec.recommend(asked, k=4).equals(afx.Recommender.load(tmp_path / "model").recommend(asked, k=4))
    table = rec.model.item_table()
    ids, _ = top_k(rec.model.queries(jnp.arange(3)), dequantize(table), 4)
    np.testing.assert_array_equal(recommend(rec.model, [0, 1, 2], 4)[0], ids)


def test_parts_are_on_every_device():
    from jax.sharding import PartitionSpec

    specs = models.partition_specs(quantize_products(TABLE, 3, 8), [("", PartitionSpec("model", None))])
    assert (specs.centroids, specs.codes) == (PartitionSpec(), PartitionSpec("model", None))


def test_networks_that_products_do_not_fit():
    with pytest.raises(ValueError, match="products of 5 parts must divide width=16"):
        models.sequence_retriever(models.SASRec, width=16, products=(5, 8))
    with pytest.raises(CompressionError, match="parts=32 must be below the 20 singular vectors"):
        afx.Recommender("sasrec", width=64, products=(32, 8), epochs=1).fit(X)


# Ids that share rows


@pytest.mark.parametrize("sharing", [("hashed", 4), ("quotient", 4)])
def test_ids_share_rows(sharing):
    fields = FieldEmbedding([100, 3, 50], 4, sharing=sharing, init_std=0.5, rngs=nnx.Rngs(0))
    table = np.asarray(fields.table[...])
    ids = jnp.array([[0, 1, 2], [99, 2, 49], [-1, 0, 1]])
    vectors = np.asarray(jax.jit(lambda f, i: f(i))(fields, ids))
    quotient = sharing[0] == "quotient"
    second = 25 + 4 * quotient
    assert fields.rows_of == ((25, 4), (3, 0), (13, 4)) if quotient else fields.rows_of == ((25, 0), (3, 0), (13, 0))
    expected = table[24] * table[25 + 3] if quotient else table[24]  # of 99
    np.testing.assert_allclose(vectors[1, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(vectors[1, 1], table[second + 2], rtol=1e-6)
    first = second + 3
    expected = table[first + 10] * table[first + 13 + 3] if quotient else table[first + 10]  # of 49
    np.testing.assert_allclose(vectors[1, 2], expected, rtol=1e-6)
    assert not vectors[2, 0].any()
    assert np.isnan(fields(jnp.array([[0, 0, 0]]))).sum() == 0
    whole = np.asarray(fields.whole_field(0))
    assert len(np.unique(whole.round(6), axis=0)) == (100 if quotient else 25)
    with pytest.raises(InteractionError, match=r"id 100 at \[0\] is outside \[0, 100\)"):
        fields.of_field(0, jnp.array([100]))


@pytest.mark.parametrize("sharing", ["hashed", ("some", 4), ("hashed", 1), ("quotient", 2.5)])
def test_ways_of_sharing_that_are_none(sharing):
    with pytest.raises(ValueError, match="of a whole ratio from 2 on"):
        FieldEmbedding([100], 4, sharing=sharing, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["bert4rec", "two-tower", "deepfm"])
def test_networks_whose_ids_share_rows(name, tmp_path):
    settings = {"length": 8} if name == "bert4rec" else {}
    rec = afx.Recommender(name, epochs=2, sharing=("quotient", 2), **settings).fit(X, progress=False)
    rec.save(tmp_path / "model")
    assert rec.recommend([2, 5], k=4).equals(afx.Recommender.load(tmp_path / "model").recommend([2, 5], k=4))


# The bill


@pytest.fixture(scope="module")
def halves():
    return X.split("leave-last")


@pytest.fixture(scope="module")
def fitted(halves):
    return afx.Recommender("implicit-als", rank=16, epochs=3).fit(halves[0])


def test_a_bill(fitted, halves):
    train, test = halves
    model = fitted.model
    whole, same, small = compare({"a": model, "b": model, "c": quantize_model(model, "int4")}, test, train=train, k=3)
    assert (
        whole.memory
        == same.memory
        == 4 * 16 * (train.n_users + train.n_items) + sum(leaf.nbytes for leaf in jax.tree.leaves(model.objective))
    )
    assert small.memory < 0.25 * whole.memory < whole.disk
    assert same.changes == {f"{name}_at_3": (0.0, 0.0) for name in ("ndcg", "recall", "hit_rate")}
    for name, (change, half) in small.changes.items():
        before, after = (bill.evaluation.values[name] for bill in (whole, small))
        assert change == pytest.approx((after - before).mean(), abs=1e-7)
        assert half == pytest.approx(1.96 * (after - before).std(ddof=1) / len(before) ** 0.5, abs=1e-7)
    assert set(whole.seconds) == {1, 256}
    assert min(small.seconds.values()) > 0
    for wrong, options, message in (
        ({}, {}, "models to compare are given by name"),
        ({1: model}, {}, "models to compare are given by name"),
        ({"a": None}, {}, "'a' is NoneType: a model that recommend takes"),
        ({"a": model}, {"batches": 1}, "batches=1 must be whole numbers"),
        ({"a": model}, {"batches": (1.5,)}, "batches=.* must be whole numbers"),
    ):
        with pytest.raises(CompressionError, match=message):
            compare(wrong, test, train=train, **options)
    one = test.select(test.users == test.users[0])
    _, small = compare({"a": model, "c": quantize_model(model, "int4")}, one, train=train, k=3)
    assert np.isnan(small.changes["ndcg_at_3"][1])


@pytest.mark.parametrize("algorithm", ["ease", "item-knn", "user-knn", "popularity", "svd-plus-plus", "sasrec"])
def test_models_of_any_kind_have_a_bill(algorithm, halves):
    train, test = halves
    small = {"width": 8, "length": 6, "epochs": 1} if algorithm == "sasrec" else {}
    if algorithm == "svd-plus-plus":
        train, small = train.with_values(np.ones(train.nnz)), {"epochs": 1}
    model = afx.Recommender(algorithm, **small).fit(train).model
    (bill,) = compare({"it": model}, test, train=train, k=3)
    assert min(bill.seconds.values()) > 0


def test_a_bill_is_read_at_eighty_columns(fitted, halves, capsys, monkeypatch):
    train, test = halves
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    model = fitted.model
    print_bills(compare({"whole": model, "small": quantize_model(model, "int8")}, test, train=train, k=3))
    text = capsys.readouterr().out
    assert re.search(r"change +[+-]\d\.\d{4} ± \d\.\d{4}", text), text


def test_rules_of_the_command_line():
    """Those that are named first, then products, then the rest."""
    wide = {"seed": 0, "pq": 4, "dynamic": False, "clip": False, "calibrate": False, "prune": None, "rank": None}
    model = Factors(jnp.tile(TABLE, (4, 1)), jnp.tile(TABLE, (4, 1)))
    found = compressed(model, storage_rules(True, False, ["users=int4"]), **wide)
    assert (found.users.kind, type(found.items)) == ("int4", ProductRows)
    few = compressed(model._replace(users=TABLE[:3]), storage_rules(True, False, []), **wide)
    assert (few.users.kind, type(few.items)) == ("int8", ProductRows)  # centroids would take more than they save
    with pytest.raises(ValueError, match="--pq 4: the rules take every table that it fits, users, items"):
        compressed(model, storage_rules(True, False, ["*s=int4"]), **wide)
    found = compressed(model, storage_rules(True, False, []), **(wide | {"pq": None}))
    assert (found.users.kind, found.items.kind) == ("int8", "int8")


def test_the_command_line(run, fitted, halves, tmp_path):
    fitted.save(tmp_path / "whole")
    test = halves[1]
    pl.DataFrame({"user": test.user_ids.outside(test.users), "item": test.item_ids.outside(test.items)}).write_csv(
        tmp_path / "test.csv"
    )
    whole, small = str(tmp_path / "whole"), str(tmp_path / "small")
    outputs = ("--json", str(tmp_path / "bill.json"), "--plot", str(tmp_path / "bill.png"))
    outputs += ("--duplicates", "keep")
    found = run("compress", whole, "--int8", "--out", small, "--test", str(tmp_path / "test.csv"), *outputs)
    assert found[0] == 0, found
    bill = json.loads((tmp_path / "bill.json").read_text())
    assert bill["small"]["memory"] < 0.35 * bill["whole"]["memory"]
    assert set(bill["small"]["seconds"]) == {"1", "256"}
    assert (tmp_path / "bill.png").stat().st_size > 1000
    assert afx.Recommender.load(small).model.items.kind == "int8"
    assert run("compress", whole, "--prune", "0.5", "--rank", "8", "--out", small)[0] == 0
    items = np.asarray(afx.Recommender.load(small).model.items)
    assert items.shape == (20, 8)
    assert (items == 0).sum() == 80
    status, said, _ = run("compress", whole, "--rule", "users=int4", "--out", small)
    assert status == 0
    # Of 24 users and 20 items of 16 columns each user has 8 bytes of codes, one of a multiplier and two of a scale.
    objective = 16
    sizes = 24 * 11 + 20 * 64 + objective, 44 * 64 + objective
    assert f"{sizes[0]:,} bytes of parameters where {whole} has {sizes[1]:,}" in " ".join(said.split())
    assert "next: --test FILE" in said
    assert afx.Recommender.load(small).model.users.kind == "int4"
    for options, message in [
        ([], "say how: --int8, --int4, --pq PARTS"),
        (["--int8", "--int4"], "give either --int8 or --int4"),
        (["--rule", "items"], "--rule 'items' must be pattern=kind"),
        (["--rule", "item=int8"], "matches none of 2 parameters; near it: items"),
        (["--pq", "8"], "--pq 8 must divide the columns of a table that is smaller by it: there are users 24 x 16"),
        (["--int8", "--out", whole], "is the model itself, which stays as it is"),
        (["--prune", "0.5", "--dynamic"], "--dynamic computes in bytes what is stored so"),
        (["--prune", "0.5", "--calibrate"], "--calibrate is of rounding to bytes or half bytes"),
        (["--int4", "--calibrate"], "Factors has no network, and so no layers"),
        (["--pq", "7"], "--pq 7 must divide the columns of a table"),
        (["--int8", "--json", "x.json", "-k", "5"], "--json and --k: without --test FILE"),
        (["--int8", "--no-header"], "--header: without --test FILE"),
        (["--rule", "items=int3"], "--rule 'items=int3': the kind must be one of"),
        (["--rule", "items=int8", "--rule", "items=int4"], "'items' has the rule int8 already"),
        (["--int8", "--dynamic"], "is for matrices of dense layers, of which the rules choose none"),
    ]:
        status, _, error = run("compress", whole, *(options if "--out" in options else [*options, "--out", small]))
        assert status == 2
        assert message in error
