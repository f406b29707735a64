"""Networks on published protocols: NeuMF beside plain factors by the same loop, and two towers on gowalla."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from affinax import models
from affinax.datasets import movielens
from affinax.engine.data import Interactions, split_leave_last, split_random
from affinax.engine.evaluation import evaluate, evaluate_sampled
from affinax.engine.factorization import Algorithm, Factors, fit
from affinax.engine.training import Embedded, Rows, gradient, losses, pair_batches

from .bench_accuracy import first_of_equal_times, gowalla, logistic_mf_by_stages
from .record import RUNS, record

KEY = jax.random.key(0)
NCF = "ML-1M, NCF protocol"
# Chosen on the validation part of `test_choose_ncf`, but not by a grid: the factors after one run of 64 and one of 192,
# NeuMF at a width of 64, whose settings were taken over to 192.
MF: dict[str, Any] = {
    "width": 192,
    "history": False,
    "normalize": False,
    "temperature": 1.0,
    "batch_size": 2048,
    "learning_rate": 2e-3,
    "init_std": 0.07,
    "l2": 5e-3,
    "item_bias": False,
}
MF_EPOCHS = 6
NEUMF: dict[str, Any] = {
    "width": 192,
    "hidden": (64, 32, 16),
    "batch_size": 2048,
    "negatives": 4,
    "learning_rate": 2e-4,
}
NEUMF_EPOCHS = 5
# Without factors to begin with: on the validation part .429 after 13 epochs, where it hardly rose any more.
NEUMF_ALONE: dict[str, Any] = NEUMF | {"width": 32, "learning_rate": 1e-3}
NEUMF_ALONE_EPOCHS = 13
# Chosen by hand among widths of 127, 255 and 511, l2 of .03 to .3 and rates of .002 and .01, on the validation part of
# `test_choose_towers`, as are the epochs: recall is .205, .211, .213, .214, .212 there after 8, 12, … 24 of them.
TOWERS_GOWALLA: dict[str, Any] = {"width": 511, "l2": 0.22, "learning_rate": 1e-2, "batch_size": 1024}
EPOCHS_GOWALLA = 20


def ncf_parts() -> tuple[Interactions, Interactions]:
    return split_leave_last(first_of_equal_times(movielens("1m")))


def waiting(history: Any) -> dict[str, float]:
    seconds = float(history.seconds.sum())
    return {"seconds": seconds, "share of time waiting for data": history.waited / (seconds + history.waited)}


def begun_with(factors: Any, algorithm: Algorithm, train: Interactions) -> Any:
    """NeuMF whose products are those of trained factors, as its authors begin it; its layers are as drawn."""
    model, width = algorithm.init(KEY, train), NEUMF["width"]
    vectors = jnp.concatenate([factors.queries(jnp.arange(train.n_users)), factors.item_table()])
    table, end = model.network.embedding.table, model.network.end.layers[0].kernel
    table[...] = table[...].at[: len(vectors), :width].set(vectors)
    end[...] = end[...].at[:width].set(1.0)
    return model


def by_one_loop(train: Interactions, test: Interactions, **options: Any) -> dict[str, Any]:
    """Plain factors by the softmax over a batch, then NeuMF that begins with them, by clicks and negatives."""
    scores: list[dict[str, float]] = []

    def validate(model: Any) -> float:
        scores.append(evaluate_sampled(model, test, train=train).means)
        print(scores[-1], flush=True)
        return scores[-1]["ndcg_at_10_of_99_sampled"]

    options = {"validate": validate} | options if options else {}
    factors, history = fit(models.tower_retriever(**MF), train, key=KEY, epochs=MF_EPOCHS, **options)
    found = {"MF": evaluate_sampled(factors, test, train=train).means | waiting(history)}
    ranker = models.pair_ranker(models.NeuMF, **NEUMF)
    start = begun_with(factors, ranker, train)
    network, history = fit(ranker, train, key=KEY, epochs=NEUMF_EPOCHS, state=start, **options)
    found["NeuMF"] = evaluate_sampled(network, test, train=train).means | waiting(history)
    return found | ({"each epoch": scores} if scores else {})


def test_neumf_and_factors_in_the_ncf_protocol():
    published = {"NeuMF": [0.7093, 0.4349], "MF": [0.7294, 0.4523]}
    settings = {"MF": MF | {"epochs": MF_EPOCHS}, "NeuMF": NEUMF | {"epochs": NEUMF_EPOCHS}}
    train, test = ncf_parts()
    found = by_one_loop(train, test) | {"MF as published": logistic_mf_by_stages(train, test)[0]}
    record("networks", {NCF: found | {"settings": settings, "published": published}})


def test_neumf_alone_in_the_ncf_protocol():
    train, test = ncf_parts()
    network, history = fit(models.pair_ranker(models.NeuMF, **NEUMF_ALONE), train, key=KEY, epochs=NEUMF_ALONE_EPOCHS)
    found = evaluate_sampled(network, test, train=train).means | waiting(history)
    record("networks", {f"{NCF}, NeuMF alone": found | {"settings": NEUMF_ALONE | {"epochs": NEUMF_ALONE_EPOCHS}}})


def test_choose_ncf():
    """What to find is the last item of each user in the training part, after each epoch."""
    found = by_one_loop(*split_leave_last(ncf_parts()[0]), patience=2)
    record("networks", {f"{NCF}, choice on a validation part": found})


def log_shares(train: Interactions) -> Any:
    """By how much more often an item is in a batch."""
    return jnp.log(np.maximum(np.bincount(train.items, minlength=train.n_items), 1).astype(np.float32) / train.nnz)


def loss_of_towers(users: Any, items: Any, bias: Any, ids: Any, log_q: Any) -> Any:
    """Softmax over a batch: a bias is a part of the logits as the correction is."""
    squares = jnp.sum(users**2) + jnp.sum(items**2)
    penalty = 0.5 * TOWERS_GOWALLA["l2"] * squares / len(ids)
    return losses.in_batch_softmax(users, items, item_ids=ids, log_q=log_q[ids] - bias) + penalty


def towers_on_gowalla(train: Interactions) -> Algorithm:
    """What `tower_retriever` trains, but row by row: softmax over a batch with log q, with which the biases begin.

    A batch meets 2,048 of the 70,839 rows, which alone are moved: Adam on whole tables would take most of a step.
    """
    width, batch_size = TOWERS_GOWALLA["width"], TOWERS_GOWALLA["batch_size"]
    log_q = log_shares(train)

    def ids(batch: Any) -> Any:
        return jnp.stack([batch["users"], batch["items"] + train.n_users], axis=1)

    def loss(p: Any, batch: Any, key: Any) -> Any:
        users, items, bias = p.table[:, 0, :width], p.table[:, 1, :width], p.table[:, 1, width]
        return loss_of_towers(users, items, bias, batch["items"], log_q)

    def start(key: Any) -> Embedded:
        vectors = 0.1 * jax.random.normal(key, (train.n_users + train.n_items, width))
        bias = jnp.concatenate([jnp.zeros(train.n_users), log_q - jnp.mean(log_q)])
        return Embedded(jnp.concatenate([vectors, bias[:, None]], axis=1), ())

    rows = Rows(ids, "adam", TOWERS_GOWALLA["learning_rate"])
    return gradient(loss, optax.identity(), pair_batches(batch_size), init=start, rows=rows, name="two towers")


def as_towers(table: Any, train: Interactions) -> Any:
    """The model that answers: towers of these vectors, of users and then of items, and of their biases."""
    users, items = jnp.split(table, [train.n_users])
    factors = Factors(users[:, :-1], items[:, :-1])
    model = models.tower_retriever(width=factors.users.shape[1], factors=factors).init(KEY, train)
    bias = model.network.bias.table
    bias[...] = bias[...].at[: train.n_items].set(items[:, -1:])
    return model


def trained_towers(train: Interactions) -> tuple[Any, Any]:
    """State and history; taken up where `.runs/` has it."""
    kept = {
        "checkpoint": RUNS / f"two-towers-on-{train.nnz}-of-gowalla",
        "checkpoint_every": 4 * train.nnz // TOWERS_GOWALLA["batch_size"],
    }
    return fit(towers_on_gowalla(train), train, key=KEY, epochs=EPOCHS_GOWALLA, **kept)


def test_two_towers_on_gowalla():
    train, test = gowalla()
    state, history = trained_towers(train)
    found = evaluate(as_towers(state.parameters.table, train), test, train=train, k=20, names=("recall", "ndcg")).means
    found |= waiting(history) | {"settings": TOWERS_GOWALLA | {"epochs": EPOCHS_GOWALLA}}
    published = {"LightGCN": [0.1824, 0.1547], "SimpleX": [0.1872, 0.1557]}
    record("networks", {"gowalla, Recall@20 / NDCG@20, two towers": found | published})


def test_choose_towers():
    train, valid = split_random(gowalla()[0], 0.1, seed=1)
    scores: list[dict[str, float]] = []

    def validate(state: Any) -> float:
        towers = as_towers(state.parameters.table, train)
        scores.append(evaluate(towers, valid, train=train, k=20, names=("recall", "ndcg")).means)
        print(scores[-1], flush=True)
        return scores[-1]["recall_at_20"]

    every = 4 * train.nnz // TOWERS_GOWALLA["batch_size"]
    fit(towers_on_gowalla(train), train, key=KEY, epochs=40, validate=validate, validate_every=every, patience=2)
    found = {"each four epochs": scores, "settings": TOWERS_GOWALLA}
    record("networks", {"gowalla, two towers, choice on a validation part": found})


def test_input_is_ahead_of_the_device():
    """Whether the numbers above are those of training alone: the share of waiting on a small and quick model."""
    train, _ = ncf_parts()
    machine = models.pair_ranker(models.FactorizationMachine, width=8, batch_size=4096, negatives=1)
    _, history = fit(machine, train, key=KEY, epochs=10)
    speed = 4096 * len(history.seconds) / float(history.seconds.sum() + history.waited)
    record("networks", {"input of a small model, pairs a second": waiting(history) | {"pairs_per_second": speed}})
    assert np.isfinite(history.loss).all()
