"""Sequential networks: their formulas in float64, places that see what they may, and as recommenders."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from affinax import Recommender, models
from affinax.engine.data import InteractionError, Interactions, Sequences
from affinax.engine.errors import CheckpointError
from affinax.engine.evaluation import evaluate
from affinax.engine.factorization import fit
from affinax.engine.retrieval import fold_in, recommend, similar_items, with_history
from affinax.engine.training import gradient_step
from affinax.engine.training.gradient_descent import start_training
from affinax.kernels.cross_entropy import cross_entropy
from affinax.kernels.csr import CSR
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


# As recommenders

QUICK = {"width": 16, "length": 10, "batch_size": 4, "learning_rate": 0.01, "dropout": 0.0}
ALGORITHMS = {  # each once, so that its step compiles once
    "SASRec": models.sequence_retriever(models.SASRec, **QUICK),
    "SASRec, bce": models.sequence_retriever(models.SASRec, loss="bce", negatives=16, negatives_for="place", **QUICK),
    "SASRec, gbce": models.sequence_retriever(models.SASRec, loss="gbce", negatives=16, **QUICK),
    "SASRec, padded": models.sequence_retriever(models.SASRec, layout="padded", windows="all", **QUICK),
    "BERT4Rec": models.sequence_retriever(
        models.BERT4Rec, norm="pre", mask_share=0.4, **(QUICK | {"learning_rate": 0.003})
    ),
    "HSTU": models.sequence_retriever(
        models.HSTU, loss="sampled_softmax", negatives=16, popularity=0.5, temperature=0.1, times=True, **QUICK
    ),
}
each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)


def cycles(n_users=200, n_items=23):
    """Everybody goes on by steps of one or of two through the items, which the last two tell."""
    rng = np.random.default_rng(4)
    lengths, steps, starts = (
        rng.integers(4, 16, n_users),
        rng.integers(1, 3, n_users),
        rng.integers(0, n_items, n_users),
    )
    users = np.repeat(np.arange(n_users), lengths)
    places = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    items = (starts[users] + steps[users] * places) % n_items
    return Sequences.from_events(users, items, 60 * places, n_users=n_users, n_items=n_items)


def test_negatives_of_a_row_alone_are_those_of_its_batch():
    options = QUICK | {"loss": "gbce", "negatives": 5, "batch_size": 1}
    losses = []
    for each in ("row", "batch"):
        algorithm = models.sequence_retriever(models.SASRec, negatives_for=each, **options)
        losses.append(fit(algorithm, cycles(), key=jax.random.key(0), steps=5)[1].loss)
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize(("loss", "weight"), [("bce", 1.0), ("gbce", 0.625)])
def test_logits_begin_at_the_odds_of_chance(loss, weight):
    """11 of 23 items are drawn, half of the 22 others, so that a calibration of 3/4 weighs 1/2 (3/4 (1 - 2) + 2)."""
    algorithm = models.sequence_retriever(models.SASRec, loss=loss, negatives=11, **QUICK)
    _, history = fit(algorithm, cycles(), key=jax.random.key(0), steps=1)
    odds = weight / 11
    expected = (weight * np.log1p(1 / odds) + 11 * np.log1p(odds)) / 12
    assert history.loss[0] == pytest.approx(expected, rel=0.1)


@each_algorithm
def test_what_comes_next_is_learned(name):
    train, test = cycles().leave_last()
    model, history = fit(ALGORITHMS[name], train, key=jax.random.key(0), epochs=60 if name == "BERT4Rec" else 20)
    assert history.loss[-1] < history.loss[0]
    found = evaluate(model, test, train=train.interactions(), k=2)
    assert found.means["hit_rate_at_2"] > 0.8
    # Its own histories, given as those of newcomers.
    ids, scores = recommend(model, [0, 1, 2], k=3)
    others, same = recommend(model, [0, 1, 2], k=3, history=train)
    np.testing.assert_array_equal(ids, others)
    np.testing.assert_allclose(scores, same, rtol=1e-5)
    traced, _ = jax.jit(recommend, static_argnames="k")(model, jnp.arange(3), k=3)
    np.testing.assert_array_equal(ids, traced)
    near, _ = similar_items(model, [0], k=3)
    assert near.shape == (1, 3)


def test_newcomers_are_read_in_order():
    x = cycles()
    model, _ = fit(ALGORITHMS["SASRec"], x, key=jax.random.key(0), epochs=60)
    met = np.arange(2, 8)
    forth = Interactions.from_coo(0 * met, met, timestamps=met, n_items=23)
    back = Interactions.from_coo(0 * met, met, timestamps=-met, n_items=23)
    assert int(recommend(model, [0], k=1, history=forth)[0][0, 0]) == 8
    assert int(recommend(model, [0], k=1, history=back)[0][0, 0]) in (3, 4)  # by one or two from the last, 2
    with pytest.raises(InteractionError, match="need timestamps"):
        with_history(model, Interactions.from_coo([0], [3], n_items=23))
    with pytest.raises(InteractionError, match=r"item 40 is outside \[0, 23\)"):
        with_history(model, Sequences.from_events([0], [40]))
    vector = fold_in(model, forth)
    assert int(jnp.argmax(model.item_table() @ vector[0])) == 8
    with pytest.raises(ValueError, match="SASRec folds in users only"):
        fold_in(model, forth, side="items")
    with pytest.raises(ValueError, match="SASRec folds in by one implementation"):
        fold_in(model, forth, implementation="numba")
    empty = Sequences.from_events([1], [3], n_users=2, n_items=23)
    assert np.isfinite(recommend(model, [0], k=3, history=empty)[1]).all()


def repeating():
    """After an item four times comes 6, after it once 7."""
    events = [np.array([a] * 4 + [5, 6] if again else [a, 5, 7]) for a in range(5) for again in (0, 1)] * 20
    users = np.repeat(np.arange(len(events)), [len(own) for own in events])
    return Sequences.from_events(users, np.concatenate(events), n_items=8)


def test_repetitions_of_a_newcomer_count():
    quick = {"width": 16, "length": 8, "epochs": 40, "batch_size": 8, "learning_rate": 0.01, "dropout": 0.0}
    recommender = Recommender("sasrec", **quick).fit(repeating())
    for history, after in (([0, 0, 0, 0, 5], 6), ([0, 5], 7)):
        x = Sequences.from_events([0] * len(history), history, n_items=8)
        assert int(recommend(recommender.model, [0], k=1, history=x)[0][0, 0]) == after
        assert recommender.recommend(history=history, k=1, exclude_seen=False)["item"].to_list() == [after]
        np.testing.assert_array_equal(recommender.fold_in(history), fold_in(recommender.model, x)[0])


def test_a_newcomer_has_times_where_they_are_read():
    quick = {"width": 8, "length": 8, "epochs": 1, "times": True}
    recommender = Recommender("hstu", **quick).fit(cycles())
    with pytest.raises(InteractionError, match="this hstu reads times: give times="):
        recommender.recommend(history=[3, 4])
    x = Sequences.from_events([0, 0], [3, 4], [5, 86_405], n_items=23)
    expected = recommend(recommender.model, [0], k=5, history=x, seen=x)[0][0]
    assert recommender.recommend(history=[3, 4], times=[5, 86_405], k=5)["item"].to_list() == expected.tolist()
    assert recommender.recommend(history=[4, 3], times=[86_405, 5], k=5)["item"].to_list() == expected.tolist()
    days = np.array(["2026-01-01T00:00:05", "2026-01-02T00:00:05"], "datetime64[s]")
    assert recommender.recommend(history=[3, 4], times=days, k=5)["item"].to_list() == expected.tolist()
    with pytest.raises(InteractionError, match="columns must have one length"):
        recommender.recommend(history=[3, 4], times=[5])
    with pytest.raises(ValueError, match="times are those of a history"):
        recommender.recommend(0, times=[5])


def test_rows_that_are_no_histories():
    model, _ = fit(ALGORITHMS["SASRec"], cycles(), key=jax.random.key(0), steps=1)
    for indptr, items, message in (
        ([0, 2], [-7, 3], r"item -7 is outside \[0, 23\)"),
        ([0, 5], [2, 3], "indptr must ascend from 0 to 2"),
        ([0, 2, 1], [2, 3], "indptr must ascend from 0 to 2"),
    ):
        rows = CSR(jnp.array(indptr, jnp.int32), jnp.array(items, jnp.int32), jnp.ones(1))
        with pytest.raises(InteractionError, match=message):
            fold_in(model, rows)


@pytest.mark.parametrize("name", ["SASRec", "HSTU"])
def test_training_goes_on_with_other_users(name):
    """A state answers by the histories of the data that it is trained on."""
    x = cycles()
    model, _ = fit(ALGORITHMS[name], x, key=jax.random.key(0), steps=1)
    more = Sequences.from_events([0, 0, 0, 1, 1], [5, 6, 7, 3, 4], [1, 2, 3, 1, 2], n_users=2, n_items=23)
    more_settings = {"times": True, "temperature": 0.1} if name == "HSTU" else {}
    small = models.sequence_retriever(getattr(models, name), **(QUICK | {"batch_size": 1} | more_settings))
    again, _ = fit(small, more, key=jax.random.key(0), steps=1, state=model)
    assert again.n_users == 2
    np.testing.assert_array_equal(again.history.indices, more.items)
    fewer = Sequences.from_events([0, 0, 0], [1, 2, 1], [1, 2, 3])
    with pytest.raises(InteractionError, match="the state has 23 items and the data 3"):
        fit(small, fewer, key=jax.random.key(0), steps=1, state=model)


def test_a_run_of_other_settings_or_data_is_refused(tmp_path):
    def go(x=None, steps=2, **options):
        algorithm = models.sequence_retriever(models.SASRec, **(QUICK | options))
        x = cycles() if x is None else x
        return fit(algorithm, x, key=jax.random.key(0), steps=steps, checkpoint=tmp_path / "run")[1].loss

    first = go()
    np.testing.assert_array_equal(go(heads=1, steps=3)[:2], first)  # which is the default
    for options, message in (
        ({"loss": "gbce", "negatives": 4}, "loss=softmax; this one has loss=gbce"),
        ({"temperature": 2.0}, "temperature=1.0; this one has temperature=2.0"),
        ({"learning_rate": 0.1}, "learning_rate=0.01; this one has learning_rate=0.1"),
        ({"dropout": 0.5}, "dropout=0.0; this one has dropout=0.5"),
        ({"norm": "post"}, "is of another model"),
        ({"layout": "padded"}, "examples=.*; this one has"),
        ({"x": replace(cycles(), items=cycles().items[::-1].copy())}, "data=.*; this one has data="),
    ):
        with pytest.raises(CheckpointError, match=message):
            go(steps=4, **options)


def test_sequences_are_left_out_of_answers():
    known, test = cycles().leave_last()
    model, _ = fit(ALGORITHMS["SASRec"], known, key=jax.random.key(0), steps=1)
    found = evaluate(model, test, train=known)
    assert found.means == evaluate(model, test, train=known.interactions()).means


def test_a_trained_network_is_saved_without_its_optimizer(tmp_path):
    settings = {"width": 8, "length": 6, "dtype": jnp.bfloat16}
    recommender = Recommender("sasrec", width=8, length=6, epochs=1).fit(cycles())
    model, _ = fit(models.sequence_retriever(models.SASRec, **settings), cycles(), key=jax.random.key(0), steps=2)
    other = recommender.with_model(model)
    other.save(tmp_path / "model")
    loaded = Recommender.load(tmp_path / "model")
    assert loaded.recommend([3, 4], k=5).equals(other.recommend([3, 4], k=5))


def test_networks_that_read_times_need_them():
    model, _ = fit(ALGORITHMS["HSTU"], cycles(), key=jax.random.key(0), steps=1)
    bare = Sequences.from_events([0, 0], [3, 4], n_items=23)
    with pytest.raises(InteractionError, match="no timestamps"):
        with_history(model, bare)
    with pytest.raises(InteractionError, match="which this model reads: give Sequences"):
        with_history(model, Interactions.from_coo([0], [3], n_items=23).to_device())
    with pytest.raises(InteractionError, match="no timestamps"):
        fit(ALGORITHMS["HSTU"], bare, key=jax.random.key(0), steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "loss='hinge' must be one of"),
        ({"loss": "bce", "negatives": 0}, "needs negatives=0 of at least 1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"l2": -1.0}, "l2=-1.0 must be at least 0"),
        ({"layout": "ragged"}, "layout='ragged' must be one of"),
        ({"temperature": float("inf")}, "temperature=inf must be above 0, and finite"),
        ({"popularity": float("nan")}, "popularity=nan must be at least 0"),
        ({"calibration": 2.0}, r"calibration=2.0 must be in \[0, 1\]"),
        ({"negatives": 1.5}, "negatives=1.5 must be a whole number"),
        ({"optimizer": "adam"}, "must be an optax.GradientTransformation"),
        ({"dtype": "foo"}, "dtype='foo' is no dtype"),
        ({"n_items": 5}, "n_items is no setting"),
        ({"heads": 3}, "must be divisible by heads=3"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        models.sequence_retriever(models.SASRec, **options)


def test_classes_that_are_no_networks_on_sequences():
    class Mine(models.SASRec):
        pass

    with pytest.raises(ValueError, match=r"Mine is none of affinax\.models, by whose names models are saved"):
        models.sequence_retriever(Mine)
    with pytest.raises(ValueError, match="must be a network on sequences"):
        models.sequence_retriever(models.MLP)
