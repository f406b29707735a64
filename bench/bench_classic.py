"""The classic network on ratings: clean, encode, 64-64-1, squared error; and what goes wrong with its ids."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from affinax import models
from affinax.datasets import movielens
from affinax.engine.data import Interactions, Vocabulary, split_random
from affinax.engine.evaluation import evaluate_ratings, rmse
from affinax.engine.factorization import fit
from affinax.engine.training import example_batches, gradient, losses

from .record import record

KEY = jax.random.key(0)
# Chosen on a validation part of the training part, by `test_choose_classic`.
SETTINGS: dict[str, Any] = {"width": 16, "hidden": (64, 64), "dropout": 0.5, "l2": 0.001, "learning_rate": 0.002}
EPOCHS = 10


def network(**settings: Any) -> Any:
    return models.pair_ranker(models.MLP, ratings=True, batch_size=512, **settings)


def parts() -> tuple[Interactions, Interactions]:
    return split_random(movielens("100k"), 0.2, seed=0)


def of_numbers(train: Interactions, test: Interactions) -> float:
    """RMSE of the same layers on the two ids as numbers, scaled to [0, 1]."""

    def examples(x: Interactions) -> dict[str, np.ndarray]:
        numbers = np.stack([x.users / x.n_users, x.items / x.n_items], axis=1).astype(np.float32)
        return {"numbers": numbers, "targets": x.values - train.values.mean()}

    def loss(m: Any, batch: Any, key: Any) -> Any:
        return losses.squared_error(m(None, batch["numbers"], key=key), batch["targets"])

    def init(key: Any) -> models.MLP:
        return models.MLP([], numbers=2, hidden=SETTINGS["hidden"], rngs=nnx.Rngs(params=key))

    descent = gradient(loss, optax.adam(SETTINGS["learning_rate"]), example_batches(512), init=init)
    state, _ = fit(descent, examples(train), key=KEY, epochs=EPOCHS, progress=False)
    predicted = state.parameters(None, jnp.asarray(examples(test)["numbers"])) + train.values.mean()
    return rmse(np.clip(predicted, 1, 5), test.values)


def encoded_apart(model: Any, test: Interactions) -> float:
    """RMSE on the same rows, once their users and items are numbered anew by those in the test part alone."""
    users, items = (Vocabulary(np.unique(ids)).indices(ids) for ids in (test.users, test.items))
    apart = Interactions.from_coo(users, items, test.values, n_users=test.n_users, n_items=test.n_items)
    return evaluate_ratings(model, apart, low=1, high=5)["rmse"]


def test_classic_network():
    """Beside what goes wrong with ids: a number says which film is nearer to which by its id, and an encoding of the
    test part alone calls everybody by somebody else's name."""
    train, test = parts()
    model, history = fit(network(**SETTINGS), train, key=KEY, epochs=EPOCHS, progress=False)
    mean = np.full(test.nnz, train.values.mean())
    found = {
        "embedded ids": evaluate_ratings(model, test, low=1, high=5) | {"seconds": float(history.seconds.sum())},
        "ids as numbers": {"rmse": of_numbers(train, test)},
        "ids encoded apart in train and test": {"rmse": encoded_apart(model, test)},
        "the mean for all": {"rmse": rmse(mean, test.values)},
        "share of time waiting for data": history.waited / float(history.seconds.sum()),
        "settings": SETTINGS | {"epochs": EPOCHS},
    }
    record("classic", {"ML-100K, random 80/20": found})


def test_choose_classic():
    train, valid = split_random(parts()[0], 0.1, seed=1)
    trials = []
    for dropout in (0.0, 0.3, 0.5):
        for l2 in (0.0, 0.001, 0.003, 0.01):
            settings = SETTINGS | {"dropout": dropout, "l2": l2}
            scores: list[float] = []

            def validate(model: Any, scores: list[float] = scores) -> float:
                scores.append(evaluate_ratings(model, valid, low=1, high=5)["rmse"])
                return -scores[-1]

            fit(network(**settings), train, key=KEY, epochs=30, validate=validate, patience=4, progress=False)
            best = int(np.argmin(scores))
            trials.append({"dropout": dropout, "l2": l2, "epochs": best + 1, "rmse": scores[best]})
            print(trials[-1], flush=True)
    trials.sort(key=lambda t: t["rmse"])
    record("classic", {"ML-100K, choice on a validation part": trials[:6]})
