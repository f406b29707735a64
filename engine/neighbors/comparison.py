"""How rows are compared, and the nearest to each: among themselves, or of newcomers among those there are."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from ...kernels.csr import CSR
from ...kernels.op import Implementation
from ...kernels.sparse_top_k import Similarity
from ..data.interactions import Interactions
from .lists import nearest_rows
from .weighting import SIMILARITIES, WEIGHTINGS, row_sizes, weighted_values


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
        if self.neighbors < 1:
            raise ValueError(f"neighbors={self.neighbors} must be at least 1")
        similarity, weighting, shrink = self.similarity, self.weighting, self.shrink
        for name, value, accepted in (("similarity", similarity, SIMILARITIES), ("weighting", weighting, WEIGHTINGS)):
            if value not in accepted:
                raise ValueError(f"{name}={value!r} must be one of {accepted}")
        if weighting != "none" and similarity not in ("cosine", "dot"):
            raise ValueError(f'{weighting=} goes with similarity "cosine" or "dot", not {similarity!r}')
        if not (shrink >= 0 and np.isfinite(shrink)) or (similarity == "dot" and shrink):
            raise ValueError(f'{shrink=} must be at least 0, and 0 with similarity "dot"')
        if not (self.k1 > 0 and 0 <= self.b <= 1):
            raise ValueError(f"k1={self.k1} must be above 0 and b={self.b} in [0, 1]")


def nearest(x: Interactions, side: str, how: Comparison, *, implementation: Implementation = "auto") -> CSR:
    """The nearest rows of one side to each of its rows, itself left out, with their similarities."""
    (by_user, by_item), sizes, kind = _compared(x, side, how, x)
    queries, table = (by_user, by_item) if side == "users" else (by_item, by_user)
    return nearest_rows(
        queries,
        table,
        how.neighbors,
        similarity=kind,
        sizes=sizes,
        shrink=how.shrink,
        implementation=implementation,
    )


def nearest_users(
    newcomers: Interactions, x: Interactions, how: Comparison, *, implementation: Implementation = "auto"
) -> CSR:
    """The nearest users of `x` to each of the newcomers, whose items weigh what they weigh in `x`."""
    queries, own_sizes, kind = _compared(newcomers, "users", how, x)
    table, sizes, _ = _compared(x, "users", how, x)
    return nearest_rows(
        queries.by_user,
        table.by_item,
        how.neighbors,
        similarity=kind,
        sizes=sizes,
        query_sizes=own_sizes,
        n_columns=x.n_users,
        shrink=how.shrink,
        implementation=implementation,
    )


def _compared(x: Interactions, side: str, how: Comparison, among: Interactions):
    """`(rows, sizes, kind)`: what the kernel multiplies, what it holds the products against, and how."""
    values = weighted_values(x, side, how.similarity, how.weighting, how.k1, how.b, among=among)
    sizes = row_sizes(x, side, how.similarity, values)
    kind: Similarity = "jaccard" if how.similarity == "jaccard" else "shrunk"
    if how.similarity != "jaccard" and how.shrink == 0:
        row = x.users if side == "users" else x.items
        values = values / np.where(sizes > 0, sizes, 1)[row]
        kind = "product"
    return x.with_values(values).to_device(), sizes, kind
