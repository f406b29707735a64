"""Random orders and random negatives, from a JAX key.

The implementations draw from different generators: the same key gives the same answer on the same platform, and the
same distribution everywhere. Those named `host_…` cut minibatches: NumPy arrays, no JAX, no interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from . import sampling_numba
from .csr import CSR, contains, entries
from .op import Implementation, Op, dispatch

TRIES = sampling_numba.TRIES  # draws of a negative before it is given up


def permutation(key: PRNGKeyArray, n: int, *, implementation: Implementation = "auto") -> Int32[Array, " n"]:
    """The numbers `0 .. n - 1` in random order.

    >>> sorted(permutation(jax.random.key(0), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return dispatch(PERMUTATION, jax.random.key_data(key), implementation=implementation, n=n)


class Stages(NamedTuple):
    """A random order of all entries in which several can be worked off at once without meeting.

    Attributes:
        order: The entries; block b of stage t is `order[bounds[t, b] : bounds[t, b + 1]]`.
        bounds: See above.
        columns: The columns of each group, -1 where it has fewer; block b of stage t holds those of group
            `(b + t) mod blocks`.
    """

    order: Int32[Array, " nnz"]
    bounds: Int32[Array, "blocks blocks_1"]
    columns: Int32[Array, "blocks width"]


def stages(
    key: PRNGKeyArray, rows: CSR, n_columns: int, blocks: int = 16, *, implementation: Implementation = "auto"
) -> Stages:
    """Rows and columns in random groups, so that the blocks of a stage share no row and no column.

    There are `blocks` groups of rows with about equally many entries, and as many of equally many columns. In stage t,
    block b holds the entries of row group b in column group `(b + t) mod blocks`, row by row.

    Source: Gemulla, Nijkamp, Haas, Sismanis 2011, "Large-Scale Matrix Factorization with Distributed Stochastic
    Gradient Descent", section 4.

    >>> rows = CSR(jnp.array([0, 2, 4], jnp.int32), jnp.array([0, 1, 0, 1], jnp.int32), jnp.ones(1))
    >>> order, bounds, columns = stages(jax.random.key(0), rows, 2, blocks=2)
    >>> sorted(order.tolist()), bounds[0, 0].item(), bounds[-1, -1].item(), sorted(columns.ravel().tolist())
    ([0, 1, 2, 3], 0, 4, [0, 1])
    """
    order, ends, columns = dispatch(
        STAGES,
        jax.random.key_data(key),
        rows.indptr,
        rows.indices,
        implementation=implementation,
        n_columns=n_columns,
        blocks=blocks,
    )
    first = jnp.arange(blocks, dtype=jnp.int32)[:, None] * blocks
    width = -(-n_columns // blocks)
    columns = jnp.pad(columns, (0, blocks * width - n_columns), constant_values=-1).reshape(blocks, width)
    return Stages(order, ends[first + jnp.arange(blocks + 1, dtype=jnp.int32)[None, :]], columns)


def negatives(
    key: PRNGKeyArray,
    positives: CSR,
    rows: Int32[Array, " lines"] | None,
    n_columns: int,
    per_row: int,
    *,
    weights: Float[Array, " n_columns"] | None = None,
    pools: tuple[Int32[Array, "n_pools width"], Int32[Array, " lines"]] | None = None,
    implementation: Implementation = "auto",
) -> Int32[Array, "lines per_row"]:
    """Random columns that are not among each row's positives.

    Args:
        key: Of `jax.random`.
        positives: Sparse rows, ascending.
        rows: The row that each line of negatives is drawn for; None for a line for each positive, in their order,
            which is the fastest.
        n_columns: Columns to draw from.
        per_row: How many for each.
        weights: Relative frequency of each column, such as `popularity ** 0.5`; uniform if None.
        pools: Sets of columns, filled up with -1, and from which of them each line is drawn; all columns if None.
        implementation: See `kernels.op.dispatch`.

    Returns:
        Columns, with repetition; -1 where `TRIES` draws met nothing but positives.

    >>> rows = CSR(jnp.array([0, 2], jnp.int32), jnp.array([0, 2], jnp.int32), jnp.ones(1))
    >>> negatives(jax.random.key(0), rows, jnp.zeros(2, jnp.int32), 3, 2).tolist()
    [[1, 1], [1, 1]]
    """
    lines = positives.nnz if rows is None else rows.shape[0]
    columns, pool_of = pools or (jnp.arange(n_columns, dtype=jnp.int32)[None], jnp.zeros(lines, jnp.int32))
    cumulative = jnp.zeros((0, 0), jnp.float32)
    if weights is not None:
        cumulative = jnp.cumsum(jnp.where(columns >= 0, weights[columns], 0.0), axis=1)
        cumulative = cumulative / jnp.maximum(cumulative[:, -1:], jnp.finfo(jnp.float32).tiny)
    return dispatch(
        NEGATIVES,
        jax.random.key_data(key),
        positives.indptr,
        positives.indices,
        jnp.zeros(0, jnp.int32) if rows is None else rows,
        columns,
        pool_of,
        cumulative,
        implementation=implementation,
        per_row=per_row,
    )


def host_permutation(seed: np.ndarray, n: int) -> np.ndarray:
    """The numbers `0 .. n - 1` in random order, int32, on the host and outside JAX, from a seed `[2]` uint32.

    >>> sorted(host_permutation(np.array([0, 7], np.uint32), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    order = np.empty(n, np.int32)
    sampling_numba._permutation(seed, order)
    return order


def host_negatives(
    n_columns: int,
    per_row: int,
    *,
    positives: tuple[np.ndarray, np.ndarray] | None = None,
    weights: np.ndarray | None = None,
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """As `negatives`, on the host and outside JAX: a function `(seed, rows) -> [lines, per_row]`.

    Args:
        n_columns: Columns to draw from.
        per_row: How many for each line.
        positives: `(indptr, indices)` of sparse rows, int32 and ascending, which are not drawn for their row.
        weights: Relative frequency of each column; uniform if None.

    >>> draw = host_negatives(3, 2, positives=(np.array([0, 2], np.int32), np.array([0, 2], np.int32)))
    >>> draw(np.array([0, 7], np.uint32), np.zeros(2, np.int32))
    array([[1, 1],
           [1, 1]], dtype=int32)
    """
    columns = np.arange(n_columns, dtype=np.int32)[None]
    cumulative = np.zeros((0, 0), np.float32)
    if weights is not None:
        cumulative = (np.cumsum(weights, dtype=np.float64) / np.sum(weights, dtype=np.float64)).astype(np.float32)[None]
    marked = np.zeros(0, np.uint32) if positives is None else sampling_numba.marks_of_pairs(*positives)

    def draw(seed: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), per_row), np.int32)
        pool = np.zeros(len(rows), np.int32)
        indptr, indices = positives or (np.zeros(2, np.int32), np.zeros(0, np.int32))
        of = rows if positives else np.zeros(len(rows), np.int32)
        sampling_numba._negatives(seed, indptr, indices, of, columns, pool, cumulative, marked, found)
        return found

    return draw


def host_others(
    seed: np.ndarray, indptr: np.ndarray, indices: np.ndarray, rows: np.ndarray, entries: np.ndarray, length: int
) -> np.ndarray:
    """Columns that a row has besides an entry, on the host and outside JAX.

    Args:
        seed: `[2]` uint32.
        indptr: With
        indices: sparse rows.
        rows: The row of each line.
        entries: The entry of each line, a place in `indices`, whose column is left out.
        length: Columns of a line: all others of its row where they fit, in order and padded with -1, else random ones,
            with repetition.

    >>> rows = np.array([0, 3]), np.array([4, 5, 6], np.int32)
    >>> host_others(np.array([0, 7], np.uint32), *rows, np.zeros(1, np.int32), np.array([1]), 3).tolist()
    [[4, 6, -1]]
    """
    found = np.empty((len(rows), length), np.int32)
    sampling_numba._others(seed, indptr, indices, rows, entries, found)
    return found


def _permutation_reference(seed: Array, *, n: int) -> Array:
    return jax.random.permutation(jax.random.wrap_key_data(seed), n).astype(jnp.int32)


def _stages_reference(seed, indptr, indices, *, n_columns: int, blocks: int) -> tuple[Array, Array, Array]:
    n_rows, nnz = indptr.shape[0] - 1, indices.shape[0]
    row_key, column_key = jax.random.split(jax.random.wrap_key_data(seed))
    lengths = jnp.diff(indptr)

    def groups(key, sizes, total):
        """A random order, the place of each in it, and the group: what comes before, in parts of equal size."""
        order = jax.random.permutation(key, sizes.shape[0]).astype(jnp.int32)
        before = jnp.cumsum(sizes[order]) - sizes[order]
        part = jnp.minimum(before // max(-(-total // blocks), 1), blocks - 1).astype(jnp.int32)
        place = jnp.zeros_like(order).at[order].set(jnp.arange(sizes.shape[0], dtype=jnp.int32))
        return order, place, part[place]

    _, row_place, row_group = groups(row_key, lengths, nnz)
    columns, _, column_group = groups(column_key, jnp.ones(n_columns, jnp.int32), n_columns)
    row_of = jnp.repeat(jnp.arange(n_rows, dtype=jnp.int32), lengths, total_repeat_length=nnz)
    stage = (column_group[indices] - row_group[row_of]) % blocks
    block = stage * blocks + row_group[row_of]
    order = jnp.lexsort((row_place[row_of], block)).astype(jnp.int32)
    ends = jnp.searchsorted(block[order], jnp.arange(blocks * blocks + 1, dtype=jnp.int32)).astype(jnp.int32)
    return order, ends, columns


def _negatives_reference(seed, indptr, indices, rows, columns, pool_of, cumulative, *, per_row: int) -> Array:
    if rows.shape[0] < pool_of.shape[0]:  # none were given
        rows, _ = entries(CSR(indptr, indices, jnp.ones(1, jnp.float32)))
    shape, width = (rows.shape[0], per_row), columns.shape[1]

    def draw(key):
        if cumulative.shape[0] == 0:
            place = jax.random.randint(key, shape, 0, width, jnp.int32)
        else:
            parts = jax.random.uniform(key, shape)
            place = jax.vmap(lambda own, part: jnp.searchsorted(own, part, side="right"))(cumulative[pool_of], parts)
            place = place.astype(jnp.int32)
        return jnp.where(place < width, columns[pool_of[:, None], jnp.minimum(place, width - 1)], -1)

    def again(carry):
        tries, key, found, wrong = carry
        key, own = jax.random.split(key)
        found = jnp.where(wrong, draw(own), found)
        return tries + 1, key, found, (found < 0) | contains(indptr, indices, rows, found)

    start = jnp.int32(0), jax.random.wrap_key_data(seed), jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
    _, _, found, wrong = lax.while_loop(lambda carry: (carry[0] < TRIES) & jnp.any(carry[3]), again, start)
    return jnp.where(wrong, -1, found)


def _always(*_: Any, **__: Any) -> None:
    return None


PERMUTATION = Op("sampling.permutation", _permutation_reference, _always, numba=sampling_numba.permutation)
STAGES = Op("sampling.stages", _stages_reference, _always, numba=sampling_numba.stages)
NEGATIVES = Op("sampling.negatives", _negatives_reference, _always, numba=sampling_numba.negatives)
