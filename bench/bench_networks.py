"""Networks on published protocols: NeuMF beside plain factors by the same loop, and two towers on gowalla."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affinax import models
from affinax.datasets import movielens
from affinax.engine.data import Interactions, split_leave_last, split_random
from affinax.engine.evaluation import evaluate, evaluate_sampled
from affinax.engine.factorization import Algorithm, Factors, fit, implicit_als
from affinax.engine.training import Embedded, Rows, gradient, losses, pair_batches

from .bench_accuracy import first_of_equal_times, gowalla
from .record import record

KEY = jax.random.key(0)
NCF = "ML-1M, NCF protocol"
# Chosen on a validation part, by `test_choose_ncf`; each with its epochs.
NEUMF: dict[str, Any] = {
    "width": 64,
    "hidden": (64, 32, 16),
    "batch_size": 2048,
    "negatives": 4,
    "learning_rate": 5e-4,
    "l2": 1e-6,
    "dropout": 0.0,
}
NEUMF_EPOCHS = 20
MF: dict[str, Any] = {"rank": 192, "negatives": 8, "l2": 0.005, "rate": 0.02, "epochs": 40}
RANK_GOWALLA = 512
TOWERS: dict[str, Any] = {
    "width": RANK_GOWALLA,
    "history": False,
    "normalize": False,
    "temperature": 0.1,
    "batch_size": 1024,
    "learning_rate": 3e-4,
}
TOWERS_EPOCHS = 1


def plain_factors(x: Interactions, *, rank: int, negatives: int, l2: float, rate: float, **_: Any) -> Algorithm:
    """`user . item + bias`, by logistic loss: one table of users and items, of which a batch moves the rows it meets."""

    def ids(batch: Any) -> Any:
        items = jnp.concatenate([batch["items"][:, None], batch["negatives"]], axis=1)
        return jnp.concatenate([batch["users"][:, None], items + x.n_users], axis=1)

    def loss(p: Any, batch: Any, key: Any) -> Any:
        users, items = p.table[:, :1], p.table[:, 1:]
        logits = jnp.sum(users[..., :-1] * items[..., :-1], axis=-1) + items[..., -1]
        labels = jnp.zeros(logits.shape).at[:, 0].set(1.0)
        # A sum over the batch, as steps one by one would add it up.
        n = logits.size
        squares = jnp.sum(users**2) * logits.shape[1] + jnp.sum(items**2)
        return n * losses.binary_cross_entropy(logits, labels) + 0.5 * l2 * squares

    def init(key: Any) -> Embedded:
        table = 0.1 * jax.random.normal(key, (x.n_users + x.n_items, rank + 1))
        return Embedded(table.at[:, -1].set(0.0), jnp.zeros(()))

    batches = pair_batches(2048, negatives=negatives, verify=False)
    return gradient(loss, optax.sgd(0.0), batches, init=init, rows=Rows(ids, "adagrad", rate), name="MF")


def as_factors(state: Any, x: Interactions) -> Factors:
    users, items = jnp.split(state.parameters.table, [x.n_users])
    zero = jnp.zeros(())
    return Factors(users[:, :-1], items[:, :-1], jnp.zeros(x.n_users), items[:, -1], zero)


def ncf_parts() -> tuple[Interactions, Interactions]:
    return split_leave_last(first_of_equal_times(movielens("1m")))


def waiting(history: Any) -> dict[str, float]:
    seconds = float(history.seconds.sum())
    return {"seconds": seconds, "share of time waiting for data": history.waited / seconds}


def test_neumf_in_the_ncf_protocol():
    train, test = ncf_parts()
    network, history = fit(models.pair_ranker(models.NeuMF, **NEUMF), train, key=KEY, epochs=NEUMF_EPOCHS)
    found = evaluate_sampled(network, test, train=train).means | waiting(history)
    record("networks", {f"{NCF}, NeuMF": found | {"settings": NEUMF, "published": [0.7093, 0.4349]}})


def test_factors_in_the_ncf_protocol():
    train, test = ncf_parts()
    state, history = fit(plain_factors(train, **MF), train, key=KEY, epochs=MF["epochs"])
    found = evaluate_sampled(as_factors(state, train), test, train=train).means | waiting(history)
    record("networks", {f"{NCF}, MF by the same loop": found | {"settings": MF, "published": [0.7294, 0.4523]}})


@pytest.mark.parametrize("name", ["NeuMF", "MF"])
def test_choose_ncf(name):
    """What to find is the last item of each user in the training part; scored every other epoch."""
    train, valid = split_leave_last(ncf_parts()[0])
    trials: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = [{"rate": 0.02}, {"rate": 0.05}]
    if name == "NeuMF":
        changes = [{"width": 64, "l2": 1e-6}, {"width": 64, "l2": 1e-5}]
    for change in changes:
        scores: list[dict[str, float]] = []
        settings = (NEUMF if name == "NeuMF" else MF) | change
        every = 2 * (train.nnz // 2048)

        def validate(model: Any, scores: list[dict[str, float]] = scores) -> float:
            factors = model if name == "NeuMF" else as_factors(model, train)
            scores.append(evaluate_sampled(factors, valid, train=train).means)
            print(len(scores) * 2, scores[-1], flush=True)
            return scores[-1]["ndcg_at_10_of_99_sampled"]

        chosen = models.pair_ranker(models.NeuMF, **settings) if name == "NeuMF" else plain_factors(train, **settings)
        fit(chosen, train, key=KEY, epochs=40, validate=validate, validate_every=every, patience=3, progress=False)
        best = max(range(len(scores)), key=lambda k: scores[k]["ndcg_at_10_of_99_sampled"])
        trials.append(change | {"epochs": 2 * (best + 1)} | scores[best])
    record("networks", {f"{NCF}, {name}, choice on a validation part": trials})


def towers_from_factors(train: Interactions) -> Algorithm:
    """ALS by the settings of `bench_accuracy`, at a smaller rank, whose factors the towers begin with."""
    als = implicit_als(RANK_GOWALLA, l2=0.002, unobserved_weight=0.02, solver="cg")
    factors, _ = fit(als, train, key=KEY, steps=5)
    return models.tower_retriever(factors=factors, **TOWERS)


def test_two_towers_on_gowalla():
    train, test = gowalla()
    start = towers_from_factors(train)
    before = start.init(KEY, train)
    found = {"before training": evaluate(before, test, train=train, k=20, names=("recall", "ndcg")).means}
    model, history = fit(start, train, key=KEY, epochs=TOWERS_EPOCHS)
    found |= evaluate(model, test, train=train, k=20, names=("recall", "ndcg")).means | waiting(history)
    published = {"LightGCN": [0.1824, 0.1547], "SimpleX": [0.1872, 0.1557]}
    found |= {"settings": TOWERS | {"epochs": TOWERS_EPOCHS}, "published": published}
    record("networks", {"gowalla, Recall@20 / NDCG@20, two towers from the factors of ALS": found})


def test_choose_towers():
    train, valid = split_random(gowalla()[0], 0.1, seed=1)
    scores: list[dict[str, float]] = []

    def validate(model: Any) -> float:
        scores.append(evaluate(model, valid, train=train, k=20, names=("recall", "ndcg")).means)
        print(scores[-1], flush=True)
        return scores[-1]["recall_at_20"]

    every = train.nnz // TOWERS["batch_size"] // 2
    fit(towers_from_factors(train), train, key=KEY, epochs=2, validate=validate, validate_every=every, patience=2)
    record("networks", {"gowalla, two towers, choice on a validation part, each half epoch": scores})


def test_input_is_ahead_of_the_device():
    """Whether the numbers above are those of training alone: the share of waiting on a small and quick model."""
    train, _ = ncf_parts()
    machine = models.pair_ranker(models.FactorizationMachine, width=8, batch_size=4096, negatives=1)
    _, history = fit(machine, train, key=KEY, epochs=2)
    speed = 4096 * len(history.seconds) / float(history.seconds.sum() + history.waited)
    record("networks", {"input of a small model, pairs a second": waiting(history) | {"pairs_per_second": speed}})
    assert np.isfinite(history.loss).all()
