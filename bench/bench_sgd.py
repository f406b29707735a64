"""Stochastic gradient descent against Surprise (ratings) and `implicit` (BPR)."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import pytest

from affinax.datasets import movielens
from affinax.engine.data import Interactions
from affinax.engine.evaluation import evaluate_ratings
from affinax.engine.factorization import biased_mf, bpr, fit, svd_plus_plus

from .measure import take_turns
from .record import record

KEY = jax.random.key(0)
PUBLISHED = {"100k": [0.934, 0.737], "1m": [0.873, 0.686]}  # Surprise's own table, SVD
PUBLISHED_FEEDBACK = {"100k": [0.919, 0.721], "1m": [0.862, 0.672]}  # and SVD++
# Surprise's defaults, and its vectors' standard deviation of .1 for each number.
SVD = {"rank": 100, "learning_rate": 0.005, "l2": 0.02, "init_std": 1.0}


def of_surprise(x: Interactions):
    import pandas as pd
    from surprise import Dataset, Reader

    frame = pd.DataFrame({"user": x.users, "item": x.items, "rating": x.values})
    return Dataset.load_from_df(frame, Reader(rating_scale=(1, 5)))


@pytest.mark.parametrize("name", ["100k", "1m"])
def test_svd_against_surprise(benchmark, name):
    from surprise import SVD as Peer

    x = movielens(name)
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    ours, theirs = [], []
    for k in range(5):
        train, test = x.select(fold != k), x.select(fold == k)
        model, _ = fit(biased_mf(**SVD), train, key=KEY, steps=20, progress=False)
        ours.append(evaluate_ratings(model, test, low=1, high=5))
        peer = Peer(random_state=0).fit(of_surprise(train).build_full_trainset())
        predicted = [peer.predict(u, i).est for u, i in zip(test.users.tolist(), test.items.tolist(), strict=True)]
        theirs.append(float(np.sqrt(np.mean((np.array(predicted) - test.values) ** 2))))
    train = x.select(fold != 0)
    trainset, data = of_surprise(train).build_full_trainset(), train.to_device()

    def training(hogwild: bool):
        return lambda: fit(biased_mf(**SVD, hogwild=hogwild), data, key=KEY, steps=20, progress=False)

    seconds = take_turns(
        benchmark,
        {
            "affinax, s": training(hogwild=False),
            "affinax lock-free, s": training(hogwild=True),
            "Surprise, s": lambda: Peer(random_state=0).fit(trainset),
        },
    )
    found = {
        "affinax": {m: float(np.mean([s[m] for s in ours])) for m in ours[0]},
        "Surprise, RMSE": float(np.mean(theirs)),
        "published": PUBLISHED[name],
        "20 epochs of one fold, compilation of the step included": seconds,
        "Surprise over ours": seconds["Surprise, s"] / seconds["affinax, s"],
        "Surprise over ours lock-free": seconds["Surprise, s"] / seconds["affinax lock-free, s"],
    }
    record("sgd", {f"SVD, ML-{name.upper()}, random 5-fold": found})


@pytest.mark.parametrize("name", ["100k", "1m"])
def test_svd_by_our_defaults(name):
    """Among the best of `test_choose_svd` on a part of the first fold's training part."""
    x = movielens(name)
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    scores = []
    for k in range(5):
        model, _ = fit(biased_mf(100), x.select(fold != k), key=KEY, steps=20, progress=False)
        scores.append(evaluate_ratings(model, x.select(fold == k), low=1, high=5))
    means = {m: float(np.mean([s[m] for s in scores])) for m in scores[0]}
    record("sgd", {f"SVD by the defaults, ML-{name.upper()}, random 5-fold": means | {"published": PUBLISHED[name]}})


@pytest.mark.parametrize("name", ["100k", "1m"])
def test_choose_svd(name):
    """The defaults of `biased_mf` and of `svd_plus_plus`, which are the same for both sets of data."""
    x = movielens(name)
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    train, valid = x.select(fold != 0).split("random", test_fraction=0.1, seed=1)
    data, tried = train.to_device(), {"SVD": (biased_mf, 100, 0.005), "SVD++": (svd_plus_plus, 20, 0.007)}
    for kind, (build, rank, slower) in tried.items():
        trials = []
        for init_std in (0.1, 0.2, 0.3, 0.4, 1.0):
            for l2, learning_rate in ((0.02, slower), (0.05, 0.01)):
                settings = {"init_std": init_std, "l2": l2, "learning_rate": learning_rate}
                model, _ = fit(build(rank, **settings), data, key=KEY, steps=20, progress=False)
                trials.append(settings | evaluate_ratings(model, valid, low=1, high=5))
        trials.sort(key=lambda t: t["rmse"])
        record("sgd", {f"{kind}, ML-{name.upper()}, choice on a validation part": trials})


@pytest.mark.parametrize("name", ["100k", "1m"])
def test_svd_plus_plus_against_surprise(benchmark, name):
    """Five folds of ours; one epoch of Surprise's, which is all of its cost."""
    from surprise import SVDpp as Peer

    x = movielens(name)
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    scores = []
    for k in range(5):
        train, test = x.select(fold != k), x.select(fold == k)
        model, history = fit(svd_plus_plus(20), train, key=KEY, steps=20, progress=False)
        scores.append(evaluate_ratings(model, test, low=1, high=5))
    train = x.select(fold != 0)
    trainset, data = of_surprise(train).build_full_trainset(), train.to_device()
    calls = {
        "affinax, 20 epochs, s": lambda: fit(svd_plus_plus(20), data, key=KEY, steps=20, progress=False),
        "Surprise, one epoch, s": lambda: Peer(n_epochs=1, random_state=0).fit(trainset),
    }
    seconds = take_turns(benchmark, calls, rounds=5 if name == "100k" else 3)
    found = {
        "affinax": {m: float(np.mean([s[m] for s in scores])) for m in scores[0]},
        "published": PUBLISHED_FEEDBACK[name],
        **seconds,
        "affinax, an epoch, s": float(np.median(history.seconds[1:])),
        "20 epochs of Surprise over ours": 20 * seconds["Surprise, one epoch, s"] / seconds["affinax, 20 epochs, s"],
    }
    record("sgd", {f"SVD++, ML-{name.upper()}, random 5-fold, 20 factors": found})


