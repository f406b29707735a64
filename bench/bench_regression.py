"""Ridge and logistic regression beside scikit-learn, and what features and ids predict on MovieLens 100K."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.datasets import cache_folder, movielens
from affinax.engine.data import Interactions, pair_design, split_random
from affinax.engine.data.features import device_rows
from affinax.engine.evaluation import evaluate_ratings
from affinax.engine.regression import logistic_regression, ridge_recommender, ridge_regression

from .measure import take_turns
from .record import record

L2 = 5.0


def agreement(ours: jax.Array, theirs: np.ndarray) -> float:
    """The greatest difference, as a share of the greatest weight."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


# Features alone, dense; and ids, features and crosses, sparse; with those solvers of the peer that are fast there.
PEERS = {
    "features alone": ("cholesky", ("newton-cholesky",)),
    "features": ("sparse_cg", ("lbfgs", "newton-cholesky")),
}


@pytest.mark.parametrize("crosses", PEERS)
def test_against_scikit_learn(crosses):
    from sklearn.linear_model import LogisticRegression, Ridge

    x = movielens("100k")
    design = pair_design(x, crosses="none" if crosses == "features alone" else crosses)
    matrix = design.rows(x.users, x.items)
    if crosses == "features alone":
        matrix = matrix[:, : design.users.n_features + design.items.n_features].toarray()
    dense = isinstance(matrix, np.ndarray)
    rows = jnp.asarray(matrix) if dense else device_rows(matrix)
    liked = (x.values >= 4).astype(np.float32)
    ridge_solver, logistic_solvers = PEERS[crosses]
    options = {"tol": 1e-5, "max_iter": 5000}
    found = {
        "features": matrix.shape[1],
        "rows": matrix.shape[0],
        "entries": int(np.count_nonzero(matrix) if dense else matrix.nnz),
    }
    for name, ours, peers, targets in (
        ("ridge", ridge_regression, {ridge_solver: Ridge(alpha=L2, solver=ridge_solver, tol=1e-6)}, x.values),
        (
            "logistic",
            logistic_regression,
            {solver: LogisticRegression(C=1 / L2, solver=solver, **options) for solver in logistic_solvers},
            liked,
        ),
    ):

        def fitted(errors, ours=ours, y=targets):
            found = ours(rows, y, l2=L2, n_features=matrix.shape[1], standard_errors=errors)
            return jax.block_until_ready(found)

        calls = {"affinax, s": lambda: fitted(False), "affinax with standard errors, s": lambda: fitted(True)}
        calls |= {
            f"scikit-learn {solver}, s": lambda peer=peer, y=targets: peer.fit(matrix, y)
            for solver, peer in peers.items()
        }
        seconds = take_turns(None, calls, pause=0.3)
        model = fitted(True)
        fastest = min(seconds[f"scikit-learn {solver}, s"] for solver in peers)
        found[name] = seconds | {
            "fastest of scikit-learn over ours": fastest / seconds["affinax, s"],
            "steps": int(model.convergence.steps),
            "slope left": float(model.convergence.gradient),
            "greatest difference of weights": {
                solver: agreement(model.weights, np.ravel(peer.coef_)) for solver, peer in peers.items()
            },
        }
    record("regression", {f"ML-100K beside scikit-learn: {crosses}": found})


# Chosen by `test_choose` on a validation part of the first random fold's training part. Test rows of the other folds
# and of u1 were among those chosen on: only the first fold's are wholly unseen.
SETTINGS = {"none": 4.0, "features": 4.0, "all": 16.0}


def canonical_fold(number: int, x: Interactions) -> tuple[Interactions, Interactions]:
    """u1 to u5 of ML-100K, or what x has of them: each 20,000 rows of the file are a test part."""
    whole = movielens("100k")
    rows = np.array((cache_folder() / "movielens-100k" / "ratings").read_bytes().split(), np.int64).reshape(-1, 4)
    rows = rows[(number - 1) * 20_000 : number * 20_000]
    users, items = whole.user_ids.indices(rows[:, 0]), whole.item_ids.indices(rows[:, 1])
    pair = x.users.astype(np.int64) * x.n_items + x.items
    in_test = np.isin(pair, users.astype(np.int64) * x.n_items + items)
    return x.select(~in_test), x.select(in_test)


def test_ml100k_rmse():
    x = movielens("100k")
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    parts = [(x.select(fold != k), x.select(fold == k)) for k in range(5)]
    found = {}
    for crosses, l2 in SETTINGS.items():
        scores = [
            evaluate_ratings(ridge_recommender(train, l2=l2, crosses=crosses), test, low=1, high=5)
            for train, test in [*parts, canonical_fold(1, x)]
        ]
        found[f"crosses: {crosses}"] = {
            "l2": l2,
            "random 5-fold": {name: float(np.mean([s[name] for s in scores[:5]])) for name in scores[0]},
            "u1": scores[5],
        }
    published = {"random 5-fold": {"biases": [0.944, 0.748], "SVD": [0.934, 0.737]}, "u1": {"GC-MC": [0.910]}}
    record("regression", {"ML-100K, RMSE of ridge over ids, features and crosses": found | {"published": published}})


def test_choose():
    x = movielens("100k")
    fold = np.random.default_rng(0).permutation(x.nnz) % 5
    train, valid = split_random(x.select(fold != 0), 0.1, seed=1)
    trials = []
    for crosses in SETTINGS:
        for l2 in (2.0, 4.0, 8.0, 16.0, 32.0):
            rmse = evaluate_ratings(ridge_recommender(train, l2=l2, crosses=crosses), valid, low=1, high=5)["rmse"]
            trials.append({"crosses": crosses, "l2": l2, "rmse": rmse})
    record("regression", {"ML-100K, choice on a validation part": sorted(trials, key=lambda t: t["rmse"])})
