"""Item-item weights in closed form."""

from __future__ import annotations

import os

import jax
import numpy as np

from ...kernels import gramian
from ..data.interactions import Interactions
from .models import ItemWeights


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
    _require_memory(n)
    x, values = interactions, np.ones(1, np.float32)
    indptr_t, users, source = x.by_item()
    values_t = values
    if x.values is not None:
        values, values_t = x.values, x.values[source]
    del source
    matrix = _aligned_zeros(n)
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
    return ItemWeights(interactions.to_device().by_user, jax.device_put(matrix, may_alias=True))


def _aligned_zeros(n: int) -> np.ndarray:
    """Zeros `[n, n]` that begin at a multiple of 64 bytes: only such an array is taken by JAX as it is."""
    buffer = np.zeros(n * n + 16, np.float32)
    first = -buffer.ctypes.data % 64 // 4
    return buffer[first : first + n * n].reshape(n, n)


def _require_memory(n_items: int) -> None:
    needed, free = 4 * n_items**2 * 1.1, _free_bytes()
    if free is not None and needed > free:
        raise MemoryError(
            f"EASE on {n_items:,} items needs {needed / 2**30:.1f} GiB for its Gramian (free here: "
            f"{free / 2**30:.1f} GiB). item_knn(neighbors=200) needs {n_items * 200 * 16 / 2**30:.1f} GiB"
        )


def _free_bytes() -> int | None:
    """Memory that can be had without swapping, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
