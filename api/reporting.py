"""Tables, plots and JSON for people to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from .comparison import Result
from .engine.storage import write_atomically

if TYPE_CHECKING:
    import polars as pl

_SHOWN = ("ndcg", "recall", "hit_rate", "map")
_LABELS = {
    "ndcg": "NDCG",
    "recall": "Recall",
    "hit_rate": "Hit rate",
    "map": "MAP",
    "mrr": "MRR",
    "precision": "Precision",
}


def label_of(metric: str) -> str:
    """Name of a metric for people.

    >>> label_of("hit_rate_at_10")
    'Hit rate@10'
    """
    name, _, k = metric.partition("_at_")
    return f"{_LABELS.get(name, name)}@{k}"


def print_comparison(results: Sequence[Result]) -> None:
    """One row an algorithm, with 95 % confidence intervals of the means over users."""
    first = results[0].evaluation
    table = Table(title=f"{first.protocol}, {len(first.users):,} users; mean and 95 % interval")
    names = [name for name in first.values if name.split("_at_")[0] in _SHOWN]
    table.add_column("algorithm")
    for name in names:
        table.add_column(label_of(name), justify="right")
    table.add_column("seconds", justify="right")
    for result in results:
        means, intervals = result.evaluation.means, result.evaluation.intervals()
        cells = [f"{means[n]:.4f} ± {(intervals[n][1] - intervals[n][0]) / 2:.4f}" for n in names]
        table.add_row(result.algorithm, *cells, f"{result.seconds:.1f}")
    console = Console()
    console.print(table)
    for why, count in first.untested.items():
        if count:
            console.print(f"{count:,} {why}")


def summary(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """`{algorithm: {metric: mean, …, "seconds": t}}`."""
    return {r.algorithm: {**r.evaluation.means, "seconds": r.seconds} for r in results}


def print_frame(frame: pl.DataFrame) -> None:
    """A frame as a table."""
    table = Table()
    for name in frame.columns:
        table.add_column(name, justify="right" if frame[name].dtype.is_numeric() else "left")
    for row in frame.iter_rows():
        table.add_row(*(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row))
    Console().print(table)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def metrics_plot(results: Sequence[Result], path: Path, learning_curve: Sequence[float] | None = None) -> None:
    """Bars of the metrics with their intervals and, if given, the learning curve beside them, as PNG.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'affinax[plot]'") from error
    curve = learning_curve is not None
    figure = matplotlib.figure.Figure(figsize=(11 if curve else 7, 4.2), layout="constrained", dpi=120)
    axes = figure.subplots(1, 1 + curve, squeeze=False)[0]
    names = [name for name in results[0].evaluation.values if name.split("_at_")[0] in _SHOWN]
    width = 0.8 / len(results)
    for place, result in enumerate(results):
        means, intervals = result.evaluation.means, result.evaluation.intervals()
        heights = np.array([means[name] for name in names])
        errors = np.abs(np.array([intervals[name] for name in names]).T - heights)
        positions = np.arange(len(names)) + (place - (len(results) - 1) / 2) * width
        axes[-1].bar(positions, heights, width * 0.92, yerr=errors, capsize=3, label=result.algorithm)
    axes[-1].set_xticks(range(len(names)), [label_of(name) for name in names])
    axes[-1].set_title(f"Held-out interactions, {len(results[0].evaluation.users):,} users (95 % intervals)")
    axes[-1].legend(frameon=False)
    if curve:
        axes[0].plot(range(1, len(learning_curve) + 1), learning_curve, marker="o", markersize=3)
        axes[0].set(title="Learning curve", xlabel="sweep", ylabel="loss per interaction")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
