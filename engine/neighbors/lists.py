"""Lists of the nearest rows, found blockwise, as sparse rows."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from ...kernels import csr, sparse_top_k
from ...kernels.csr import CSR
from ...kernels.op import Implementation

_AT_ONCE = 1 << 22  # answers of one call


def nearest_rows(
    queries: CSR,
    table: CSR,
    neighbors: int,
    *,
    similarity: sparse_top_k.Similarity = "product",
    sizes: np.ndarray | None = None,
    query_sizes: np.ndarray | None = None,
    n_columns: int | None = None,
    shrink: float = 0.0,
    implementation: Implementation = "auto",
) -> CSR:
    """The most similar other rows of each row of `queries`, as many as there are columns in `table`.

    Args:
        queries: `[n, m]`.
        table: `[m, n]`; or `[m, n_columns]`, if that is given: its columns then are rows of others, none left out.
        neighbors: Kept for each row, at least 1; those of similarity 0 or less are not.
        similarity: See `kernels.sparse_top_k.search`, and so are
        sizes: these, `[n]` or `[n_columns]`, and
        query_sizes: these, `[n]`, where the columns are others, and
        n_columns: their number, and
        shrink: this.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `[n, n]` (or `[n, n_columns]`) sparse similarities, each row best first.

    Raises:
        ValueError: `neighbors` below 1.
    """
    if neighbors < 1:
        raise ValueError(f"{neighbors=} must be at least 1")
    n_rows, themselves = queries.n_rows, n_columns is None
    n_columns = n_rows if n_columns is None else n_columns
    query_sizes = sizes if themselves else query_sizes
    of_queries, of_columns = (None if s is None else jnp.asarray(s, jnp.float32) for s in (query_sizes, sizes))

    def search(rows: Int32[Array, " batch"]) -> tuple[Array, Array]:
        return sparse_top_k.search(
            queries,
            rows,
            table,
            min(neighbors, n_columns),
            n_columns=n_columns,
            similarity=similarity,
            query_sizes=of_queries,
            column_sizes=of_columns,
            shrink=shrink,
            exclude=rows[:, None] if themselves else None,
            implementation=implementation,
        )

    return join_lists(search, n_rows, min(neighbors, n_columns))


def join_lists(search: Callable[[Int32[Array, " batch"]], tuple[Array, Array]], n_rows: int, neighbors: int) -> CSR:
    """Sparse rows from lists of ids `[batch, neighbors]`, padded with -1, and their values, in the order of the lists.

    Args:
        search: Gives the lists of some rows; it is asked for blocks of one shape.
        n_rows: Of all.
        neighbors: Length of a list.

    Raises:
        ValueError: More entries than int32 can point to.
    """
    n_blocks = -(-n_rows * neighbors // _AT_ONCE)
    block = -(-n_rows // n_blocks)  # of about equal size, so that few rows are asked for twice at the end
    counts, ids, values = np.zeros(n_rows + 1, np.int64), [], []
    for first in range(0, n_rows, block):
        rows = np.arange(first, first + block, dtype=np.int32).clip(max=n_rows - 1)
        found, scores = (np.asarray(part)[: n_rows - first] for part in search(jnp.asarray(rows)))
        there = found >= 0
        counts[first + 1 : first + block + 1] = there.sum(axis=1)
        ids.append(found[there])
        values.append(scores[there])
    indptr = np.cumsum(counts)
    if indptr[-1] > csr.MAX_INDEX:
        raise ValueError(f"{indptr[-1]:,} neighbours exceed the {csr.MAX_INDEX:,} that can be indexed: ask for fewer")
    return CSR(*(jnp.asarray(part) for part in (indptr.astype(np.int32), np.concatenate(ids), np.concatenate(values))))
