"""Items that training did not meet, by their content."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import scipy.sparse

from affinax import models
from affinax.engine.compression import quantize_model
from affinax.engine.data import Interactions, Sequences, fit_features
from affinax.engine.errors import FeatureError, InteractionError
from affinax.engine.factorization import Factors, fit
from affinax.engine.neighbors import popularity
from affinax.engine.retrieval import recommend, with_content

RNG = np.random.default_rng(0)
N, KNOWN = 60, np.arange(60) % 10 != 3
CONTENT = RNG.normal(size=(N, 5)).astype(np.float32)
TRUTH = CONTENT @ RNG.normal(size=(5, 4)).astype(np.float32) + 1
USERS = jnp.asarray(RNG.normal(size=(7, 4)), jnp.float32)


def factors(biases=False):
    """Vectors that content explains, those of items that nobody met being 0."""
    items = jnp.asarray(np.where(KNOWN[:, None], TRUTH, 0), jnp.float32)
    if biases:
        return Factors(USERS, items[:, :3], jnp.zeros(7), items[:, 3], jnp.float32(2))
    return Factors(USERS, items)


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_array, scipy.sparse.coo_matrix, "features"])
@pytest.mark.parametrize("biases", [False, True])
def test_vectors_that_content_explains_are_found(form, biases):
    if form == "features":
        columns = {f"c{n}": "numeric" for n in range(5)}
        table = pl.DataFrame(dict(zip(columns, CONTENT.T, strict=True)))
        features = fit_features(table, columns).apply(table)
    else:
        features = form(CONTENT)
    model = factors(biases)
    found = with_content(model, features, KNOWN)
    items = found.items if not biases else jnp.concatenate([found.items, found.item_bias[:, None]], axis=1)
    np.testing.assert_allclose(items[~KNOWN], TRUTH[~KNOWN], atol=0.1)
    np.testing.assert_array_equal(found.items[KNOWN], model.items[KNOWN])
    np.testing.assert_array_equal(found.users, model.users)


def test_the_penalty_is_that_of_least_error_at_items_that_were_left_out():
    """Of content that says nothing the mean remains; of content that says all, nothing is lost."""
    noise = RNG.normal(size=(N, 40)).astype(np.float32)
    mean = TRUTH[KNOWN].mean(axis=0)
    spread = np.abs(np.asarray(with_content(factors(), noise, KNOWN).items)[~KNOWN] - mean).mean()
    wild = np.abs(np.asarray(with_content(factors(), noise, KNOWN, l2=1e-3).items)[~KNOWN] - mean).mean()
    assert spread < 0.5 * wild
    scaled = with_content(factors(), 1000 * CONTENT, KNOWN).items
    np.testing.assert_allclose(scaled, with_content(factors(), CONTENT, KNOWN).items, atol=1e-3)


@pytest.fixture(scope="module")
def events():
    """Everybody meets items of one half, in order, but for the last two items, which nobody meets."""
    users, places = np.repeat(np.arange(12), 8), np.tile(np.arange(8), 12)
    items = 2 * places + users % 2
    side = pl.DataFrame({"half": [str(i % 2) for i in range(18)]})
    x = Interactions.from_coo(users, items, timestamps=places.astype(np.int64), n_users=12, n_items=18)
    return replace(x, item_features=side)


HALVES = np.stack([np.arange(18) % 2 == 0, np.arange(18) % 2 == 1], axis=1).astype(np.float32)
SEQUENCE = {"width": 8, "length": 8, "dropout": 0.0, "learning_rate": 0.02}
BUILT = {
    "SASRec": lambda: models.sequence_retriever(models.SASRec, **SEQUENCE),
    "BERT4Rec": lambda: models.sequence_retriever(models.BERT4Rec, **SEQUENCE),
    "towers": lambda: models.tower_retriever(width=8, columns=["half"], batch_size=16, learning_rate=0.05),
}


@pytest.mark.parametrize("name", BUILT)
def test_networks(name, events):
    data = events if name == "towers" else Sequences.from_interactions(events)
    model = BUILT[name]().init(jax.random.key(0), data)
    before = np.asarray(model.item_table())
    found = with_content(model, HALVES, data, l2=1e-3)
    np.testing.assert_array_equal(model.item_table(), before)
    table = np.asarray(found.item_table())
    np.testing.assert_allclose(table[:16], before[:16], rtol=1e-5, atol=1e-6)
    means = [before[half:16:2].mean(axis=0) for half in (0, 1)]
    np.testing.assert_allclose(table[16:], means, atol=1e-3)
    np.testing.assert_allclose(found.queries(jnp.arange(3)), model.queries(jnp.arange(3)), rtol=1e-5, atol=1e-5)
    if name == "BERT4Rec":  # a mark is no item
        rows = [m.network.items.embedding.table[...][18:] for m in (model, found)]
        np.testing.assert_array_equal(*rows)


def test_new_items_are_recommended(events):
    model, _ = fit(BUILT["towers"](), events, key=jax.random.key(0), epochs=20, progress=False)
    found = with_content(model, HALVES, events)
    ids, _ = recommend(found, [0, 1], k=1, allow=np.arange(18) >= 16)
    assert np.asarray(ids).ravel().tolist() == [16, 17]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: with_content(factors(), CONTENT[:-1], KNOWN),
            FeatureError,
            r"shape \[59, 5\]; a row for each of the 60",
        ),
        (lambda: with_content(factors(), np.full((N, 2), np.nan), KNOWN), FeatureError, "is not a finite float32"),
        (lambda: with_content(factors(), CONTENT, KNOWN[:-1]), InteractionError, r"met is bool\[59\]: Interactions"),
        (lambda: with_content(factors(), CONTENT, np.ones(N)), InteractionError, r"met is float64\[60\]"),
        (lambda: with_content(factors(), CONTENT, np.arange(N) < 9), InteractionError, "9 items met are too few"),
        (
            lambda: with_content(factors(), CONTENT, Interactions.from_coo([0], [2], n_items=3)),
            InteractionError,
            "data of 3 items; the model has 60",
        ),
        (lambda: with_content(factors(), CONTENT, KNOWN, l2=-1.0), ValueError, "l2=-1.0 must be finite"),
        (
            lambda: with_content(quantize_model(factors()), CONTENT, KNOWN),
            ValueError,
            "quantized: give content first",
        ),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_models_whose_items_have_no_vectors_of_their_own(events):
    with pytest.raises(ValueError, match="Popularity has no vectors of items"):
        with_content(popularity(events), HALVES, events)
    sequences = Sequences.from_interactions(events)
    shared = models.sequence_retriever(models.SASRec, sharing=("hashed", 2), **SEQUENCE)
    fused = models.tower_retriever(width=8, content=["half"])
    for algorithm, data, message in [
        (shared, sequences, r"the table has sharing=\('hashed', 2\): its ids have no vectors of their own"),
        (fused, events, "the outcome of layers or content"),
    ]:
        model = algorithm.init(jax.random.key(0), data)
        with pytest.raises(ValueError, match=message):
            with_content(model, HALVES, data)
