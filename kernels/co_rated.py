"""The most similar rows of a sparse matrix, by the columns that two rows share and no others."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from . import co_rated_numba
from .best_of_rows import best_of_rows
from .csr import SparseMatrix, over_entries
from .op import Implementation, Op, dispatch

Similarity = Literal["cosine", "msd"]

_SUMS_HELD = 1 << 24  # sums of one block of rows
_ENTRIES = 64  # entries of the rows that are looked up together
_PRODUCTS = 1 << 13  # products that are added together


def search(
    matrix: SparseMatrix,
    rows: Int32[Array, " batch"],
    k: int,
    *,
    similarity: Similarity = "cosine",
    shrink: Any = 0.0,
    min_support: Any = 1,
    implementation: Implementation = "auto",
) -> tuple[Int32[Array, "batch k"], Float[Array, "batch k"]]:
    """The most similar other rows of `matrix.by_user`; for those of `matrix.by_item` swap the two.

    With sums over the columns that x and y share, n of them:

    - "cosine": `sum x y / sqrt(sum x^2 sum y^2)`;
    - "msd": `1 / (1 + sum (x - y)^2 / n)`;

    times `(n - 1) / (n - 1 + shrink)` where `shrink` is above 0. Unlike those of `sparse_top_k`, lengths are those of
    what is shared, so that two rows that agree on it are near whatever else they hold.

    Args:
        matrix: Sparse rows, both ways.
        rows: Which of them are asked.
        k: How many, at least 1.
        similarity: See above.
        shrink: At least 0; makes little of what rests on few columns.
        min_support: Rows that share fewer columns are not similar.
        implementation: See `kernels.op.dispatch`.

    Returns:
        `(ids, similarities)`, best first, equal ones by lower id; id -1 and similarity -inf where fewer than k other
        rows have one above 0.

    Raises:
        ValueError: k below 1, or an unknown similarity.

    >>> from affinax.kernels.csr import CSR
    >>> rows = CSR(jnp.array([0, 2, 4], jnp.int32), jnp.array([0, 1, 0, 1], jnp.int32), jnp.array([1.0, 2.0, 1.0, 3.0]))
    >>> columns = CSR(rows.indptr, rows.indices, jnp.array([1.0, 1.0, 2.0, 3.0]))
    >>> ids, similarities = search(SparseMatrix(rows, columns), jnp.array([0], jnp.int32), 2, similarity="msd")
    >>> ids.tolist(), [round(s, 3) for s in similarities[0].tolist()]
    ([[1, -1]], [0.667, -inf])
    """
    if k < 1:
        raise ValueError(f"kernels.co_rated: {k=} must be at least 1")
    if similarity not in get_args(Similarity):
        raise ValueError(f"kernels.co_rated: {similarity=} must be one of {get_args(Similarity)}")
    numbers = jnp.stack([jnp.asarray(v, jnp.float32) for v in (shrink, min_support)])
    return dispatch(
        OP, *matrix.by_user, *matrix.by_item, rows, numbers, implementation=implementation, k=k, similarity=similarity
    )


def _reference(
    indptr, indices, values, t_indptr, t_indices, t_values, rows, numbers, *, k: int, similarity: str
) -> tuple[Array, Array]:
    batch, n_rows, nnz = rows.shape[0], indptr.shape[0] - 1, indices.shape[0]
    nothing = jnp.full((batch, k), -1, jnp.int32), jnp.full((batch, k), -jnp.inf, jnp.float32)
    if batch == 0 or nnz == 0:
        return nothing
    shrink, min_support = numbers
    values, t_values = jnp.broadcast_to(values, nnz), jnp.broadcast_to(t_values, nnz)
    block = max(1, min(batch, _SUMS_HELD // (4 * n_rows)))

    def one_block(first):
        here = rows[jnp.minimum(first + jnp.arange(block, dtype=jnp.int32), batch - 1)]

        def add_entries(sums, row, entry, valid):
            column, value = indices[entry], values[entry]
            begin, end = t_indptr[column], jnp.where(valid, t_indptr[column + 1], t_indptr[column])

            def add_products(sums, source, place, valid):
                x, y = value[source], t_values[place]
                if similarity == "cosine":
                    terms = jnp.stack([jnp.ones_like(x), x * y, x * x, y * y], axis=-1)
                else:
                    terms = jnp.stack([jnp.ones_like(x), (x - y) ** 2, x, y], axis=-1)
                return sums.at[row[source], t_indices[place]].add(jnp.where(valid[:, None], terms, 0.0))

            return over_entries(add_products, sums, begin, end, _PRODUCTS)

        sums = jnp.zeros((block, n_rows, 4), jnp.float32)
        sums = over_entries(add_entries, sums, indptr[here], indptr[here + 1], _ENTRIES)
        n, a, xx, yy = jnp.moveaxis(sums, -1, 0)
        if similarity == "cosine":
            below = jnp.sqrt(xx) * jnp.sqrt(yy)
            found = a / jnp.where(below > 0, below, jnp.inf)
        else:
            found = n / jnp.where(n > 0, n + a, 1.0)
        shared = jnp.maximum(n - 1, 0.0)
        found = jnp.where(shrink > 0, found * shared / (shared + jnp.where(shrink > 0, shrink, 1.0)), found)
        other = jnp.arange(n_rows, dtype=jnp.int32)[None] != here[:, None]
        found = jnp.where(other & (n >= min_support) & (found > 0), found, -jnp.inf)
        return best_of_rows(found, k)

    ids, similarities = lax.map(one_block, jnp.arange(0, batch, block, dtype=jnp.int32))
    return ids.reshape(-1, k)[:batch], similarities.reshape(-1, k)[:batch]


def _supports(indptr, indices, values, t_indptr, t_indices, t_values, *_, **static) -> str | None:
    kinds = {values.dtype, t_values.dtype}
    if kinds != {jnp.dtype(jnp.float32)}:
        return f"values of {sorted(map(str, kinds))} must all be float32"
    return None


OP = Op("co_rated", _reference, _supports, numba=co_rated_numba.search_rows)
