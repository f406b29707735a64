"""Networks: their formulas in float64, one example against a batch, on a mesh, and as recommenders."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from affinax import Recommender, models
from affinax.engine.data import Interactions
from affinax.engine.data.fields import user_and_item_fields
from affinax.engine.errors import InteractionError
from affinax.engine.evaluation import evaluate
from affinax.engine.factorization import fit, implicit_als
from affinax.engine.retrieval import fold_in, predict, recommend, similar_items, with_history
from affinax.engine.training import example_batches, losses
from affinax.engine.training.gradient_descent import gradient_step, start_training
from affinax.engine.training.histories import last_items
from affinax.kernels.csr import CSR
from affinax.models.layers import Dense, FieldEmbedding, Linear, dropped, he_normal

from .test_factorization import checkerboard as planted
from .test_sequential import BUILT as SEQUENTIAL

RNG = np.random.default_rng(0)
SIZES = [5, 7, 3]
FIELDS = np.stack([RNG.integers(0, size, 6) for size in SIZES], axis=1).astype(np.int32)
HISTORY = RNG.integers(-1, 7, (6, 4)).astype(np.int32)
NUMBERS = RNG.normal(size=(6, 2)).astype(np.float32)
SMALL = {"width": 4, "init_std": 0.5}
BUILT = {  # how each is made, and what it takes
    "MLP": (lambda **o: models.MLP(SIZES, hidden=[8], **SMALL, **o), (FIELDS,)),
    "MLP with numbers": (lambda **o: models.MLP(SIZES, numbers=2, **SMALL, **o), (FIELDS, NUMBERS)),
    "NeuMF": (lambda **o: models.NeuMF(SIZES[:2], hidden=[6, 3], **SMALL, **o), (FIELDS[:, :2],)),
    "FactorizationMachine": (lambda **o: models.FactorizationMachine(SIZES, **SMALL, **o), (FIELDS,)),
    "DeepFM": (lambda **o: models.DeepFM(SIZES, hidden=[8], **SMALL, **o), (FIELDS,)),
    "DCN": (lambda **o: models.DCN(SIZES, hidden=[8], **SMALL, **o), (FIELDS,)),
    "DCN of low rank": (lambda **o: models.DCN(SIZES, rank=2, experts=3, structure="stacked", **SMALL, **o), (FIELDS,)),
    "DLRM": (lambda **o: models.DLRM(SIZES, hidden=[8], **SMALL, **o), (FIELDS,)),
    "DLRM with numbers": (lambda **o: models.DLRM(SIZES, numbers=2, bottom=[5], **SMALL, **o), (FIELDS, NUMBERS)),
    "DIN": (lambda **o: models.DIN(SIZES, attention=[6, 3], hidden=[8], **SMALL, **o), (FIELDS, HISTORY)),
    "TwoTower": (lambda **o: models.TwoTower([5], [7, 3], **SMALL, **o), (FIELDS[:, :1], FIELDS[:, 1:], HISTORY)),
    "TwoTower with biases": (
        lambda **o: models.TwoTower([5], [7, 3], history=False, item_bias=jnp.arange(7.0), **SMALL, **o),
        (FIELDS[:, :1], FIELDS[:, 1:]),
    ),
    "TwoTower of layers": (
        lambda **o: models.TwoTower([], [7, 3], hidden=[8], normalize=False, **SMALL, **o),
        (None, FIELDS[:, 1:], HISTORY),
    ),
}
each_model = pytest.mark.parametrize("name", BUILT)
forward = jax.jit(lambda model, *inputs: model(*inputs))


@functools.cache
def made(name, **options):
    build, inputs = BUILT[name]
    return build(rngs=nnx.Rngs(1), **options), inputs


def rows_of(embedding, fields):
    """Vectors of the fields, looked up by hand, in float64."""
    first = np.cumsum([0, *embedding.sizes[:-1]])
    return np.asarray(embedding.table[...], np.float64)[fields + first]


def linear(layer, x):
    return x @ np.asarray(layer.kernel[...], np.float64) + np.asarray(layer.bias[...], np.float64)


def layers(dense, x):
    for number, layer in enumerate(dense.layers):
        x = linear(layer, x)
        if number < len(dense.layers) - 1 or not dense.linear_end:
            x = np.maximum(x, 0)
    return x


def pairs(vectors):
    n = vectors.shape[-2]
    return np.stack([(vectors[..., i, :] * vectors[..., j, :]).sum(-1) for i in range(n) for j in range(i)], -1)


def flat(vectors):
    return vectors.reshape(*vectors.shape[:-2], -1)


def mlp(m, fields):
    return layers(m.network, flat(rows_of(m.embedding, fields)))[..., 0]


def neumf(m, fields):
    rows = rows_of(m.embedding, fields)
    deep = layers(m.network, flat(rows[..., m.width :]))
    product = rows[:, 0, : m.width] * rows[:, 1, : m.width]
    return layers(m.end, np.concatenate([product, deep], -1))[..., 0]


def second_order(rows):
    return rows[..., -1].sum(-1) + pairs(rows[..., :-1]).sum(-1)


def machine(m, fields):
    return float(m.bias[...]) + second_order(rows_of(m.embedding, fields))


def deep_fm(m, fields):
    rows = rows_of(m.embedding, fields)
    return second_order(rows) + layers(m.network, flat(rows[..., :-1]))[..., 0]


def dcn(m, fields):
    start = x = flat(rows_of(m.embedding, fields))
    for weights, bias in zip(m.crosses.kernel[...], m.crosses.bias[...], strict=True):
        x = start * (x @ np.asarray(weights, np.float64) + np.asarray(bias)) + x
    return linear(m.end, np.concatenate([x, layers(m.network, start)], -1))[..., 0]


def low_rank_dcn(m, fields):
    start = x = flat(rows_of(m.embedding, fields))
    for layer in m.crosses:
        logits = x @ np.asarray(layer.gates.kernel[...], np.float64)
        gates = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        total = np.zeros_like(x)
        for e in range(3):
            v, c, u = (np.asarray(p[...], np.float64)[e] for p in (layer.down, layer.core, layer.up))
            expert = start * (np.tanh(np.tanh(x @ v) @ c) @ u + np.asarray(layer.bias[...]))
            total += gates[:, e : e + 1] * expert
        x = x + total
    return linear(m.end, layers(m.network, x))[..., 0]


def dlrm(m, fields, numbers=None):
    vectors, more = rows_of(m.embedding, fields), []
    if numbers is not None:
        more = [layers(m.bottom, numbers.astype(np.float64))]
        vectors = np.concatenate([more[0][:, None], vectors], 1)
    return layers(m.network, np.concatenate([*more, pairs(vectors)], -1))[..., 0]


def din(m, fields, history):
    vectors = rows_of(m.embedding, fields)
    table, first = np.asarray(m.embedding.table[...], np.float64), SIZES[0]
    found = np.zeros((len(fields), 4))
    for row, (query, met) in enumerate(zip(vectors[:, 1], history, strict=True)):
        for item in met[met >= 0]:
            v = table[first + item]
            found[row] += layers(m.attention, np.concatenate([query, v, query * v]))[0] * v
    return layers(m.network, np.concatenate([flat(vectors), found], -1))[..., 0]


def mean_of_history(m, history):
    table = np.asarray(m.items.table[...], np.float64)
    met = np.stack([table[row[row >= 0]].mean(0) if (row >= 0).any() else np.zeros(4) for row in history])
    return met @ np.asarray(m.projection.kernel[...], np.float64)


def two_tower(m, user_fields, item_fields, history):
    user = rows_of(m.users, user_fields).sum(1) + mean_of_history(m, history)
    item = rows_of(m.items, item_fields).sum(1)
    product = (user * item).sum(-1) / np.linalg.norm(user, axis=-1) / np.linalg.norm(item, axis=-1)
    return product / m.temperature


def biased_two_tower(m, user_fields, item_fields):
    user, item = rows_of(m.users, user_fields).sum(1), rows_of(m.items, item_fields).sum(1)
    product = (user * item).sum(-1) / np.linalg.norm(user, axis=-1) / np.linalg.norm(item, axis=-1)
    return product / m.temperature + item_fields[:, 0]


FORMULAS = {
    "MLP": mlp,
    "NeuMF": neumf,
    "FactorizationMachine": machine,
    "DeepFM": deep_fm,
    "DCN": dcn,
    "DCN of low rank": low_rank_dcn,
    "DLRM": dlrm,
    "DLRM with numbers": dlrm,
    "DIN": din,
    "TwoTower": two_tower,
    "TwoTower with biases": biased_two_tower,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_model_is_its_formula(name):
    model, inputs = made(name)
    np.testing.assert_allclose(forward(model, *inputs), FORMULAS[name](model, *inputs), rtol=2e-4, atol=2e-5)


@each_model
def test_one_example_and_a_batch(name):
    model, inputs = made(name)
    batched = forward(model, *inputs)
    axes = (None, *(None if a is None else 0 for a in inputs))
    np.testing.assert_allclose(jax.vmap(forward, in_axes=axes)(model, *inputs), batched, rtol=1e-4, atol=1e-5)
    alone = forward(model, *(None if a is None else a[2] for a in inputs))
    assert alone.shape == ()
    np.testing.assert_allclose(alone, batched[2], rtol=1e-4, atol=1e-5)
    twice = forward(model, *(None if a is None else np.stack([a, a]) for a in inputs))
    np.testing.assert_allclose(twice[1], batched, rtol=1e-4, atol=1e-5)


@each_model
def test_every_parameter_has_a_gradient(name):
    model, inputs = made(name)
    slopes = jax.jit(jax.grad(lambda m: jnp.sum(m(*inputs) ** 2)))(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.isfinite(np.asarray(leaf)).all(), path
        assert np.abs(np.asarray(leaf)).max() > 0, path


@each_model
def test_low_precision(name):
    exact, inputs = made(name)
    model, _ = made(name, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(jnp.float32)}
    found, expected = np.asarray(forward(model, *inputs), np.float32), np.asarray(forward(exact, *inputs))
    assert np.abs(found - expected).max() < 0.1 * (1 + np.abs(expected).max())
    half, _ = made(name, param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    assert np.isfinite(np.asarray(forward(half, *inputs), np.float32)).all()


@each_model
def test_the_same_numbers_make_the_same_model(name):
    one, other = (BUILT[name][0](rngs=nnx.Rngs(1)) for _ in range(2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


# Layers


def test_missing_and_foreign_ids():
    embedding = FieldEmbedding(SIZES, 4, rngs=nnx.Rngs(0))
    assert (embedding(jnp.array([-1, 0, -1]))[jnp.array([0, 2])] == 0).all()
    with pytest.raises(InteractionError, match=r"ids: id 7 at \[1, 1\] is outside \[0, 7\); -1 stands for a missing"):
        embedding(jnp.array([[0, 6, 0], [0, 7, 0]]))
    with pytest.raises(InteractionError, match="the last axis must be of 3 fields"):
        jax.jit(embedding)(jnp.array([0, 1]))
    # In a trace it is nobody's, not another field's.
    vectors = jax.jit(embedding)(jnp.array([5, 0, 0]))
    assert np.isnan(vectors[0]).all()
    assert np.isfinite(vectors[1:]).all()


def test_dropout_needs_a_key_and_keeps_the_mean():
    x = jnp.ones(10_000)
    assert dropped(x, 0.4, None) is x
    found = np.asarray(dropped(x, 0.4, jax.random.key(0)))
    assert (found == 0).mean() == pytest.approx(0.4, abs=0.03)
    assert found.mean() == pytest.approx(1, abs=0.03)
    dense = Dense([3, 50, 1], dropout=0.5, linear_end=True, rngs=nnx.Rngs(0))
    assert (dense(jnp.ones(3)) == dense(jnp.ones(3))).all()
    assert dense(jnp.ones(3), key=jax.random.key(0)) != dense(jnp.ones(3), key=jax.random.key(1))


def test_first_weights_are_of_the_scale_asked_for():
    for scale in (2.0, 0.02):
        kernel = Dense([400, 300], kernel_init=he_normal(scale), rngs=nnx.Rngs(0)).layers[0].kernel[...]
        np.testing.assert_allclose(400 * kernel.var(), scale, rtol=0.02)
    small = models.DCN([50, 30], hidden=[64], hidden_scale=0.02, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(32 * small.network.layers[0].kernel[...].var(), 0.02, rtol=0.1)


@pytest.mark.parametrize("parts", [(3,), (1, 2)])
def test_a_linear_layer_of_parts(parts):
    layer, x = Linear(3, 2, rngs=nnx.Rngs(0)), np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    layer.bias[...] = jnp.array([1.0, 2.0])
    found = layer.of_parts(*np.split(x, np.cumsum(parts)[:-1], axis=1))
    np.testing.assert_allclose(found, layer(x), rtol=1e-6)
    np.testing.assert_allclose(found, linear(layer, x), rtol=1e-5)


def test_vectors_of_each_field_have_their_own_spread():
    table = FieldEmbedding([400, 300], 50, init_std=[0.1, 2.0], rngs=nnx.Rngs(0)).table[...]
    np.testing.assert_allclose([table[:400].std(), table[400:700].std()], [0.1, 2.0], rtol=0.02)
    assert (table[700:] == 0).all()
    with pytest.raises(ValueError, match="one for each of the 2 fields"):
        FieldEmbedding([4, 3], 2, init_std=[0.1, 0.2, 0.3], rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda **o: models.MLP([], **o), "a network needs ids or numbers"),
        (lambda **o: models.MLP([3, 0], **o), "sizes=.* must name one field or more"),
        (lambda **o: models.NeuMF([3], **o), "must be of users and items"),
        (lambda **o: models.DCN([3], crosses=0, **o), "crosses=0"),
        (lambda **o: models.DCN([3], structure="sideways", **o), 'must be "parallel" or "stacked"'),
        (lambda **o: models.DLRM([3], **o), "one vector and no pair"),
        (lambda **o: models.DIN([3], item_field=1, **o), "item_field=1 must be one of the 1 fields"),
        (lambda **o: models.DIN([3, 2], attention=[], **o), "attention=.* must have a layer"),
        (lambda **o: models.TwoTower([], [3], history=False, **o), "users need fields or a history"),
        (lambda **o: models.TwoTower([2], [3], temperature=0, **o), "temperature=0 must be above 0"),
        (lambda **o: models.TwoTower([2], [3], width=4, item_table=np.ones((3, 5)), **o), r"must be \[3, 4\]"),
        (lambda **o: models.DeepFM([3], dropout=1.0, **o), "dropout=1.0"),
    ],
)
def test_models_that_cannot_be(build, message):
    with pytest.raises(ValueError, match=message):
        build(rngs=nnx.Rngs(0))


def test_inputs_that_a_model_was_not_made_for():
    with pytest.raises(ValueError, match="made with 2 numbers"):
        made("MLP with numbers")[0](FIELDS)
    with pytest.raises(ValueError, match="made without numbers"):
        made("DLRM")[0](FIELDS, NUMBERS)
    with pytest.raises(ValueError, match="with fields of users, and with histories"):
        made("TwoTower")[0].user(FIELDS[:, :1])


def test_histories_of_any_length_are_those_that_are_padded():
    towers, (user_fields, _, history) = made("TwoTower")
    lengths = (history >= 0).sum(1)
    rows = CSR(jnp.asarray(np.append(0, lengths.cumsum()), jnp.int32), jnp.asarray(history[history >= 0]), jnp.ones(1))
    np.testing.assert_allclose(towers.user(user_fields, rows), towers.user(user_fields, history), rtol=1e-5)


def test_somebody_without_anything_has_no_vector_but_a_gradient():
    towers = models.TwoTower([], [7], width=4, rngs=nnx.Rngs(0))
    nothing = jnp.full((1, 4), -1)
    assert (towers.user(None, nothing) == 0).all()
    slopes = jax.grad(lambda m: jnp.sum(m.user(None, nothing)))(towers)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(slopes))


# Inside larger stacks


def checkerboard():
    return planted(20, 24)[0]


def clicks(n=64):
    fields = np.stack([RNG.integers(0, size, n) for size in SIZES], axis=1).astype(np.int32)
    return {"fields": fields, "labels": (fields.sum(1) % 2).astype(np.float32)}


def test_a_mesh_shares_tables_and_batches():
    """Eight devices: four share the examples of a batch, and two of each the rows of the tables."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model, optimizer = made("DeepFM", implementation="reference")[0], optax.adam(0.01)
    step = gradient_step(lambda m, b, key: losses.binary_cross_entropy(m(b["fields"]), b["labels"]), optimizer)
    state, data = start_training(model, optimizer), clicks()
    alone = jax.jit(step)
    places = models.shardings(state, mesh)
    shared = jax.jit(step, out_shardings=(places, None))
    here, there = state, jax.device_put(state, places)
    batch = jax.device_put(data, NamedSharding(mesh, P("data")))
    for key in jax.random.split(jax.random.key(0), 3):
        here, info = alone(key, here, data)
        there, other = shared(key, there, batch)
        assert float(info.loss) == pytest.approx(float(other.loss), rel=1e-5)
    table = there.parameters.embedding.table[...]
    assert {shard.data.shape for shard in table.addressable_shards} == {(32, 5)}
    moments = there.optimizer[0].mu.embedding.table[...]
    assert {shard.data.shape for shard in moments.addressable_shards} == {(32, 5)}
    np.testing.assert_allclose(table, here.parameters.embedding.table[...], rtol=1e-4, atol=1e-6)


