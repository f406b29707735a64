"""Sequential networks: their formulas in float64, and places that see what they may."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from affinax import models
from affinax.engine.data import InteractionError
from affinax.engine.training import gradient_step
from affinax.engine.training.gradient_descent import start_training
from affinax.kernels.cross_entropy import cross_entropy
from affinax.models.transformer import rotated

from . import naive

RNG = np.random.default_rng(0)
N_ITEMS, LENGTH = 11, 6
ITEMS = RNG.integers(0, N_ITEMS, (4, LENGTH)).astype(np.int32)
ITEMS[0, :3] = ITEMS[2, :5] = -1
TIMES = np.sort(RNG.integers(0, 10_000, (4, LENGTH)), axis=1).astype(np.int32)
SMALL = {"length": LENGTH, "init_std": 0.5, "dropout": 0.0}
BUILT = {
    "SASRec": lambda **o: models.SASRec(N_ITEMS, width=8, heads=2, **SMALL, **o),
    "SASRec, norms after": lambda **o: models.SASRec(N_ITEMS, width=8, norm="post", **SMALL, **o),
    "SASRec, rotary": lambda **o: models.SASRec(N_ITEMS, width=8, heads=2, positions="rotary", **SMALL, **o),
    "SASRec, shared": lambda **o: models.SASRec(N_ITEMS, width=8, blocks=3, share=True, **SMALL, **o),
    "BERT4Rec": lambda **o: models.BERT4Rec(N_ITEMS, width=8, **SMALL, **o),
    "HSTU": lambda **o: models.HSTU(N_ITEMS, width=8, heads=2, **SMALL, **o),
    "HSTU with times": lambda **o: models.HSTU(N_ITEMS, width=8, inner=3, times=True, normalize=False, **SMALL, **o),
}
each_model = pytest.mark.parametrize("name", BUILT)


def made(name, **options):
    """A network, and what it takes besides items."""
    more = {"times": TIMES} if name == "HSTU with times" else {}
    return BUILT[name](rngs=nnx.Rngs(1), **options), more


forward = jax.jit(lambda model, *inputs, **more: model(*inputs, **more))  # a network by itself compiles each operation


def stirred(model):
    """With parameters that are not those of the start, where biases are 0 and factors 1."""
    leaves, structure = jax.tree.flatten(model)
    rng = np.random.default_rng(5)
    return jax.tree.unflatten(
        structure, [leaf + 0.1 * jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in leaves]
    )


# Formulas, for one row.


def numbers(parameter):
    return np.asarray(parameter[...], np.float64)


def linear(layer, x):
    return x @ numbers(layer.kernel) + numbers(layer.bias)


def norm(layer, x):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * numbers(layer.scale) + numbers(layer.bias)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turned(x):
    half = x.shape[-1] // 2
    angles = np.arange(LENGTH)[:, None, None] / 10_000 ** (np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


def encoded(encoder, x, segments, activation, causal):
    if encoder.positions is not None:
        x = x + numbers(encoder.positions)
    for block in [*encoder.blocks] * encoder.rounds:
        attention, (before, after) = block.attention, block.norms

        def attended(x, attention=attention):
            parts = linear(attention.inputs, x).reshape(LENGTH, 3, attention.heads, -1)
            q, k, v = (parts[:, part] for part in range(3))
            if attention.rotary:
                q, k = turned(q), turned(k)
            found = naive.attention(q, k, v, segments, causal=causal)
            return linear(attention.output, found.reshape(LENGTH, -1))

        def dense(x, layers=block.dense.layers):
            return linear(layers[1], activation(linear(layers[0], x)))

        if block.norm == "pre":
            x = x + attended(norm(before, x))
            x = x + dense(norm(after, x))
        else:
            x = norm(before, x + attended(x))
            x = norm(after, x + dense(x))
    return x if encoder.end is None else norm(encoder.end, x)


def vectors(model, items):
    return np.where((items >= 0)[:, None], numbers(model.items.embedding.table)[items], 0)


def sasrec(model, items):
    segments = np.where(items >= 0, 0, -1)
    x = vectors(model, items) * np.sqrt(model.items.width)
    return encoded(model.encoder, x, segments, lambda x: np.maximum(x, 0), True)


def bert4rec(model, items):
    segments = np.where(items >= 0, 0, -1)
    x = encoded(model.encoder, norm(model.begin, vectors(model, items)), segments, gelu, False)
    return norm(model.end, gelu(linear(model.projection, x)))


def hstu(model, items, times=None):
    segments = np.where(items >= 0, 0, -1)
    x = vectors(model, items) * np.sqrt(model.items.width) + numbers(model.positions)
    for layer in model.layers:
        parts = silu(linear(layer.inputs, norm(layer.before, x))).reshape(LENGTH, 4, layer.heads, -1)
        gates, v, q, k = (parts[:, part] for part in range(4))
        biases = {"position_bias": numbers(layer.position_bias)}
        if times is not None:
            biases |= {"time_bias": numbers(layer.time_bias), "times": times}
        found = naive.attention(q, k, v, segments, activation="silu", **biases)
        gated = norm(layer.after, found.reshape(LENGTH, -1)) * gates.reshape(LENGTH, -1)
        x = x + linear(layer.output, gated)
    return x / np.linalg.norm(x, axis=1, keepdims=True) if model.normalize else x


@each_model
def test_a_model_is_its_formula(name):
    model, more = made(name)
    model = stirred(model)
    formula = {"S": sasrec, "B": bert4rec, "H": hstu}[name[0]]
    found = forward(model, ITEMS, **more)
    for row, items in enumerate(ITEMS):
        expected = formula(model, items, **{name: array[row] for name, array in more.items()})
        np.testing.assert_allclose(found[row][items >= 0], expected[items >= 0], rtol=2e-3, atol=2e-4)


@each_model
def test_one_example_and_a_batch(name):
    model, more = made(name)
    batched = forward(model, ITEMS, **more)
    alone = jax.jit(jax.vmap(lambda items, more: model(items, **more)))(ITEMS, more)
    np.testing.assert_allclose(alone, batched, rtol=1e-4, atol=1e-5)
    one = forward(model, ITEMS[1], **{name: array[1] for name, array in more.items()})
    np.testing.assert_allclose(one, batched[1], rtol=1e-4, atol=1e-5)


@each_model
def test_a_short_row_is_the_end_of_a_long_one(name):
    model, more = made(name)
    model, short = stirred(model), {key: array[0, 3:] for key, array in more.items()}
    long = {key: array[0] for key, array in more.items()}
    np.testing.assert_allclose(
        forward(model, ITEMS[0, 3:], **short), forward(model, ITEMS[0], **long)[3:], rtol=1e-4, atol=1e-5
    )


@each_model
def test_a_batch_of_nothing(name):
    model, more = made(name)
    for shape in ((0, LENGTH), (2, 0)):
        none = {key: np.zeros(shape, np.int32) for key in more}
        assert forward(model, np.zeros(shape, np.int32), **none).shape == (*shape, 8)


@each_model
def test_several_sequences_in_a_row_are_those_alone(name):
    model, more = made(name)
    model = stirred(model)
    items = np.array([3, 1, 4, 1, 5, 9])
    segments = np.array([0, 0, 0, 0, 1, 1], np.int32)
    positions = np.array([2, 3, 4, 5, 4, 5], np.int32)
    given = {name: array[1] for name, array in more.items()}
    packed = forward(model, items, segments=segments, positions=positions, **given)
    for segment in (0, 1):
        where = segments == segment
        alone = np.full(LENGTH, -1)
        alone[LENGTH - where.sum() :] = items[where]
        times = {name: np.pad(array[where], (LENGTH - where.sum(), 0)) for name, array in given.items()}
        expected = forward(model, alone, **times)[LENGTH - where.sum() :]
        np.testing.assert_allclose(packed[where], expected, rtol=1e-4, atol=1e-5)


@each_model
def test_every_parameter_has_a_gradient(name):
    model, more = made(name)
    model = stirred(model)
    mix = jnp.asarray(RNG.normal(size=(*ITEMS.shape, 8)), jnp.float32)  # of what is normalized no plain sum changes

    def scalar(m):
        bias = m.item_bias()
        return jnp.sum(m(ITEMS, **more) * mix) + (0 if bias is None else jnp.sum(bias**2))

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(scalar))(model)):
        assert np.isfinite(np.asarray(leaf)).all(), path
        assert np.abs(np.asarray(leaf)).max() > 0, path


@pytest.mark.parametrize("name", [name for name in BUILT if name != "BERT4Rec"])
def test_the_future_is_not_seen(name):
    model, more = made(name)
    changed = ITEMS[1].copy()
    changed[3] = (changed[3] + 1) % N_ITEMS
    given = {name: array[1] for name, array in more.items()}
    one, other = (np.asarray(forward(model, items, **given)) for items in (ITEMS[1], changed))
    np.testing.assert_array_equal(one[:3], other[:3])
    assert (one[3:] != other[3:]).any(axis=1).all()


@each_model
def test_low_precision(name):
    exact, more = made(name)
    model, _ = made(name, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(jnp.float32)}
    found, expected = np.asarray(forward(model, ITEMS, **more), np.float32), np.asarray(forward(exact, ITEMS, **more))
    assert np.abs(found - expected)[ITEMS >= 0].max() < 0.1 * (1 + np.abs(expected).max())


@each_model
def test_maps_are_what_places_attend_to(name):
    model, more = made(name)
    maps = jax.jit(models.attention_maps)(model, ITEMS, **more)
    heads = 2 if name in ("SASRec", "SASRec, rotary", "BERT4Rec", "HSTU") else 1
    assert maps.shape == (3 if "shared" in name else 2, 4, heads, LENGTH, LENGTH)
    real = ITEMS >= 0
    assert (np.asarray(maps)[..., ~real[0], :][:, 0] == 0).all()
    if name.startswith("HSTU"):
        return
    rows = np.asarray(maps).sum(axis=-1)
    np.testing.assert_allclose(rows[:, 1], 1, rtol=1e-5)
    flow = models.attention_rollout(maps)
    assert flow.shape == (4, LENGTH, LENGTH)
    np.testing.assert_allclose(flow[1].sum(axis=-1), 1, rtol=1e-5)
    if name != "BERT4Rec":
        assert (np.triu(np.asarray(flow[1]), 1) == 0).all()


def test_dropout_is_by_key_alone():
    model = models.SASRec(N_ITEMS, width=8, length=LENGTH, dropout=0.5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(forward(model, ITEMS), forward(model, ITEMS))
    one, other = (forward(model, ITEMS, key=jax.random.key(seed)) for seed in (0, 1))
    assert (one != other).any()


def test_rotary_positions_count_distances():
    q, k = (jnp.asarray(RNG.normal(size=(1, 1, 8)), jnp.float32) for _ in range(2))

    def product(i, j):
        return float(jnp.sum(rotated(q, jnp.array([i], jnp.int32)) * rotated(k, jnp.array([j], jnp.int32))))

    assert product(3, 1) == pytest.approx(product(103, 101), abs=1e-4)
    assert product(3, 1) != pytest.approx(product(4, 1), abs=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda r: models.SASRec(5, width=6, heads=4, rngs=r), "width=6 must be divisible by heads=4"),
        (lambda r: models.SASRec(5, width=6, heads=2, positions="rotary", rngs=r), "turn pairs of numbers"),
        (lambda r: models.SASRec(5, blocks=0, rngs=r), "blocks=0 must be at least 1"),
        (lambda r: models.SASRec(5, dropout=1.0, rngs=r), r"dropout=1.0 must be in \[0, 1\)"),
        (lambda r: models.SASRec(5, norm="both", rngs=r), "norm='both' must be one of"),
        (lambda r: models.SASRec(5, positions="none", rngs=r), "positions='none' must be one of"),
        (lambda r: models.HSTU(5, width=5, heads=2, rngs=r), "or inner given"),
        (lambda r: models.HSTU(5, length=0, rngs=r), "length=0 must be at least 1"),
        (lambda r: models.HSTU(5, dropout=-0.1, rngs=r), "dropout=-0.1 must be in"),
        (lambda r: models.HSTU(5, inner=0, rngs=r), "inner=0 must be at least 1"),
        (lambda r: models.SASRec(3.5, rngs=r), r"sizes=\[3.5\] must be whole numbers"),
        (
            lambda r: models.SASRec(5, length=3, rngs=r)(jnp.zeros(4, jnp.int32)),
            "longer than the 3 positions",
        ),
        (lambda r: models.HSTU(5, times=True, rngs=r)(jnp.zeros(4, jnp.int32)), "was made to read times"),
        (lambda r: models.HSTU(5, rngs=r)(jnp.zeros(4, jnp.int32), times=jnp.zeros(4, jnp.int32)), "read no times"),
    ],
)
def test_models_that_cannot_be(build, message):
    with pytest.raises(ValueError, match=message):
        build(nnx.Rngs(0))


def test_attention_by_an_implementation_of_its_own():
    own = {"attention_implementation": "interpret"}
    for name in ("SASRec", "BERT4Rec"):
        np.testing.assert_allclose(
            forward(made(name, **own)[0], ITEMS), forward(made(name)[0], ITEMS), rtol=1e-4, atol=1e-4
        )
    with pytest.raises(NotImplementedError, match="biases of distance and time are not looked up"):
        made("HSTU", **own)[0](ITEMS)


def test_foreign_places_and_times():
    model = made("SASRec")[0]
    with pytest.raises(InteractionError, match=rf"positions: id 9 at \[2\] is outside \[0, {LENGTH}\)"):
        model(ITEMS[1, :3], positions=np.array([0, 1, 9]))
    with pytest.raises(InteractionError, match="segments are float32"):
        model(ITEMS[1, :3], segments=np.zeros(3, np.float32))
    with pytest.raises(InteractionError, match="times are float32 and must be int32"):
        made("HSTU with times")[0](ITEMS, times=TIMES.astype(np.float32))


def test_foreign_items():
    with pytest.raises(InteractionError, match=r"id 11 at \[1\] is outside \[0, 11\)"):
        made("SASRec")[0](np.array([0, N_ITEMS]))


def test_a_mesh_shares_batches_and_tables():
    """A step on eight devices is the step on one."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model = models.SASRec(64, width=8, length=LENGTH, dropout=0.0, implementation="reference", rngs=nnx.Rngs(0))
    items = jnp.asarray(RNG.integers(0, 64, (8, LENGTH + 1)), jnp.int32)
    optimizer = optax.sgd(0.1, momentum=0.9)

    def loss(model, batch, key):
        hidden = model(batch[:, :-1]).reshape(-1, 8)
        weights = jnp.full(hidden.shape[0], 1 / hidden.shape[0])
        table, labels = model.item_table(), batch[:, 1:].reshape(-1)
        return cross_entropy(hidden, table, labels, weights, implementation="reference")

    step, state = gradient_step(loss, optimizer), start_training(model, optimizer)
    alone, _ = jax.jit(step)(jax.random.key(0), state, items)
    places = models.shardings(state, mesh)
    state = jax.device_put(state, places)
    batch = jax.device_put(items, NamedSharding(mesh, PartitionSpec("data")))
    shared, _ = jax.jit(step, out_shardings=(places, None))(jax.random.key(0), state, batch)
    table = shared.parameters.items.embedding.table[...]
    assert table.sharding.spec == PartitionSpec("model", None)
    assert len(table.addressable_shards) == 8
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
