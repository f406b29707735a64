"""Lists of the nearest rows, found blockwise, as sparse rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ...kernels import csr, sparse_top_k
from ...kernels.csr import CSR
from ...kernels.op import Implementation

_AT_ONCE = 1 << 25  # answers of one call


def nearest_rows(
    queries: CSR,
    table: CSR,
    neighbors: int,
    *,
    similarity: sparse_top_k.Similarity = "product",
    sizes: np.ndarray | None = None,
    shrink: float = 0.0,
    implementation: Implementation = "auto",
) -> CSR:
    """The most similar other rows of each row of `queries`, as many as there are columns in `table`.

    Args:
        queries: `[n, m]`.
        table: `[m, n]`.
        neighbors: Kept for each row, at least 1; those of similarity 0 or less are not.
        similarity: See `kernels.sparse_top_k.search`, and so are
        sizes: these, `[n]`, and
        shrink: this.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `[n, n]` sparse similarities, each row best first.

    Raises:
        ValueError: `neighbors` below 1.
    """
    if neighbors < 1:
        raise ValueError(f"{neighbors=} must be at least 1")
    n_rows = queries.n_rows
    on_device = None if sizes is None else jnp.asarray(sizes, jnp.float32)
    at_once = max(1, _AT_ONCE // neighbors)
    parts = []
    for first in range(0, n_rows, at_once):
        rows = jnp.arange(first, min(first + at_once, n_rows), dtype=jnp.int32)
        found = sparse_top_k.search(
            queries,
            rows,
            table,
            min(neighbors, n_rows),
            n_columns=n_rows,
            similarity=similarity,
            query_sizes=on_device,
            column_sizes=on_device,
            shrink=shrink,
            exclude=rows[:, None],
            implementation=implementation,
        )
        parts.append(jax.tree.map(np.asarray, found))
    ids, values = (np.concatenate(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))
    return lists_to_csr(ids, values)


def lists_to_csr(ids: np.ndarray, values: np.ndarray) -> CSR:
    """Sparse rows from lists of ids `[n, k]`, padded with -1, and their values, in the order of the lists.

    Raises:
        ValueError: More entries than int32 can point to.
    """
    there = ids >= 0
    indptr = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    if indptr[-1] > csr.MAX_INDEX:
        raise ValueError(f"{indptr[-1]:,} neighbours exceed the {csr.MAX_INDEX:,} that can be indexed: ask for fewer")
    return CSR(jnp.asarray(indptr, jnp.int32), jnp.asarray(ids[there]), jnp.asarray(values[there]))
