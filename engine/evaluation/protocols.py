"""How a model is tried: over the full catalogue, against sampled negatives, or on held-out ratings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import InteractionError
from ..retrieval.filters import as_seen
from ..retrieval.search import predict, recommend
from . import metrics

_BATCH = 4096


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a protocol found.

    Attributes:
        values: The value of each tested user, by metric name, such as "ndcg_at_10".
        users: `[n]` indices of those users.
        protocol: How it was measured, in words.
        untested: How many users and items of the test part are counted apart, by what is so about them.
        notes: What was left out of the test part before.
    """

    values: dict[str, np.ndarray]
    users: np.ndarray
    protocol: str
    untested: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def means(self) -> dict[str, float]:
        """The mean over users of each metric."""
        return {name: float(np.mean(values)) for name, values in self.values.items()}

    def intervals(
        self, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> dict[str, tuple[float, float]]:
        """Percentile bootstrap intervals of the means, users drawn with replacement.

        Source: Efron, Tibshirani 1993, "An Introduction to the Bootstrap".
        """
        if not 0 < confidence < 1:
            raise ValueError(f"{confidence=} must be in (0, 1)")
        stacked = np.stack(list(self.values.values()))
        n, rng = stacked.shape[1], np.random.default_rng(seed)
        means = np.empty((resamples, len(stacked)))
        for sample in range(resamples):
            means[sample] = stacked @ np.bincount(rng.integers(0, n, n), minlength=n) / n
        low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
        return {name: (float(a), float(b)) for name, a, b in zip(self.values, low, high, strict=True)}

    def __repr__(self) -> str:
        lines = [f"{self.protocol}, {len(self.users):,} users"]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {n:,} {why}" for why, n in self.untested.items() if n]
        for (name, mean), (low, high) in zip(self.means.items(), self.intervals().values(), strict=True):
            lines.append(f"  {name:<16} {mean:.4f}  [{low:.4f}, {high:.4f}]")
        return "\n".join(lines)


def evaluate(
    model: Any,
    test: Interactions,
    *,
    train: Interactions | Sequences | None = None,
    k: int = 10,
    names: Sequence[str] = tuple(metrics.RANKING),
) -> Evaluation:
    """Ranks the full catalogue for every tested user, training items left out, and measures the first k.

    Users without test interactions are not tested. With `train`, users unknown to it cannot be ranked for and are
    counted apart; test items unknown to it stay relevant, as misses that no model can avoid.

    Args:
        model: What `recommend` takes.
        test: What each user should have found.
        train: What is left out of the answers.
        k: Length of the list.
        names: Of `metrics.RANKING`.

    Returns:
        `Evaluation`, with metrics named such as "recall_at_10".

    Raises:
        InteractionError: Nobody is left to test, all that is tested was trained on, or train and test differ in shape.
        ValueError: An unknown metric or k below 1.
    """
    _check_names(names)
    train = train.interactions() if isinstance(train, Sequences) else train
    users, untested = _tested_users(test, train)
    _check_model(model, test)
    if train is not None and _all_in(test, train):
        raise InteractionError(
            f"all {test.nnz:,} tested interactions are in the training part, of which nothing is answered: split the "
            "data before training"
        )
    ids = _ranked(model, users, k, seen=train)
    values = _measured(names, ids, test, users, k, f"_at_{k}")
    return Evaluation(values, users, f"full catalogue of {test.n_items:,} items", untested)


def evaluate_sampled(
    model: Any,
    test: Interactions,
    *,
    train: Interactions | Sequences,
    n_negatives: int = 99,
    k: int = 10,
    seed: int = 0,
    names: Sequence[str] = ("hit_rate", "ndcg"),
) -> Evaluation:
    """Ranks each user's test items among sampled negatives only: for comparison with papers that did so.

    Sampled metrics are inconsistent with full ones and can reverse the order of models (Krichene, Rendle 2020), so
    their names say what they are.

    Args:
        model: What `recommend` takes.
        test: One or more items a user.
        train: Items that are no negatives, as the test items are not.
        n_negatives: Drawn for each user uniformly and without repetition, from the items never met.
        k: Length of the list.
        seed: Of the negatives.
        names: Of `metrics.RANKING`.

    Returns:
        `Evaluation`, with metrics named such as "hit_rate_at_10_of_99_sampled".

    Raises:
        InteractionError: Nobody is left to test, or a user has met too many items for so many negatives.
        ValueError: An unknown metric, or k or `n_negatives` below 1.
    """
    _check_names(names)
    if n_negatives < 1:
        raise ValueError(f"{n_negatives=} must be at least 1")
    train = train.interactions() if isinstance(train, Sequences) else train
    users, untested = _tested_users(test, train)
    _check_model(model, test)
    rng = np.random.default_rng(seed)
    counts = np.diff(test.indptr)[users]
    candidates = np.full((len(users), int(counts.max()) + n_negatives), -1, np.int32)
    for row, user in enumerate(users):
        known = np.union1d(test.items_of(user), train.items_of(user))
        if test.n_items - len(known) < n_negatives:
            raise InteractionError(
                f"user {user} has {test.n_items - len(known)} items never met; {n_negatives=} are asked"
            )
        candidates[row, : counts[row]] = test.items_of(user)
        candidates[row, counts[row] : counts[row] + n_negatives] = _negatives(rng, known, test.n_items, n_negatives)
    ids = _ranked(model, users, k, allow=candidates)
    values = _measured(names, ids, test, users, k, f"_at_{k}_of_{n_negatives}_sampled")
    return Evaluation(values, users, f"{n_negatives} sampled negatives a user", untested)


def evaluate_ratings(model: Any, test: Interactions, *, low: float = -np.inf, high: float = np.inf) -> dict[str, float]:
    """`{"rmse": …, "mae": …}` of predicted values over all test interactions.

    Args:
        model: What `predict` takes.
        test: Interactions with values.
        low: The least value there can be: predictions below count as it.
        high: The greatest, likewise.

    Raises:
        InteractionError: The test part has no values.
    """
    if test.values is None:
        raise InteractionError("rating metrics need values, and the test part has none")
    predicted = np.clip(np.asarray(predict(model, test.users, test.items), np.float64), low, high)
    return {"rmse": metrics.rmse(predicted, test.values), "mae": metrics.mae(predicted, test.values)}


def _check_names(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in metrics.RANKING]
    if unknown or not names:
        raise ValueError(f"metrics {unknown} must be among {sorted(metrics.RANKING)}")


def _tested_users(test: Interactions, train: Interactions | None) -> tuple[np.ndarray, dict[str, int]]:
    if train is not None and train.shape != test.shape:
        raise InteractionError(
            f"{train.shape=} and {test.shape=} must be equal: "
            "read the test part with the vocabularies of the training part"
        )
    tested = np.diff(test.indptr) > 0
    untested = {}
    if train is not None:
        unknown = tested & (np.diff(train.indptr) == 0)
        new_items = np.bincount(test.items, minlength=test.n_items) > 0
        new_items &= np.bincount(train.items, minlength=test.n_items) == 0
        untested = {
            "users only in the test part, not ranked": int(unknown.sum()),
            "items only in the test part, counted as misses": int(new_items.sum()),
        }
        tested &= ~unknown
    if not tested.any():
        both = "test interactions" if train is None else "both training and test interactions"
        raise InteractionError(f"nobody to test: no user has {both}")
    return np.flatnonzero(tested).astype(np.int32), untested


def _all_in(test: Interactions, train: Interactions) -> bool:
    pairs, known = (x.users.astype(np.int64) * x.n_items + x.items for x in (test, train))
    places = np.minimum(np.searchsorted(known, pairs), len(known) - 1)  # which are ascending
    return bool((known[places] == pairs).all())


def _check_model(model: Any, test: Interactions) -> None:
    """A model of another catalogue would give numbers, and they would mean nothing."""
    if model.n_items != test.n_items:
        raise InteractionError(
            f"the model has {model.n_items} items and the test part {test.n_items}: they must be the same"
        )


def _ranked(
    model: Any, users: np.ndarray, k: int, seen: Interactions | None = None, allow: np.ndarray | None = None
) -> np.ndarray:
    """Ranked ids of all users, in batches of one shape so that only one program is compiled."""
    sparse = None if seen is None else as_seen(seen)
    batch = min(_BATCH, len(users))
    parts = []
    for first in range(0, len(users), batch):
        rows = np.arange(first, first + batch).clip(max=len(users) - 1)
        ids, _ = recommend(model, users[rows], k, seen=sparse, allow=None if allow is None else allow[rows])
        parts.append(np.asarray(ids)[: len(users) - first])
    return np.concatenate(parts)


def _measured(
    names: Sequence[str], ids: np.ndarray, test: Interactions, users: np.ndarray, k: int, suffix: str
) -> dict[str, np.ndarray]:
    ends = np.cumsum(np.diff(test.indptr)[users])
    relevant = Interactions(np.append(0, ends), test.items[np.isin(test.users, users)], test.n_items)
    return {name + suffix: metrics.RANKING[name](ids, relevant, k) for name in names}


def _negatives(rng: np.random.Generator, known: np.ndarray, n_items: int, n: int) -> np.ndarray:
    if 2 * (len(known) + n) >= n_items:
        return rng.choice(np.setdiff1d(np.arange(n_items), known), n, replace=False)
    taken, negatives = set(known.tolist()), []
    while len(negatives) < n:
        item = int(rng.integers(n_items))
        if item not in taken:
            taken.add(item)
            negatives.append(item)
    return np.array(negatives, np.int32)
