"""Lists of the nearest rows, found blockwise, as sparse rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from ...kernels import csr, sparse_top_k
from ...kernels.csr import CSR
from ...kernels.op import Implementation
from ..factorization.parts import require_whole
from ..memory import aligned_zeros, as_jax, require_memory

_AT_ONCE = 1 << 16  # answers of one call, but for
_ROWS = 256  # rows that are asked for together at least, so that every thread has some

# One program, for that each operation is compiled for itself takes more memory than the answers.
_best_columns = jax.jit(sparse_top_k.search, static_argnames=("k", "n_columns", "similarity", "implementation"))


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
        ValueError: `neighbors` is no whole number, or below 1.
        MemoryError: As `join_lists`.
    """
    require_whole(1, neighbors=neighbors)
    n_rows, themselves = queries.n_rows, n_columns is None
    n_columns = n_rows if n_columns is None else n_columns
    query_sizes = sizes if themselves else query_sizes
    of_queries, of_columns = (None if s is None else jnp.asarray(s, jnp.float32) for s in (query_sizes, sizes))

    def search(rows: Int32[Array, " batch"]) -> tuple[Array, Array]:
        return _best_columns(
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

    return join_lists(search, min(neighbors, n_columns), queries, table)


def join_lists(
    search: Callable[[Int32[Array, " batch"]], tuple[Array, Array]], neighbors: int, queries: CSR, table: CSR
) -> CSR:
    """Sparse rows from lists of ids `[batch, neighbors]`, padded with -1, and their values, in the order of the lists.

    Args:
        search: Gives the lists of some rows; it is asked for blocks of one shape.
        neighbors: Length of a list.
        queries: `[n_rows, m]`: the rows that are asked for, and
        table: `[m, n_columns]`: what their entries point to. Only columns that a row so comes to can be in its list.

    Raises:
        MemoryError: More entries than memory; the message has the estimate.
        ValueError: More entries than int32 can point to.
    """
    n_rows = queries.n_rows
    most = csr.count_reached(
        np.asarray(queries.indptr), np.asarray(queries.indices), np.asarray(table.indptr), neighbors
    )
    require_memory(8 * most, f"keeping the {neighbors:,} nearest of each of {n_rows:,} rows", "Keep fewer.")
    ids, values = aligned_zeros((most,), np.int32), aligned_zeros((most,), np.float32)
    indptr = np.zeros(n_rows + 1, np.int64)
    n_blocks = max(1, min(-(-n_rows * neighbors // _AT_ONCE), n_rows // _ROWS))
    block = max(1, -(-n_rows // n_blocks))  # of about equal size, so that few rows are asked for twice at the end
    for first in range(0, n_rows, block):
        rows = np.arange(first, first + block, dtype=np.int32).clip(max=n_rows - 1)
        found, scores = (np.asarray(part)[: n_rows - first] for part in search(jnp.asarray(rows)))
        there = found >= 0
        begin = indptr[first]
        indptr[first + 1 : first + block + 1] = begin + np.cumsum(there.sum(axis=1))
        end = indptr[min(first + block, n_rows)]
        ids[begin:end], values[begin:end] = found[there], scores[there]
    n = int(indptr[-1])
    if n > csr.MAX_INDEX:
        raise ValueError(f"{n:,} neighbours exceed the {csr.MAX_INDEX:,} that can be indexed: ask for fewer")
    return CSR(jnp.asarray(indptr.astype(np.int32)), as_jax(ids[:n]), as_jax(values[:n]))
