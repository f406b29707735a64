"""What may be answered: the forms in which filters are given, and their checks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32

from ...kernels.best_of_rows import best_of_rows
from ...kernels.csr import CSR, SparseMatrix, contains
from ...kernels.quantized_rows import Table
from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import InteractionError

Seen = Interactions | Sequences | SparseMatrix | CSR


def as_seen(seen: Seen) -> CSR:
    """The rows by user, on the device."""
    seen = seen.interactions() if isinstance(seen, Sequences) else seen
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


class Filters(NamedTuple):
    """What may be answered, as the kernels take it.

    Attributes:
        seen: Sparse rows of items to leave out, or None, and so on.
        seen_rows: `[batch]`, the row of it that belongs to each query.
        exclude: `[batch, h]` further items to leave out, padded with -1.
        among: `[batch, a]` the only items to answer, padded with -1.
        allow: `[n_items]` bool, the items that may be answered at all.
    """

    seen: CSR | None
    seen_rows: Array | None
    exclude: Array | None
    among: Array | None
    allow: Array | None


def checked_filters(batch: int, n_items: int, seen: Seen | None, rows: Any, exclude: Any, allow: Any) -> Filters:
    """The filters of `recommend`, checked; `rows` are those of `seen`, in order if None.

    Raises:
        InteractionError: Of the wrong shape or type, or with rows or items that are not there.
        ValueError: A bool mask of another length.
    """
    sparse = among = None
    if seen is not None:
        sparse = as_seen(seen)
        rows = jnp.arange(batch, dtype=jnp.int32) if rows is None else as_ids("rows", rows)
        _check_rows(rows, sparse.n_rows, batch)
    if exclude is not None:
        exclude = as_ids("exclude", exclude, n_items, shape=(batch, None), padded=True)
    if allow is not None:
        allow = jnp.asarray(allow)
        if allow.dtype != bool:
            among, allow = as_ids("allow", allow, n_items, shape=(batch, None), padded=True), None
        elif allow.shape != (n_items,):
            raise ValueError(f"allow.shape={allow.shape} must be ({n_items},) for a bool mask of items")
    return Filters(sparse, None if sparse is None else rows, exclude, among, allow)


def _check_rows(rows: Array, n_rows: int, batch: int) -> None:
    """Each query must have a row of the seen interactions."""
    if rows.shape != (batch,):
        raise InteractionError(f"rows.shape={rows.shape} must be ({batch},)")
    if isinstance(rows, Tracer):
        return
    largest = int(np.max(np.asarray(rows), initial=-1))
    if largest >= n_rows:
        raise InteractionError(f"seen has {n_rows} rows; row {largest} is asked for. seen must cover every user asked")


def best_among(
    queries: Float[Array, "batch width"], items: Table, k: int, filters: Filters
) -> tuple[Int32[Array, "batch k"], Float[Array, "batch k"]]:
    """The best of `filters.among` for each query: only the scores of those are computed."""
    if k < 1 or filters.among is None:
        raise ValueError(f"{k=} must be at least 1, and there must be items to choose among")
    # Sorted, so that equal scores go by lower id; a repeated item counts once.
    among = jnp.sort(filters.among, axis=1)
    repeated = jnp.pad(among[:, 1:] == among[:, :-1], [(0, 0), (1, 0)])
    drop = (among < 0) | repeated
    if filters.exclude is not None:
        drop = drop | jnp.any(among[:, :, None] == filters.exclude[:, None, :], axis=-1)
    if filters.seen is not None and filters.seen_rows is not None:
        drop = drop | contains(filters.seen.indptr, filters.seen.indices, filters.seen_rows, among)
    place = jnp.maximum(among, 0)
    vectors = items[place]
    scores = jnp.einsum("bw,baw->ba", queries, vectors, precision=lax.Precision.HIGHEST)
    scores = jnp.where(drop | jnp.isnan(scores), -jnp.inf, scores)
    where, best = best_of_rows(scores, k)
    return jnp.take_along_axis(jnp.pad(among, [(0, 0), (0, 1)], constant_values=-1), where, axis=1), best
