"""Neighbours against `implicit` and sparse-dot-topn; EASE against the arithmetic's own time; accuracy on gowalla."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse

from affinax.datasets import movielens
from affinax.engine.data import Interactions, split_random
from affinax.engine.evaluation import evaluate
from affinax.engine.neighbors import ease, item_knn, rp3beta, user_knn

from .bench_accuracy import gowalla
from .measure import peak_bytes, take_turns
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
    began = time.perf_counter()
    model = ease(train, l2=80.0)
    took = time.perf_counter() - began
    found = {
        "fit_s": took,
        "product_gflops": rate / 1e9,
        "arithmetic_s": n**3 / rate,
        "fit_over_arithmetic": took / (n**3 / rate),
        **evaluate(model, test, train=train, k=20, names=("recall", "ndcg")).means,
        "published": {"EASE": [0.1765, 0.1467]},
    }
    record("neighbors", {"EASE on gowalla, l2 = 80": found})
