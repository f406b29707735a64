"""What a regression is given, and what it found, checked where they are concrete."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ...kernels.csr import CSR
from ..errors import DivergenceError, FeatureError
from .designs import Design, as_design
from .linear_models import LinearModel

COLLINEAR = 3e-5  # the share of its variance that a feature must have of its own, given those before it
_MOST_FACTORIZED = 4096  # features up to which "auto" takes the solver that factorizes


class Problem(NamedTuple):
    """A regression to solve.

    Attributes:
        design: X, float32.
        targets: y, `[n_rows, ...]` float32.
        n_features: The width of X.
        l2: The penalty.
        solver: Not "auto".
    """

    design: Design
    targets: Array
    n_features: int
    l2: Float[Array, ""]
    solver: str


def checked_problem(
    design: Any,
    targets: Any,
    l2: Any,
    n_features: int | None,
    solver: str,
    solvers: tuple[str, str],
    steps: int,
    tolerance: float,
) -> Problem:
    """The arguments of a regression, whose `solvers` are one that factorizes and one that holds vectors only.

    Raises:
        FeatureError: Shapes that do not go together, or a number that is not finite; the message names its place.
        ValueError: A parameter out of its range.
    """
    direct, iterative = solvers
    if solver not in ("auto", *solvers):
        raise ValueError(f"{solver=} must be one of {('auto', *solvers)}")
    if steps < 1 or not tolerance > 0:
        raise ValueError(f"{steps=} must be at least 1 and {tolerance=} above 0")
    design, n_features = as_design(design, n_features)
    targets = jnp.asarray(targets, jnp.float32)
    n_rows = design.n_rows if isinstance(design, CSR) else design.shape[0]
    if targets.ndim not in (1, 2) or targets.shape[0] != n_rows or n_rows == 0 or n_features == 0:
        raise FeatureError(f"targets.shape={targets.shape} must be (n_rows,) of a design with {n_rows=}, {n_features=}")
    _require_finite("the design", design.values if isinstance(design, CSR) else design)
    _require_finite("targets", targets)
    if solver == "auto":
        solver = direct if n_features <= _MOST_FACTORIZED else iterative
    if not isinstance(l2, Tracer):
        value = float(l2)
        if not (np.isfinite(value) and value >= 0):
            raise ValueError(f"{l2=} must be finite and at least 0")
        if value == 0 and solver != direct:
            raise ValueError(
                f"{l2=}: {solver=} cannot tell whether features are collinear, and needs l2 > 0; {direct!r} can"
            )
    return Problem(design, targets, n_features, jnp.asarray(l2, jnp.float32), solver)


def _require_finite(what: str, array: Array) -> None:
    """Refuses a number that is not finite and says where it is; a traced array is the caller's business."""
    if isinstance(array, Tracer):
        return
    concrete = np.asarray(array)
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(concrete)):  # the quick look, which nothing that is not finite gets past
            return
    wrong = ~np.isfinite(concrete)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise FeatureError(f"{what}: {concrete[place]} at {place} is not a finite float32 number")


def is_concrete(*trees: Any) -> bool:
    """Whether there are numbers in them, and nothing that is only traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def checked_model(model: LinearModel, l2: Array, tolerance: float, name: str) -> LinearModel:
    """The model, once it is sure that it is one; where it is traced, `convergence` tells the caller.

    Raises:
        FeatureError: Collinear or constant features without a penalty.
        DivergenceError: Numbers that are not finite, or a slope that has not come down; `state` has the model.
    """
    if not is_concrete(model, l2):
        return model
    own = model.convergence.own_variance
    if own is not None and float(l2) == 0:
        least = np.asarray(own)
        if (least < COLLINEAR).any():
            feature, count = int(np.argmax(least < COLLINEAR)), int((least < COLLINEAR).sum())
            which = f"feature {feature} is constant or a linear combination of those before it ({count} such)"
            if least[0] < 0:
                which = "the features are collinear"
            raise FeatureError(
                f"{name}: {which}, so that with l2 = 0 the weights are not determined. Pass l2 > 0, or leave it out"
            )
    gradient = float(model.convergence.gradient)
    finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in (model.weights, model.intercept))
    if not finite or not gradient <= tolerance:
        what = (
            "met numbers that are not finite" if not finite else f"left {gradient:.1e} of the slope, above {tolerance=}"
        )
        raise DivergenceError(
            f"{name}: {int(model.convergence.steps)} steps {what} (l2={float(l2):g}). More steps, a larger l2, or "
            "features of like size (numbers standardised) help. The model as it is is in error.state",
            model,
        )
    return model
