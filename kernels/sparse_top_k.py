"""The best columns of sparse rows times a table: neighbours, and what item-item and neighbour models recommend."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from . import sparse_top_k_numba
from .best_of_rows import best_of_rows
from .csr import CSR, nothing_seen, over_entries
from .op import Implementation, Op, dispatch

Similarity = Literal["product", "shrunk", "jaccard"]

_SCORES_HELD = 1 << 24  # scores of one block of rows
_ENTRIES = 64  # entries of the rows that are looked up together
_PRODUCTS = 1 << 13  # products that are added together


def search(
    queries: CSR,
    rows: Int32[Array, " batch"],
    table: CSR | Float[Array, "n_inner n_columns"],
    k: int,
    *,
    n_columns: int,
    similarity: Similarity = "product",
    query_sizes: Float[Array, " n_rows"] | None = None,
    column_sizes: Float[Array, " n_columns"] | None = None,
    shrink: Any = 0.0,
    seen: CSR | None = None,
    seen_rows: Int32[Array, " batch"] | None = None,
    exclude: Int32[Array, "batch h"] | None = None,
    among: Int32[Array, "batch a"] | None = None,
    allow: Bool[Array, " n_columns"] | None = None,
    implementation: Implementation = "auto",
) -> tuple[Int32[Array, "batch k"], Float[Array, "batch k"]]:
    """Columns j with the highest scores of each row, from `dot[b, j] = sum_i queries[rows[b], i] table[i, j]`.

    Only one row of scores (or a block of rows) is held at a time. With a sparse table a column is answered only if its
    score is above 0: what no entry leads to is no neighbour.

    Args:
        queries: Sparse rows.
        rows: Which of them are asked.
        table: Sparse or dense; its rows are what the entries of a query point to.
        k: How many, at least 1.
        n_columns: Of the table.
        similarity: "product": the dot product. "shrunk": `dot / (a_b c_j + shrink)`. "jaccard":
            `dot / (a_b + c_j - dot + shrink)`. `a` is
        query_sizes: this, one a row of `queries`, and `c` is
        column_sizes: this, one a column.
        shrink: See above.
        seen: Sparse rows of columns to leave out, ascending, and
        seen_rows: the row of it that belongs to each query.
        exclude: Further columns to leave out, padded with -1.
        among: The only columns that may be answered for each row, padded with -1.
        allow: The columns that may be answered at all.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `(ids, scores)`, best first, equal scores by lower id; id -1 and score -inf where fewer than k are found.

    Raises:
        ValueError: k below 1, an unknown similarity, or sizes that are missing for it.

    >>> rows = CSR(jnp.array([0, 2], jnp.int32), jnp.array([0, 1], jnp.int32), jnp.array([1.0, 2.0]))
    >>> table = jnp.array([[1.0, 0.0, 3.0], [1.0, 1.0, 0.0]])
    >>> ids, scores = search(rows, jnp.array([0], jnp.int32), table, 2, n_columns=3)
    >>> ids.tolist(), scores.tolist()
    ([[0, 2]], [[3.0, 3.0]])
    """
    if k < 1:
        raise ValueError(f"kernels.sparse_top_k: {k=} must be at least 1")
    if similarity not in get_args(Similarity):
        raise ValueError(f"kernels.sparse_top_k: {similarity=} must be one of {get_args(Similarity)}")
    if similarity != "product" and (query_sizes is None or column_sizes is None):
        raise ValueError(f'kernels.sparse_top_k: "{similarity}" needs query_sizes and column_sizes')
    batch = rows.shape[0]
    if isinstance(table, CSR):
        sparse, dense = table, jnp.zeros((0, n_columns), jnp.float32)
    else:
        sparse, dense = CSR(jnp.zeros(1, jnp.int32), jnp.zeros(0, jnp.int32), jnp.ones(1)), table
    if seen is None or seen_rows is None:
        seen, seen_rows = nothing_seen(batch)
    nothing = jnp.zeros(0, jnp.float32)
    return dispatch(
        OP,
        *queries,
        rows,
        *sparse,
        dense,
        nothing if query_sizes is None else query_sizes[rows],
        nothing if column_sizes is None else column_sizes,
        jnp.asarray(shrink, jnp.float32),
        seen.indptr,
        seen.indices,
        seen_rows,
        jnp.zeros((batch, 0), jnp.int32) if exclude is None else exclude,
        jnp.zeros((batch, 0), jnp.int32) if among is None else among,
        jnp.zeros(0, bool) if allow is None else allow,
        implementation=implementation,
        k=k,
        similarity=similarity,
    )


def _reference(
    indptr,
    indices,
    values,
    rows,
    t_indptr,
    t_indices,
    t_values,
    dense,
    query_sizes,
    column_sizes,
    shrink,
    seen_indptr,
    seen_indices,
    seen_rows,
    exclude,
    among,
    allow,
    *,
    k: int,
    similarity: str,
):
    batch, n_columns = rows.shape[0], dense.shape[1]
    if batch == 0 or n_columns == 0:
        return jnp.full((batch, k), -1, jnp.int32), jnp.full((batch, k), -jnp.inf, jnp.float32)
    block = max(1, min(batch, _SCORES_HELD // n_columns))
    indices, t_indices, seen_indices = (_not_empty(a) for a in (indices, t_indices, seen_indices))
    values, t_values = _not_empty(values), _not_empty(t_values)

    def one_block(first):
        here = jnp.minimum(first + jnp.arange(block, dtype=jnp.int32), batch - 1)
        asked = rows[here]

        def add_entries(scores, row, entry, valid):
            weight = jnp.where(valid, values[entry if values.shape[0] > 1 else jnp.zeros_like(entry)], 0.0)
            inner = indices[entry]
            if dense.shape[0]:
                return scores.at[row].add(weight[:, None] * dense[inner])
            begin, end = t_indptr[inner], jnp.where(valid, t_indptr[inner + 1], t_indptr[inner])

            def add_products(scores, source, place, valid):
                factor = t_values[place if t_values.shape[0] > 1 else jnp.zeros_like(place)]
                product = jnp.where(valid, weight[source] * factor, 0.0)
                return scores.at[row[source], t_indices[place]].add(product)

            return over_entries(add_products, scores, begin, end, _PRODUCTS)

        scores = jnp.zeros((block, n_columns), jnp.float32)
        scores = over_entries(add_entries, scores, indptr[asked], indptr[asked + 1], _ENTRIES)
        if similarity == "shrunk":
            below = query_sizes[here][:, None] * column_sizes[None] + shrink
            scores = scores / jnp.where(below > 0, below, 1.0)
        elif similarity == "jaccard":
            below = query_sizes[here][:, None] + column_sizes[None] - scores + shrink
            scores = scores / jnp.where(below > 0, below, 1.0)
        if not dense.shape[0]:
            scores = jnp.where(scores > 0, scores, -jnp.inf)
        scores = jnp.where(jnp.isnan(scores), -jnp.inf, scores)
        place = jnp.arange(block, dtype=jnp.int32)[:, None]
        if among.shape[1]:
            given = jnp.where(among[here] < 0, n_columns, among[here])
            inside = jnp.zeros((block, n_columns), bool).at[place, given].set(True, mode="drop")
            scores = jnp.where(inside, scores, -jnp.inf)
        if allow.shape[0]:
            scores = jnp.where(allow[None], scores, -jnp.inf)
        if exclude.shape[1]:
            out = jnp.where(exclude[here] < 0, n_columns, exclude[here])
            scores = scores.at[place, out].set(-jnp.inf, mode="drop")

        def mask(scores, row, entry, valid):
            return scores.at[row, jnp.where(valid, seen_indices[entry], n_columns)].set(-jnp.inf, mode="drop")

        seen = seen_rows[here]
        scores = over_entries(mask, scores, seen_indptr[seen], seen_indptr[seen + 1], _PRODUCTS)
        return best_of_rows(scores, k)

    ids, scores = lax.map(one_block, jnp.arange(0, batch, block, dtype=jnp.int32))
    return ids.reshape(-1, k)[:batch], scores.reshape(-1, k)[:batch]


def _not_empty(array):
    return array if array.shape[0] else jnp.zeros(1, array.dtype)


def _supports(indptr, indices, values, rows, t_indptr, t_indices, t_values, dense, *_, **static) -> str | None:
    kinds = {array.dtype for array in (values, t_values, dense)}
    if kinds != {jnp.dtype(jnp.float32)}:
        return f"values of {sorted(map(str, kinds))} must all be float32"
    return None


OP = Op("sparse_top_k", _reference, _supports, numba=sparse_top_k_numba.search_rows)
