"""Neighbours against `implicit` and sparse-dot-topn; EASE against the arithmetic's own time; accuracy on gowalla."""

from __future__ import annotations

import time

import jax
import numpy as np
import pytest
import scipy.sparse

from affinax.datasets import movielens
from affinax.engine.data import Interactions, split_random
from affinax.engine.evaluation import evaluate, evaluate_ratings
from affinax.engine.factorization import baseline_estimates
from affinax.engine.neighbors import ease, gf_cf, item_knn, knn_baseline, rp3beta, user_knn

from .bench_accuracy import gowalla
from .bench_sgd import of_surprise
from .measure import forget_peak, peak, peak_bytes, take_turns
from .record import RUNS, record

K = 200


def data_set(name: str) -> Interactions:
    return movielens("1m").with_values(None) if name == "ML-1M" else gowalla()[0]


def unit_columns(x: Interactions) -> scipy.sparse.csr_matrix:
    matrix = x.to_scipy()
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(0)).ravel())
    return matrix @ scipy.sparse.diags_array(1 / np.maximum(lengths, 1e-12), format="csr", dtype=np.float32)


_SETUP = """
import sys
import numpy as np, scipy.sparse
import jax
from sparse_dot_topn import sp_matmul_topn
from implicit.nearest_neighbours import CosineRecommender
from affinax.engine.data import Interactions
from affinax.engine.neighbors import item_knn
users, items = np.load(sys.argv[1]).values()
x = Interactions.from_coo(users, items)
matrix = x.to_scipy()
unit = matrix.copy()
# What code is loaded at a first call is not what the neighbours take.
small = Interactions.from_coo([0, 0, 1], [0, 1, 1])
item_knn(small, neighbors=2)
CosineRecommender(K=2, num_threads=2).fit(small.to_scipy(), show_progress=False)
sp_matmul_topn(small.to_scipy().T.tocsr(), small.to_scipy(), top_n=2, sort=True, n_threads=2)
"""


@pytest.mark.parametrize("name", ["ML-1M", "gowalla"])
def test_item_knn_against_peers(benchmark, name):
    from implicit.nearest_neighbours import CosineRecommender
    from sparse_dot_topn import sp_matmul_topn

    x = data_set(name)
    matrix = x.to_scipy()

    def topn():
        unit = unit_columns(x)
        return sp_matmul_topn(unit.T.tocsr(), unit, top_n=K + 1, sort=True, n_threads=2)

    calls = {
        "affinax, s": lambda: item_knn(x, neighbors=K),
        "implicit, s": lambda: CosineRecommender(K=K + 1, num_threads=2).fit(matrix, show_progress=False),
        "sparse-dot-topn, s": topn,
    }
    seconds = take_turns(benchmark, calls, pause=0.5)
    path = RUNS / f"{name}.npz"
    RUNS.mkdir(exist_ok=True)
    np.savez(path, x.users, x.items)
    peaks = {
        "affinax, MiB": "item_knn(x, neighbors=200)",
        "implicit, MiB": "CosineRecommender(K=201, num_threads=2).fit(matrix, show_progress=False)",
        "sparse-dot-topn, MiB": "sp_matmul_topn(unit.T.tocsr(), unit, top_n=201, sort=True, n_threads=2)",
    }
    memory = {who: peak_bytes(_SETUP, call, path) / 2**20 for who, call in peaks.items()}
    fastest = min(seconds["implicit, s"], seconds["sparse-dot-topn, s"])
    ratio = {"the faster peer over ours": fastest / seconds["affinax, s"]}
    record("neighbors", {f"item k-NN, cosine, {K} neighbours, {name}": seconds | ratio | memory})


# Chosen on a validation part of train, by `test_choose_gowalla`.
GOWALLA = {
    "item_knn": (item_knn, {"neighbors": 200, "weighting": "tf-idf", "shrink": 3.0}),
    "user_knn": (user_knn, {"neighbors": 100, "weighting": "tf-idf"}),
    "rp3beta": (rp3beta, {"neighbors": 800, "alpha": 0.6, "beta": 0.3}),
}


def test_gowalla():
    train, test = gowalla()
    found = {}
    for name, (build, settings) in GOWALLA.items():
        began = time.perf_counter()
        model = build(train, **settings)
        seconds = time.perf_counter() - began
        means = evaluate(model, test, train=train, k=20, names=("recall", "ndcg")).means
        found[name] = settings | means | {"fit_s": seconds}
    record("neighbors", {"gowalla, Recall@20 / NDCG@20": found})


def test_choose_gowalla():
    train, valid = split_random(gowalla()[0], 0.1, seed=1)
    trials = []
    for build, grid in (
        (
            item_knn,
            [
                {"neighbors": n, "weighting": w, "shrink": s}
                for n in (50, 200)
                for w in ("none", "tf-idf")
                for s in (0.0, 3.0)
            ],
        ),
        (
            user_knn,
            [
                {"neighbors": n, "weighting": w, "shrink": s}
                for n in (100, 200, 400)
                for w in ("none", "tf-idf")
                for s in (0.0, 3.0)
            ],
        ),
        (
            rp3beta,
            [
                {"neighbors": n, "alpha": a, "beta": b}
                for n in (100, 300, 800)
                for a in (0.4, 0.5, 0.6, 0.8)
                for b in (0.2, 0.3, 0.4, 0.5)
            ],
        ),
    ):
        some = []
        for settings in grid:
            means = evaluate(build(train, **settings), valid, train=train, k=20, names=("recall", "ndcg")).means
            some.append({"algorithm": build.__name__, **settings, **means})
            print(some[-1], flush=True)
        trials += sorted(some, key=lambda t: -t["recall_at_20"])[:3]
    record("neighbors", {"gowalla, choice on a validation part": trials})


