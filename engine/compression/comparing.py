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

from ...kernels.csr import CSR
from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import CompressionError
from ..evaluation.protocols import Evaluation, evaluate
from ..retrieval.filters import as_seen
from ..retrieval.search import recommend
from ..storage import save_arrays
from .parameters import is_whole, parameters_of, with_parameters

_ROUNDS = 15  # of timing, of which the median counts


@dataclass(frozen=True, eq=False)
class Bill:
    """Of one model.

    Attributes:
        name: As given.
        memory: Bytes of its parameters.
        disk: Bytes of these in a file.
        seconds: Of an answer of `jit(recommend)`, the median, by how many users are asked for at once.
        evaluation: Of its answers.
        changes: For each metric, how much higher its mean is than that of the first model, and the half of its 95 %
            interval, users paired; NaN where one user alone was tested.
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
        CompressionError: No models, or something else.
        InteractionError: As `evaluate`.

    >>> from affinax.engine.compression import quantize_model
    >>> from affinax.engine.factorization import fit, implicit_als
    >>> train = Interactions.from_coo([0, 0, 1, 1, 2], [0, 1, 0, 2, 2])
    >>> test = Interactions.from_coo([0, 1], [2, 1], n_users=3, n_items=3)
    >>> model, _ = fit(implicit_als(8), train, key=jax.random.key(0), steps=2, progress=False)
    >>> whole, small = compare({"float32": model, "int8": quantize_model(model)}, test, train=train, k=1)
    >>> (whole.memory, small.memory), small.changes["ndcg_at_1"]
    ((208, 88), (0.0, 0.0))
    """
    if not isinstance(models, Mapping) or not models or not all(isinstance(name, str) for name in models):
        raise CompressionError("models to compare are given by name: {name: model}, the whole one first")
    for name, model in models.items():
        parameters_of(model)  # which refuses a recommender
        if not hasattr(model, "n_items"):
            raise CompressionError(f"{name!r} is {type(model).__name__}: a model that recommend takes is accepted")
    if not isinstance(batches, Sequence) or not all(is_whole(n) and n > 0 for n in batches):
        raise CompressionError(f"{batches=} must be whole numbers of at least 1")
    if isinstance(train, Sequences):
        train = train.interactions()
    bills: list[Bill] = []
    found = {name: evaluate(model, test, train=train, k=k, names=names) for name, model in models.items()}
    first = next(iter(found.values()))
    seconds = _seconds(models, np.flatnonzero(np.diff(test.indptr)), batches, as_seen(train), k)
    for name, model in models.items():
        arrays, values = _arrays_of(model), found[name].values
        changes = {metric: _change(values[metric], first.values[metric]) for metric in values}
        bills.append(Bill(name, _bytes_of(arrays), _on_disk(arrays), seconds[name], found[name], changes))
    return bills


def memory_of(model: Any) -> int:
    """The bytes of what a model has learned.

    >>> from affinax.engine.factorization import Factors
    >>> memory_of(Factors(np.ones((1, 4), np.float32), np.ones((3, 4), np.float32)))
    64
    """
    return _bytes_of(_arrays_of(model))


def _bytes_of(arrays: dict[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _arrays_of(model: Any) -> dict[str, np.ndarray]:
    """The arrays of what a model has learned, by name: neither what only training needs, nor data that it reads."""
    leaves = jax.tree_util.tree_leaves_with_path(parameters_of(with_parameters(model, parameters_of(model))))
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    modalities = getattr(model, "modalities", None)
    codes = None if modalities is None else modalities.inputs.get("codes")
    return arrays if codes is None else arrays | {"codes": np.asarray(codes)}


def _change(values: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    difference = np.asarray(values, np.float64) - before
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else np.nan
    return float(difference.mean()), float(1.96 * error)


def _seconds(
    models: Mapping[str, Any], users: np.ndarray, batches: Sequence[int], seen: CSR, k: int
) -> dict[str, dict[int, float]]:
    """Of an answer of each model, by how many users it is for; they take turns, so that all meet the same machine."""
    answer = jax.jit(lambda model, users, seen: recommend(model, users, k, seen=seen))
    found: dict[str, dict[int, float]] = {name: {} for name in models}
    for n in batches:
        asked = jnp.asarray(np.resize(users, n), jnp.int32)
        took: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(_ROUNDS + 2):
            for name, model in models.items():
                began = time.perf_counter()
                jax.block_until_ready(answer(model, asked, seen))
                took[name].append(time.perf_counter() - began)
        for name, seconds in took.items():
            found[name][n] = statistics.median(seconds[2:])  # the first compile
    return found


def _on_disk(arrays: dict[str, np.ndarray]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save_arrays(folder, arrays, {})
        return sum(path.stat().st_size for path in Path(folder).iterdir())
