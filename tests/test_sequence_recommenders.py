"""Sequential networks as recommenders: what is learned, newcomers, runs that go on, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax import Recommender, models
from affinax.engine.data import InteractionError, Interactions, Sequences
from affinax.engine.errors import CheckpointError
from affinax.engine.evaluation import evaluate
from affinax.engine.factorization import fit
from affinax.engine.retrieval import fold_in, recommend, similar_items, with_history
from affinax.kernels.csr import CSR

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