def epochs_and_rmse(benchmark, algorithms: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """An epoch of ML-1M, and RMSE of a fifth after twenty."""
    train, test = movielens("1m").split("random", test_fraction=0.2)
    data, results = train.to_device(), {}

    def run(name: str) -> None:
        model, history = fit(algorithms[name], data, key=KEY, steps=20, progress=False)
        found = results.setdefault(name, {"epoch_s": []})
        found["epoch_s"].append(float(np.median(history.seconds[1:])))
        found["rmse"] = evaluate_ratings(model, test, low=1, high=5)["rmse"]

    take_turns(benchmark, {name: lambda name=name: run(name) for name in algorithms}, rounds=3, warm_up=False)
    for found in results.values():
        found["epoch_s"] = float(np.median(found["epoch_s"]))
    return results


def test_kernel_against_batches(benchmark):
    algorithms = {
        "kernel": biased_mf(64),
        "batches of 4,096, sgd": biased_mf(64, batch_size=4096),
        "batches of 4,096, adagrad": biased_mf(64, learning_rate=0.05, batch_size=4096, optimizer="adagrad"),
        "batches of 4,096, adam": biased_mf(64, learning_rate=0.005, batch_size=4096, optimizer="adam"),
    }
    found = epochs_and_rmse(benchmark, algorithms)
    record("sgd", {"biased MF, ML-1M, 64 factors, a random fifth for test": found})


def test_svd_plus_plus_against_users_side_by_side(benchmark):
    algorithms = {
        "kernel": svd_plus_plus(20),
        "64 users side by side": svd_plus_plus(20, batch_size=64),
        "512 users side by side": svd_plus_plus(20, learning_rate=0.002, batch_size=512),
    }
    found = epochs_and_rmse(benchmark, algorithms)
    record("sgd", {"SVD++, ML-1M, 20 factors, a random fifth for test": found})


def auc(score: np.ndarray, liked: np.ndarray) -> float:
    """Area under the ROC curve of one user."""
    rank = np.argsort(np.argsort(score))
    n = liked.sum()
    return float((rank[liked].sum() - n * (n - 1) / 2) / (n * (len(score) - n)))


def mean_auc(users: np.ndarray, items: np.ndarray, bias: np.ndarray, train: Interactions, test: Interactions) -> float:
    found = []
    for user in range(0, train.n_users, 5):
        if len(test.items_of(user)) and len(train.items_of(user)):
            unseen = np.ones(train.n_items, bool)
            unseen[train.items_of(user)] = False
            liked = np.zeros(train.n_items, bool)
            liked[test.items_of(user)] = True
            found.append(auc((items @ users[user] + bias)[unseen], liked[unseen]))
    return float(np.mean(found))


def test_bpr_against_implicit(benchmark):
    """Epochs of the same length, step and regularization; AUC of held-out pairs after thirty, and time to theirs."""
    from implicit.bpr import BayesianPersonalizedRanking

    train, test = movielens("1m").with_values(None).split("random", test_fraction=0.1)
    data, matrix, epochs = train.to_device(), train.to_scipy(), 30
    results = {}

    def peer():
        model = BayesianPersonalizedRanking(
            63, learning_rate=0.01, regularization=0.01, iterations=epochs, num_threads=2, use_gpu=False, random_state=0
        )
        began = time.perf_counter()
        model.fit(matrix, show_progress=False)
        return (time.perf_counter() - began) / epochs, model.user_factors, model.item_factors, np.zeros(train.n_items)

    def ours(hogwild: bool, goal: float = 2.0):
        """Until the AUC is reached, which none above 1 is."""

        def tables_of(state):
            return [np.asarray(a) for a in (state.users, state.items, state.item_bias)]

        def enough(_, state, __):
            return goal <= 1 and mean_auc(*tables_of(state), train, test) >= goal

        algorithm = bpr(63, learning_rate=0.01, l2=0.01, hogwild=hogwild)
        state, history = fit(algorithm, data, key=KEY, steps=epochs, progress=False, callback=enough)
        return history, *tables_of(state)

    def timed(hogwild: bool):
        history, *tables = ours(hogwild)
        return float(np.median(history.seconds[1:])), *tables

    runs = {"affinax": lambda: timed(False), "affinax lock-free": lambda: timed(True), "implicit": peer}

    def run(name: str) -> None:
        seconds, *tables = runs[name]()
        results.setdefault(name, {"epoch_s": []})["epoch_s"].append(seconds)
        results[name]["auc"] = mean_auc(*tables, train, test)

    take_turns(benchmark, {name: lambda name=name: run(name) for name in runs})
    for found in results.values():
        found["epoch_s"] = float(np.median(found["epoch_s"][1:]))  # the first warmed up
    for name, hogwild in (("affinax", False), ("affinax lock-free", True)):
        found, theirs = results[name], results["implicit"]
        found["implicit over ours"] = theirs["epoch_s"] / found["epoch_s"]
        n = len(ours(hogwild, theirs["auc"])[0].loss)
        found |= {"epochs to its auc": n, "implicit over ours, to its auc": epochs / n * found["implicit over ours"]}
    record("sgd", {"BPR, ML-1M, 63 factors, two threads": results})
