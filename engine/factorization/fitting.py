"""The one training loop: any `Algorithm`, with progress, early stopping and a watch for broken numbers."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from ...kernels import huge_pages
from ...kernels.csr import SparseMatrix
from ...kernels.quantized_kernel import is_quantized
from ..data.interactions import Interactions, not_interactions
from ..errors import CompressionError, DivergenceError
from ..prefetch import Prefetch
from ..progress import Progress
from .algorithm import Algorithm, Info
from .run import Run, SavedRun, data_in_words, key_in_words
from .stepping import Steps


class History(NamedTuple):
    """What happened, an entry a step.

    Attributes:
        loss: The objective of each step, as `Info` has it.
        seconds: Wall time of each step, the same for those taken in one call; the first includes compilation.
        validation: What `validate` returned, or None.
        stopped: Why it ended: "steps", "tolerance", "patience" or "callback".
        validated: After which steps it was called, counted from 1, or None.
        waited: Seconds that steps waited for their batches, 0 where a step takes all the data.
    """

    loss: np.ndarray
    seconds: np.ndarray
    validation: np.ndarray | None
    stopped: str
    validated: np.ndarray | None = None
    waited: float = 0.0


def fit(
    algorithm: Algorithm,
    interactions: Any,
    *,
    key: PRNGKeyArray,
    steps: int | None = None,
    epochs: int | float | None = None,
    state: Any = None,
    callback: Callable[[int, Any, Info], Any] | None = None,
    tolerance: float | None = None,
    validate: Callable[[Any], float] | None = None,
    validate_every: int | None = None,
    patience: int = 3,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool | None = None,
) -> tuple[Any, History]:
    """Trains an algorithm.

    The step is jitted once and its state donated; a step that yields a number that is not finite is undone and
    reported. Batches are cut on another thread, ahead of the device, and several short steps are taken in one call.

    Args:
        algorithm: From `implicit_als`, `bpr`, `training.gradient`, …
        interactions: What to train on: `Interactions`, their `to_device()`, or what the algorithm cuts batches of.
        key: Of `jax.random`; the same key gives bitwise the same result on the same machine.
        steps: The most steps to take, at least 1; or
        epochs: as many as pass the data so often, where a step takes a batch; else an epoch is a step.
        state: Where to begin; `algorithm.init` if None. It is copied, not consumed. What its optimizer remembers goes
            on where this algorithm's is of the same kind, and begins anew where it is not.
        callback: `callback(step, state, info)`, called after each step, counted from 1; a true return value stops. With
            it there is but one step in a call.
        tolerance: Stop when the loss of an epoch is less than this share below that of the one before.
        validate: `validate(state) -> score`, higher is better. The state with the best score is returned, and training
            stops when `patience` calls brought no better one.
        validate_every: Steps between its calls; if None 1, or the batches of an epoch. The last step is validated too.
        patience: See `validate`.
        checkpoint: A folder in which training is saved as it goes. Where it holds an earlier run of the same algorithm,
            key and settings, training goes on from there: one that was cut off comes to bitwise the result of one that
            was not.
        checkpoint_every: Steps between savings; if None, as `validate_every`. The last step is saved too.
        progress: Whether to show a progress bar; if None, when the error stream is a terminal.

    Returns:
        `(state, history)`.

    Raises:
        CompressionError: A quantized `state`.
        InteractionError: Batches of different shapes, or what the algorithm cannot cut batches of.
        DivergenceError: A number that is not finite; names step, side and row, and holds the state before it.
        CheckpointError: The folder holds something else, or a run of another algorithm, model or key, of other
            settings, or on other data.
        TypeError: Neither `Interactions` nor their `to_device()`, nor what the batches are cut of.
        ValueError: `steps`, `patience` or one of the intervals below 1, or both or neither of `steps` and `epochs`.
    """
    for name, number in {
        "steps": steps,
        "epochs": epochs,
        "patience": patience,
        "validate_every": validate_every,
        "checkpoint_every": checkpoint_every,
    }.items():
        if number is not None and (number <= 0 if name == "epochs" else number < 1):
            raise ValueError(f"{name}={number} must be {'above 0' if name == 'epochs' else 'at least 1'}")
    if (steps is None) == (epochs is None):
        raise ValueError(f"give either steps or epochs; got {steps=} and {epochs=}")
    init_key, step_key = jax.random.split(key)
    source = _source(algorithm, interactions, init_key)
    epoch = max(1, source.examples // source.size) if algorithm.batches else 1
    total = steps or math.ceil((epochs or 0) * source.examples / source.size)
    every = validate_every or epoch
    save_every = checkpoint_every or every
    # Copied, since the step consumes it.
    if state is None:
        start = algorithm.init(init_key, source.data)
    else:
        if any(map(is_quantized, jax.tree.leaves(state, is_leaf=is_quantized))):
            raise CompressionError("the state is quantized, which leaves nothing to train: dequantize it first")
        start = state if algorithm.resume is None else algorithm.resume(state, interactions)
    run = Run(*jax.tree.flatten(jax.tree.map(huge_pages.copy, start)))
    saved = None
    if checkpoint is not None:
        of_run = {"algorithm": algorithm.name, "key": key_in_words(key), "examples": source.examples}
        of_run |= {"validate_every": every if validate else None, "data": data_in_words(interactions)}
        settings = {**of_run, **algorithm.settings, "batch_size": source.size}
        saved = SavedRun(Path(checkpoint), settings)
        run = saved.restored(run)
    first = len(run.losses) + 1
    stopped = run.stopped(epoch, tolerance, patience)
    # Cut to what is left, so that a run taken up goes on with the keys that it would have had.
    keys = jax.random.split(step_key, total)[first - 1 :]
    pauses = [every] * (validate is not None) + [save_every] * (saved is not None) + [epoch] * (tolerance is not None)
    pauses += [1] * (callback is not None)
    with (
        Progress(algorithm.name, total, progress) as bar,
        source.ahead(first, total if stopped is None else 0) as batches,
    ):
        number, ahead = first - 1, iter(batches)
        like = list(itertools.islice(ahead, 1))
        steps_of, ahead = Steps(algorithm, keys, first, run.structure, like), itertools.chain(like, ahead)
        bar.advance("", min(number, total))
        while number < total and stopped is None:
            to_pause = min(total - number, *(interval - number % interval for interval in pauses), total)
            data = list(itertools.islice(ahead, steps_of.in_a_call(to_pause, run.seconds)))
            began = time.perf_counter()
            run.leaves, infos = steps_of.take(run.leaves, number + 1, data)
            taken = len(infos.loss)
            number += taken
            run.seconds += [(time.perf_counter() - began) / taken] * taken
            run.losses += infos.loss.tolist()
            info = jax.tree.map(lambda a: a[-1], infos)
            if info.nonfinite.any() or not np.isfinite(info.loss):
                raise _divergence(algorithm, number, info, run.state, data[-1])
            if validate is not None and (number % every == 0 or number == total):
                score = float(validate(run.state))
                if score > max(run.scores, default=-np.inf):
                    run.best = jax.tree.map(jnp.array, run.state)
                run.scores.append(score)
                run.validated.append(number)
            if bar.shown:
                bar.advance(source.status(run), taken)
            if callback is not None and callback(number, run.state, info):
                stopped = "callback"
            stopped = stopped or run.stopped(epoch, tolerance, patience)
            if saved is not None and (number % save_every == 0 or number == total or stopped):
                saved.save(run)
    scores, validated = (np.array(run.scores), np.array(run.validated)) if run.scores else (None, None)
    waited = run.waited + getattr(batches, "waited", 0.0)
    history = History(np.array(run.losses), np.array(run.seconds), scores, stopped or "steps", validated, waited)
    return (run.state if run.best is None else run.best), history


class _Source(NamedTuple):
    """What steps take, and how much of it."""

    data: Any  # for `init`
    make: Callable[[int], Any] | None  # the batch of a step; None where each takes all the data
    size: int  # of what a step takes
    examples: int

    @contextlib.contextmanager
    def ahead(self, first: int, last: int) -> Iterator[Iterable[Any]]:
        """What the steps `first` to `last` take; batches are made on another thread."""
        if self.make is None:
            yield itertools.repeat(self.data, max(last + 1 - first, 0))
            return
        with Prefetch(self.make, first, last) as batches:
            yield batches

    def status(self, run: Run) -> str:
        """How it goes, for the progress bar."""
        loss = run.losses[-1] if self.make else run.losses[-1] / max(self.size, 1)
        speed = self.size / float(np.median(run.seconds[-20:]))
        unit, scale = ("M", 1e6) if speed >= 1e6 else ("k", 1e3)
        validation = f"  validation {run.scores[-1]:.4f}" if run.scores else ""
        what = "examples" if self.make else "interactions"
        return f"loss {loss:.4f}  {speed / scale:.1f} {unit} {what}/s{validation}"


def _source(algorithm: Algorithm, interactions: Any, key: PRNGKeyArray) -> _Source:
    if algorithm.batches is not None:
        seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, 1)))
        batches = algorithm.batches(interactions, seed)
        return _Source(interactions, batches.make, batches.size, batches.examples)
    if not isinstance(interactions, Interactions | SparseMatrix):
        raise TypeError(not_interactions("fit", interactions))
    data = interactions.to_device() if isinstance(interactions, Interactions) else interactions
    return _Source(data, None, data.by_user.nnz, data.by_user.nnz)


def _divergence(algorithm: Algorithm, number: int, info: Info, state: Any, data: Any) -> DivergenceError:
    where, detail, advice = "the loss", [f"{info.loss}"], ""
    if algorithm.batches is not None:
        if np.isfinite(info.loss):
            where, detail = "the gradient", [f"of {info.nonfinite[0]} arrays; the loss is {info.loss:g}"]
        advice = "; a smaller learning rate or optax.clip_by_global_norm may avoid it"
    else:
        for side, rows, row in zip(("user", "item"), data, info.first_bad_row, strict=True):
            if row >= 0:
                entries = int(rows.indptr[row + 1] - rows.indptr[row])
                where, detail = f"{side} side: row {row}", [f"{entries} interaction{'' if entries == 1 else 's'}"]
                break
    objective = getattr(state, "objective", None)
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
