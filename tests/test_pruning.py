"""Weights that become 0, networks with fewer of them, parameters that are shared, and training under each."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import affinax as afx
from affinax import models
from affinax.engine.compression import (
    CompressionError,
    LayerInputs,
    dequantize,
    distill,
    keep_zeros,
    prune,
    prune_gradually,
    prune_n_of_m,
    prune_rows,
    quantize_model,
    rounded,
    tie,
    truncate,
    zeros_of,
)
from affinax.engine.compression.parameters import compressible
from affinax.engine.data import Interactions
from affinax.engine.factorization import Factors, biased_mf, bpr, fit

RNG = np.random.default_rng(0)
USERS, ITEMS = (jnp.asarray(RNG.normal(size=(n, 8)), jnp.float32) for n in (6, 10))
MODEL = Factors(USERS, ITEMS)
SETTINGS = {"width": 16, "length": 8, "heads": 2, "batch_size": 4}


def films():
    rng = np.random.default_rng(0)
    items = np.concatenate([(rng.integers(0, 20) + np.arange(6)) % 20 for _ in range(24)])
    return afx.clean((np.repeat(np.arange(24), 6), items, np.ones(144), np.tile(np.arange(6), 24)))


X = films()


@pytest.fixture(scope="module")
def sasrec():
    algorithm = models.sequence_retriever(models.SASRec, **SETTINGS)
    return fit(algorithm, X, key=jax.random.key(0), epochs=4, progress=False)[0]


# Which weights


@pytest.mark.parametrize("among", ["all", "layer", "output"])
def test_the_least_become_zero(among):
    found = prune(MODEL, 0.25, among=among)
    if among == "all":
        together = np.concatenate([np.abs(USERS).ravel(), np.abs(ITEMS).ravel()])
        limits = [np.sort(together)[32]] * 2
        assert sum(int((table == 0).sum()) for table in found[:2]) == 32
    for number, (before, after) in enumerate(zip(MODEL[:2], found[:2], strict=True)):
        size, gone = np.abs(before), np.asarray(after) == 0
        np.testing.assert_array_equal(np.asarray(after)[~gone], np.asarray(before)[~gone])
        if among == "output":
            assert (gone.sum(axis=1) == 2).all()
            limit = np.sort(size, axis=1)[:, 2:3]
        else:
            limit = limits[number] if among == "all" else np.sort(size.ravel())[size.size // 4]
        np.testing.assert_array_equal(gone, size < limit)
    assert zeros_of(found)["items"] == pytest.approx(0.25, abs=0.1)


def test_inputs_weigh_weights():
    """An input that is never there makes its weights the least, however large they are."""
    network = models.MLP([4], width=2, hidden=[4], rngs=nnx.Rngs(0))
    layers = {f"network.layers.{n}": LayerInputs(1, np.diag([0.0, *np.ones(k - 1)]), 1.0) for n, k in ((0, 2), (1, 4))}
    found = prune(network, {"*.kernel": 0.5}, among="output", inputs=layers).network.layers[0].kernel[...]
    np.testing.assert_array_equal(np.asarray(found)[0], np.zeros(4))
    np.testing.assert_array_equal(found[1], network.network.layers[0].kernel[...][1])


@pytest.mark.parametrize("name", ["items", "kernel"])
def test_n_of_m(name):
    if name == "items":
        rows, found = ITEMS, prune_n_of_m(MODEL, 2, 4, where="items").items
    else:
        network = models.MLP([4], width=8, hidden=[6], rngs=nnx.Rngs(0))
        rows = network.network.layers[0].kernel[...].T
        found = prune_n_of_m(network, 2, 4, where="*.layers.0.kernel").network.layers[0].kernel[...].T
    parts, sizes = np.asarray(found).reshape(-1, 4), np.abs(rows).reshape(-1, 4)
    assert ((parts != 0).sum(axis=1) == 2).all()
    np.testing.assert_array_equal(parts != 0, sizes >= np.sort(sizes, axis=1)[:, 2:3])


def test_rows_that_few_met_have_one_together(sasrec):
    kept = RNG.random(10) < 0.5
    found = prune_rows(MODEL, {"items": kept})
    table = np.asarray(found.item_table().floats())
    np.testing.assert_array_equal(table[kept], np.asarray(ITEMS)[kept])
    np.testing.assert_allclose(
        table[~kept], np.tile(np.asarray(ITEMS)[~kept].mean(axis=0), ((~kept).sum(), 1)), rtol=1e-5
    )
    assert found.items.nbytes == 10 + 4 * 8 * (kept.sum() + 1)
    few = prune_rows(sasrec, {"items.*": np.arange(20) < 8})
    before, after = (m.network.items.embedding.table[...].nbytes for m in (sasrec, few))
    assert after < 0.2 * before
    np.testing.assert_allclose(few.item_table().floats()[:8], sasrec.item_table()[:8])
    assert few.queries(jnp.arange(3)).shape == (3, 16)
    with pytest.raises(CompressionError, match="items is put together from parts, which stay as they are"):
        quantize_model(found, "int8")
    assert quantize_model(found, {"users": "int8"}).users.kind == "int8"
    every = prune_rows(MODEL, {"items": np.ones(10, bool)})
    np.testing.assert_array_equal(every.item_table().floats(), ITEMS)
    for wrong in (np.ones(11, bool), np.ones(10)):
        with pytest.raises(CompressionError, match="items is a table of 10 rows: bool for its rows is accepted"):
            prune_rows(MODEL, {"items": wrong})
    several = models.DeepFM([24, 20], width=4, hidden=[4], rngs=nnx.Rngs(0))
    with pytest.raises(
        CompressionError, match="has the rows of 2 fields, 44 in all: bool for each is accepted, got 20"
    ):
        prune_rows(several, {"embedding.table": np.arange(20) < 8})
    assert prune_rows(several, {"embedding.table": np.arange(44) < 30}).embedding.table[...].codes.max() == 30
    sharing = models.SASRec(40, width=4, length=4, sharing=("quotient", 2), rngs=nnx.Rngs(0))
    with pytest.raises(CompressionError, match="has rows that ids share"):
        prune_rows(sharing, {"items.*": np.arange(20) < 8})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: prune(MODEL, 1.0), CompressionError, r"share 1.0 must be a number in \[0, 1\)"),
        (lambda: prune(MODEL, "half"), CompressionError, r"share 'half' must be a number in \[0, 1\)"),
        (lambda: prune(MODEL, {"item": 0.5}), CompressionError, "matches none of 2 parameters; near it: items"),
        (lambda: prune(quantize_model(MODEL, "int8"), 0.5), CompressionError, "prune first, then quantize"),
        (lambda: prune(MODEL._replace(items=ITEMS.at[3, 1].set(jnp.inf)), 0.5), CompressionError, r"at \[3, 1\]"),
        (lambda: prune(MODEL, 0.5, among="rows"), ValueError, "among='rows' must be one of"),
        (lambda: prune_n_of_m(MODEL, 1, 3, where="items"), CompressionError, "8 columns, which are no multiple of m=3"),
        (lambda: prune_n_of_m(MODEL, 2, 2), ValueError, "n=2 and m=2 must be whole numbers, n above 0 and below m"),
        (lambda: prune_n_of_m(MODEL, 1.0, 2), ValueError, "n=1.0 and m=2 must be whole numbers"),
        (lambda: jax.jit(lambda m: prune(m, 0.5))(MODEL), CompressionError, "users is traced: prune outside of jit"),
        (lambda: prune_gradually(0.5, begin=3, end=3), ValueError, "begin=3 must be at least 0 and below end=3"),
        (lambda: truncate(MODEL, 8), CompressionError, "rank=8 must be a whole number above 0 and below 6"),
        (lambda: truncate(quantize_model(MODEL, "int8"), 2), CompressionError, "truncate the factors first"),
    ],
)
def test_what_cannot_be_pruned(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Training


def test_zeros_stay(sasrec):
    pruned = prune(sasrec, {"*.kernel": 0.5})
    assert pruned.training is None
    algorithm = models.sequence_retriever(
        models.SASRec, **SETTINGS, optimizer=optax.chain(optax.adam(0.01), keep_zeros())
    )
    model, history = fit(algorithm, X, key=jax.random.key(1), epochs=8, state=pruned, progress=False)
    for name, before in compressible(pruned.network).items():
        after = compressible(model.network)[name]
        np.testing.assert_array_equal(np.asarray(after)[np.asarray(before) == 0], 0)
        assert (np.asarray(after) != np.asarray(before)).any()
    assert history.loss[-6:].mean() < history.loss[:6].mean()


def test_more_and_more_zeros():
    share, begin, end = 0.75, 2, 10
    chain = optax.chain(optax.sgd(0.01), prune_gradually({"items": share}, begin=begin, end=end, every=2))
    model, state, gone = MODEL, chain.init(MODEL), np.zeros(ITEMS.shape, bool)
    step = jax.jit(lambda model, state: chain.update(jax.tree.map(jnp.ones_like, model), state, model))
    for number in range(1, 14):
        changes, state = step(model, state)
        model = optax.apply_updates(model, changes)
        now = np.asarray(model.items) == 0
        assert not (gone & ~now).any()
        gone = now
        reached = min(max((number - number % 2 - begin) / (end - begin), 0.0), 1.0)
        assert gone.sum() == round(share * (1 - (1 - reached) ** 3) * ITEMS.size)
    np.testing.assert_allclose(model.users, USERS - 0.13, rtol=1e-5)


@pytest.mark.parametrize("share", [80, float("nan"), -0.1, "0.5"])
def test_shares_that_are_none(share):
    with pytest.raises(CompressionError, match=r"share .* must be a number in \[0, 1\)"):
        prune_gradually(share, begin=0, end=4).init(MODEL)


def test_one_weight_is_left_of_few():
    network = models.MLP([4], width=4, hidden=[8], rngs=nnx.Rngs(0))
    small = prune(network, {"*.kernel": 0.95})
    assert [int((layer.kernel[...] != 0).sum()) for layer in small.network.layers] == [2, 1]
    gradual = prune_gradually({"*.kernel": 0.95}, begin=0, end=1, every=1)
    changes, _ = gradual.update(jax.tree.map(jnp.zeros_like, network), gradual.init(network), network)
    small = optax.apply_updates(network, changes)
    assert [int((layer.kernel[...] != 0).sum()) for layer in small.network.layers] == [2, 1]
    with pytest.raises(CompressionError, match="quantized: prune first, then quantize"):
        gradual.init(quantize_model(network, {"*.kernel": "int8"}))


def test_training_with_rounded_weights():
    """The loss is that of the network as it will be quantized, and falls."""
    rules = {"items.embedding.table": "int4", "*.kernel": "int4"}
    view = rounded(rules)
    settings = SETTINGS | {"learning_rate": 0.01, "dropout": 0.0}
    algorithm = models.sequence_retriever(models.SASRec, **settings, view=view)
    model, history = fit(algorithm, X, key=jax.random.key(1), epochs=8, progress=False)
    assert history.loss[-6:].mean() < 0.8 * history.loss[:6].mean()
    found = quantize_model(model, rules).queries(jnp.arange(24))
    seen = model._replace(network=view(model.network)).queries(jnp.arange(24))
    np.testing.assert_allclose(found, seen, rtol=1e-3, atol=1e-3)
    plain = model.queries(jnp.arange(24))
    assert float(jnp.linalg.norm(found - plain) / jnp.linalg.norm(plain)) > 0.01


# Smaller networks


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": 16},
        {"hidden": 5},
        {"heads": 1},
        {"head_width": 3},
        {"blocks": 1},
        {"width": 12, "hidden": 4, "heads": 1},
    ],
    ids=str,
)
def test_a_smaller_network(sizes, sasrec, tmp_path):
    small = models.shrink(sasrec, **sizes)
    settings = dict(small.blueprint.settings)
    assert all(settings[name] == size for name, size in sizes.items())
    assert models.shrink(sasrec, hidden=[4]).blueprint == models.shrink(sasrec, hidden=4).blueprint
    fewer = sum(leaf.size for leaf in jax.tree.leaves(small.network))
    whole = sum(leaf.size for leaf in jax.tree.leaves(sasrec.network))
    assert fewer < whole or sizes == {"hidden": 16}
    if sizes == {"hidden": 16}:  # all of them
        np.testing.assert_allclose(small.queries(jnp.arange(4)), sasrec.queries(jnp.arange(4)), rtol=1e-5)
    recommender = afx.Recommender("sasrec", length=8).fit(X, progress=False) if "width" in sizes else None
    if recommender is not None:
        recommender.with_model(small).save(tmp_path / "small")
        again = afx.Recommender.load(tmp_path / "small").model
        np.testing.assert_array_equal(again.queries(jnp.arange(4)), small.queries(jnp.arange(4)))


def test_what_is_of_low_rank_is_lost_by_no_width(sasrec):
    """Heads whose products are of rank 2 or less answer the same with a width of 2."""
    network = jax.tree.map(lambda leaf: leaf, sasrec.network)
    for block in network.encoder.blocks:
        kernel = block.attention.inputs.kernel[...].reshape(16, 3, 2, 8)
        bias = block.attention.inputs.bias[...].reshape(3, 2, 8)
        block.attention.inputs.kernel[...] = kernel.at[..., 2:].set(0).reshape(16, 48)
        block.attention.inputs.bias[...] = bias.at[..., 2:].set(0).reshape(48)
    plain = sasrec._replace(network=network)
    small = models.shrink(plain, head_width=2)
    np.testing.assert_allclose(small.queries(jnp.arange(8)), plain.queries(jnp.arange(8)), rtol=1e-3, atol=1e-4)


def test_neurons_that_say_nothing_go_first():
    network = models.DeepFM([5, 4], width=4, hidden=(6, 4), rngs=nnx.Rngs(0))
    network.network.layers[0].kernel[...] = network.network.layers[0].kernel[...].at[:, 1::2].set(0)
    network.network.layers[1].kernel[...] = network.network.layers[1].kernel[...].at[:, :1].set(0)
    plan = models.trained.Blueprint.of(models.DeepFM, sizes=(5, 4), width=4, hidden=(6, 4))
    fields = jnp.asarray([[0, 1], [4, 3], [2, 0]], jnp.int32)
    model = models.PairNetwork(network, plan, jnp.arange(5)[:, None], jnp.arange(4)[:, None], jnp.float32(0))
    small = models.shrink(model, hidden=(3, 3))
    assert small.network.network.layers[1].kernel.shape == (3, 3)
    np.testing.assert_allclose(small.network(fields), network(fields), rtol=1e-5)


def test_layers_are_as_many_as_before():
    """Widths that would leave one out are refused, those that all layers have are taken."""
    plan = models.trained.Blueprint.of(models.DCN, sizes=(5, 4), width=4, hidden=(8, 4))
    tables = jnp.arange(5)[:, None], jnp.arange(4)[:, None], jnp.float32(0)
    model = models.PairNetwork(plan.build(jax.random.key(0)), plan, *tables)
    with pytest.raises(CompressionError, match="layers would not be as many"):
        models.shrink(model, hidden=4)
    assert models.shrink(model, hidden=(3, 4)).network.network.layers[1].kernel.shape == (3, 4)


def test_shared_blocks(sasrec):
    shared = models.share_blocks(sasrec)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(m.network.encoder.blocks)) for m in (shared, sasrec)]
    assert 2 * sizes[0] == sizes[1]
    assert shared.queries(jnp.arange(3)).shape == (3, 16)
    with pytest.raises(CompressionError, match="shared already"):
        models.share_blocks(shared)
    with pytest.raises(CompressionError, match="share its blocks first, then quantize"):
        models.share_blocks(quantize_model(sasrec, "int8"))
    with pytest.raises(CompressionError, match="share their parameters"):
        models.shrink(shared, blocks=1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "nothing to be made smaller: give hidden, heads"),
        ({"heads": 2}, "heads=2 must be above 0 and below 2"),
        ({"hidden": 17}, r"at most \[16\]"),
        ({"hidden": (4, 4, 4)}, r"a width for each of \[16\]"),
        ({"width": 16}, "width=16 must be above 0 and below 16"),
        ({"head_width": 8}, "head_width=8 must be above 0 and below 8"),
    ],
)
def test_sizes_that_cannot_be(sizes, message, sasrec):
    with pytest.raises(CompressionError, match=message):
        models.shrink(sasrec, **sizes)


def test_models_that_cannot_be_smaller(sasrec):
    wide = models.SASRec(20, width=8, length=4, head_width=32, rngs=nnx.Rngs(0))
    plan = models.trained.Blueprint.of(models.SASRec, n_items=20, width=8, length=4, head_width=32)
    with pytest.raises(CompressionError, match="head_width=20 must be at most 9: products have no higher rank"):
        models.shrink(sasrec._replace(network=wide, blueprint=plan), head_width=20)
    with pytest.raises(CompressionError, match="quantized: make the network smaller first"):
        models.shrink(quantize_model(sasrec, "int8"), heads=1)
    with pytest.raises(CompressionError, match="truncate is for factors"):
        models.shrink(MODEL, hidden=3)
    with pytest.raises(CompressionError, match="Factors has no blocks"):
        models.share_blocks(MODEL)


def test_an_optimizer_of_another_kind_begins_anew(sasrec):
    def go(last, state):
        chain = optax.chain(optax.adam(0.01), last) if last else None
        algorithm = models.sequence_retriever(models.SASRec, **SETTINGS, optimizer=chain)
        return fit(algorithm, X, key=jax.random.key(1), epochs=1, state=state, progress=False)[0]

    def gradually(share):
        return prune_gradually(share, begin=0, end=2, every=1)

    half = go(gradually(0.5), sasrec)
    assert zeros_of(half).values() == pytest.approx([0.5] * len(zeros_of(half)), abs=0.01)
    for share in (0.8, {"*.kernel": 0.8}):
        more = zeros_of(go(gradually(share), half))
        assert more["encoder.blocks.0.dense.layers.0.kernel"] == pytest.approx(0.8, abs=0.01)
    held = go(keep_zeros(), half)
    assert min(zeros_of(go(gradually(0.7), held)).values()) == pytest.approx(0.7, abs=0.01)
    # One of the same kind goes on.
    steps = int(go(None, sasrec).training.step)
    assert steps > int(sasrec.training.step) > 0


def test_each_after_the_other(sasrec):
    """Pruned, trained on, quantized."""
    pruned = prune(models.shrink(sasrec, hidden=8), 0.5)
    optimizer = optax.chain(optax.adam(0.01), keep_zeros())
    algorithm = models.sequence_retriever(models.SASRec, **SETTINGS, optimizer=optimizer)
    model, _ = fit(algorithm, X, key=jax.random.key(1), epochs=2, state=pruned, progress=False)
    small = quantize_model(model, "int8", activations="dynamic")
    assert min(zeros_of(small).values()) >= 0.45
    error = jnp.abs(small.queries(jnp.arange(5)) - model.queries(jnp.arange(5)))
    assert float(error.max()) < 0.2


# Shared parameters


def test_tied_parameters_have_the_sum_of_gradients():
    parameters = {"a": {"w": jnp.ones((2, 2))}, "b": {"w": 2 * jnp.ones((2, 2))}, "c": jnp.ones(2)}
    kept, whole = tie(parameters, {"a": "b"})
    assert set(kept) == {"b.w", "c"}

    def loss(p):
        return jnp.sum(3 * p["a"]["w"] + 5 * p["b"]["w"])

    np.testing.assert_array_equal(jax.grad(lambda kept: loss(whole(kept)))(kept)["b.w"], 8 * np.ones((2, 2)))
    for to, message in [
        ({"d": "b"}, "'d' names no parameter; there are such as a.w, b.w, c"),
        ({"a": "c"}, "a.w of shape .* cannot be tied to c.w, which is missing"),
        ({"a.w": "c"}, r"which is of shape \[2\]"),
        ({"a": "b", "b": "a"}, "which is tied itself"),
    ]:
        with pytest.raises(CompressionError, match=message):
            tie(parameters, to)


def test_truncated_factors_are_the_nearest():
    small = truncate(MODEL._replace(slots=((USERS,), (ITEMS,))), 3)
    u, sizes, v = np.linalg.svd(np.asarray(USERS, np.float64) @ np.asarray(ITEMS, np.float64).T)
    np.testing.assert_allclose(small.users @ small.items.T, (u[:, :3] * sizes[:3]) @ v[:3], atol=1e-4)
    assert small.slots is None
    with pytest.raises(CompressionError, match="the users are traced"):
        jax.jit(lambda model: truncate(model, 3))(MODEL)
    half = truncate(MODEL._replace(users=USERS.astype(jnp.bfloat16)), np.int64(3))
    assert (half.users.dtype, half.items.shape) == (jnp.bfloat16, (10, 3))


@pytest.mark.parametrize("build", [bpr, biased_mf])
def test_factors_train_on_by_batches_after_they_were_truncated(build):
    users, items = np.repeat(np.arange(20), 3), np.tile(np.arange(3), 20) + np.repeat(np.arange(20), 3) % 17
    x = Interactions.from_coo(users, items, np.ones(60))
    algorithm = build(8, batch_size=16, optimizer="adagrad")
    model, _ = fit(algorithm, x, key=jax.random.key(0), steps=1, progress=False)
    for state in (truncate(model, 4), dequantize(quantize_model(model, "int8"))):
        again, history = fit(algorithm, x, key=jax.random.key(1), steps=3, state=state, progress=False)
        assert again.users.shape == state.users.shape
        assert history.loss[-1] < history.loss[0]


def test_distilled():
    student, teacher = jnp.asarray(RNG.normal(size=(2, 4, 7)), jnp.float32)
    t = 2.0
    p, q = (np.exp(np.asarray(a, np.float64) / t) for a in (teacher, student))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        distill(student, teacher, temperature=t), t**2 * np.mean((p * np.log(p / q)).sum(axis=1)), rtol=1e-5
    )
    assert not np.any(jax.grad(lambda teacher: distill(student, teacher))(teacher))
    some = jnp.arange(7) < 3
    none = jnp.arange(4)[:, None] == jnp.zeros((1, 7))  # of the first row alone
    np.testing.assert_allclose(distill(student, teacher, where=none), distill(student[:1], teacher[:1]), rtol=1e-5)
    among = distill(student, teacher, where=jnp.broadcast_to(some, student.shape))
    np.testing.assert_allclose(among, distill(student[:, :3], teacher[:, :3]), rtol=1e-5)
    with pytest.raises(ValueError, match="must be alike"):
        distill(student[0], teacher)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        distill(student, teacher, temperature=0)
