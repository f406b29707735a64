"""Tables, plots and JSON for people to look at."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from .comparison import Result
from .engine.compression import Bill
from .engine.storage import write_atomically
from .engine.training import Selection

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .engine.factorization.fitting import History

_SHOWN = ("ndcg", "recall", "hit_rate")
_LABELS = {
    "ndcg": "NDCG",
    "recall": "Recall",
    "hit_rate": "Hit rate",
    "map": "MAP",
    "mrr": "MRR",
    "precision": "Precision",
    "rmse": "RMSE",
    "mae": "MAE",
}
# Distinct in hue and in lightness, so that they stay apart in grey and for the colour-blind (Okabe, Ito).
COLORS = ("#8c8c8c", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def label_of(metric: str) -> str:
    """Name of a metric for people.

    >>> label_of("hit_rate_at_10")
    'Hit rate@10'
    """
    name, at, k = metric.partition("_at_")
    return f"{_LABELS.get(name, name)}@{k}" if at else _LABELS.get(name, name)


def print_comparison(results: Sequence[Result]) -> None:
    """One row an algorithm, with 95 % confidence intervals of the means over users."""
    first = results[0].evaluation
    table = Table(title=f"{first.protocol}, {len(first.users):,} users; mean and 95 % interval", box=box.SIMPLE_HEAD)
    names = _shown(first.values)
    table.add_column("algorithm", no_wrap=True, overflow="fold")
    for name in names:
        table.add_column(label_of(name), justify="right", overflow="fold")
    table.add_column("seconds", justify="right", overflow="fold")
    for result in results:
        means, intervals = result.evaluation.means, result.evaluation.intervals()
        cells = [f"{means[n]:.4f} ± {(intervals[n][1] - intervals[n][0]) / 2:.4f}" for n in names]
        table.add_row(result.algorithm, *cells, f"{result.seconds:.1f}")
    console = _wide_enough(table)
    console.print(table)
    for why, count in first.untested.items():
        if count:
            console.print(f"{count:,} {why}")


def summary(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """`{algorithm: {metric: mean, …, "seconds": t}}`."""
    return {r.algorithm: {**r.evaluation.means, "seconds": r.seconds} for r in results}


def print_bills(bills: Sequence[Bill]) -> None:
    """One column a model: what it takes, and what it gives with the change to the first and its 95 % interval."""
    first = bills[0]
    table = Table(title=f"{first.evaluation.protocol}, {len(first.evaluation.users):,} users", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for bill in bills:
        table.add_column(bill.name, justify="right", overflow="fold")
    table.add_row("memory", *(_bytes(bill.memory, first.memory) for bill in bills))
    table.add_row("on disk", *(_bytes(bill.disk, first.disk) for bill in bills))
    for n in first.seconds:
        table.add_row(f"{n:,} user{'s' * (n > 1)}", *(f"{1000 * bill.seconds[n]:.2f} ms" for bill in bills))
    for name in _shown(first.evaluation.values):
        table.add_row(label_of(name), *(f"{bill.evaluation.means[name]:.4f}" for bill in bills))
        changes = [bill.changes[name] for bill in bills[1:]]
        table.add_row("  change", "", *(f"{change:+.4f} ± {half:.4f}" for change, half in changes))
    _wide_enough(table).print(table)


def bills_summary(bills: Sequence[Bill]) -> dict[str, dict[str, Any]]:
    """`{model: {"memory": bytes, "disk": bytes, "seconds": {users: t}, metric: mean, "changes": {…}}}`."""
    return {
        bill.name: {
            "memory": bill.memory,
            "disk": bill.disk,
            "seconds": {str(n): seconds for n, seconds in bill.seconds.items()},
            **bill.evaluation.means,
            "changes": {metric: {"mean": mean, "half_interval": half} for metric, (mean, half) in bill.changes.items()},
        }
        for bill in bills
    }


def bills_plot(bills: Sequence[Bill], path: Path) -> None:
    """Size against quality, with 95 % intervals of the means over users, as PNG.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure = new_figure(6.4, 4.2)
    axes, name = figure.subplots(), _shown(bills[0].evaluation.values)[0]
    for bill, color in zip(bills, itertools.cycle(COLORS[1:]), strict=False):
        mean, (low, high) = bill.evaluation.means[name], bill.evaluation.intervals()[name]
        size = bill.memory / 1e6
        axes.errorbar(size, mean, [[mean - low], [high - mean]], fmt="o", color=color, capsize=3, label=bill.name)
    axes.set_xscale("log")
    axes.set_xlabel("parameters in memory, MB")
    axes.set_ylabel(label_of(name))
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _bytes(size: int, whole: int) -> str:
    """
    >>> _bytes(1_500_000, 6_000_000), _bytes(820, 820)
    ('1.5 MB (25.0 %)', '820 B (100.0 %)')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit} ({100 * size / whole:.1f} %)"
    return f"{size} B ({100 * size / whole:.1f} %)"


def print_frame(frame: pl.DataFrame) -> None:
    """A frame as a table."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in frame.columns:
        justify = "right" if frame[name].dtype.is_numeric() else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for row in frame.iter_rows():
        table.add_row(*(f"{c:.4f}" if isinstance(c, float) else "" if c is None else str(c) for c in row))
    _wide_enough(table).print(table)


