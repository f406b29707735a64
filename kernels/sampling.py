"""Random orders and random negatives, from a JAX key.

The implementations draw from different generators: the same key gives the same answer on the same platform, and the
same distribution everywhere.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from . import sampling_numba
from .csr import CSR, contains
from .op import Implementation, Op, dispatch

TRIES = sampling_numba.TRIES  # draws of a negative before it is given up


def permutation(key: PRNGKeyArray, n: int, *, implementation: Implementation = "auto") -> Int32[Array, " n"]:
    """The numbers `0 .. n - 1` in random order.

    >>> sorted(permutation(jax.random.key(0), 5).tolist())
    [0, 1, 2, 3, 4]
    """
    return dispatch(PERMUTATION, jax.random.key_data(key), implementation=implementation, n=n)


def negatives(
    key: PRNGKeyArray,
    positives: CSR,
    rows: Int32[Array, " batch"],
    n_columns: int,
    per_row: int,
    *,
    weights: Float[Array, " n_columns"] | None = None,
    implementation: Implementation = "auto",
) -> Int32[Array, "batch per_row"]:
    """Random columns that are not among each row's positives.

    Args:
        key: Of `jax.random`.
        positives: Sparse rows, ascending.
        rows: The row that each line of negatives is drawn for.
        n_columns: Columns to draw from.
        per_row: How many for each.
        weights: Relative frequency of each column, such as `popularity ** 0.5`; uniform if None.
        implementation: See `kernels.op.dispatch`.

    Returns:
        Columns, with repetition; -1 where `TRIES` draws met nothing but positives.

    >>> rows = CSR(jnp.array([0, 2], jnp.int32), jnp.array([0, 2], jnp.int32), jnp.ones(1))
    >>> negatives(jax.random.key(0), rows, jnp.zeros(2, jnp.int32), 3, 2).tolist()
    [[1, 1], [1, 1]]
    """
    cumulative = jnp.zeros(0, jnp.float32) if weights is None else jnp.cumsum(weights / jnp.sum(weights))
    return dispatch(
        NEGATIVES,
        jax.random.key_data(key),
        positives.indptr,
        positives.indices,
        rows,
        cumulative,
        implementation=implementation,
        n_columns=n_columns,
        per_row=per_row,
    )


def _permutation_reference(seed: Array, *, n: int) -> Array:
    return jax.random.permutation(jax.random.wrap_key_data(seed), n).astype(jnp.int32)


def _negatives_reference(seed, indptr, indices, rows, cumulative, *, n_columns: int, per_row: int) -> Array:
    shape = rows.shape[0], per_row

    def draw(key):
        if cumulative.shape[0] == 0:
            return jax.random.randint(key, shape, 0, n_columns, jnp.int32)
        place = jnp.searchsorted(cumulative, jax.random.uniform(key, shape), side="right")
        return jnp.minimum(place, n_columns - 1).astype(jnp.int32)

    def again(carry):
        tries, key, found, wrong = carry
        key, own = jax.random.split(key)
        found = jnp.where(wrong, draw(own), found)
        return tries + 1, key, found, contains(indptr, indices, rows, found)

    start = jnp.int32(0), jax.random.wrap_key_data(seed), jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)
    _, _, found, wrong = lax.while_loop(lambda carry: (carry[0] < TRIES) & jnp.any(carry[3]), again, start)
    return jnp.where(wrong, -1, found)


def _always(*_: Any, **__: Any) -> None:
    return None


PERMUTATION = Op("sampling.permutation", _permutation_reference, _always, numba=sampling_numba.permutation)
NEGATIVES = Op("sampling.negatives", _negatives_reference, _always, numba=sampling_numba.negatives)
