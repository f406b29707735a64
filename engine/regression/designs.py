"""What is done with a design matrix, dense or sparse: products, column means, Gramians; and its checks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from ...kernels.csr import CSR, entries
from ..data.features import Features
from ..errors import FeatureError

Design = Float[Array, "n_rows n_features"] | CSR

_ROWS_HELD = 1 << 22  # numbers of a sparse design that are held densely together
_ENTRIES = 1 << 14  # of it that are written together


def checked_design(design: Any, targets: Any, n_features: int | None) -> tuple[Design, Array, int]:
    """`(design, targets [n_rows, …], n_features)` as float32, checked where they are concrete.

    Raises:
        FeatureError: Shapes that do not go together, or a number that is not finite; the message names its place.
    """
    if isinstance(design, Features):
        design, n_features = design.to_device(), design.n_features
    if isinstance(design, CSR):
        if n_features is None:
            raise FeatureError("a CSR does not know its width: pass n_features")
        rows = design
        if not isinstance(rows.indices, Tracer) and rows.nnz:
            largest = int(np.max(np.asarray(rows.indices)))
            if largest >= n_features:
                raise FeatureError(f"the design has column {largest}, outside [0, {n_features}) given by {n_features=}")
        n_rows = rows.n_rows
        require_finite("the design", rows.values)
    else:
        design = jnp.asarray(design, jnp.float32)
        if design.ndim != 2 or n_features not in (None, design.shape[1]):
            raise FeatureError(f"design.shape={design.shape} must be (n_rows, n_features), {n_features=}")
        n_rows, n_features = map(int, design.shape)
        require_finite("the design", design)
    targets = jnp.asarray(targets, jnp.float32)
    if targets.ndim not in (1, 2) or targets.shape[0] != n_rows or n_rows == 0 or n_features == 0:
        raise FeatureError(f"targets.shape={targets.shape} must be (n_rows,) of a design with {n_rows=}, {n_features=}")
    require_finite("targets", targets)
    return design, targets, n_features


def require_finite(what: str, array: Array) -> None:
    """Refuses a number that is not finite and says where it is; a traced array is the caller's business."""
    if isinstance(array, Tracer):
        return
    concrete = np.asarray(array)
    if not np.isfinite(concrete).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(concrete))[0])
        raise FeatureError(f"{what}: {concrete[place]} at {place} is not a finite float32 number")


def times(design: Design, vectors: Float[Array, "n_features t"]) -> Float[Array, "n_rows t"]:
    """`X W`."""
    if isinstance(design, CSR):
        row, values = entries(design)
        return jax.ops.segment_sum(values[:, None] * vectors[design.indices], row, design.n_rows)
    return jnp.matmul(design, vectors, precision=lax.Precision.HIGHEST)


def transposed_times(design: Design, vectors: Float[Array, "n_rows t"], n: int) -> Float[Array, "n t"]:
    """`X^T V`, X having n columns."""
    if isinstance(design, CSR):
        # In float32 a running sum of a hundred thousand numbers loses what a sum of sums keeps.
        chunk = max(_ENTRIES, n)
        padding = -design.nnz % chunk
        parts = (jnp.pad(part, (0, padding)).reshape(-1, chunk) for part in (*entries(design), design.indices))

        def add(total, part):
            row, values, column = part
            return total + jax.ops.segment_sum(values[:, None] * vectors[row], column, n), None

        return lax.scan(add, jnp.zeros((n, vectors.shape[1]), jnp.float32), tuple(parts))[0]
    return jnp.matmul(design.T, vectors, precision=lax.Precision.HIGHEST)


def squared(design: Design) -> Design:
    """The design with its numbers squared."""
    return design._replace(values=design.values**2) if isinstance(design, CSR) else design**2


def gramian(design: Design, weights: Float[Array, " n_rows"], n_features: int) -> Float[Array, "n_features n_features"]:
    """`X^T diag(weights) X`, a sparse design being held densely a block of rows at a time."""
    if not isinstance(design, CSR):
        return jnp.matmul(design.T, design * weights[:, None], precision=lax.Precision.HIGHEST)
    row, values = entries(design)
    at_once = max(1, min(design.n_rows, _ROWS_HELD // n_features))
    n_blocks = -(-design.n_rows // at_once)
    weights = jnp.pad(weights, (0, n_blocks * at_once - design.n_rows)).reshape(n_blocks, at_once)
    bounds = design.indptr[jnp.minimum(jnp.arange(n_blocks + 1) * at_once, design.n_rows)]
    chunk = max(1, min(design.nnz, _ENTRIES))

    def add(total, block):
        number, own = block
        begin, end = bounds[number], bounds[number + 1]

        def fill(state):
            first, dense = state
            place = first + jnp.arange(chunk, dtype=jnp.int32)
            entry = jnp.minimum(place, max(design.nnz - 1, 0))
            inside = jnp.where(place < end, row[entry] - number * at_once, at_once)  # which is outside and dropped
            return first + chunk, dense.at[inside, design.indices[entry]].add(values[entry], mode="drop")

        empty = jnp.zeros((at_once, n_features), jnp.float32)
        _, dense = lax.while_loop(lambda state: state[0] < end, fill, (begin, empty))
        return total + jnp.matmul(dense.T, dense * own[:, None], precision=lax.Precision.HIGHEST), None

    start = jnp.zeros((n_features, n_features), jnp.float32)
    return lax.scan(add, start, (jnp.arange(n_blocks, dtype=jnp.int32), weights))[0]
