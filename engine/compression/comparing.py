"""What making a model smaller saves and costs: bytes, time of an answer, quality on held-out data."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import CompressionError
from ..evaluation.protocols import Evaluation, evaluate
from ..retrieval.search import recommend
from ..storage import save_arrays
from .parameters import parameters_of, with_parameters

_ROUNDS = 15  # of timing, of which the median counts


@dataclass(frozen=True, eq=False)
class Bill:
    """Of one model.

    Attributes:
        name: As given.
        memory: Bytes of its parameters.
        disk: Bytes of these in a file.
        seconds: Of an answer, the median, by how many users are asked for at once.
        evaluation: Of its answers.
        changes: For each metric, how much higher its mean is than that of the first model, and the half of its 95 %
            interval, users paired.
    """

    name: str
    memory: int
    disk: int
    seconds: dict[int, float]
    evaluation: Evaluation
    changes: dict[str, tuple[float, float]]


def compare(
    models: Mapping[str, Any],
    test: Interactions,
    *,
    train: Interactions | Sequences,
    k: int = 10,
    names: Sequence[str] = ("ndcg", "recall", "hit_rate"),
    batches: Sequence[int] = (1, 256),
) -> list[Bill]:
    """What each model takes, and what it gives, beside the first.

    Args:
        models: By name, the whole one first: anything that `recommend` takes, of the same users and items.
        test: What users should have found.
        train: What is left out of the answers.
        k: Length of the list.
        names: Of metrics; see `evaluate`.
        batches: Users that are asked for at once, whose answers are timed.

    Returns:
        A bill for each. Its bytes are those of the parameters: of the network where there is one, with the codes that
        items are put together from, and without histories and fields of users.

    Raises:
        CompressionError: No models.
        InteractionError: As `evaluate`.

    >>> from affinax.engine.compression import quantize_model
    >>> from affinax.engine.factorization import fit, implicit_als
    >>> train = Interactions.from_coo([0, 0, 1, 1, 2], [0, 1, 0, 2, 2])
    >>> test = Interactions.from_coo([0], [2], n_users=3, n_items=3)
    >>> model, _ = fit(implicit_als(8), train, key=jax.random.key(0), steps=2, progress=False)
    >>> whole, small = compare({"float32": model, "int8": quantize_model(model)}, test, train=train, k=1)
    >>> (whole.memory, small.memory), small.changes["ndcg_at_1"]
    ((208, 88), (0.0, 0.0))
    """
    if not isinstance(models, Mapping) or not models:
        raise CompressionError("models to compare are given by name: {name: model}, the whole one first")
    if min(batches, default=1) < 1:
        raise CompressionError(f"{batches=} must be at least 1 each")
    if isinstance(train, Sequences):
        train = train.interactions()
    bills: list[Bill] = []
    users = np.flatnonzero(np.diff(test.indptr))
    for name, model in models.items():
        parameters_of(model)  # which refuses a recommender
        found = evaluate(model, test, train=train, k=k, names=names)
        first = bills[0].evaluation if bills else found
        arrays = arrays_of(model)
        changes = {metric: _change(values, first.values[metric]) for metric, values in found.values.items()}
        seconds = {n: _seconds(model, np.resize(users, n).astype(np.int32), train, k) for n in batches}
        memory = sum(array.nbytes for array in arrays.values())
        bills.append(Bill(name, memory, _on_disk(arrays), seconds, found, changes))
    return bills


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    """The arrays of what a model has learned, by name: neither what only training needs, nor data that it reads."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters_of(with_parameters(model, parameters_of(model))))
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    modalities = getattr(model, "modalities", None)
    codes = None if modalities is None else modalities.inputs.get("codes")
    return arrays if codes is None else arrays | {"codes": np.asarray(codes)}


def _change(values: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    difference = np.asarray(values, np.float64) - before
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return float(difference.mean()), float(1.96 * error)


def _seconds(model: Any, users: np.ndarray, train: Interactions, k: int) -> float:
    asked, took = jnp.asarray(users), []
    for number in range(_ROUNDS + 2):  # the first compile
        began = time.perf_counter()
        jax.block_until_ready(recommend(model, asked, k, seen=train))
        if number > 1:
            took.append(time.perf_counter() - began)
    return statistics.median(took)


def _on_disk(arrays: dict[str, np.ndarray]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save_arrays(folder, arrays, {})
        return sum(path.stat().st_size for path in Path(folder).iterdir())
