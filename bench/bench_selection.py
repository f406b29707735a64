"""`select` over a grid of numbers on MovieLens 100K: all points under one vmap beside one point at a time."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np
import pytest

from affinax.datasets import movielens
from affinax.engine.factorization import biased_mf, explicit_als, implicit_als
from affinax.engine.training import select

from .record import record

STEPS = 10
L2 = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]
GRIDS = {
    "explicit_als": (explicit_als, {"rank": [16], "l2": L2}, "rmse"),
    "implicit_als": (implicit_als, {"rank": [16], "l2": [l2 / 10 for l2 in L2]}, "ndcg_at_10"),
    "biased_mf": (biased_mf, {"rank": [16], "learning_rate": [0.005, 0.01, 0.02, 0.04], "l2": [0.02, 0.1]}, "rmse"),
}


@pytest.mark.parametrize("name", GRIDS)
def test_together_and_one_at_a_time(name):
    builder, grid, metric = GRIDS[name]
    rest, _ = movielens("100k").split("random", test_fraction=0.2)
    train, validation = rest.split("random", test_fraction=0.2, seed=1)

    def found(memory: int) -> tuple[float, Any]:
        began = time.perf_counter()
        options = {"key": jax.random.key(0), "steps": STEPS, "patience": STEPS, "progress": False, "memory": memory}
        selection = select({name: builder}, {name: grid}, train, validation, metric, **options)
        return time.perf_counter() - began, selection

    ways = {"together": 1 << 30, "one at a time": 1}
    seconds, selections = {way: [] for way in ways}, {}
    for _ in range(3):
        for way, memory in ways.items():
            spent, selections[way] = found(memory)
            seconds[way].append(spent)
    medians = {f"{way}, s": float(np.median(spent)) for way, spent in seconds.items()}
    scores = {way: {str(t.parameters): t.score for t in selections[way].trials} for way in ways}
    results = medians | {
        "one at a time over together": medians["one at a time, s"] / medians["together, s"],
        "greatest difference of scores": max(
            abs(score - scores["one at a time"][point]) for point, score in scores["together"].items()
        ),
        "points": len(scores["together"]),
        "steps": STEPS,
        "seconds include": "tracing and compilation, as far as no cache on disk serves it, and a validation each step",
    }
    record("selection", {f"ML-100K on CPU, a grid of numbers: {name}": results})
