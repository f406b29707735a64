"""Published numbers, reproduced: first seed, settings decided before the run, no tuning on a test part."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from affinax.datasets import cache_folder, movielens
from affinax.engine.data import Interactions, split_leave_last, split_random
from affinax.engine.evaluation import evaluate, evaluate_ratings, evaluate_sampled
from affinax.engine.factorization import (
    bayesian_mf,
    biased_mf,
    bpr,
    explicit_als,
    fit,
    implicit_als,
    logistic_mf,
    softmax_mf,
    svd_plus_plus,
)
from affinax.engine.neighbors import knn_baseline, popularity
from affinax.engine.regression import ridge_recommender

from .bench_regression import canonical_fold
from .record import record

GOWALLA = Path(__file__).parents[2] / "shared" / "data" / "gowalla"
KEY = jax.random.key(0)


def first_of_equal_times(x: Interactions) -> Interactions:
    """ML-1M with times that differ: of a user's ratings at one time, the first in the published file is the latest.

    So it must be for the published figure of popularity to come out (.4535 / .2543): ties are common, and the last in
    the file, the higher and the lower item id give .458 / .253, .439 / .240 and .460 / .260.
    """
    text = (cache_folder() / "movielens-1m" / "ratings").read_bytes()
    users, items, _, times = np.array(text.replace(b"::", b" ").split(), np.int64).reshape(-1, 4).T
    place = np.empty(x.nnz, np.int64)
    place[np.lexsort((-np.arange(x.nnz), times))] = np.arange(x.nnz)
    return Interactions.from_coo(x.user_ids.indices(users), x.item_ids.indices(items), timestamps=place)


def test_ml1m_in_the_ncf_protocol():
    """Latest item out, 99 sampled negatives; the recipe of Rendle et al. 2020 for iALS."""
    train, test = split_leave_last(first_of_equal_times(movielens("1m")))
    als = implicit_als(192, l2=0.007, l2_exponent=1.0, unobserved_weight=0.3, init_std=0.1, solver="cholesky")
    model, history = fit(als, train, key=KEY, steps=12)
    found = {
        "iALS": evaluate_sampled(model, test, train=train).means,
        "popularity": evaluate_sampled(popularity(train), test, train=train).means,
        "published": {"iALS": [0.7111, 0.4383], "popularity": [0.4535, 0.2543]},
        "seconds": float(history.seconds.sum()),
    }
    record("accuracy", {"ML-1M, NCF protocol": found})


def logistic_mf_by_stages(train: Interactions, test: Interactions) -> tuple[dict[str, dict[str, float]], float]:
    """The recipe of Rendle et al. 2020, whose negatives are any items; then twelve epochs each at a quarter of the
    learning rate and at a quarter of that, in which the vectors come to rest. The metrics after each, and the seconds.
    """
    settings = {"l2": 0.005, "negatives": 8, "init_std": 0.1 * 192**0.5, "verify_negatives": False}
    algorithm, model, found, seconds = logistic_mf(192, learning_rate=0.002, **settings), None, {}, 0.0
    for stage, (rate, epochs) in enumerate(((0.002, 256), (0.0005, 12), (0.000125, 12))):
        if model is not None:
            model = model._replace(objective=model.objective._replace(learning_rate=jax.numpy.float32(rate)))
        key = jax.random.fold_in(KEY, stage) if stage else KEY
        model, history = fit(algorithm, train, key=key, steps=epochs, state=model)
        found[f"{epochs} epochs at {rate}"] = evaluate_sampled(model, test, train=train).means
        seconds += float(history.seconds.sum())
    return found, seconds


def test_logistic_mf_in_the_ncf_protocol():
    train, test = split_leave_last(first_of_equal_times(movielens("1m")))
    found, seconds = logistic_mf_by_stages(train, test)
    published = {"MF": [0.7294, 0.4523]}
    record("accuracy", {"ML-1M, NCF protocol, logistic MF": found | {"published": published, "seconds": seconds}})


def test_choose_logistic_mf():
    """What lower rates at the end bring, where the last item of each user in the training part is what to find."""
    train, _ = split_leave_last(first_of_equal_times(movielens("1m")))
    found, _ = logistic_mf_by_stages(*split_leave_last(train))
    record("accuracy", {"ML-1M, NCF protocol, logistic MF, stages on a validation part": found})


def test_ml100k_five_folds():
    """Random folds, as Surprise's table has them: RMSE and MAE of explicit ALS."""
    x = movielens("100k")
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    scores = []
    for k in range(5):
        train, test = x.select(fold != k), x.select(fold == k)
        model, _ = fit(explicit_als(RANK_100K, **SETTINGS_100K), train, key=KEY, steps=30, progress=False)
        scores.append(evaluate_ratings(model, test, low=1, high=5))
    means = {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}
    published = {"Surprise SVD": [0.934, 0.737], "Surprise SVD++": [0.919, 0.721], "Surprise k-NN": [0.931, 0.733]}
    record("accuracy", {"ML-100K, random 5-fold": {"explicit ALS": means, "published": published}})


