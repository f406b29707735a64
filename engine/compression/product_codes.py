"""Product quantization: rows put together from parts, found for a table that there is, or before one is trained."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from ...kernels.product_rows import ProductRows
from ..errors import CompressionError
from .parameters import is_whole
from .quantization import checked_table

_ROUNDS = 25  # of k-means
_AT_ONCE = 1 << 14  # rows whose distances are held


def quantize_products(
    table: Float[Array, "n width"],
    parts: int,
    n_codes: int = 256,
    *,
    exact: int = 0,
    key: PRNGKeyArray | None = None,
) -> ProductRows:
    """Rows in a byte a part, each the nearest of the centroids that k-means finds for that part of all rows.

    Of a trained table this is coarse: near neighbours change places. Networks that are trained with such rows from the
    beginning, `products=` of `models.sequence_retriever`, lose far less. Factors lose half as much where `truncate` has
    turned them and each column of the items is taken times the reach of the users'; see `bench/bench_compression.py`.

    Args:
        table: Finite numbers.
        parts: Of a row, which divide its width.
        n_codes: Centroids of a part, 2 to 256; no more than rows.
        exact: How many of the last columns stay as they are, such as biases.
        key: Of the first centroids, which are rows; `jax.random.key(0)` if None.

    Raises:
        CompressionError: As `quantize`; or parts or codes that do not go with the table.

    Source: Jégou, Douze, Schmid 2011, "Product Quantization for Nearest Neighbor Search".

    >>> table = jnp.array([[1.0, 2.0, 0.0, 0.0], [1.0, 2.0, 3.0, 3.0], [5.0, 5.0, 3.0, 3.0], [5.0, 5.0, 0.0, 0.0]])
    >>> rows = quantize_products(table, 2, n_codes=2)
    >>> rows.codes.shape, bool(jnp.allclose(rows.floats(), table))
    ((4, 2), True)
    """
    checked_table(table, exact)
    table = jnp.asarray(table, jnp.float32)
    rows, kept = jnp.split(table, [table.shape[1] - exact], axis=1)
    n, width = rows.shape
    _check_parts(width, parts, n_codes)
    if n_codes > n:
        raise CompressionError(f"{n_codes=} is more than the {n} rows of the table")
    start = jax.random.permutation(jax.random.key(0) if key is None else key, n)[:n_codes]
    pieces = jnp.moveaxis(rows.reshape(n, parts, -1), 1, 0)
    codes, centroids = lax.map(lambda piece: _k_means(piece, start), pieces)
    return ProductRows(codes.T, centroids, kept)


@jax.jit
def _k_means(rows: Float[Array, "n width"], start: Array) -> tuple[Array, Array]:
    """Codes and centroids, after Lloyd's algorithm; the first are distinct rows as far as there are such."""
    n_codes = start.shape[0]
    block = min(rows.shape[0], _AT_ONCE)
    blocks = jnp.pad(rows, ((0, -rows.shape[0] % block), (0, 0))).reshape(-1, block, rows.shape[1])

    def nearest(centroids: Array) -> tuple[Array, Array]:
        squares = jnp.sum(centroids**2, axis=1)

        def of_block(part: Array) -> tuple[Array, Array]:
            distances = squares[None, :] - 2 * jnp.matmul(part, centroids.T, precision=lax.Precision.HIGHEST)
            return jnp.argmin(distances, axis=1), jnp.min(distances, axis=1) + jnp.sum(part**2, axis=1)

        codes, distances = lax.map(of_block, blocks)
        return codes.reshape(-1)[: rows.shape[0]], distances.reshape(-1)[: rows.shape[0]]

    def improve(_: Any, centroids: Array) -> Array:
        codes, distances = nearest(centroids)
        counts = jnp.zeros(n_codes).at[codes].add(1.0)
        sums = jnp.zeros_like(centroids).at[codes].add(rows)
        means = sums / jnp.maximum(counts, 1.0)[:, None]
        # A centroid that is nearest to none begins anew at one of the rows that are farthest from theirs.
        empty = counts == 0
        place = jnp.cumsum(empty) - 1
        far = jnp.argsort(-distances)[:n_codes]
        return jnp.where(empty[:, None], rows[far[jnp.clip(place, 0, n_codes - 1)]], means)

    centroids = lax.fori_loop(0, _ROUNDS, improve, rows[start])
    return nearest(centroids)[0].astype(jnp.uint8), centroids


def codes_by_order(vectors: Float[np.ndarray, "n parts"], n_codes: int, seed: int = 0) -> UInt8[np.ndarray, "n parts"]:
    """Codes to train with: in each column of vectors, such as singular ones, equally many rows have each code.

    Rows that are near in a column have the same code or one next to it, whose centroids are learned together with those
    of all others. Equal ones are told apart at random.

    Args:
        vectors: A column for each part.
        n_codes: Codes of a part, 2 to 256.
        seed: Of what tells them apart.

    Raises:
        CompressionError: Vectors that are not finite, or n_codes out of range.

    Source: Petrov, Macdonald 2024, "RecJPQ: Training Large-Catalogue Sequential Recommenders".

    >>> codes_by_order(np.array([[0.1], [0.9], [0.5], [0.3]]), 2).T.tolist()
    [[0, 1, 1, 0]]
    """
    if np.ndim(vectors) != 2:
        raise CompressionError(f"vectors of shape {list(np.shape(vectors))} must be [n, parts]")
    _check_parts(vectors.shape[1], vectors.shape[1], n_codes)
    if not np.isfinite(vectors).all():
        row, column = np.argwhere(~np.isfinite(vectors))[0]
        raise CompressionError(f"row {row:,}, column {column:,} is {vectors[row, column]}; all must be finite")
    ties = np.random.default_rng(seed).random(vectors.shape)
    ranks = np.empty(vectors.shape, np.int64)
    for part in range(vectors.shape[1]):
        ranks[np.lexsort((ties[:, part], vectors[:, part])), part] = np.arange(len(vectors))
    return (ranks * n_codes // max(len(vectors), 1)).astype(np.uint8)


def _check_parts(width: int, parts: int, n_codes: int) -> None:
    if not is_whole(parts) or not 0 < parts <= width or width % parts:
        raise CompressionError(f"{parts=} must be a whole number that divides the {width} columns")
    if not is_whole(n_codes) or not 2 <= n_codes <= 256:
        raise CompressionError(f"{n_codes=} must be a whole number of 2 to 256: a code takes a byte")
