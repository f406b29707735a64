"""Value transforms: fitted on training data, applied to any other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InteractionError
from .interactions import Interactions

KINDS = ("z-score", "min-max", "user-centred")


@dataclass(frozen=True, eq=False)
class ValueScale:
    """A fitted transform, `(value - offset) / scale`, with an offset for each user if it is user-centred.

    >>> x = Interactions.from_coo([0, 0, 1], [0, 1, 0], values=[1.0, 3.0, 5.0])
    >>> scale = fit_scale(x, "user-centred")
    >>> scale.apply(x).values
    array([-1.,  1.,  0.], dtype=float32)
    >>> scale.invert(np.array([0.5]), users=np.array([1]))
    array([5.5])
    """

    kind: str
    offset: np.ndarray
    scale: float

    def apply(self, x: Interactions) -> Interactions:
        """Interactions with transformed values.

        Raises:
            InteractionError: No values, or users that the transform was not fitted on.
        """
        if x.values is None:
            raise InteractionError(f"{self.kind} scaling needs values, and these interactions have none")
        return x.with_values((x.values - self._offsets(x.users)) / self.scale)

    def invert(self, values: np.ndarray, users: np.ndarray | None = None) -> np.ndarray:
        """Values in the original unit; `users` names the user of each, where the transform is user-centred."""
        if users is None and self.kind == "user-centred":
            raise ValueError("users=None: a user-centred transform needs the user of each value")
        return values * self.scale + self._offsets(users)

    def _offsets(self, users: np.ndarray | None) -> np.ndarray:
        if self.kind != "user-centred":
            return self.offset
        users = np.asarray(users)
        if ((users < 0) | (users >= len(self.offset))).any():
            raise InteractionError(f"users beyond the {len(self.offset)} that the transform was fitted on")
        return self.offset[users]


def fit_scale(x: Interactions, kind: str) -> ValueScale:
    """Fits a transform of values.

    Args:
        x: Training interactions with values.
        kind: "z-score" (mean 0, standard deviation 1), "min-max" (to [0, 1]) or "user-centred" (less the user's
            mean; a user without interactions gets the global mean).

    Raises:
        InteractionError: No values, or all equal where the kind divides by their spread.
        ValueError: An unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind=} must be one of {KINDS}")
    if x.values is None:
        raise InteractionError(f"{kind} scaling needs values, and these interactions have none")
    values = x.values.astype(np.float64)
    if kind == "user-centred":
        counts = np.diff(x.indptr)
        sums = np.bincount(x.users, values, minlength=x.n_users)
        return ValueScale(kind, np.where(counts > 0, sums / np.maximum(counts, 1), values.mean()), 1.0)
    spread = np.ptp(values)
    if spread == 0:  # the standard deviation of equal values may come out a little above zero
        raise InteractionError(f"{kind} scaling: all {x.nnz} values are {values[0]:g}, so they have no spread")
    offset, scale = (values.mean(), values.std()) if kind == "z-score" else (values.min(), spread)
    return ValueScale(kind, np.array([offset]), float(scale))
