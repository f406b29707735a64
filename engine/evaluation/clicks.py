"""Metrics of predicted clicks by their textbook definitions, in float64: ranking, likelihood and calibration.

Labels are 1 where there was a click and 0 where there was none, in one dimension; predictions are one a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from ..errors import InteractionError


@dataclass(frozen=True, eq=False)
class Calibration:
    """How far predicted probabilities are those that came true.

    Attributes:
        ratio: `sum of probabilities / sum of labels`: above 1, too many clicks are predicted; inf without any click.
        error: Expected calibration error, `sum over bins of count / n * |predicted - observed|`.
        predicted: `[b]` mean probability of each bin, ascending.
        observed: `[b]` share of clicks in it.
        count: `[b]` predictions in it.
    """

    ratio: float
    error: float
    predicted: np.ndarray
    observed: np.ndarray
    count: np.ndarray

    def __repr__(self) -> str:
        return f"Calibration(ratio={self.ratio:.4f}, error={self.error:.4f}, {len(self.count)} bins)"


def auc(labels: Any, scores: Any, *, weights: Any = None) -> float:
    """The chance that a click is scored above what was not clicked, a tie counting half.

    `sum over clicks i and others j of w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (sum of w_i * sum of w_j)`.

    Args:
        labels: `[n]` of 0 and 1.
        scores: `[n]` on any scale; only their order matters.
        weights: `[n]`, at least 0; all 1 if None.

    Raises:
        InteractionError: Empty, of unequal length, NaN, a label other than 0 and 1, or only one of the two.

    Source: Hanley, McNeil 1982, "The Meaning and Use of the Area under a ROC Curve".

    >>> auc([0, 1, 1, 0], [0.1, 0.4, 0.8, 0.4])
    0.875
    """
    clicked = _labels(labels)
    scores = _numbers("scores", scores, len(clicked))
    weights = _weights(weights, len(clicked))
    _, level = np.unique(scores, return_inverse=True)
    clicks, others = (np.bincount(level, weights * chosen) for chosen in (clicked, ~clicked))
    for label, there in ((1, clicks), (0, others)):
        if not there.any():
            weight = " of a weight above 0" if clicked.any() and not clicked.all() else ""
            raise InteractionError(f"auc needs both labels, 0 and 1; none of the {len(clicked):,} is {label}{weight}")
    above = clicks @ (np.cumsum(others) - others / 2)
    return float(above / (clicks.sum() * others.sum()))


def log_loss(labels: Any, probabilities: Any, *, weights: Any = None) -> float:
    """Negative mean log-likelihood, `-sum of w (y log p + (1 - y) log(1 - p)) / sum of w`.

    Nothing is clipped: a single click predicted with probability 0, or its absence with 1, makes it inf. Of logits,
    `evaluate_clicks` computes it where probabilities would round to 0 and 1.

    Args:
        labels: `[n]` of 0 and 1.
        probabilities: `[n]` of a click, in [0, 1].
        weights: `[n]`, at least 0; all 1 if None.

    Raises:
        InteractionError: Empty, of unequal length, a label other than 0 and 1, or a probability outside [0, 1].

    Source: Good 1952, "Rational Decisions".

    >>> round(log_loss([1, 0], [0.9, 0.2]), 4)
    0.1643
    """
    clicked = _labels(labels)
    probabilities = _numbers("probabilities", probabilities, len(clicked), 0.0, 1.0)
    weights = _weights(weights, len(clicked))
    with np.errstate(divide="ignore"):
        losses = -np.where(clicked, np.log(probabilities), np.log1p(-probabilities))
    weighted = weights > 0
    return float(losses[weighted] @ weights[weighted] / weights.sum())


def calibration(labels: Any, probabilities: Any, *, bins: int = 10) -> Calibration:
    """Compares probabilities with the shares of clicks, over all and over bins of like probabilities.

    Bins hold equally many predictions, as nearly as can be without equal predictions in different bins. Clicks are
    rare: bins of equal width, as in the source, would have nearly all of them in the first.

    Args:
        labels: `[n]` of 0 and 1.
        probabilities: `[n]` of a click, in [0, 1].
        bins: The most bins.

    Raises:
        InteractionError: Empty, of unequal length, a label other than 0 and 1, or a probability outside [0, 1].
        ValueError: `bins` below 1.

    Source: Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks"; the bins are those of
    Nguyen, O'Connor 2015, "Posterior Calibration and Exploratory Analysis for Natural Language Processing Models".

    >>> calibration([0, 0, 1, 1], [0.1, 0.3, 0.6, 0.6], bins=2)
    Calibration(ratio=0.8000, error=0.3000, 2 bins)
    """
    if bins < 1:
        raise ValueError(f"{bins=} must be at least 1")
    clicked = _labels(labels)
    probabilities = _numbers("probabilities", probabilities, len(clicked), 0.0, 1.0)
    order = np.argsort(probabilities)
    ascending, n = probabilities[order], len(order)
    # Which of equal predictions came before an edge would be a matter of the order of the rows.
    edges = np.searchsorted(ascending, ascending[np.arange(bins) * n // bins])
    starts = np.unique(edges)
    count = np.diff(starts, append=n)
    predicted, observed = (np.add.reduceat(values, starts) / count for values in (ascending, clicked[order] * 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = probabilities.sum() / np.float64(clicked.sum())
    error = np.abs(predicted - observed) @ count / n
    return Calibration(float(ratio), float(error), predicted, observed, count)


def evaluate_clicks(labels: Any, logits: Any) -> dict[str, float]:
    """All of them, of a model's logits: `{"auc", "log_loss", "calibration_ratio", "calibration_error"}`.

    The log loss is `mean of log(1 + exp(-z)) over clicks and of log(1 + exp(z)) over others`, exact for logits whose
    probability rounds to 0 or 1; calibration is in 10 bins.

    Args:
        labels: `[n]` of 0 and 1.
        logits: `[n]`, `log(p / (1 - p))`.

    Raises:
        InteractionError: Empty, of unequal length, NaN, a label other than 0 and 1, or only one of the two.

    >>> {name: round(value, 3) for name, value in evaluate_clicks([1, 0, 0], [2.0, -1.0, -800.0]).items()}
    {'auc': 1.0, 'log_loss': 0.147, 'calibration_ratio': 1.15, 'calibration_error': 0.129}
    """
    clicked = _labels(labels)
    logits = _numbers("logits", logits, len(clicked))
    calibrated = calibration(clicked, expit(logits))
    return {
        "auc": auc(clicked, logits),
        "log_loss": float(np.mean(np.logaddexp(0.0, np.where(clicked, -logits, logits)))),
        "calibration_ratio": calibrated.ratio,
        "calibration_error": calibrated.error,
    }


def _labels(labels: Any) -> np.ndarray:
    """`[n]` bool."""
    labels = _numbers("labels", labels)
    _refuse("labels", labels, (labels != 0) & (labels != 1), "0 and 1")
    return labels == 1


def _weights(weights: Any, n: int) -> np.ndarray:
    if weights is None:
        return np.ones(n)
    weights = _numbers("weights", weights, n).astype(np.float64)
    _refuse("weights", weights, (weights < 0) | np.isinf(weights), "finite numbers of at least 0")
    if not weights.any():
        raise InteractionError(f"weights are all 0 at {n:,} positions; at least one above 0 is needed")
    return weights


def _numbers(what: str, values: Any, n: int | None = None, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise InteractionError(f"{what} must be one-dimensional and not empty; got shape {array.shape}")
    if n is not None and len(array) != n:
        raise InteractionError(f"{what} are {len(array):,} for {n:,} labels; one a label is accepted")
    if array.dtype.kind not in "iu":  # whole numbers stay, for beyond 2**53 different ones would become ties
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InteractionError(f"{what} must be numbers; got {array.dtype} such as {array[0]!r}") from error
    accepted = f"numbers in [{low:g}, {high:g}]" if np.isfinite(low) else "numbers other than NaN"
    _refuse(what, array, ~((array >= low) & (array <= high)), accepted)
    return array


def _refuse(what: str, array: np.ndarray, wrong: np.ndarray, accepted: str) -> None:
    if wrong.any():
        first = int(wrong.argmax())
        raise InteractionError(
            f"{what} has {array[first]} at position {first:,} ({int(wrong.sum()):,} such); {accepted} are accepted"
        )
