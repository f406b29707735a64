"""What may be answered: the forms in which filters are given, and their checks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32

from ...kernels.csr import CSR, SparseMatrix
from ..data.interactions import Interactions
from ..errors import InteractionError

Seen = Interactions | SparseMatrix | CSR


def as_seen(seen: Seen) -> CSR:
    """The rows by user, on the device."""
    if isinstance(seen, Interactions):
        return CSR(jnp.asarray(seen.indptr.astype(np.int32)), jnp.asarray(seen.items), jnp.ones(1, jnp.float32))
    return seen.by_user if isinstance(seen, SparseMatrix) else seen


def as_ids(
    name: str, ids: Any, n: int | None = None, *, shape: tuple[int | None, ...] = (None,), padded: bool = False
) -> Int32[Array, ...]:
    """Ids as int32, checked against `[0, n)` where they are concrete (-1 is padding, if `padded`)."""
    if not isinstance(ids, jax.Array):
        ids = np.asarray(ids)
        if ids.size == 0:
            ids = ids.astype(np.int32)
    if ids.dtype.kind not in "iu":
        raise InteractionError(f"{name} must be whole numbers; got {ids.dtype}")
    if len(ids.shape) != len(shape) or any(b is not None and a != b for a, b in zip(ids.shape, shape, strict=True)):
        expected = tuple("any" if length is None else length for length in shape)
        raise InteractionError(f"{name}.shape={ids.shape} must be {expected}")
    if n is not None and ids.size and not isinstance(ids, Tracer):
        concrete = np.asarray(ids)
        wrong = (concrete < (-1 if padded else 0)) | (concrete >= n)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise InteractionError(f"{name}: {concrete[place]} at position {place} is outside [0, {n})")
    return jnp.asarray(ids, jnp.int32)


def checked_rows(rows: Array, n_rows: int, batch: int) -> None:
    """Each query must have a row of the seen interactions."""
    if rows.shape != (batch,):
        raise InteractionError(f"rows.shape={rows.shape} must be ({batch},)")
    if isinstance(rows, Tracer):
        return
    largest = int(np.max(np.asarray(rows), initial=-1))
    if largest >= n_rows:
        raise InteractionError(f"seen has {n_rows} rows; row {largest} is asked for. seen must cover every user asked")


def among_allowed(
    queries: Float[Array, "batch width"],
    items: Float[Array, "n_items width"],
    k: int,
    allowed: Int32[Array, "batch a"],
    filters: dict[str, Any],
) -> tuple[Int32[Array, "batch k"], Float[Array, "batch k"]]:
    """The best of a list of items for each query: only their scores are computed."""
    if k < 1:
        raise ValueError(f"{k=} must be at least 1")
    # Sorted, so that equal scores go by lower id; a repeated item counts once.
    allowed = jnp.sort(allowed, axis=1)
    repeated = jnp.pad(allowed[:, 1:] == allowed[:, :-1], [(0, 0), (1, 0)])
    drop = (allowed < 0) | repeated
    if "exclude" in filters:
        drop = drop | jnp.any(allowed[:, :, None] == filters["exclude"][:, None, :], axis=-1)
    if "seen_indptr" in filters:
        drop = drop | _is_seen(allowed, filters["seen_indptr"], filters["seen_indices"], filters["seen_rows"])
    place = jnp.maximum(allowed, 0)
    scores = jnp.einsum("bw,baw->ba", queries, items[place], precision=lax.Precision.HIGHEST)
    scores = jnp.where(drop | jnp.isnan(scores), -jnp.inf, scores)
    taken = min(k, allowed.shape[1])
    best, where = lax.top_k(scores, taken)
    ids = jnp.where(best == -jnp.inf, -1, jnp.take_along_axis(allowed, where, axis=1))
    padding = [(0, 0), (0, k - taken)]
    return jnp.pad(ids, padding, constant_values=-1), jnp.pad(best, padding, constant_values=-jnp.inf)


def _is_seen(candidates: Array, indptr: Array, indices: Array, rows: Array) -> Array:
    """Whether each candidate is among its row's entries, by bisection."""
    if indices.shape[0] == 0:
        return jnp.zeros(candidates.shape, bool)
    low = jnp.broadcast_to(indptr[rows][:, None], candidates.shape)
    end = jnp.broadcast_to(indptr[rows + 1][:, None], candidates.shape)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        below = (indices[jnp.minimum(middle, indices.shape[0] - 1)] < candidates) & (low < high)
        return jnp.where(below, middle + 1, low), jnp.where(below | (low >= high), high, middle)

    low, _ = lax.fori_loop(0, 32, halve, (low, end))
    return (low < end) & (indices[jnp.minimum(low, indices.shape[0] - 1)] == candidates)