def test_rules_that_do_not_fit():
    mesh = jax.make_mesh((3,), ("model",), devices=jax.devices("cpu")[:3])
    model = made("DeepFM")[0]
    with pytest.raises(ValueError, match=r"table.value of shape \[64, 5\]: 3 devices cannot share 64 evenly"):
        models.shardings(model, mesh)
    with pytest.raises(ValueError, match=r"the mesh has the axes .* and no 'rows'"):
        models.shardings(model, mesh, [("table", P("rows")), ("", P())])
    with pytest.raises(ValueError, match=r"no rule is for .*bias"):
        models.partition_specs(model, [("table", P())])
    with pytest.raises(ValueError, match="has fewer axes"):
        models.partition_specs(model, [("", P(None, None, "model"))])


def test_factors_begin_a_network_and_may_stay_as_they_are():
    x = checkerboard()
    factors, _ = fit(implicit_als(rank=4, l2=0.01), x, key=jax.random.key(0), steps=5)
    towers = models.TwoTower([], [24], width=4, item_table=factors.items, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(towers.items.table[...][:24], factors.items)

    def kind(path, leaf):
        return "frozen" if "items" in jax.tree_util.keystr(path) else "trained"

    def kinds(network):
        return jax.tree_util.tree_map_with_path(kind, network)

    optimizer = optax.partition({"frozen": optax.set_to_zero(), "trained": optax.adam(0.01)}, kinds)
    met = last_items(x, 5)

    def loss(m, batch, key):
        return losses.in_batch_softmax(m.user(None, batch["met"][:, :-1]), m.item(batch["met"][:, -1:]))

    step = jax.jit(gradient_step(loss, optimizer))
    state = start_training(towers, optimizer)
    make = example_batches(10)({"met": met}, np.array([0, 1], np.uint32)).make
    first = None
    for number in range(1, 60):
        state, info = step(jax.random.key(number), state, make(number))
        first = info.loss if first is None else first
    assert float(info.loss) < 0.9 * float(first)
    np.testing.assert_array_equal(state.parameters.items.table[...][:24], factors.items)


def test_als_is_a_layer_that_optax_trains():
    """Items are moved so that the vectors which histories fold into come near to given ones: through the solver."""
    x = checkerboard()
    factors, _ = fit(implicit_als(rank=4, l2=0.01), x, key=jax.random.key(0), steps=3)
    rows = x.to_device().by_user
    target = jax.random.normal(jax.random.key(1), (20, 4))
    optimizer = optax.adam(0.02)

    @jax.jit
    def step(items, memory):
        def loss(items):
            return jnp.mean((fold_in(factors._replace(items=items), rows) - target) ** 2)

        value, slope = jax.value_and_grad(loss)(items)
        changes, memory = optimizer.update(slope, memory)
        return optax.apply_updates(items, changes), memory, value

    items, memory, costs = factors.items, optimizer.init(factors.items), []
    for _ in range(60):
        items, memory, cost = step(items, memory)
        costs.append(float(cost))
    assert costs[-1] < 0.8 * costs[0]


# As recommenders

QUICK = {"batch_size": 32, "learning_rate": 0.02}
ALGORITHMS = {
    "NeuMF": lambda **o: models.pair_ranker(models.NeuMF, width=8, init_std=0.1, **QUICK, **o),
    "FactorizationMachine": lambda **o: models.pair_ranker(models.FactorizationMachine, width=8, **QUICK, **o),
    "DIN": lambda **o: models.pair_ranker(models.DIN, width=8, length=5, **QUICK, **o),
    "TwoTower": lambda **o: models.tower_retriever(width=8, history=True, length=5, **QUICK, **o),
    "TwoTower of ids": lambda **o: models.tower_retriever(width=8, **QUICK, **o),
    "TwoTower of histories": lambda **o: models.tower_retriever(
        width=8, users=False, history=True, length=5, normalize=True, temperature=0.1, **QUICK, **o
    ),
}


def described():
    """A checkerboard with a side table that says which half everybody is of."""
    import polars as pl

    x = checkerboard()
    halves = [
        pl.DataFrame({"half": [str(k % 2) for k in range(n)], "tags": [[k % 3]] * n}) for k, n in enumerate((20, 24))
    ]
    return replace(x, user_features=halves[0], item_features=halves[1])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_planted_matrix_is_recovered(name):
    x = described()
    train, test = x.split("random", test_fraction=0.2)
    columns = [] if name == "NeuMF" else ["half"]
    model, _ = fit(ALGORITHMS[name](columns=columns), train, key=jax.random.key(0), epochs=40)
    found = evaluate(model, test, train=train, k=5)
    assert found.means["hit_rate_at_5"] > 0.8
    ids, scores = jax.jit(recommend, static_argnames="k")(model, jnp.arange(3), k=4, seen=train.to_device())
    assert ids.shape == scores.shape == (3, 4)
    pairs = predict(model, np.repeat(np.arange(3), 4), np.asarray(ids).ravel())
    np.testing.assert_allclose(pairs, np.asarray(scores).ravel(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["DIN", "TwoTower", "TwoTower of histories"])
def test_newcomers_by_their_histories(name):
    x = described()
    model, _ = fit(ALGORITHMS[name](), x, key=jax.random.key(0), epochs=40)
    met = Interactions.from_coo([0, 0, 0, 1, 1, 1], [0, 2, 4, 1, 3, 5], n_users=2, n_items=24)
    ids, _ = recommend(model, [0, 1], k=5, history=met, seen=met)
    assert {int(i) % 2 for i in ids[0]} == {0}
    assert {int(i) % 2 for i in ids[1]} == {1}


def test_newcomers_of_a_network_without_histories():
    x = described()
    model, _ = fit(ALGORITHMS["NeuMF"](), x, key=jax.random.key(0), steps=1)
    with pytest.raises(ValueError, match="NeuMF knows the users that it was trained on and reads no histories"):
        with_history(model, x)
    towers, _ = fit(models.tower_retriever(width=4), x, key=jax.random.key(0), steps=1)
    with pytest.raises(ValueError, match="read no histories"):
        with_history(towers, x)


def test_sides_share_a_tower():
    plan = {"width": 4, "hidden": [6], "history": False, "normalize": False, "temperature": 1.0}
    towers = models.TwoTower([5], [7], share=True, **plan, rngs=nnx.Rngs(0))
    apart = models.TwoTower([5], [7], **plan, rngs=nnx.Rngs(0))
    n_of_tower = sum(leaf.size for leaf in jax.tree.leaves(towers.item_tower))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(one)) for one in (towers, apart)]
    assert sizes[1] - sizes[0] == n_of_tower
    towers.users.table[...] = towers.items.table[...]
    ids = jnp.arange(5, dtype=jnp.int32)[:, None]
    np.testing.assert_allclose(towers.user(ids), towers.item(ids), rtol=1e-6)
    for users, options in ([5], {"hidden": [6], "history": True}), ([5], {"history": False}):
        with pytest.raises(ValueError, match="share=True is for hidden="):
            models.TwoTower(users, [7], width=4, share=True, **options, rngs=nnx.Rngs(0))


