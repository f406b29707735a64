"""Trials of a search: closed forms one by one, and points of a grid that differ in numbers alone by one program."""

from __future__ import annotations

import inspect
import math
import numbers
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from ...kernels.csr import SparseMatrix
from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import DivergenceError
from ..factorization.fitting import fit
from ..progress import Progress

Builder = Callable[..., Any]
Point = dict[str, Any]


class Trial(NamedTuple):
    """One point of a grid.

    Attributes:
        algorithm: Its name.
        parameters: Those of the grid.
        score: The best value of the metric on the validation part; NaN if it diverged.
        step: After how many steps, or epochs of batches, it was so, or at which it diverged; 0 for a closed form.
        seconds: Training and validation; of trials trained together an equal share.
        outcome: Why it ended: "steps", "patience", "diverged" or "closed form".
    """

    algorithm: str
    parameters: Point
    score: float
    step: int
    seconds: float
    outcome: str


class Search(NamedTuple):
    """What all trials share.

    Attributes:
        score: The metric of a model.
        sign: 1 where more of it is better, -1 where less is.
        key: Of `jax.random`.
        patience: Steps without a better score, after which a trial ends.
        memory: Bytes for the states of trials trained together, of which there is one at least.
        bar: What shows how far it is.
    """

    score: Callable[[Any], float]
    sign: float
    key: PRNGKeyArray
    patience: int
    memory: int
    bar: Progress


def is_closed_form(builder: Builder) -> bool:
    """Whether it returns a model of its interactions at once."""
    return "interactions" in inspect.signature(builder).parameters


def solve(builder: Builder, x: Interactions | Sequences, point: Point, key: PRNGKeyArray) -> Any:
    """The model of a closed form, which gets the key if it has such a parameter."""
    keyed = {"key": key} if "key" in inspect.signature(builder).parameters else {}
    return builder(x, **keyed, **point)


def try_closed_form(
    name: str, builder: Builder, point: Point, train: Interactions | Sequences, search: Search
) -> Trial:
    """One trial of a closed form."""
    began = time.perf_counter()
    try:
        found = search.score(solve(builder, train, point, search.key))
    except DivergenceError:
        found = math.nan
    good, seconds = math.isfinite(found), time.perf_counter() - began
    search.bar.advance(f"{name} {found:.4f}")
    return Trial(name, point, found if good else math.nan, 0, seconds, "closed form" if good else "diverged")


def try_by_batches(
    name: str, builder: Builder, point: Point, epochs: int, train: Interactions | Sequences, search: Search
) -> Trial:
    """One trial of an algorithm whose steps take batches, scored once an epoch."""
    began, scores = time.perf_counter(), []

    def score(model: Any) -> float:
        scores.append(search.score(model))
        search.bar.advance(f"{name}, epoch {len(scores)}: {scores[-1]:.4f}", 0)
        return search.sign * scores[-1]

    options = {"key": search.key, "epochs": epochs, "validate": score, "patience": search.patience, "progress": False}
    try:
        _, history = fit(builder(**point), train, **options)
        best = int(np.argmax(search.sign * np.array(scores)))
        found, step, ended = scores[best], min(best + 1, epochs), history.stopped
    except DivergenceError:
        found, step, ended = math.nan, len(scores) + 1, "diverged"
    search.bar.advance(f"{name} {found:.4f}")
    return Trial(name, point, found, step, time.perf_counter() - began, ended)


def groups(builder: Builder, points: list[Point], data: SparseMatrix) -> list[tuple[list[str], list[Point]]]:
    """`(names, points)` of those that differ in these parameters alone, numbers that may be traced."""

    def may_be_traced(name: str) -> bool:
        values = [point[name] for point in points]
        if not all(isinstance(value, numbers.Real) and not isinstance(value, bool) for value in values):
            return False

        def train(number):
            algorithm, key = builder(**{**points[0], name: number}), jax.random.key(0)
            return algorithm.step(key, algorithm.init(key, data), data)

        try:
            jax.eval_shape(train, jax.ShapeDtypeStruct((), jnp.float32))
        except (TypeError, ValueError):  # what JAX raises where a program needs the number itself
            return False
        return True

    traced = [name for name in points[0] if may_be_traced(name)]
    alike: dict[str, list[Point]] = {}
    for point in points:
        alike.setdefault(repr({name: point[name] for name in point if name not in traced}), []).append(point)
    return [(traced, group) for group in alike.values()]


def try_together(
    name: str, builder: Builder, traced: list[str], points: list[Point], steps: int, data: SparseMatrix, search: Search
) -> list[Trial]:
    """Trials that differ in the parameters `traced` alone, as many at a time as the memory holds."""
    grid = np.array([[point[p] for p in traced] for point in points], np.float32).reshape(len(points), len(traced))
    fixed = {p: value for p, value in points[0].items() if p not in traced}

    def algorithm(row):
        return builder(**fixed, **dict(zip(traced, row, strict=True)))

    def init(row, key, data):
        return algorithm(row).init(key, data)

    def step(row, key, state, data):
        new, info = algorithm(row).step(key, state, data)
        good = jnp.isfinite(info.loss) & jnp.all(info.nonfinite == 0)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state), good

    start = jax.jit(jax.vmap(init, in_axes=(0, None, None)))
    advance = jax.jit(jax.vmap(step, in_axes=(0, None, 0, None)), donate_argnums=2)
    one_of = jax.jit(lambda states, place: jax.tree.map(lambda leaf: leaf[place], states))

    def run(rows: np.ndarray, n: int) -> list[Trial]:
        states = start(grid[rows], init_key, data)
        scores, best, seconds = np.full(n, -math.inf), np.zeros(n, int), np.zeros(n)
        running, ended = list(range(n)), ["steps"] * n
        for number, step_key in enumerate(jax.random.split(key, steps), start=1):
            began = time.perf_counter()
            states, good = advance(grid[rows], step_key, states, data)
            good = np.asarray(good)
            seconds[running] += (time.perf_counter() - began) / len(running)
            for place in tuple(running):
                began = time.perf_counter()
                found = search.sign * search.score(one_of(states, place)) if good[place] else math.nan
                if not math.isfinite(found):
                    scores[place], best[place], ended[place] = math.nan, number, "diverged"
                elif found > scores[place]:
                    scores[place], best[place] = found, number
                elif number - best[place] >= search.patience:
                    ended[place] = "patience"
                if ended[place] != "steps":
                    running.remove(place)
                seconds[place] += time.perf_counter() - began
            search.bar.advance(f"{name}, step {number}: {len(running)} of {n} trials go on", 0)
            if not running:
                break
        search.bar.advance(f"{name}, {n} trials done", n)
        scores = search.sign * scores
        return [
            Trial(name, points[rows[p]], float(scores[p]), int(best[p]), float(seconds[p]), ended[p]) for p in range(n)
        ]

    init_key, key = jax.random.split(search.key)
    one = jax.eval_shape(start, grid[:1], init_key, data)
    bytes_of_one = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(one))  # before and after a step
    n_chunks = math.ceil(len(points) / max(1, search.memory // bytes_of_one))
    at_once, trials = math.ceil(len(points) / n_chunks), []
    for first in range(0, len(points), at_once):
        # The last of them is filled up with the last point: one shape, one compilation.
        trials += run(np.arange(first, first + at_once).clip(max=len(points) - 1), min(at_once, len(points) - first))
    return trials
