"""Item-item weights in closed form."""

from __future__ import annotations

import numpy as np

from ...kernels import gramian
from ..data.interactions import Interactions, takes_interactions
from ..memory import aligned_zeros, as_jax, readable, require_memory
from .models import ItemWeights


@takes_interactions
def ease(interactions: Interactions, *, l2: float = 250.0) -> ItemWeights:
    """The linear item-item model: every item from all the others, by one matrix inverse.

    Minimises `|X - X B|^2 + l2 |B|^2` with `diag(B) = 0`: with `P = (X^T X + l2 I)^-1`, `B = -P / diag(P)` column by
    column, and 0 on the diagonal. Gramian, Cholesky inverse and weights share one `[n_items, n_items]` float32 array.

    Args:
        interactions: X; values where there are any, else ones.
        l2: Above 0; what an item's weights cost. Hundreds where items have thousands of users, tens where few.

    Returns:
        `ItemWeights` with dense weights, whose users are those of the interactions.

    Raises:
        ValueError: `l2` that is not above 0.
        MemoryError: More items than memory; the message has the estimate.

    Source: Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", eq. 8.

    >>> x = Interactions.from_coo([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
    >>> ease(x, l2=2.0).weights.round(3).tolist()
    [[0.0, 0.5, 0.0], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    from scipy.linalg import get_lapack_funcs

    if not (l2 > 0 and np.isfinite(l2)):
        raise ValueError(f"{l2=} must be finite and above 0")
    n = interactions.n_items
    require_memory(
        1.1 * 4 * n**2, f"EASE on {n:,} items", f"item_knn(neighbors=200) needs {readable(16 * 200 * n)} at most"
    )
    x = interactions
    values = np.ones(1, np.float32) if x.values is None else x.values
    indptr_t, users, values_t = x.by_item()
    matrix = aligned_zeros((n, n), np.float32)
    gramian.add_gramian(x.indptr, x.items, values, indptr_t, users, values_t, matrix)
    matrix.flat[:: n + 1] += np.float32(l2)
    # A symmetric matrix is its own transpose, and LAPACK wants columns: its lower triangle is our upper one.
    factorize, invert = get_lapack_funcs(("potrf", "potri"), (matrix,))
    factor, failed = factorize(matrix.T, lower=1, overwrite_a=1, clean=0)
    if not failed:
        factor, failed = invert(factor, lower=1, overwrite_c=1)
    if failed:
        raise ValueError(f"the Gramian of these interactions is not positive definite with {l2=}; raise l2")
    matrix = factor.T
    gramian.mirror_upper(matrix)
    matrix /= -np.diagonal(matrix).copy()
    np.fill_diagonal(matrix, 0.0)
    return ItemWeights(interactions.to_device().by_user, as_jax(matrix))
