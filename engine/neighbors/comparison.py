"""How rows are compared, and the nearest to each: among themselves, or of newcomers among those there are."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels.csr import CSR, SparseMatrix
from ...kernels.op import Implementation
from ...kernels.sparse_top_k import Similarity
from ..data.interactions import Interactions
from ..factorization.parts import require_whole
from .lists import nearest_rows
from .weighting import SIMILARITIES, WEIGHTINGS, row_sizes, rows_of, weighted_values


@jax.tree_util.register_static
@dataclass(frozen=True)
class Comparison:
    """The parameters of `item_knn` and `user_knn`. Static: a part of a model's type, not of its arrays."""

    neighbors: int
    similarity: str
    weighting: str
    shrink: float
    k1: float
    b: float

    def __post_init__(self):
        require_whole(1, neighbors=self.neighbors)
        similarity, weighting, shrink = self.similarity, self.weighting, self.shrink
        for name, value, accepted in (("similarity", similarity, SIMILARITIES), ("weighting", weighting, WEIGHTINGS)):
            if value not in accepted:
                raise ValueError(f"{name}={value!r} must be one of {accepted}")
        if weighting != "none" and similarity not in ("cosine", "dot"):
            raise ValueError(f'{weighting=} goes with similarity "cosine" or "dot", not {similarity!r}')
        if not (shrink >= 0 and np.isfinite(shrink)) or (similarity == "dot" and shrink):
            raise ValueError(f'{shrink=} must be at least 0, and 0 with similarity "dot"')
        if not (0 < self.k1 < np.inf and 0 <= self.b <= 1):
            raise ValueError(f"k1={self.k1} must be finite and above 0, and b={self.b} in [0, 1]")


def nearest(
    x: Interactions, data: SparseMatrix, side: str, how: Comparison, *, implementation: Implementation = "auto"
) -> CSR:
    """The nearest rows of one side to each of its rows, itself left out, with their similarities.

    Args:
        x: What is compared.
        data: The same on the device.
        side: "users" or "items".
        how: See `Comparison`.
        implementation: See `kernels.op.dispatch`.
    """
    (by_user, by_item), sizes = _compared(x, data, side, how, x)
    queries, table = (by_user, by_item) if side == "users" else (by_item, by_user)
    return nearest_rows(
        queries,
        table,
        how.neighbors,
        similarity=_kernel_of(how),
        sizes=sizes,
        shrink=how.shrink,
        implementation=implementation,
    )


def nearest_users(
    newcomers: Interactions, x: Interactions, how: Comparison, *, implementation: Implementation = "auto"
) -> CSR:
    """The nearest users of `x` to each of the newcomers, whose items weigh what they weigh in `x`."""
    queries, own_sizes = _compared(newcomers, newcomers.to_device(), "users", how, x)
    table, sizes = _compared(x, x.to_device(), "users", how, x)
    return nearest_rows(
        queries.by_user,
        table.by_item,
        how.neighbors,
        similarity=_kernel_of(how),
        sizes=sizes,
        query_sizes=own_sizes,
        n_columns=x.n_users,
        shrink=how.shrink,
        implementation=implementation,
    )


def _kernel_of(how: Comparison) -> Similarity:
    return "jaccard" if how.similarity == "jaccard" else "shrunk"


def _compared(
    x: Interactions, data: SparseMatrix, side: str, how: Comparison, among: Interactions
) -> tuple[SparseMatrix, np.ndarray]:
    """What the kernel multiplies, and the sizes `[n_rows]` that it holds the products against."""
    values = weighted_values(x, side, how.similarity, how.weighting, how.k1, how.b, among=among)
    sizes = row_sizes(x, side, how.similarity, values)
    if values is None:
        one = jnp.ones(1, jnp.float32)
        return SparseMatrix(*(rows._replace(values=one) for rows in data)), sizes
    if how.shrink == 0:
        # Here in float64, so that rows of any scale are compared.
        values /= np.where(sizes > 0, sizes, 1)[rows_of(x, side)[0]]
        sizes = np.ones_like(sizes)
    x = x.with_values(values)
    both = x.values, x.by_item()[2]
    return SparseMatrix(*(r._replace(values=jnp.asarray(v)) for r, v in zip(data, both, strict=True))), sizes