def print_trials(selection: Selection) -> None:
    """One row a trial, the best first."""
    import polars as pl

    table = selection.table
    parameters = table.columns[1 : table.columns.index(selection.metric)]
    exact = [name for name in parameters if table[name].dtype.is_float()]  # 1e-5 must not read 0.0000
    texts = [pl.Series(n, [None if value is None else f"{value:g}" for value in table[n]], pl.String) for n in exact]
    print_frame(table.with_columns(texts))


def trials_summary(selection: Selection) -> dict[str, Any]:
    """`{"metric": …, "best": {…}, "trials": [{…}, …]}`, all of plain values."""
    best = selection.best
    found = {"algorithm": best.algorithm, "parameters": best.parameters, "epochs": best.step, "score": best.score}
    return {"metric": selection.metric, "best": found, "trials": selection.table.to_dicts()}


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, making the folder where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def metrics_plot(results: Sequence[Result], path: Path) -> None:
    """Bars of the metrics with their intervals, as PNG.

    Raises:
        ValueError: matplotlib is not installed.
    """
    figure = new_figure(7, 4.2)
    draw_metrics(figure.subplots(), results)
    save_figure(figure, path)


def trials_plot(selection: Selection, path: Path) -> None:
    """The score of every trial against each parameter that was varied, a colour an algorithm, as PNG.

    Raises:
        ValueError: matplotlib is not installed.
    """
    table, metric = selection.table, selection.metric
    names = [name for name in table.columns[1 : table.columns.index(metric)] if table[name].n_unique() > 1]
    names = names or ["algorithm"]
    figure = new_figure(max(4.0, 3.2 * len(names)), 3.6)
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        _draw_trials(axes, table, name, metric)
    figure.axes[0].set_ylabel(label_of(metric))
    figure.axes[-1].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _draw_trials(axes: Axes, table: pl.DataFrame, name: str, metric: str) -> None:
    """The best trial is ringed, those that diverged are crosses at the foot, and what lacks the parameter is a line."""
    known = table.drop_nulls(name)
    number = known[name].dtype.is_numeric()
    words = known[name].cast(str).unique(maintain_order=True).to_list()
    for place, algorithm in enumerate(table["algorithm"].unique(maintain_order=True)):
        mine, color = known.filter(known["algorithm"] == algorithm), COLORS[(place + 1) % len(COLORS)]
        if not len(mine):
            height = table.filter(table["algorithm"] == algorithm)[metric].cast(float).to_numpy()[0]
            axes.axhline(height, color=color, linestyle="--", linewidth=1, label=algorithm)
            continue
        at = mine[name].to_numpy() if number else np.array([words.index(str(value)) for value in mine[name]])
        scores = mine[metric].cast(float).to_numpy()
        diverged = np.isnan(scores)
        axes.plot(at[~diverged], scores[~diverged], "o", color=color, alpha=0.7, markeredgewidth=0, label=algorithm)
        if diverged.any():
            foot = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(at[diverged], np.zeros(diverged.sum()), "x", color=color, label=f"{algorithm}, diverged", **foot)
    best = table[name][0]
    if best is not None:
        axes.plot(
            best if number else words.index(str(best)), table[metric][0], "o", color="0.1", ms=11, fillstyle="none"
        )
    if not number:
        axes.set_xticks(range(len(words)), words)
    elif (known[name] > 0).all() and np.ptp(np.log10(known[name].to_numpy())) > 1:
        axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.margins(x=0.1, y=0.1)


