"""Several algorithms on one split."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .algorithms import train
from .engine.data import Interactions
from .engine.evaluation import Evaluation, evaluate
from .engine.factorization import History


@dataclass(frozen=True)
class Result:
    """What one algorithm did: `seconds` are those of training."""

    algorithm: str
    model: Any
    history: History | None
    evaluation: Evaluation
    seconds: float


def compare(
    algorithms: Sequence[str],
    train_part: Interactions,
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
    results = []
    for algorithm in algorithms:
        began = time.perf_counter()
        model, history = train(algorithm, train_part, seed=seed, parameters=(parameters or {}).get(algorithm))
        seconds = time.perf_counter() - began
        results.append(Result(algorithm, model, history, evaluate(model, test_part, train=train_part, k=k), seconds))
    return results
