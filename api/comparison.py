"""Several algorithms on one split."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .engine.data import Interactions, Sequences
from .engine.evaluation import Evaluation
from .recommender import Recommender


@dataclass(frozen=True)
class Result:
    """What one algorithm did: `seconds` are those of training."""

    algorithm: str
    recommender: Recommender
    evaluation: Evaluation
    seconds: float


def compare(
    algorithms: Sequence[str],
    train_part: Interactions | Sequences,
    test_part: Interactions,
    *,
    k: int = 10,
    seed: int = 0,
    parameters: dict[str, dict[str, Any]] | None = None,
) -> list[Result]:
    """Trains each algorithm on the training part and ranks the full catalogue for the users of the test part.

    Raises:
        ValueError: An unknown algorithm or parameter.
        InteractionError: Nobody to test.
    """
    parameters = parameters or {}
    # All are made before the first is trained, so that a wrong name or parameter costs no training.
    recommenders = [Recommender(name, seed=seed, **parameters.get(name, {})) for name in dict.fromkeys(algorithms)]
    results = []
    for recommender in recommenders:
        began = time.perf_counter()
        recommender.fit(train_part)
        seconds = time.perf_counter() - began
        results.append(Result(recommender.algorithm, recommender, recommender.evaluate(test_part, k), seconds))
    return results
