"""The choice among algorithms and parameters on a validation part; a test part never comes near it."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import DivergenceError, InteractionError
from ..evaluation import evaluate, evaluate_ratings
from ..evaluation.metrics import RANKING
from ..factorization.fitting import fit
from ..progress import Progress
from .trials import (
    Builder,
    Point,
    Search,
    Trial,
    groups,
    is_closed_form,
    solve,
    try_by_batches,
    try_closed_form,
    try_together,
)

if TYPE_CHECKING:
    import polars as pl

_RATING = ("rmse", "mae")
_MEMORY = 1 << 30


@dataclass(frozen=True, eq=False)
class Selection:
    """What `select` found.

    Attributes:
        metric: What was compared.
        trials: All, the best first, those that diverged last.
    """

    metric: str
    trials: tuple[Trial, ...]
    _names: tuple[str, ...] = field(repr=False)
    _algorithms: Mapping[str, Builder] = field(repr=False)
    _parts: tuple[Interactions | Sequences, Interactions] = field(repr=False)
    _key: PRNGKeyArray = field(repr=False)

    @property
    def best(self) -> Trial:
        """The trial with the best score."""
        return self.trials[0]

    @property
    def table(self) -> pl.DataFrame:
        """A row a trial, best first: algorithm, a column for each parameter, the metric, step, seconds, outcome."""
        import polars as pl

        columns: dict[str, Any] = {"algorithm": [trial.algorithm for trial in self.trials]}
        columns |= {name: _plain([trial.parameters.get(name) for trial in self.trials]) for name in self._names}
        columns[self.metric] = [None if math.isnan(trial.score) else trial.score for trial in self.trials]
        for name in ("step", "seconds", "outcome"):
            columns[name] = [getattr(trial, name) for trial in self.trials]
        return pl.DataFrame(columns)

    def refit(self, *, key: PRNGKeyArray | None = None, progress: bool | None = None) -> Any:
        """The model of the best trial, trained for as many steps on the training and the validation part together.

        Args:
            key: Of `jax.random`; that of the search if None.
            progress: As in `select`.
        """
        builder, best, x = self._algorithms[self.best.algorithm], self.best, _together(*self._parts)
        key = self._key if key is None else key
        if is_closed_form(builder):
            return solve(builder, x, best.parameters, key)
        return fit(builder(**best.parameters), x, key=key, epochs=best.step, progress=progress)[0]


def select(
    algorithms: Mapping[str, Builder],
    grid: Mapping[str, Mapping[str, Sequence[Any]]],
    train: Interactions | Sequences,
    validation: Interactions,
    metric: str = "ndcg_at_10",
    *,
    key: PRNGKeyArray | None = None,
    steps: int | Mapping[str, int] = 50,
    patience: int = 3,
    memory: int | None = None,
    progress: bool | None = None,
) -> Selection:
    """Tries every point of a grid of each algorithm, and keeps the score of the best step of each.

    Points that differ in numbers alone (l2, a learning rate) share one compilation; what decides shapes or programs
    (rank, a solver) and closed forms are tried in turn. On an accelerator such points are trained together, by `vmap`;
    on CPU one at a time: the kernels take the points of a `vmap` one after the other there, so that it gains nothing
    (bench/results/selection.json), and a trial that has ended costs no more. A trial ends when its own score has not
    risen for `patience` steps; one that diverges is reported and ends nothing else.

    Args:
        algorithms: By name: a function of parameters that returns an `Algorithm`, such as `implicit_als`, or one of
            `interactions` (and a `key`, if it has such a parameter) and parameters that returns a model: `ease`.
        grid: By algorithm, values to try for each parameter; an algorithm without a grid is tried as it is.
        train: What to train on; `Sequences` for algorithms that read them.
        validation: What to compare on, of the same shape.
        metric: A ranking metric, such as "ndcg_at_10" or "recall_at_20", over the full catalogue without the training
            items; or "rmse" or "mae" of ratings, of which less is better.
        key: Of `jax.random`, the same for all trials; `jax.random.key(0)` if None.
        steps: The most steps of a trial, or epochs where a step takes a batch, for all algorithms or by name; closed
            forms take none.
        patience: At least 1.
        memory: Bytes that the states of trials trained together may take; if None, 1 GiB on an accelerator, and one
            trial at a time on CPU.
        progress: Whether to show a progress bar; if None, when the error stream is a terminal.

    Returns:
        `Selection`.

    Raises:
        DivergenceError: All trials diverged.
        InteractionError: Parts of different shapes, without values for ratings, or with nobody to validate.
        ValueError: An unknown metric, nothing to try, a grid of an unknown algorithm, or a parameter out of its range.

    >>> from affinax.engine.factorization import implicit_als
    >>> users, items = np.nonzero(np.add.outer(np.arange(20), np.arange(20)) % 2)
    >>> x = Interactions.from_coo(users, items)
    >>> found = select(
    ...     {"als": implicit_als}, {"als": {"rank": [2], "l2": [0.01, 1e6]}}, *x.split("random"), key=jax.random.key(0)
    ... )
    >>> found.best.parameters
    {'rank': 2, 'l2': 0.01}
    """
    pairs = train.interactions() if isinstance(train, Sequences) else train
    sign, score = _scorer(metric, pairs, validation)
    foreign = sorted(grid.keys() - algorithms.keys())
    if foreign or not algorithms:
        raise ValueError(f"there is a grid for {foreign}; the algorithms to try are {sorted(algorithms)}")
    points = {name: _points(name, builder, grid.get(name, {})) for name, builder in algorithms.items()}
    by_step = [name for name, builder in algorithms.items() if not is_closed_form(builder)]
    most = dict(steps) if isinstance(steps, Mapping) else dict.fromkeys(by_step, steps)
    if not set(by_step) <= most.keys() <= algorithms.keys():
        raise ValueError(f"steps are for {sorted(most)}; the algorithms that take steps are {sorted(by_step)}")
    if min(patience, 1 if memory is None else memory, *most.values()) < 1:
        raise ValueError(f"{steps=}, {patience=} and {memory=} must be at least 1")
    key = jax.random.key(0) if key is None else key
    trials: list[Trial] = []
    data = pairs.to_device() if by_step else None
    if memory is None:
        on_cpu = data is None or all(device.platform == "cpu" for device in data.by_user.indices.devices())
        memory = 1 if on_cpu else _MEMORY
    with Progress("selection", sum(map(len, points.values())), progress) as bar:
        search = Search(score, sign, key, patience, memory, bar)
        for name, builder in algorithms.items():
            if data is None or is_closed_form(builder):
                trials += [try_closed_form(name, builder, point, train, search) for point in points[name]]
                continue
            if builder(**points[name][0]).batches is not None:
                trials += [try_by_batches(name, builder, point, most[name], train, search) for point in points[name]]
                continue
            for traced, group in groups(builder, points[name], data):
                trials += try_together(name, builder, traced, group, most[name], data, search)
    trials.sort(key=lambda trial: math.inf if math.isnan(trial.score) else -sign * trial.score)
    if math.isnan(trials[0].score):
        raise DivergenceError(f"all {len(trials)} trials diverged, such as {trials[0]}")
    names = tuple(dict.fromkeys(parameter for name in algorithms for parameter in points[name][0]))
    return Selection(metric, tuple(trials), names, algorithms, (train, validation), key)


def _scorer(metric: str, train: Interactions, validation: Interactions) -> tuple[float, Callable[[Any], float]]:
    """`(sign, score)`: 1 where more is better and -1 where less is, and the metric of a model."""
    if train.shape != validation.shape:
        raise InteractionError(f"{train.shape=} and {validation.shape=} must be equal: split them off the same data")
    if metric in _RATING:
        if validation.values is None:
            raise InteractionError(f"{metric} needs values, and the validation part has none")
        return -1.0, lambda model: evaluate_ratings(model, validation)[metric]
    name, _, k = metric.partition("_at_")
    if name not in RANKING or not k.isdigit() or int(k) < 1:
        accepted = [f"{name}_at_10" for name in sorted(RANKING)]
        raise ValueError(
            f"{metric=} must be one of {[*accepted, *_RATING]}, with any number above 0 in the place of 10"
        )
    return 1.0, lambda model: evaluate(model, validation, train=train, k=int(k), names=(name,)).means[metric]


def _points(name: str, builder: Builder, grid: Mapping[str, Sequence[Any]]) -> list[Point]:
    """All points of a grid, each tried for its range where that costs no training."""
    empty = [parameter for parameter, values in grid.items() if isinstance(values, str) or not len(values)]
    if empty:
        raise ValueError(f"the grid of {name}: {empty[0]}={grid[empty[0]]!r} must be a sequence of one value or more")
    known = {n: p for n, p in inspect.signature(builder).parameters.items() if n not in ("interactions", "key")}
    more = [n for n, p in known.items() if p.kind is p.VAR_KEYWORD]  # such as those of a network
    known = {n: p for n, p in known.items() if n not in more}
    unknown = sorted(grid.keys() - known.keys())
    if unknown and not more:
        raise ValueError(f"the grid of {name}: it has no parameter {unknown[0]!r}; it has {sorted(known)}")
    needed = [n for n, p in known.items() if p.default is p.empty and n not in grid]
    if needed:
        raise ValueError(f"the grid of {name}: it needs {needed}, which have no default")
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if not is_closed_form(builder):
        for point in points:
            builder(**point)
    return points


def _together(train: Interactions | Sequences, validation: Interactions) -> Interactions | Sequences:
    """All interactions of both parts, those of sequences in order of time, or the validation part last."""

    def joined(name: str) -> np.ndarray | None:
        parts = [getattr(part, name) for part in (train, validation)]
        return None if any(part is None for part in parts) else np.concatenate(parts)

    if isinstance(train, Sequences):
        events, ids = (joined("users"), joined("items"), joined("timestamps")), (train.user_ids, train.item_ids)
        sizes = {"n_users": train.n_users, "n_items": train.n_items}
        both = Sequences.from_events(*events, **sizes, user_ids=ids[0], item_ids=ids[1])
        return replace(both, item_features=train.item_features)
    both = Interactions.from_coo(
        joined("users"),
        joined("items"),
        joined("values"),
        joined("timestamps"),
        n_users=train.n_users,
        n_items=train.n_items,
        user_ids=train.user_ids,
        item_ids=train.item_ids,
    )
    return replace(both, user_features=train.user_features, item_features=train.item_features)


def _plain(values: list[Any]) -> list[Any]:
    """Values as a column can hold them: of one type, others as text."""
    types = {type(value) for value in values} - {type(None)}
    if types == {int, float}:
        return [None if value is None else float(value) for value in values]
    if len(types) <= 1 and types <= {bool, int, float, str}:
        return values
    return [None if value is None else str(value) for value in values]
