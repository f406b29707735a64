"""`kernels.int8` on NVIDIA GPUs by Pallas (Mosaic GPU): tiles of the result, summed by the tensor cores in int32."""

from __future__ import annotations

import jax
import jax.experimental.pallas.mosaic_gpu as gpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .gpu_memory import LINE, fetch, store, tile

_ROWS, _COLUMNS = 64, 128  # of a tile of the result
_DEPTH = LINE  # bytes of it that are multiplied at a time


def multiply(a, b, *, interpret=None):
    """See `int8.product`."""
    (m, depth), n = a.shape, b.shape[0]
    # Zeros add nothing to a sum.
    a, b = (
        jnp.pad(array, ((0, -len(array) % size), (0, -depth % _DEPTH))) for array, size in ((a, _ROWS), (b, _COLUMNS))
    )
    found = gpu.kernel(
        _product,
        out_type=jax.ShapeDtypeStruct((len(a), len(b)), jnp.int32),
        grid=(len(b) // _COLUMNS, len(a) // _ROWS),
        grid_names=("column", "row"),
        scratch_types={
            "a_s": tile(_ROWS, _DEPTH, jnp.int8),
            "b_s": tile(_COLUMNS, _DEPTH, jnp.int8),
            "sums_s": tile(_ROWS, _COLUMNS, jnp.int32),
            "arrived": gpu.Barrier(num_arrivals=2),
        },
        interpret=interpret,
    )(a, b)
    return found[:m, :n]


def _product(a, b, out, *, a_s, b_s, sums_s, arrived):
    rows = pl.ds(lax.axis_index("row") * _ROWS, _ROWS)
    columns = pl.ds(lax.axis_index("column") * _COLUMNS, _COLUMNS)

    def summed(sums):
        def step(k, carry):
            depth = pl.ds(k * _DEPTH, _DEPTH)
            fetch(arrived, (a.at[rows, depth], a_s), (b.at[columns, depth], b_s))
            gpu.wgmma(sums, a_s, b_s.transpose((1, 0)))
            gpu.wgmma_wait(0)
            gpu.commit_smem()  # no warp reads any more what the next copies go over
            return carry

        lax.fori_loop(0, a.shape[1] // _DEPTH, step, None)
        return sums[...]

    sums_s[...] = pl.run_scoped(summed, gpu.WGMMAAccumulatorRef((_ROWS, _COLUMNS), jnp.int32))
    store((sums_s, out.at[rows, columns]))