def test_shared_towers_are_learned_and_saved(tmp_path):
    rec = Recommender("two-tower", width=8, hidden=(8,), share=True, epochs=2).fit(checkerboard())
    rec.save(tmp_path / "model")
    again = Recommender.load(tmp_path / "model")
    assert again.model.network.user_tower is None
    assert again.recommend(0, k=3).equals(rec.recommend(0, k=3))


def test_similar_items_of_towers():
    x = described()
    model, _ = fit(ALGORITHMS["TwoTower"](), x, key=jax.random.key(0), epochs=40)
    ids, _ = similar_items(model, [0, 1], k=3)
    assert [{int(i) % 2 for i in row} for row in ids] == [{0}, {1}]


def test_ratings_are_predicted():
    users, items = (a.ravel() for a in np.meshgrid(np.arange(20), np.arange(24), indexing="ij"))
    x = Interactions.from_coo(users, items, 3 + (users + items) % 2)
    train, test = x.split("random", test_fraction=0.2)
    algorithm = models.pair_ranker(models.MLP, ratings=True, width=8, **QUICK)
    model, _ = fit(algorithm, train, key=jax.random.key(0), epochs=60)
    assert np.sqrt(np.mean((predict(model, test.users, test.items) - test.values) ** 2)) < 0.2
    with pytest.raises(InteractionError, match="MLP learns from ratings here, and these interactions have no values"):
        fit(algorithm, described(), key=jax.random.key(0), steps=1)


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.pair_ranker(models.NeuMF, negatives=0),
        lambda: models.pair_ranker(models.NeuMF, learning_rate=0.0),
        lambda: models.pair_ranker(models.NeuMF, l2=-1.0),
        lambda: models.tower_retriever(batch_size=0),
    ],
)
def test_settings_out_of_range(build):
    with pytest.raises(ValueError, match=r"must be (above|at least) 0"):
        build()


