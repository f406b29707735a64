"""Compressed sparse rows: the one sparse layout of the library, and the host kernels that build it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numba
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

MAX_INDEX = 2**31 - 1  # what int32 can point to


class CSR(NamedTuple):
    """Rows of a sparse matrix on a device: a pytree of three arrays.

    Row `r` holds the columns `indices[indptr[r]:indptr[r + 1]]`, without repetition and, but for lists of the nearest
    which are best first, ascending.
    `values` has one entry per stored pair, or a single one when all pairs share it.
    """

    indptr: Int32[Array, " rows_plus_1"]
    indices: Int32[Array, " nnz"]
    values: Float[Array, " nnz_or_1"]

    @property
    def n_rows(self) -> int:
        return self.indptr.shape[0] - 1

    @property
    def nnz(self) -> int:
        return self.indices.shape[0]


def nothing_seen(batch: int) -> tuple[CSR, Int32[Array, " batch"]]:
    """One empty row, and for each of `batch` queries that it is theirs."""
    empty = CSR(jnp.zeros(2, jnp.int32), jnp.zeros(0, jnp.int32), jnp.ones(1))
    return empty, jnp.zeros(batch, jnp.int32)


def find(
    indptr: Int32[Array, " n_rows_plus_1"],
    indices: Int32[Array, " nnz"],
    rows: Int32[Array, " batch"],
    columns: Int32[Array, "batch a"],
) -> tuple[Bool[Array, "batch a"], Int32[Array, "batch a"]]:
    """Whether each of a row's columns is stored in it, and at which entry, by bisection; jittable."""
    if indices.shape[0] == 0:
        return jnp.zeros(columns.shape, bool), jnp.zeros(columns.shape, jnp.int32)
    last = indices.shape[0] - 1
    low = jnp.broadcast_to(indptr[rows][:, None], columns.shape)
    end = jnp.broadcast_to(indptr[rows + 1][:, None], columns.shape)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        below = (indices[jnp.minimum(middle, last)] < columns) & (low < high)
        return jnp.where(below, middle + 1, low), jnp.where(below | (low >= high), high, middle)

    low, _ = lax.fori_loop(0, 32, halve, (low, end))
    entry = jnp.minimum(low, last)
    return (low < end) & (indices[entry] == columns), entry


def contains(
    indptr: Int32[Array, " n_rows_plus_1"],
    indices: Int32[Array, " nnz"],
    rows: Int32[Array, " batch"],
    columns: Int32[Array, "batch a"],
) -> Bool[Array, "batch a"]:
    """Whether each of a row's columns is stored in it."""
    return find(indptr, indices, rows, columns)[0]


@functools.partial(jax.jit, inline=True)
def entries(rows: CSR) -> tuple[Int32[Array, " nnz"], Float[Array, " nnz"]]:
    """Row and value of each stored entry; jittable."""
    row = jnp.repeat(jnp.arange(rows.n_rows, dtype=jnp.int32), jnp.diff(rows.indptr), total_repeat_length=rows.nnz)
    return row, jnp.broadcast_to(rows.values, (rows.nnz,))


def over_entries(add: Callable[..., Any], carry: Any, begin: Array, end: Array, chunk: int) -> Any:
    """`carry = add(carry, row, entry, valid)` over the entries `begin <= entry < end` of all rows, by chunks."""
    lengths = end - begin
    after = jnp.cumsum(lengths)

    def step(state):
        first, carry = state
        number = first + jnp.arange(chunk, dtype=jnp.int32)
        row = jnp.minimum(jnp.searchsorted(after, number, side="right").astype(jnp.int32), begin.shape[0] - 1)
        valid = number < after[-1]
        entry = jnp.where(valid, begin[row] + number - (after - lengths)[row], 0)
        return first + chunk, add(carry, row, entry, valid)

    _, carry = lax.while_loop(lambda state: state[0] < after[-1], step, (jnp.int32(0), carry))
    return carry


class SparseMatrix(NamedTuple):
    """The same interactions seen from both sides; what `step` functions train on."""

    by_user: CSR
    by_item: CSR

    @property
    def shape(self) -> tuple[int, int]:
        return self.by_user.n_rows, self.by_item.n_rows


