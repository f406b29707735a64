"""Targets that features separate: a logistic regression without a penalty has no finite weights for them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Array

from ...kernels.csr import CSR
from ..errors import FeatureError
from .designs import Design

_MARGIN = 1e-4  # of scores that are 1 in the mean, and of weights beside the greatest; less is rounding
_NAMED = 3


def refuse_separated(design: Design, targets: Array, n_features: int, intercept: bool, scores: Array) -> None:
    """Looks for weights whose scores are never negative for a 1 and never positive for a 0, without being all 0.

    Along them the loss falls without end. To find them is a linear program, and solved as one, on the host.

    Args:
        design: X, and
        targets: y, and
        n_features: the width of X.
        intercept: Whether there is one.
        scores: What the solver had come to, by which it is seen whether all rows are separated.

    Raises:
        FeatureError: There are such weights; the message says how many rows they tell, and by which features above all.

    Source: Konis 2007, "Linear Programming Algorithms for Detecting Separated Data in Binary Logistic Regression
    Models", section 4.3.
    """
    import scipy.sparse
    from scipy.optimize import linprog

    y = np.asarray(targets, np.float64)
    if isinstance(design, CSR):
        values = np.broadcast_to(np.asarray(design.values, np.float64), design.nnz)
        arrays = values, np.asarray(design.indices), np.asarray(design.indptr)
        x = scipy.sparse.csr_array(arrays, shape=(len(y), n_features))
    else:
        dense = np.asarray(design, np.float64)
        x = scipy.sparse.csr_array(dense - dense.mean(axis=0) if intercept else dense)
    size = abs(x).max(axis=0).toarray().ravel()
    signs = scipy.sparse.diags_array(2 * y - 1)
    unit = signs @ x @ scipy.sparse.diags_array(1 / np.where(size > 0, size, 1))
    # Weights as what is above 0 less what is below, so that their sizes can be least: few features then matter.
    blocks = [unit, -unit, *([scipy.sparse.csr_array((2 * y - 1)[:, None])] if intercept else [])]
    rows = scipy.sparse.csr_array(scipy.sparse.hstack(blocks))
    found = linprog(
        np.repeat([1.0, 0.0], [2 * n_features, int(intercept)]),
        A_ub=-rows,
        b_ub=np.zeros(len(y)),
        A_eq=rows.sum(axis=0)[None, :],
        b_eq=[len(y)],  # so that a row's score is 1 in the mean
        bounds=[(0, None)] * (2 * n_features) + [(None, None)] * intercept,
    ).x
    if found is None or not (rows @ found > _MARGIN).any():
        return
    told = int(np.sum(rows @ found > _MARGIN))
    weights = np.abs(found[:n_features] - found[n_features : 2 * n_features])
    matter = int(np.sum(weights > _MARGIN * weights.max()))
    named = ", ".join(map(str, np.argsort(-weights, kind="stable")[: min(matter, _NAMED)]))
    which = f"feature {named} tells" if matter == 1 else f"features {named}{', …' * (matter > _NAMED)} together tell"
    whole = bool(np.all((np.asarray(scores) > 0) == (y > 0)))
    what = "every 1 from every 0" if whole else f"for certain what {told:,} of the {len(y):,} rows are"
    raise FeatureError(
        f"logistic regression: {which} {what} (separation), so that with l2 = 0 the weights grow without end. "
        "Pass l2 > 0, or leave them out"
    )