def test_what_is_fitted_must_be_interactions():
    with pytest.raises(TypeError, match="must be Interactions"):
        fit(ALGORITHMS["NeuMF"](), {"users": np.zeros(3)}, key=jax.random.key(0), steps=1)


# Fields


def test_fields_of_side_tables():
    import polars as pl

    x = described()
    tags = pl.DataFrame(
        {"tags": [["b", "a"], ["a"], None, []] * 6, "when": [1.5] * 24, "year": [2000, None, 1999, 2000] * 6}
    )
    x = replace(x, item_features=tags)
    users, items = user_and_item_fields(x, ["half", "tags", "year"])
    assert users.names == ("user", "half", "tags.1")
    assert items.names == ("item", "tags.1", "tags.2", "year")
    assert items.sizes == (24, 2, 2, 2)
    assert items.ids[:4].tolist() == [[0, 1, 0, 1], [1, 0, -1, -1], [2, -1, -1, 0], [3, -1, -1, 1]]
    assert items.values[1].tolist() == ["a", "b"]
    with pytest.raises(InteractionError, match="column 'when' of the items is Float64; a field is of texts"):
        user_and_item_fields(x, ["when"])
    with pytest.raises(InteractionError, match="no side table has a column 'nope'; there are"):
        user_and_item_fields(x, ["nope"])


def test_every_model_is_tried():
    kinds = {kind for kind in vars(models).values() if isinstance(kind, type) and issubclass(kind, nnx.Module)}
    sequential = {type(build(rngs=nnx.Rngs(0))) for build in SEQUENTIAL.values()}
    assert {type(made(name)[0]) for name in BUILT} | sequential | {models.FusionTransformer} == kinds