def test_ease_on_gowalla(benchmark):
    """40,981 items: one array of 6.7 GB, against as many operations at the speed of a matrix product."""
    train, test = gowalla()
    n = train.n_items
    square = np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32)
    seconds = take_turns(benchmark, {"product": lambda: square @ square})["product"]
    rate = 2 * 4096**3 / seconds
    before, began = forget_peak(), time.perf_counter()
    model = ease(train, l2=80.0)
    took, above = time.perf_counter() - began, peak() - before
    found = {
        "fit_s": took,
        "peak_GB": above / 1e9,
        "peak_over_gramian": above / (4 * n**2),
        "product_gflops": rate / 1e9,
        "arithmetic_s": n**3 / rate,
        "fit_over_arithmetic": took / (n**3 / rate),
        **evaluate(model, test, train=train, k=20, names=("recall", "ndcg")).means,
        "published": {"EASE": [0.1765, 0.1467]},
    }
    record("neighbors", {"EASE on gowalla, l2 = 80": found})


def test_gf_cf_on_gowalla(benchmark):
    """The published settings: 256 singular vectors, alpha .3."""
    train, test = gowalla()

    def fit():
        return jax.block_until_ready(gf_cf(train, key=jax.random.key(0), rank=256, alpha=0.3))

    seconds = take_turns(benchmark, {"fit_s": fit})
    model, began = fit(), time.perf_counter()
    means = evaluate(model, test, train=train, k=20, names=("recall", "ndcg")).means
    found = seconds | {"all_users_ranked_s": time.perf_counter() - began} | means
    record("neighbors", {"GF-CF on gowalla": found | {"published": [0.1849, 0.1518]}})


# Surprise's own defaults, of which its table of results is made, and what Koren 2010 takes.
RATING_KNN = {
    "users, MSD": (
        {"side": "users", "similarity": "msd", "shrink": 0.0, "min_support": 1, "candidates": 10_000},
        {},
    ),
    "items, Pearson about the baseline, shrink 100": (
        {"candidates": 10_000},
        {"name": "pearson_baseline", "user_based": False, "shrinkage": 100},
    ),
}
PUBLISHED_KNN = {"100k": [0.931, 0.733], "1m": [0.895, 0.706]}


@pytest.mark.parametrize("name", ["100k", "1m"])
def test_rating_knn_against_surprise(name):
    """Five folds of ours; of Surprise, whose predictions of a fold of ML-1M take minutes, the first fold."""
    from surprise import KNNBaseline

    x = movielens(name)
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    parts = [(x.select(fold != k), x.select(fold == k)) for k in range(5)]
    train, test = parts[0]
    trainset = of_surprise(train).build_full_trainset()
    found = {"published": PUBLISHED_KNN[name]}

    def folds(fit):
        errors = [evaluate_ratings(fit(train), test, low=1, high=5) for train, test in parts]
        return errors[0], {m: float(np.mean([e[m] for e in errors])) for m in errors[0]}

    found["baselines"] = folds(lambda train: baseline_estimates(train.to_device()))[1]
    for candidates in (200, 1000):
        kept = knn_baseline(train, candidates=candidates).weights.nnz
        errors = folds(lambda train, n=candidates: knn_baseline(train, candidates=n))[1]
        found[f"items, {candidates} candidates"] = errors | {"similarities_MiB": 8 * kept / 2**20}
    for setting, (ours, theirs) in RATING_KNN.items():
        first, mean = folds(lambda train, ours=ours: knn_baseline(train, **ours))
        model, peer = knn_baseline(train, **ours), KNNBaseline(sim_options=theirs, verbose=False)
        seconds = take_turns(
            None,
            {
                "affinax, fit, s": lambda ours=ours: jax.block_until_ready(knn_baseline(train, **ours)),
                "Surprise, fit, s": lambda peer=peer: peer.fit(trainset),
            },
            rounds=5 if name == "100k" else 1,
        )
        seconds |= take_turns(None, {"affinax, a fold predicted, s": lambda m=model: evaluate_ratings(m, test)})
        began = time.perf_counter()
        guesses = [peer.predict(u, i).est for u, i in zip(test.users.tolist(), test.items.tolist(), strict=True)]
        seconds["Surprise, a fold predicted, s"] = time.perf_counter() - began
        error = np.array(guesses) - test.values
        theirs_first = {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}
        rows = model.weights if "side" not in ours else model.similarities
        seconds["similarities_MiB"] = 8 * rows.nnz / 2**20
        found[setting] = {"affinax": mean, "first fold": {"affinax": first, "Surprise": theirs_first}} | seconds
    record("neighbors", {f"rating k-NN, ML-{name.upper()}, random 5-fold": found})
