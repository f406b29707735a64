"""Ranking and rating metrics by their textbook definitions, one value a user, in float64.

Ranking metrics take `ids [n, K]`, ranked item ids padded with -1, and `relevant`, the items that each row should
have found: `Interactions` with n rows, or n sequences of ids, which may be padded with -1. Relevance is binary; where
K is less than k, the places after K are misses. A row with nothing relevant has no value: NaN, left out of means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.interactions import Interactions
from ..errors import InteractionError

Relevant = Interactions | Sequence[Any]


def recall_at_k(ids: Any, relevant: Relevant, k: int) -> np.ndarray:
    """`hits in the first k / |relevant|`.

    >>> recall_at_k([[3, 1, 2]], [[1, 7]], 2)
    array([0.5])
    """
    hits, n_relevant = _hits(ids, relevant, k)
    return _per_relevant(hits.sum(axis=1), n_relevant)


def precision_at_k(ids: Any, relevant: Relevant, k: int) -> np.ndarray:
    """`hits in the first k / k`, however many items were returned.

    >>> precision_at_k([[3, 1, 2]], [[1, 7]], 2)
    array([0.5])
    """
    hits, n_relevant = _hits(ids, relevant, k)
    return np.where(n_relevant > 0, hits.sum(axis=1) / k, np.nan)


def hit_rate_at_k(ids: Any, relevant: Relevant, k: int) -> np.ndarray:
    """1 where any of the first k is relevant, else 0.

    >>> hit_rate_at_k([[3, 1], [3, 1]], [[1], [2]], 2)
    array([1., 0.])
    """
    hits, n_relevant = _hits(ids, relevant, k)
    return np.where(n_relevant > 0, hits.any(axis=1).astype(np.float64), np.nan)


def ndcg_at_k(ids: Any, relevant: Relevant, k: int) -> np.ndarray:
    """`DCG / ideal DCG`, gain 1 and discount `1 / log2(rank + 1)`; the ideal has `min(k, |relevant|)` hits.

    Source: Jarvelin, Kekalainen 2002, "Cumulated Gain-based Evaluation of IR Techniques".

    >>> ndcg_at_k([[3, 1, 2]], [[1]], 3).round(4)
    array([0.6309])
    """
    hits, n_relevant = _hits(ids, relevant, k)
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(n_relevant, k)]
    return _per_relevant(hits @ discounts, ideal)


def map_at_k(ids: Any, relevant: Relevant, k: int) -> np.ndarray:
    """Average precision: `sum over hits of precision at their rank / |relevant|`.

    >>> map_at_k([[3, 1, 2]], [[3, 2]], 3).round(4)
    array([0.8333])
    """
    hits, n_relevant = _hits(ids, relevant, k)
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    return _per_relevant((precision * hits).sum(axis=1), n_relevant)


def mrr_at_k(ids: Any, relevant: Relevant, k: int) -> np.ndarray:
    """`1 / rank of the first hit`, 0 without one.

    >>> mrr_at_k([[3, 1, 2]], [[2, 1]], 3)
    array([0.5])
    """
    hits, n_relevant = _hits(ids, relevant, k)
    first = np.where(hits.any(axis=1), 1.0 / (1.0 + hits.argmax(axis=1)), 0.0)
    return np.where(n_relevant > 0, first, np.nan)


def rmse(predicted: Any, actual: Any) -> float:
    """`sqrt(mean((predicted - actual)^2))` over pairs.

    >>> rmse([1.0, 3.0], [1.0, 1.0])
    1.4142135623730951
    """
    error = _errors(predicted, actual)
    return float(np.sqrt(np.mean(error * error)))


def mae(predicted: Any, actual: Any) -> float:
    """`mean |predicted - actual|` over pairs.

    >>> mae([1.0, 3.0], [1.0, 1.0])
    1.0
    """
    return float(np.mean(np.abs(_errors(predicted, actual))))


RANKING = {
    "hit_rate": hit_rate_at_k,
    "recall": recall_at_k,
    "precision": precision_at_k,
    "ndcg": ndcg_at_k,
    "map": map_at_k,
    "mrr": mrr_at_k,
}


def _errors(predicted: Any, actual: Any) -> np.ndarray:
    predicted, actual = np.asarray(predicted, np.float64), np.asarray(actual, np.float64)
    if predicted.shape != actual.shape or predicted.size == 0:
        raise InteractionError(f"{predicted.shape=} and {actual.shape=} must be equal and not empty")
    return predicted - actual


def _per_relevant(amount: np.ndarray, per: np.ndarray) -> np.ndarray:
    return np.divide(amount, per, out=np.full(len(amount), np.nan), where=per > 0)


def _whole_numbers(row: Any) -> np.ndarray:
    array = np.asarray(row)
    if array.size and array.dtype.kind not in "iu":
        raise InteractionError(f"relevant items must be whole numbers; got {array.dtype} such as {array.ravel()[0]!r}")
    return array.astype(np.int64)


def _hits(ids: Any, relevant: Relevant, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`(hits [n, k] bool, n_relevant [n])`."""
    ids = np.asarray(ids)
    if k < 1:
        raise ValueError(f"{k=} must be at least 1")
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        raise InteractionError(f"ids must be whole numbers [n, K]; got {ids.dtype} {list(ids.shape)}")
    if isinstance(relevant, Interactions):
        counts, items = np.diff(relevant.indptr), relevant.items.astype(np.int64)
    else:
        rows = [np.unique(_whole_numbers(row)) for row in relevant]
        rows = [row[row >= 0] for row in rows]
        counts = np.array([len(row) for row in rows], np.int64)
        items = np.concatenate(rows) if rows else np.empty(0, np.int64)
    if len(counts) != len(ids):
        raise InteractionError(f"relevant has {len(counts)} rows for {len(ids)} rows of ids")
    top = ids[:, :k].astype(np.int64)
    ascending = np.sort(top, axis=1)
    repeated = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
    if repeated.any():
        row, place = (int(i) for i in np.argwhere(repeated)[0])
        raise InteractionError(
            f"ids, row {row}: item {ascending[row, place]} is ranked twice, which would count a hit twice"
        )
    stride = max(int(items.max(initial=0)), int(top.max(initial=0))) + 1
    keys = np.repeat(np.arange(len(ids)), counts) * stride + items
    asked = np.arange(len(ids))[:, None] * stride + top
    place = np.searchsorted(keys, asked).clip(max=max(len(keys) - 1, 0))
    found = (keys[place] == asked) & (top >= 0) if len(keys) else np.zeros(top.shape, bool)
    return np.pad(found, [(0, 0), (0, k - top.shape[1])]), counts