# Chosen on a validation part of the first fold's training part, by `test_choose_ml100k`.
RANK_100K, SETTINGS_100K = 8, {"l2": 4.0, "l2_exponent": 0.25}


def test_choose_ml100k():
    x = movielens("100k")
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    train, valid = split_random(x.select(fold != 0), 0.1, seed=1)
    trials = []
    for rank in (8, 32):
        for exponent, l2s in ((1.0, (0.1, 0.13)), (0.0, (5.0, 8.0)), (0.5, (0.9, 1.3, 1.8)), (0.25, (3.0, 4.0))):
            for l2 in l2s:
                als = explicit_als(rank, l2=l2, l2_exponent=exponent, solver="cholesky")
                model, _ = fit(als, train, key=KEY, steps=30, progress=False)
                rmse = evaluate_ratings(model, valid, low=1, high=5)["rmse"]
                trials.append({"rank": rank, "l2": l2, "l2_exponent": exponent, "rmse": rmse})
    trials.sort(key=lambda t: t["rmse"])
    record("accuracy", {"ML-100K, choice on a validation part": trials[:5]})


# Rank, draws and the scale of the prior were chosen on u1's training part: see `test_choose_bayesian_mf`.
BAYESIAN, DRAWS = {"rank": 16, "samples": 100}, 200


def test_ml100k_u1():
    """The canonical first fold; the others' settings were chosen on random folds, which share rows with u1's test."""
    train, test = canonical_fold(1, movielens("100k"))
    algorithms = {
        "Bayesian MF": (bayesian_mf(**BAYESIAN), DRAWS),
        "explicit ALS": (explicit_als(RANK_100K, **SETTINGS_100K), 30),
        "biased MF": (biased_mf(100), 20),
        "SVD++": (svd_plus_plus(20), 20),
    }
    found = {}
    for name, (algorithm, steps) in algorithms.items():
        model, history = fit(algorithm, train, key=KEY, steps=steps, progress=False)
        seconds = float(history.seconds.sum())
        found[name] = evaluate_ratings(model, test, low=1, high=5) | {"seconds": seconds}
    found["k-NN baseline"] = evaluate_ratings(knn_baseline(train), test, low=1, high=5)
    found["ridge"] = evaluate_ratings(ridge_recommender(train, l2=4.0, crosses="features"), test, low=1, high=5)
    published = {"GC-MC with features": 0.905, "IGMC": 0.905, "GLocal-K": 0.890}
    record("accuracy", {"ML-100K, u1": found | {"published RMSE": published}})


@pytest.mark.parametrize("name", ["100k", "1m"])
def test_bayesian_mf_five_folds(name):
    x = movielens(name)
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    scores, seconds = [], []
    for k in range(5 if name == "100k" else 1):  # of ML-1M the first fold alone
        train, test = x.select(fold != k), x.select(fold == k)
        model, history = fit(bayesian_mf(**BAYESIAN), train, key=KEY, steps=DRAWS, progress=False)
        scores.append(evaluate_ratings(model, test, low=1, high=5))
        seconds.append(float(history.seconds.sum()))
    means = {metric: float(np.mean([s[metric] for s in scores])) for metric in scores[0]}
    found = {"Bayesian MF": means, "folds": len(scores), "seconds a fold": float(np.mean(seconds))}
    record("accuracy", {f"ML-{name.upper()}, random 5-fold, Bayesian MF": found})


def test_choose_bayesian_mf():
    """Trained on what is neither in u1's test part nor in u2's, which is the validation part."""
    fitted, valid = canonical_fold(2, canonical_fold(1, movielens("100k"))[0])
    trials = []
    for rank in (8, 16, 32):
        model, _ = fit(bayesian_mf(rank), fitted, key=KEY, steps=DRAWS, progress=False)
        trials.append({"rank": rank} | evaluate_ratings(model, valid, low=1, high=5))
    record("accuracy", {"ML-100K, u1, choice on a validation part": sorted(trials, key=lambda t: t["rmse"])})


def gowalla() -> tuple[Interactions, Interactions]:
    if not GOWALLA.is_dir():
        pytest.skip(f"{GOWALLA} is not here")
    parts = []
    for name in ("train", "test"):
        pairs = []
        for line in (GOWALLA / f"{name}.txt").read_text().splitlines():
            user, *items = map(int, line.split())
            pairs += [(user, item) for item in items]
        parts.append(np.unique(np.array(pairs), axis=0).T)
    shape = {"n_users": 29_858, "n_items": 40_981}
    train, test = (Interactions.from_coo(*part, **shape) for part in parts)
    return train, test


