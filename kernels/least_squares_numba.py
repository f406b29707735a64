"""`kernels.least_squares` on CPU: rows in parallel, the rank a constant of the compiled code."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from . import least_squares_blocks, least_squares_cg, simd, xla_ffi
from .outer_products import TILE_COLUMNS

MAX_RANK = 1024


def solve_rows(
    indptr, indices, weights, targets, table, gram, l2, rhs, start, *, solver: str, iterations: int, block: int
) -> list[jax.Array]:
    """The Numba implementation of `least_squares.OP`: `[x, loss, jittered]`.

    Ranks are padded with zero columns to a multiple of 16, which is exact and keeps the specialisations few.
    """
    n_rows, rank = start.shape
    width = -(-rank // TILE_COLUMNS) * TILE_COLUMNS

    def padded(array):
        return jnp.pad(array, [(0, 0), (0, width - rank)])

    gram = jnp.pad(gram, (0, width - rank))
    if solver == "cg":
        packed = int(table.dtype == jnp.bfloat16)
        if packed:
            order = simd.interleaved_columns(width)
            gram = gram[order][:, order]
        kernel, name = least_squares_cg.kernel(width, packed), f"cg_{width}"
        extra = [jnp.asarray([iterations], jnp.int32)]
    else:
        table = table.astype(jnp.float32)
        kernel, name = least_squares_blocks.kernel(width), f"blocks_{width}"
        extra = [jnp.asarray([iterations, block, rank], jnp.int32)]
    results = [
        jax.ShapeDtypeStruct((n_rows, width), jnp.float32),
        jax.ShapeDtypeStruct((n_rows,), jnp.float32),
        jax.ShapeDtypeStruct((n_rows,), jnp.int32),
    ]
    arguments = (indptr, indices, weights, targets, padded(table), gram, l2, padded(rhs), padded(start), *extra)
    x, loss, jittered = xla_ffi.call(f"least_squares_{name}", kernel, results, *arguments)
    return [x[:, :rank], loss, jittered]
