"""The one training loop: any `Algorithm`, with progress, early stopping and a watch for broken numbers."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from ...kernels.csr import SparseMatrix
from ..data.interactions import Interactions, not_interactions
from ..errors import DivergenceError
from ..progress import Progress
from .algorithm import Algorithm, Info


class History(NamedTuple):
    """What happened, an entry a step.

    Attributes:
        loss: The objective after each step.
        seconds: Wall time of each step; the first includes compilation.
        validation: What `validate` returned, or None.
        stopped: Why it ended: "steps", "tolerance", "patience" or "callback".
    """

    loss: np.ndarray
    seconds: np.ndarray
    validation: np.ndarray | None
    stopped: str


def fit(
    algorithm: Algorithm,
    interactions: Interactions | SparseMatrix,
    *,
    key: PRNGKeyArray,
    steps: int,
    state: Any = None,
    callback: Callable[[int, Any, Info], Any] | None = None,
    tolerance: float | None = None,
    validate: Callable[[Any], float] | None = None,
    patience: int = 3,
    progress: bool | None = None,
) -> tuple[Any, History]:
    """Trains an algorithm.

    The step is jitted once and its state donated; a step that yields a number that is not finite is undone and
    reported.

    Args:
        algorithm: From `implicit_als`, `explicit_als`, …
        interactions: What to train on.
        key: Of `jax.random`; the same key gives bitwise the same result on the same machine.
        steps: The most steps to take, at least 1.
        state: Where to begin; `algorithm.init` if None. It is copied, not consumed.
        callback: `callback(step, state, info)`, called after each step, counted from 1; a true return value stops.
        tolerance: Stop when the loss improves by less than this share of itself.
        validate: `validate(state) -> score`, higher is better, called after each step. The state with the best score
            is returned, and training stops when `patience` steps brought no better one.
        patience: See `validate`.
        progress: Whether to show a progress bar; if None, when the error stream is a terminal.

    Returns:
        `(state, history)`.

    Raises:
        DivergenceError: A number that is not finite; names step, side and row, and holds the state before it.
        TypeError: Neither `Interactions` nor their `to_device()`.
        ValueError: `steps` or `patience` below 1.
    """
    if steps < 1 or patience < 1:
        raise ValueError(f"{steps=} and {patience=} must be at least 1")
    if not isinstance(interactions, Interactions | SparseMatrix):
        raise TypeError(not_interactions("fit", interactions))
    data = interactions.to_device() if isinstance(interactions, Interactions) else interactions
    nnz = data.by_user.nnz
    init_key, key = jax.random.split(key)
    # Copied, since the step consumes it.
    state = jax.tree.map(jnp.array, algorithm.init(init_key, data) if state is None else state)
    step = _guarded(algorithm.step)
    losses, seconds, scores = [], [], []
    best, best_score, stopped = None, -np.inf, "steps"
    with Progress(algorithm.name, steps, progress) as bar:
        for number, step_key in enumerate(jax.random.split(key, steps), start=1):
            began = time.perf_counter()
            state, info = step(step_key, state, data)
            info = jax.tree.map(np.asarray, info)
            seconds.append(time.perf_counter() - began)
            losses.append(float(info.loss))
            if info.nonfinite.any() or not np.isfinite(info.loss):
                raise _divergence(algorithm, number, info, state, data)
            if validate is not None:
                scores.append(float(validate(state)))
                if scores[-1] > best_score:
                    best, best_score = jax.tree.map(jnp.array, state), scores[-1]
            bar.advance(_status(losses[-1] / max(nnz, 1), nnz / seconds[-1], scores))
            if callback is not None and callback(number, state, info):
                stopped = "callback"
            elif validate is not None and number - 1 - int(np.argmax(scores)) >= patience:
                stopped = "patience"
            elif tolerance is not None and number > 1 and losses[-2] - losses[-1] < tolerance * abs(losses[-2]):
                stopped = "tolerance"
            if stopped != "steps":
                break
    history = History(np.array(losses), np.array(seconds), np.array(scores) if scores else None, stopped)
    return (state if best is None else best), history


@functools.lru_cache(maxsize=32)
def _guarded(step: Callable[..., tuple[Any, Info]]) -> Callable[..., tuple[Any, Info]]:
    """The step, jitted, which leaves a state as it is that would not be finite.

    Kept, so that another fit by the same step compiles nothing: the numbers of an algorithm are in its state.
    """

    def guarded(key, state, data):
        new, info = step(key, state, data)
        good = jnp.isfinite(info.loss) & jnp.all(info.nonfinite == 0)
        return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state), info

    return jax.jit(guarded, donate_argnums=1)


def _divergence(algorithm: Algorithm, number: int, info: Info, state: Any, data: SparseMatrix) -> DivergenceError:
    where = "the loss"
    for side, rows, row in zip(("user", "item"), data, info.first_bad_row, strict=True):
        if row >= 0:
            entries = int(rows.indptr[row + 1] - rows.indptr[row])
            where = f"{side} side: row {row}"
            detail = [f"{entries} interaction{'' if entries == 1 else 's'}"]
            break
    else:
        detail = [f"{info.loss}"]
    objective, advice = getattr(state, "objective", None), ""
    for name in ("l2", "learning_rate"):
        value = getattr(objective, name, None)
        if value is not None:
            detail.insert(0, f"{name}={float(value):g}")
            if name == "learning_rate":
                advice = "; a smaller learning_rate avoids it"
            elif float(value) == 0:
                advice = "; l2 > 0 avoids it"
    return DivergenceError(
        f"{algorithm.name}, step {number}, {where} is not finite ({', '.join(detail)}). "
        f"The state before this step is in error.state{advice}",
        state,
    )


def _status(loss: float, speed: float, scores: list[float]) -> str:
    unit, scale = ("M", 1e6) if speed >= 1e6 else ("k", 1e3)
    validation = f"  validation {scores[-1]:.4f}" if scores else ""
    return f"loss {loss:.4f}  {speed / scale:.1f} {unit} interactions/s{validation}"