# Chosen on a validation part of train, by `test_choose_gowalla`.
SETTINGS_GOWALLA, SWEEPS_GOWALLA = {"rank": 1024, "l2": 0.002, "unobserved_weight": 0.02}, 5


def test_gowalla():
    train, test = gowalla()
    model, history = fit(implicit_als(**SETTINGS_GOWALLA, solver="cg"), train, key=KEY, steps=SWEEPS_GOWALLA)
    found = {
        "settings": SETTINGS_GOWALLA | {"sweeps": SWEEPS_GOWALLA},
        "iALS": evaluate(model, test, train=train, k=20, names=("recall", "ndcg")).means,
        "popularity": evaluate(popularity(train), test, train=train, k=20, names=("recall", "ndcg")).means,
        "published": {
            "popularity": [0.0416, 0.0317],
            "MF-BPR": [0.1627, 0.1378],
            "LightGCN": [0.1824, 0.1547],
            "SimpleX": [0.1872, 0.1557],
        },
        "seconds": float(history.seconds.sum()),
    }
    record("accuracy", {"gowalla, Recall@20 / NDCG@20": found})


def test_choose_gowalla():
    """Few sweeps and long vectors: the number of sweeps is that after which recall on the validation part falls."""
    train, valid = split_random(gowalla()[0], 0.1, seed=1)
    data, trials = train.to_device(), []
    for rank, weights, l2s in (
        (256, (0.01, 0.02, 0.04), (0.001, 0.002, 0.004)),
        (512, (0.01, 0.02), (0.001, 0.002, 0.004)),
        (1024, (0.01, 0.02), (0.0015, 0.002)),
    ):
        for weight in weights:
            for l2 in l2s:
                found = []

                def recall(model, found=found):
                    found.append(evaluate(model, valid, train=train, k=20, names=("recall", "ndcg")).means)
                    return found[-1]["recall_at_20"]

                als = implicit_als(rank, l2=l2, unobserved_weight=weight, solver="cg")
                fit(als, data, key=KEY, steps=10, validate=recall, patience=1, progress=False)
                best = max(range(len(found)), key=lambda k: found[k]["recall_at_20"])
                trials.append({"rank": rank, "unobserved_weight": weight, "l2": l2, "sweeps": best + 1, **found[best]})
                print(trials[-1], flush=True)
    trials.sort(key=lambda t: -t["recall_at_20"])
    record("accuracy", {"gowalla, choice on a validation part": trials[:8]})


# Chosen on a validation part of the training part, by `test_choose_rankers`; each with its epochs.
RANKERS_GOWALLA = {
    "bpr, 128 factors": (bpr(128, l2=0.01), 160),
    "bpr, 512 factors": (bpr(512, l2=0.01), 240),
    "softmax_mf, 128 factors": (softmax_mf(128, l2=1e-3), 28),
}


@pytest.mark.parametrize("name", RANKERS_GOWALLA)
def test_gowalla_by_ranking_losses(name):
    train, test = gowalla()
    algorithm, epochs = RANKERS_GOWALLA[name]
    model, history = fit(algorithm, train, key=KEY, steps=epochs)
    means = evaluate(model, test, train=train, k=20, names=("recall", "ndcg")).means
    found = means | {"epochs": epochs, "epoch_s": float(np.median(history.seconds[1:]))}
    record("accuracy", {f"gowalla, Recall@20 / NDCG@20, {name}": found | {"published MF-BPR": [0.1627, 0.1378]}})


@pytest.mark.parametrize(
    ("make", "rank", "l2s", "most"),
    [
        (bpr, 128, (0.01, 0.02, 0.03), 160),
        (bpr, 512, (0.01,), 240),
        (softmax_mf, 128, (1e-3, 2e-3, 5e-3), 28),
    ],
)
def test_choose_rankers(make, rank, l2s, most):
    """The number of epochs is that after which recall on the validation part falls."""
    train, valid = split_random(gowalla()[0], 0.1, seed=1)
    data, trials = train.to_device(), []
    for l2 in l2s:
        found, every = [], most // 4

        def recall(step, model, info, found=found, every=every):
            if step % every == 0:
                found.append(evaluate(model, valid, train=train, k=20, names=("recall", "ndcg")).means)

        fit(make(rank, l2=l2), data, key=KEY, steps=most, callback=recall, progress=False)
        best = max(range(len(found)), key=lambda k: found[k]["recall_at_20"])
        trials.append({"l2": l2, "epochs": (best + 1) * every, **found[best]})
        print(trials[-1], flush=True)
    record("accuracy", {f"gowalla, {make.__name__}, {rank} factors, choice on a validation part": trials})