@numba.njit(cache=True, nogil=True)
def count_rows(rows, n_rows):
    """Row pointer (int64, length `n_rows` + 1) of pairs whose row ids are `rows`."""
    indptr = np.zeros(n_rows + 1, np.int64)
    for row in rows:
        indptr[row + 1] += 1
    for row in range(n_rows):
        indptr[row + 1] += indptr[row]
    return indptr


@numba.njit(cache=True, nogil=True)
def stable_order(rows, indptr, previous):
    """Positions that sort `rows`, by counting; `previous` is the order to keep among equals."""
    cursor = indptr[:-1].copy()
    order = np.empty(len(rows), np.int64)
    for position in previous:
        row = rows[position]
        order[cursor[row]] = position
        cursor[row] += 1
    return order


@numba.njit(cache=True, nogil=True)
def transpose(indptr, indices, values, n_columns, indices_t, values_t):
    """Writes the entries of the transposed matrix, `[nnz]`, and returns its row pointer; a single value is left out."""
    indptr_t = count_rows(indices, n_columns)
    cursor = indptr_t[:-1].copy()
    one_each = len(values) > 1
    for row in range(len(indptr) - 1):
        for k in range(indptr[row], indptr[row + 1]):
            place = cursor[indices[k]]
            cursor[indices[k]] = place + 1
            indices_t[place] = row
            if one_each:
                values_t[place] = values[k]
    return indptr_t


@numba.njit(cache=True, nogil=True)
def count_reached(indptr, indices, t_indptr, k):
    """Sum over rows of how many entries the rows of a table have that a row points to, or k where that is less."""
    total = 0
    for row in range(len(indptr) - 1):
        reached = 0
        for place in range(indptr[row], indptr[row + 1]):
            reached += t_indptr[indices[place] + 1] - t_indptr[indices[place]]
            if reached >= k:
                break
        total += min(reached, k)
    return total


@numba.njit(cache=True, nogil=True)
def first_in_group(rows, columns, order):
    """True where a sorted pair differs from the one before it: the start of a group of duplicates."""
    first = np.ones(len(order), np.bool_)
    for k in range(1, len(order)):
        here, before = order[k], order[k - 1]
        first[k] = rows[here] != rows[before] or columns[here] != columns[before]
    return first


def sort_pairs(rows: np.ndarray, columns: np.ndarray, n_rows: int, n_columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Order of the pairs by (row, column, input position) and the row pointer: two counting sorts.

    Returns:
        `(order [nnz] int64, indptr [n_rows + 1] int64)`.
    """
    natural = np.arange(len(rows), dtype=np.int64)
    by_column = stable_order(columns, count_rows(columns, n_columns), natural)
    indptr = count_rows(rows, n_rows)
    return stable_order(rows, indptr, by_column), indptr


@numba.njit(cache=True, nogil=True)
def merge_duplicates(order, first, values, times, how):
    """Merges each group of equal pairs into one: `(position, value)` of every group.

    Args:
        order: Positions sorted by pair and, within a pair, by input order.
        first: True at the start of each group, in that order.
        values: float64, by position.
        times: float64 or int64, by position; all equal where there are none.
        how: 0 keeps the latest (the last in input order among equal times), 1 sums, 2 averages.

    Returns:
        `(position [groups] int64, value [groups] float64)`; the position is that of the latest of the group.
    """
    n_groups = first.sum()
    position = np.empty(n_groups, np.int64)
    value = np.empty(n_groups, np.float64)
    group = -1
    size = 0
    for k in range(len(order)):
        here = order[k]
        if first[k]:
            if group >= 0 and how == 2:
                value[group] /= size
            group += 1
            size = 0
            position[group] = here
            value[group] = 0.0
        if times[here] >= times[position[group]]:
            position[group] = here
        size += 1
        value[group] += values[here]
    if group >= 0 and how == 2:
        value[group] /= size
    if how == 0:
        for group in range(n_groups):
            value[group] = values[position[group]]
    return position, value
