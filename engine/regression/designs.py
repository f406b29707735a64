"""Design matrices, dense or sparse, and what is done with them: products, sums of their columns, Gramians."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from ...kernels import weighted_gramian
from ...kernels.csr import CSR, entries
from ..data.features import Features, device_rows
from ..errors import FeatureError

Design = Float[Array, "n_rows n_features"] | CSR

_ENTRIES = 1 << 14  # of a sparse design that are summed together


def as_design(design: Any, n_features: int | None) -> tuple[Design, int]:
    """`(design, its width)`, of an array, `Features`, a matrix of scipy, or a `CSR`, whose width must be given.

    Raises:
        FeatureError: Another width or shape, or columns of a CSR that are outside or not ascending.
    """
    import scipy.sparse

    if isinstance(design, Features):
        design = design.matrix
    if scipy.sparse.issparse(design):
        width, rows = design.shape[-1], device_rows(scipy.sparse.csr_array(design))
    elif isinstance(design, CSR):
        if n_features is None:
            raise FeatureError("a CSR does not know its width: pass n_features")
        width, rows = n_features, design
        _check_columns(rows, n_features)
    else:
        rows = jnp.asarray(design, jnp.float32)
        width = rows.shape[1] if rows.ndim == 2 else -1
    if width < 0 or n_features not in (None, width):
        shape = np.shape(design)
        raise FeatureError(f"design.shape={shape} must be (n_rows, n_features), {n_features=}")
    return rows, int(width)


def _check_columns(rows: CSR, n_features: int) -> None:
    if isinstance(rows.indices, Tracer) or isinstance(rows.indptr, Tracer) or rows.nnz == 0:
        return
    columns = np.asarray(rows.indices)
    wrong = columns.max() if columns.max() >= n_features else columns.min()
    if not 0 <= wrong < n_features:
        raise FeatureError(f"the design has column {wrong}, outside [0, {n_features}) given by {n_features=}")
    starts = np.zeros(rows.nnz + 1, bool)
    starts[np.asarray(rows.indptr)] = True
    falling = (columns[1:] <= columns[:-1]) & ~starts[1:-1]
    if falling.any():
        entry = int(np.argmax(falling)) + 1
        raise FeatureError(
            f"the design, entry {entry:,}: column {columns[entry]} after {columns[entry - 1]} in one row"
        )


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
    return jnp.matmul(vectors.T, design, precision=lax.Precision.HIGHEST).T  # which reads X as it lies


def column_sums(design: Design, n: int) -> Float[Array, " n"]:
    """Of X, which has n columns."""
    if isinstance(design, CSR):
        return transposed_times(design, jnp.ones((design.n_rows, 1), jnp.float32), n)[:, 0]
    return jnp.sum(design, axis=0)


def column_squares(design: Design, n: int) -> Float[Array, " n"]:
    """Sums of the squares of the columns."""
    if isinstance(design, CSR):
        return column_sums(design._replace(values=design.values**2), n)
    return jnp.sum(design**2, axis=0)


def gramian(design: Design, weights: Float[Array, " n_rows"] | None, n: int) -> Float[Array, "n n"]:
    """`X^T diag(weights) X`, the weights being 1 if None; not differentiable."""
    if isinstance(design, CSR):
        weights = jnp.ones(design.n_rows, jnp.float32) if weights is None else weights
        return weighted_gramian.compute(design, weights, n)
    weighted = design if weights is None else design * weights[:, None]
    return jnp.matmul(design.T, weighted, precision=lax.Precision.HIGHEST)
