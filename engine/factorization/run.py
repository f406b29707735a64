"""What a run of `fit` has come to, and how it is kept in a checkpoint and taken up again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ...kernels import huge_pages
from ..checkpoint import latest_step, read_manifest, restore_checkpoint, save_checkpoint
from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import CheckpointError

_KEPT = ("losses", "seconds", "scores", "validated", "waited")  # beside the arrays


@dataclass
class Run:
    """State, and a number a step of what was met on the way.

    Attributes:
        leaves: Those of the state after the last step.
        structure: Of the state, which would take longer to go through at every step than a small step takes.
        best: The state that validated best, or None.
        losses: Of each step.
        seconds: Of each step.
        scores: Of each validation.
        validated: After which step each was.
        waited: Seconds of waiting for batches.
    """

    leaves: list[Any]
    structure: Any
    best: Any = None
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    waited: float = 0.0

    @property
    def state(self) -> Any:
        return jax.tree.unflatten(self.structure, self.leaves)

    def stopped(self, epoch: int, tolerance: float | None, patience: int) -> str | None:
        """Why it has to end here, if it has to."""
        if self.scores and len(self.scores) - 1 - int(np.argmax(self.scores)) >= patience:
            return "patience"
        n = len(self.losses)
        if tolerance is not None and n >= 2 * epoch and n % epoch == 0:
            before, last = np.mean(self.losses[-2 * epoch : -epoch]), np.mean(self.losses[-epoch:])
            if before - last < tolerance * abs(before):
                return "tolerance"
        return None


@dataclass(frozen=True)
class SavedRun:
    """The checkpoints of a run.

    Attributes:
        folder: Where they are.
        settings: What a run that is taken up must have had, as JSON can hold it.
    """

    folder: Path
    settings: dict[str, Any]

    def save(self, run: Run) -> None:
        """Keeps it; see `save_checkpoint` for what that may raise."""
        content = {name: getattr(run, name) for name in _KEPT}
        has_best = run.best is not None
        state = {"state": run.state, **({"best": run.best} if has_best else {})}
        save_checkpoint(
            self.folder, len(run.losses), state, content={**content, "has_best": has_best, "settings": self.settings}
        )

    def restored(self, start: Run) -> Run:
        """The run that the folder holds, or `start` where it holds none.

        Raises:
            CheckpointError: It is damaged, or of another model or other settings.
        """
        if latest_step(self.folder) is None:
            return start
        content = read_manifest(self.folder)["content"]
        settings = content.get("settings", {})
        for name, mine in self.settings.items():
            theirs = settings.get(name, mine)  # one of an earlier version does not say all
            if theirs != mine:
                raise CheckpointError(
                    f"{self.folder} holds a run with {name}={theirs}; this one has {name}={mine}. "
                    "Choose another folder, or remove it to begin anew"
                )
        like = {"state": start.state, **({"best": start.state} if content["has_best"] else {})}
        state = restore_checkpoint(self.folder, like).state
        # Copied to where a step may consume it.
        state = jax.tree.map(huge_pages.copy, state)
        return Run(*jax.tree.flatten(state["state"]), state.get("best"), **{name: content[name] for name in _KEPT})


def data_in_words(data: Any) -> str | None:
    """A digest of interactions or sequences, to tell those of the same number apart; None of other data."""
    if not isinstance(data, Interactions | Sequences):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for array in (data.indptr, data.items, data.timestamps, getattr(data, "values", None)):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).data)
    return digest.hexdigest()


def key_in_words(key: PRNGKeyArray) -> str:
    """A key as text, to compare keys of different runs by."""
    return f"{jax.random.key_impl(key)} {np.asarray(jax.random.key_data(key)).tolist()}"
