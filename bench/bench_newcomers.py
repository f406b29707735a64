"""Users who were not there in training, by their history alone, against the same users trained: ML-100K."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from affinax.datasets import movielens
from affinax.engine.data import Interactions, split_random
from affinax.engine.evaluation import evaluate
from affinax.engine.factorization import bpr, fit, implicit_als, logistic_mf
from affinax.engine.neighbors import user_knn
from affinax.engine.retrieval import with_history

from .record import record

ALGORITHMS: dict[str, Callable[[Interactions], Any]] = {
    "implicit ALS": lambda x: trained(implicit_als(64), x, 16),
    "BPR": lambda x: trained(bpr(64), x, 100),
    "logistic MF": lambda x: trained(logistic_mf(64), x, 50),
    "user k-NN": user_knn,
}


def trained(algorithm: Any, x: Interactions, steps: int) -> Any:
    return fit(algorithm, x, key=jax.random.key(0), steps=steps, progress=False)[0]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_newcomers(name):
    """A fifth of the users are newcomers: a fifth of their interactions tests, the rest is their history."""
    train, test = split_random(movielens("100k").with_values(None), 0.2, seed=0)
    newcomers = np.random.default_rng(0).permutation(train.n_users)[: train.n_users // 5]
    test, history = test.select(np.isin(test.users, newcomers)), train.select(np.isin(train.users, newcomers))
    known = ALGORITHMS[name](train.select(~np.isin(train.users, newcomers)))

    def folded():
        return jax.block_until_ready(jax.tree.leaves(with_history(known, history)))

    folded()
    began = time.perf_counter()
    folded()
    seconds = time.perf_counter() - began
    found = {
        who: evaluate(model, test, train=history, names=("ndcg", "recall")).means
        for who, model in (("trained", ALGORITHMS[name](train)), ("newcomers", with_history(known, history)))
    }
    found |= {"users": len(newcomers), "interactions": history.nnz, "seconds of with_history": seconds}
    record("newcomers", {f"ML-100K, NDCG@10 / Recall@10, {name}": found})