def plot_history(history: History, path: Path, *, name: str) -> None:
    """The loss of every step and, where there was validation, its scores below, as PNG.

    Of more than 200 steps the line is a moving mean over a fortieth of them, before the losses themselves. `history` is
    what `fit` returned, `name` that of the algorithm.

    Raises:
        ValueError: matplotlib is not installed.
    """
    from matplotlib.ticker import MaxNLocator

    scores, validated = history.validation, history.validated
    ratios = [1] if scores is None or validated is None else [3, 2]
    figure = new_figure(7, 2.2 + 1.6 * len(ratios))
    axes = list(figure.subplots(len(ratios), sharex=True, squeeze=False, height_ratios=ratios)[:, 0])
    n = len(history.loss)
    _draw_loss(axes[0], history.loss)
    took = f"{n:,} step{'s' * (n != 1)} in {_duration(history.seconds.sum())}"
    axes[0].set_title(f"{name}, {took}", loc="left", fontsize=10)
    if scores is not None and validated is not None:
        _draw_validation(axes, validated, scores)
    if n == 1:
        axes[0].set_xlim(0, 2)
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].xaxis.set_major_formatter("{x:,.0f}")
    save_figure(figure, path)


def _draw_loss(axes: Axes, loss: np.ndarray) -> None:
    """Logarithmic where it fell by more than half, for else the start hides all that comes after it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    steps, line = np.arange(1, len(loss) + 1), np.asarray(loss, float)
    if len(loss) > 200:
        axes.plot(steps, loss, color=COLORS[1], alpha=0.2, linewidth=0.7)
        window = np.ones(len(loss) // 40)
        line = np.convolve(loss, window, "same") / np.convolve(np.ones(len(loss)), window, "same")
    axes.plot(steps, line, color=COLORS[1], linewidth=1.8, marker="o" if len(steps) <= 40 else "", markersize=3.5)
    beside = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
    axes.annotate(_short(line[-1]), (steps[-1], line[-1]), **beside)
    if line.min() > 0 and line.max() > 2 * line.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("loss")
    axes.margins(x=0.02)


def _draw_validation(panels: Sequence[Axes], steps: np.ndarray, scores: np.ndarray) -> None:
    """The best score is ringed, and its step marked in all panels."""
    axes, best = panels[-1], int(np.argmax(scores))
    for panel in panels:
        panel.axvline(steps[best], color="0.85", linewidth=1, zorder=0)
    axes.plot(steps, scores, color=COLORS[2], linewidth=1.8, marker="o" if len(steps) <= 40 else "", markersize=4)
    axes.plot(steps[best], scores[best], "o", color="0.1", markersize=10, fillstyle="none")
    # Above it, where no score can be.
    side = "left" if steps[best] < 0.2 * steps[-1] else "right" if steps[best] > 0.8 * steps[-1] else "center"
    above = {"xytext": (0, 10), "textcoords": "offset points", "ha": side, "fontsize": 9}
    axes.annotate(f"{scores[best]:.4f} after step {steps[best]:,}", (steps[best], scores[best]), **above)
    axes.set_ylabel("validation")
    axes.margins(y=0.25)


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that needs no display.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'affinax[plot]'") from error
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained", dpi=130)


def draw_metrics(axes: Axes, results: Sequence[Result]) -> None:
    """Bars of the metrics, a group a metric and a colour an algorithm, with 95 % intervals."""
    names = _shown(results[0].evaluation.values)
    width = 0.8 / len(results)
    for place, result in enumerate(results):
        means, intervals = result.evaluation.means, result.evaluation.intervals()
        heights = np.array([means[name] for name in names])
        errors = np.abs(np.array([intervals[name] for name in names]).T - heights)
        positions = np.arange(len(names)) + (place - (len(results) - 1) / 2) * width
        color = COLORS[place % len(COLORS)]
        axes.bar(positions, heights, width * 0.9, color=color, label=result.algorithm)
        axes.errorbar(positions, heights, errors, fmt="none", ecolor="0.25", elinewidth=1, capsize=2.5)
        for position, height, top in zip(positions, heights, heights + errors[1], strict=True):
            place = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes.annotate(f"{height:.3f}", (position, top), **place)
    axes.set_xticks(range(len(names)), [label_of(name) for name in names])
    axes.tick_params(axis="x", length=0)
    axes.set_title(f"{len(results[0].evaluation.users):,} users, mean and 95 % interval", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="upper left")
    axes.margins(y=0.15)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, atomically, making the folder where it is not there."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomically(path, picture.getvalue())


def _shown(metrics: Sequence[str] | dict[str, Any]) -> list[str]:
    return [name for shown in _SHOWN for name in metrics if name.partition("_at_")[0] == shown]


def _wide_enough(table: Table) -> Console:
    """A console that cuts nothing: where the output is no terminal there is no width to keep to."""
    console = Console()
    if not console.is_terminal:
        unbounded = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(table, options=unbounded).maximum)
    return console
