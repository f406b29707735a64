"""Imputation against dropping on ML-100K: error of the imputed cells, and of a model trained with them or without."""

from __future__ import annotations

import time

import numpy as np
import pytest

from affinax.datasets import movielens
from affinax.engine.data import fit_imputation, split_random
from affinax.engine.data.imputation import RATING_KINDS
from affinax.engine.evaluation import evaluate_ratings, rmse
from affinax.engine.factorization import explicit_als, fit
from affinax.engine.retrieval import predict

from .bench_accuracy import KEY, RANK_100K, SETTINGS_100K
from .record import record

SEEDS = (0, 1, 2)


def trained(x):
    return fit(explicit_als(RANK_100K, **SETTINGS_100K), x, key=KEY, steps=30, progress=False)[0]


def one(share: float, seed: int) -> dict[str, float]:
    """A fifth of the ratings tests; of the rest, a share goes missing and the others are what there is."""
    rest, test = split_random(movielens("100k"), 0.2, seed=seed)
    left, missing = split_random(rest, share, seed=seed + 100)
    dropped = trained(left)
    guessed = np.clip(np.asarray(predict(dropped, missing.users, missing.items)), 1, 5)
    found = {
        "cells, explicit ALS on what is left": rmse(guessed, missing.values),
        "test, nothing removed": evaluate_ratings(trained(rest), test, low=1, high=5)["rmse"],
        "test, missing dropped": evaluate_ratings(dropped, test, low=1, high=5)["rmse"],
    }
    for kind in RATING_KINDS:
        began = time.perf_counter()
        fitted = fit_imputation(left, kind)
        filled = fitted.apply(left, missing.users, missing.items)
        found[f"seconds, {kind}"] = time.perf_counter() - began
        imputed = np.clip(fitted.values(missing.users, missing.items), 1, 5)
        found[f"cells, {kind}"] = rmse(imputed, missing.values)
        found[f"test, {kind}"] = evaluate_ratings(trained(filled), test, low=1, high=5)["rmse"]
    return found


@pytest.mark.parametrize("percent", [10, 30, 50])
def test_ratings_removed(percent):
    """RMSE, means over three seeds, and the standard deviation between them."""
    runs = [one(percent / 100, seed) for seed in SEEDS]
    means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    spread = {name: float(np.std([run[name] for run in runs])) for name in runs[0] if not name.startswith("seconds")}
    record("imputation", {f"ML-100K, {percent} % of the ratings removed": {"mean": means, "deviation": spread}})
