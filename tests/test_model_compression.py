"""Whole models in fewer bits: that they answer as before, are saved so, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import affinax as afx
from affinax import models
from affinax.engine.compression import (
    CompressionError,
    LayerInputs,
    QuantizedKernel,
    QuantizedRows,
    dequantize,
    quantize,
    quantize_model,
)
from affinax.engine.compression.parameters import compressible, parameters_of
from affinax.engine.compression.second_order import rounded_by_inputs
from affinax.engine.data import Interactions
from affinax.engine.errors import ModelFileError
from affinax.engine.factorization import Factors, ImplicitObjective, fit, implicit_als
from affinax.engine.retrieval import fold_in, predict, recommend, similar_items
from affinax.kernels.int8 import product
from affinax.kernels.quantized_rows import to_bytes
from affinax.options import compressed

RNG = np.random.default_rng(0)
TABLE = "items.embedding.table"
ITEMS = jnp.asarray(RNG.integers(0, 30, (7, 6)), jnp.int32)


def network(**settings):
    return models.SASRec(30, width=16, length=6, **settings, rngs=nnx.Rngs(0))


def factors(biases=False):
    users, items = (jnp.asarray(RNG.normal(size=(n, 16)), jnp.float32) for n in (8, 50))
    if biases:
        return Factors(users, items, jnp.arange(8.0), jnp.arange(50.0) / 50, jnp.float32(3))
    return Factors(users, items, objective=ImplicitObjective(*map(jnp.float32, (0.1, 0.5, 0.2)), None, jnp.float32(0)))


# Products


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_products_of_bytes_are_exact(kind, symmetric):
    x, w = RNG.normal(size=(3, 5, 12)).astype(np.float32), RNG.normal(size=(12, 9)).astype(np.float32)
    rows = quantize(jnp.asarray(w.T), kind, symmetric=symmetric)
    weights = np.asarray(rows.floats(), np.float64).T
    codes, scales = (np.asarray(a, np.float64) for a in to_bytes(jnp.asarray(x.reshape(15, 12))))
    dynamic = (codes * scales[:, None] @ weights).reshape(3, 5, 9)
    found = jax.jit(QuantizedKernel.product)(QuantizedKernel(rows, None, "dynamic"), x)
    np.testing.assert_allclose(found, dynamic, rtol=2e-6, atol=1e-5)
    reach = 1.5
    static = np.rint(np.clip(x.astype(np.float64) / reach, -1, 1) * 127) * (reach / 127) @ weights
    found = QuantizedKernel(rows, jnp.float32(reach), "static").product(jnp.asarray(x))
    np.testing.assert_allclose(found, static, rtol=2e-6, atol=2e-2)  # a half may be rounded to either side
    found = QuantizedKernel(rows).product(jnp.asarray(x))
    np.testing.assert_allclose(found, x.astype(np.float64) @ weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reach", [None, 1.0])
def test_gradients_pass_through_bytes(reach):
    """As if there was no rounding; what is beyond the reach has none."""
    x, w = RNG.normal(size=(3, 5, 12)).astype(np.float32), RNG.normal(size=(12, 9)).astype(np.float32)
    slope = RNG.normal(size=(3, 5, 9)).astype(np.float32)
    rows = quantize(jnp.asarray(w.T))
    kernel = QuantizedKernel(
        rows, None if reach is None else jnp.float32(reach), "dynamic" if reach is None else "static"
    )
    found = jax.jit(jax.grad(lambda x, kernel: jnp.sum(kernel.product(x) * slope)))(x, kernel)
    expected = np.asarray(slope, np.float64) @ np.asarray(rows.floats(), np.float64)
    inside = np.abs(x) <= np.inf if reach is None else np.abs(x) <= reach
    np.testing.assert_allclose(found, np.where(inside, expected, 0), rtol=1e-4, atol=1e-5)


def test_sums_are_those_of_the_reference():
    a, b = (jnp.asarray(RNG.integers(-127, 128, (n, 40)), jnp.int8) for n in (6, 10))
    np.testing.assert_array_equal(product(a, b), product(a, b, implementation="reference"))


# Networks


@pytest.mark.parametrize(
    ("rules", "options", "most"),
    [
        ("int8", {}, 0.02),
        ("float8", {}, 0.06),
        ("bfloat16", {}, 0.006),
        ("int8", {"activations": "dynamic"}, 0.03),
        ("int8", {"activations": "static"}, 0.04),
        ({"*.table": "int8", "*.kernel": "int4"}, {"clip": "search", "symmetric": False}, 0.2),
        ({"*.table": "int8", "*.kernel": "int4"}, {"rounding": "inputs", "activations": "dynamic"}, 0.2),
    ],
)
def test_a_network_answers_nearly_as_before(rules, options, most):
    model = network()
    if options.get("activations") == "static" or options.get("rounding"):
        options = options | {"inputs": models.inputs_of_layers(model, [ITEMS])}
    small = quantize_model(model, rules, **options)
    forward = jax.jit(lambda m, x: m(x))
    expected, found = forward(model, ITEMS), forward(small, ITEMS)
    error = float(jnp.sqrt(jnp.mean((found - expected) ** 2) / jnp.mean(expected**2)))
    assert 0 < error < most
    np.testing.assert_allclose(jax.vmap(forward, (None, 0))(small, ITEMS), found, rtol=1e-4, atol=1e-4)
    assert compressible(small).keys() == compressible(model).keys()
    assert jax.tree.structure(dequantize(small)) == jax.tree.structure(model)
    assert all(isinstance(leaf, QuantizedRows | QuantizedKernel) for leaf in compressible(small).values())


def test_results_are_as_fine_in_low_precision():
    model = models.MLP([30], width=8, hidden=[8], dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    small = quantize_model(model, {"*.kernel": "int8"})
    found, expected = small(ITEMS[:, :1]), model(ITEMS[:, :1])
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.05 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("activations", ["float", "dynamic", "static"])
def test_what_is_no_number_stays_so(activations):
    x = jnp.asarray(RNG.normal(size=(3, 12)), jnp.float32).at[1, 4].set(jnp.nan)
    reach = jnp.float32(2) if activations == "static" else None
    found = QuantizedKernel(quantize(jnp.ones((5, 12))), reach, activations).product(x)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(x).any(axis=1)[:, None] * np.ones(5, bool))


def test_rounding_by_inputs_leaves_zeros():
    mixing = RNG.normal(size=(24, 24)) * np.geomspace(1, 0.05, 24)
    x, weights = RNG.normal(size=(2000, 24)) @ mixing, RNG.normal(size=(16, 24)).astype(np.float32)
    weights[:, ::2] = 0
    rounded = rounded_by_inputs(jnp.asarray(weights), quantize(jnp.asarray(weights), "int4"), x.T @ x / len(x))
    assert (np.asarray(rounded.floats())[:, ::2] == 0).all()


def test_rounding_by_inputs_errs_less():
    """Of inputs that go together, as those of a layer do."""
    mixing = RNG.normal(size=(24, 24)) * np.geomspace(1, 0.05, 24)
    x, weights = RNG.normal(size=(2000, 24)) @ mixing, RNG.normal(size=(16, 24)).astype(np.float32)
    nearest = quantize(jnp.asarray(weights), "int4", clip="search")
    rounded = rounded_by_inputs(jnp.asarray(weights), nearest, x.T @ x / len(x))
    fresh = RNG.normal(size=(500, 24)) @ mixing
    errors = [np.mean((fresh @ (np.asarray(rows.floats()) - weights).T) ** 2) for rows in (nearest, rounded)]
    assert errors[1] < 0.6 * errors[0]
    # Of inputs that have nothing to do with each other it is the nearest, at the scales of least squares.
    alone = np.asarray(rounded_by_inputs(jnp.asarray(weights), nearest, np.eye(24)).floats())
    errors = [np.sum((rows - weights) ** 2, axis=1) for rows in (np.asarray(nearest.floats()), alone)]
    assert (errors[1] <= errors[0] * 1.0001).all()
    along, square = (np.sum(alone * other, axis=1) for other in (weights, alone))
    np.testing.assert_allclose(along / square, 1, atol=2**-8)  # what a scale of bfloat16 is rounded by


def test_inputs_of_layers():
    model = models.MLP([3, 4], width=2, hidden=[5], rngs=nnx.Rngs(1))
    fields = jnp.array([[0, 1], [2, 3], [1, 0]], jnp.int32)
    seen = models.inputs_of_layers(model, [(fields[:2],), fields[2:]])
    first = np.asarray(model.embedding(fields), np.float64).reshape(3, 4)
    found = seen["network.layers.0"]
    assert (found.examples, found.reach) == (3, np.abs(first).max())
    np.testing.assert_allclose(found.gramian, first.T @ first / 3, rtol=1e-6)
    assert all(linear.watch is None for linear in model.network.layers)
    with pytest.raises(CompressionError, match="no examples: calibration needs some"):
        models.inputs_of_layers(model, [])
    broken = jax.tree.map(lambda a: a * jnp.inf, model)
    with pytest.raises(CompressionError, match="are not finite"):
        models.inputs_of_layers(broken, [fields])


def test_tables_are_rounded_by_their_queries(films):
    """Their products with what users are known by change less than by rounding to the nearest."""
    model = afx.Recommender("sasrec", width=16, length=5, epochs=3).fit(films).model
    seen = models.inputs_of_layers(model)
    windows = model.windows(jnp.arange(12, dtype=jnp.int32))
    places = np.asarray(model.network(**windows), np.float64)[np.asarray(windows["items"]) >= 0]
    found = seen[TABLE]
    assert (found.examples, found.reach) == (len(places), np.abs(places).max())
    np.testing.assert_allclose(found.gramian, places.T @ places / len(places), rtol=1e-5, atol=1e-5)
    factors = afx.Recommender("implicit-als", rank=16, epochs=3).fit(films).model
    for one, name, queries in ((model, TABLE, places), (factors, "items", factors.users)):
        inputs = {name: LayerInputs.of(queries)}
        nearest = quantize_model(one, {name: "int4"}, clip="search")
        rounded = quantize_model(one, {name: "int4"}, clip="search", rounding="inputs", inputs=inputs)
        exact = np.asarray(one.items, np.float64)
        errors = [
            np.mean((np.asarray(queries, np.float64) @ (np.asarray(small.items.floats()) - exact).T) ** 2)
            for small in (nearest, rounded)
        ]
        assert errors[1] < 0.8 * errors[0]
        assert rounded.items.nbytes == nearest.items.nbytes
    how = {"pq": None, "dynamic": False, "clip": True, "prune": None, "rank": None, "seed": 0}
    found = compressed(model, {"*": "int4"}, calibrate=True, **how)
    expected = quantize_model(model, "int4", clip="search", rounding="inputs", inputs=seen)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_inputs_that_are_none():
    for rows, message in [
        (np.zeros((0, 3)), r"examples of shape \[0, 3\]: rows of numbers are accepted, at least one"),
        (np.zeros(3), r"examples of shape \[3\]"),
        ([[1.0, np.inf]], "the examples have numbers that are not finite"),
    ]:
        with pytest.raises(CompressionError, match=message):
            LayerInputs.of(rows)
    with pytest.raises(CompressionError, match="only networks on sequences without content have windows"):
        models.inputs_of_layers(models.MLP([3, 4], width=2, hidden=[5], rngs=nnx.Rngs(1)))
    inputs = {"items": LayerInputs.of(np.ones((1, 3)))}
    with pytest.raises(CompressionError, match="the rules choose users int4; and there are inputs of items"):
        quantize_model(factors(), {"users": "int4"}, rounding="inputs", inputs=inputs)
    with pytest.raises(CompressionError, match="items has 16 inputs, and 3 were seen"):
        quantize_model(factors(), {"items": "int4"}, rounding="inputs", inputs=inputs)


def test_what_is_no_code_is_rounded_to_the_nearest():
    """By inputs as well, as nothing is to be chosen there; beside it codes are rounded by theirs."""
    model = network()
    inputs = models.inputs_of_layers(model, [ITEMS])
    rules = {TABLE: "float8", "*.output.kernel": "bfloat16", "*": "int4"}
    nearest = compressible(parameters_of(quantize_model(model, rules)))
    found = compressible(parameters_of(quantize_model(model, rules, rounding="inputs", inputs=inputs)))
    kinds = {name: getattr(leaf, "rows", leaf).kind for name, leaf in found.items()}
    assert set(kinds.values()) == {"float8", "bfloat16", "int4"}
    for name, leaf in found.items():
        assert bool(jnp.all(leaf.floats() == nearest[name].floats())) == (kinds[name] != "int4")


def test_padding_is_no_input():
    whole = ITEMS.at[:, :4].set(-1)
    seen = [models.inputs_of_layers(network(), [items]) for items in (whole, whole[:, 4:])]
    for name, found in seen[0].items():
        assert found.examples == seen[1][name].examples == 14
        np.testing.assert_allclose(found.gramian, seen[1][name].gramian, rtol=1e-4, atol=1e-5)


def test_windows_are_what_a_network_is_called_with(films):
    for name, more in {"sasrec": {}, "bert4rec": {}, "hstu": {"times": True}}.items():
        model = afx.Recommender(name, width=8, length=5, epochs=1, **more).fit(films).model
        users = jnp.arange(3, dtype=jnp.int32)
        last = model.network(**model.windows(users))[:, -1]
        np.testing.assert_allclose(model.queries(users)[:, : last.shape[1]], last, rtol=1e-4, atol=1e-5)
        assert models.inputs_of_layers(model, [model.windows(users)])


# Models


@pytest.mark.parametrize("biases", [False, True])
def test_factors_answer_from_their_codes(biases):
    model = factors(biases)
    small = quantize_model(model, "int8")
    table = small.item_table()
    assert isinstance(table, QuantizedRows)
    assert small.items.nbytes + small.users.nbytes < 0.32 * (model.items.nbytes + model.users.nbytes)
    expected, _ = recommend(model, np.arange(8), k=10)
    found, scores = jax.jit(recommend, static_argnames="k")(small, jnp.arange(8), k=10)
    assert np.mean([len({*a} & {*b}) for a, b in zip(expected.tolist(), found.tolist(), strict=True)]) >= 9.4
    wide = dequantize(small)
    products = np.einsum("bw,bkw->bk", wide.queries(jnp.arange(8)), np.asarray(wide.item_table())[np.asarray(found)])
    np.testing.assert_allclose(scores, products, rtol=0.02, atol=0.1)
    np.testing.assert_allclose(predict(small, [1, 2], [3, 4]), predict(wide, [1, 2], [3, 4]), rtol=1e-5)
    np.testing.assert_array_equal(similar_items(small, [3], k=4)[0], similar_items(wide, [3], k=4)[0])
    if not biases:
        history = Interactions.from_coo([0, 0], [1, 4], n_items=50)
        np.testing.assert_allclose(fold_in(small, history), fold_in(wide, history), rtol=1e-5)
        ids, _ = recommend(small, [0], k=3, history=history)
        assert ids.shape == (1, 3)


@pytest.fixture(scope="module")
def films():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(12), 6)
    items = np.concatenate([(rng.integers(0, 20) + np.arange(6)) % 20 for _ in range(12)])
    names = np.array([f"u{user}" for user in users])
    return afx.clean((names, items, np.ones(len(items)), np.tile(np.arange(6), 12)))


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [
        ("implicit-als", "float8"),
        ("two-tower", "bfloat16"),
        ("hstu", "int8"),
        ("implicit-als", "int4"),
    ],
)
def test_saved_and_loaded(algorithm, kind, films, tmp_path):
    settings = {"length": 8} if algorithm == "hstu" else {}
    rec = afx.Recommender(algorithm, epochs=1, **settings).fit(films)
    small = rec.with_model(quantize_model(rec.model, kind, activations="dynamic" if kind == "int8" else "float"))
    small.save(tmp_path / "small")
    again = afx.Recommender.load(tmp_path / "small")
    expected, found = small.recommend(["u1", "u2"], k=5), again.recommend(["u1", "u2"], k=5)
    assert expected.equals(found)
    for one, other in zip(jax.tree.leaves(small.model), jax.tree.leaves(again.model), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    rec.save(tmp_path / "whole")
    sizes = [sum(f.stat().st_size for f in (tmp_path / name).glob("*.safetensors")) for name in ("small", "whole")]
    assert sizes[0] < 0.6 * sizes[1]


def test_half_bytes_of_an_earlier_layout_are_refused(films, tmp_path):
    rec = afx.Recommender("implicit-als", epochs=1).fit(films)
    rows = quantize(rec.model.items, "int4")
    rec.with_model(rec.model._replace(items=replace(rows, codes=rows.codes[:, :-1]))).save(tmp_path / "small")
    with pytest.raises(ModelFileError, match="half bytes without multipliers"):
        afx.Recommender.load(tmp_path / "small")


# What is refused


@pytest.mark.parametrize(
    ("rules", "options", "error", "message"),
    [
        ({"encoder.block.*": "int8"}, {}, CompressionError, "matches none of 9 parameters; near it: encoder.blocks"),
        ({}, {}, CompressionError, "no rules; patterns of names are accepted, such as"),
        ("int8", {"activations": "static"}, CompressionError, "need inputs: those of models.inputs_of_layers"),
        ("int4", {"rounding": "inputs", "inputs": {}}, CompressionError, "kernel: static activations and rounding"),
        ("int8", {"activations": "dynamic", "inputs": {}}, CompressionError, "ask for one, or leave them out"),
        ("float8", {"activations": "dynamic"}, CompressionError, "for int8 or int4, and not for float8"),
        ("float8", {"rounding": "inputs", "inputs": {}}, CompressionError, "the rules choose .*kernel float8"),
        ("int9", {}, ValueError, "kind='int9' must be one of"),
        ("int8", {"activations": "some"}, ValueError, "activations='some' must be one of"),
        ("int8", {"rounding": "up"}, ValueError, "rounding='up' must be one of"),
    ],
)
def test_what_is_refused(rules, options, error, message):
    with pytest.raises(error, match=message):
        quantize_model(network(), rules, **options)


def test_nothing_is_quantized_twice():
    small = quantize_model(network(), "int8")
    with pytest.raises(CompressionError, match="is quantized already; dequantize the model first"):
        quantize_model(small, "int8")
    model = network()
    model.items.embedding.table[...] = model.items.embedding.table[...].at[3, 2].set(jnp.nan)
    with pytest.raises(CompressionError, match=r"items\.embedding\.table: row 3, column 2 is nan"):
        quantize_model(model, {"*.table": "int8"})
    with pytest.raises(CompressionError, match=r"no input of encoder\.blocks\.0.attention.inputs was seen"):
        quantize_model(
            network(), "int4", rounding="inputs", inputs=models.inputs_of_layers(other(), [jnp.zeros(2, int)])
        )
    with pytest.raises(CompressionError, match="no table of vectors and no dense layer"):
        quantize_model(afx.engine.neighbors.Popularity(jnp.ones(3)), "int8")


def other():
    return models.MLP([3, 4], width=2, hidden=[5], rngs=nnx.Rngs(1))


def test_a_model_of_other_items(films):
    rec = afx.Recommender("popularity").fit(films)
    with pytest.raises(ValueError, match="the model has n_users=8; this recommender has 12"):
        rec.with_model(factors())


@pytest.mark.parametrize(
    "name", ["bert4rec", "dcn", "din", "dlrm", "neumf", "two-tower", "bayesian-mf", "svd-plus-plus"]
)
def test_models_of_every_kind_answer(name, films):
    """As the numbers do that their codes stand for."""
    settings = {
        "bert4rec": {"width": 8, "length": 5},
        "dcn": {"rank": 4},
        "two-tower": {"history": True},
        "bayesian-mf": {"rank": 8},
    }
    rec = afx.Recommender(name, epochs=1, **settings.get(name, {})).fit(films)
    small = rec.with_model(quantize_model(rec.model, "int8"))
    whole = rec.with_model(dequantize(small.model))
    for asked in ({"users": "u1"}, {"history": [1, 2]}):
        if "history" in asked and name in ("dcn", "dlrm", "neumf"):
            continue  # which know no newcomers
        found, expected = (one.recommend(**asked, k=3)["score"].to_numpy() for one in (small, whole))
        np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_models_that_are_none(films):
    rec = afx.Recommender("popularity").fit(films)
    for wrong in (rec, None, TABLE_OF_CODES):
        with pytest.raises(ValueError, match="is no model; give what compression makes"):
            rec.with_model(wrong)
    with pytest.raises(CompressionError, match=r"Recommender is no model, but has one: give its \.model"):
        quantize_model(rec)
    with pytest.raises(CompressionError, match="the state is quantized, which leaves nothing to train"):
        fit(implicit_als(16), films, key=jax.random.key(0), steps=1, state=quantize_model(factors(), "int8"))
    with pytest.raises(CompressionError, match="Factors has no network, and so no layers"):
        models.inputs_of_layers(factors(), [ITEMS])


TABLE_OF_CODES = quantize(jnp.ones((3, 8)))


def test_inputs_of_another_model():
    """The same names, and other sizes."""
    seen = models.inputs_of_layers(models.MLP([3, 4], width=2, hidden=[8], rngs=nnx.Rngs(1)), [jnp.zeros(2, int)])
    with pytest.raises(CompressionError, match=r"layers\.1 has 5 inputs, and 8 were seen"):
        quantize_model(other(), "int8", activations="static", inputs=seen)


def test_numbers_that_are_very_large():
    for kind, options in (("int8", {"symmetric": False}), ("bfloat16", {})):
        rows = quantize(jnp.array([[3.4e38, -3.4e38, 0.0]]), kind, **options)
        np.testing.assert_allclose(rows.floats()[0, :2], [3.4e38, -3.4e38], rtol=0.01)
