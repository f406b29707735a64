"""`kernels.int8` on NVIDIA GPUs by Pallas (Mosaic GPU): tiles of the result, summed by the tensor cores in int32."""

from __future__ import annotations

import jax
import jax.experimental.pallas.mosaic_gpu as gpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

_ROWS, _COLUMNS = 64, 128  # of a tile of the result
_DEPTH = 128  # bytes, which is what a row of a tile in shared memory has
_NUMBERS = _DEPTH // 4  # of the result in such a row


def multiply(a, b, *, interpret=None):
    """See `int8.product`."""
    (m, depth), n = a.shape, b.shape[0]
    # Zeros add nothing to a sum.
    a, b = (
        jnp.pad(array, ((0, -len(array) % size), (0, -depth % _DEPTH))) for array, size in ((a, _ROWS), (b, _COLUMNS))
    )
    rows = gpu.TilingTransform((8, _DEPTH)), gpu.SwizzleTransform(_DEPTH)
    numbers = gpu.TilingTransform((8, _NUMBERS)), gpu.SwizzleTransform(_DEPTH)
    found = gpu.kernel(
        _tile,
        out_type=jax.ShapeDtypeStruct((len(a), len(b)), jnp.int32),
        grid=(len(b) // _COLUMNS, len(a) // _ROWS),
        grid_names=("column", "row"),
        scratch_types={
            "a_s": gpu.SMEM((_ROWS, _DEPTH), jnp.int8, transforms=rows),
            "b_s": gpu.SMEM((_COLUMNS, _DEPTH), jnp.int8, transforms=rows),
            "sums_s": gpu.SMEM((_ROWS, _COLUMNS), jnp.int32, transforms=numbers),
            "arrived": gpu.Barrier(num_arrivals=2),
        },
        interpret=interpret,
    )(a, b)
    return found[:m, :n]


def _tile(a, b, out, *, a_s, b_s, sums_s, arrived):
    rows = pl.ds(lax.axis_index("row") * _ROWS, _ROWS)
    columns = pl.ds(lax.axis_index("column") * _COLUMNS, _COLUMNS)

    def summed(sums):
        def step(k, carry):
            depth = pl.ds(k * _DEPTH, _DEPTH)
            gpu.copy_gmem_to_smem(a.at[rows, depth], a_s, arrived)
            gpu.copy_gmem_to_smem(b.at[columns, depth], b_s, arrived)
            gpu.barrier_wait(arrived)
            gpu.wgmma(sums, a_s, b_s.transpose((1, 0)))
            gpu.wgmma_wait(0)
            gpu.commit_smem()  # no warp reads any more what the next copies go over
            return carry

        lax.fori_loop(0, a.shape[1] // _DEPTH, step, None)
        return sums[...]

    sums_s[...] = pl.run_scoped(summed, gpu.WGMMAAccumulatorRef((_ROWS, _COLUMNS), jnp.int32))
    gpu.commit_smem()
    gpu.copy_smem_to_gmem(sums_s, out.at[rows, columns])
    gpu.wait_smem_to_gmem(0)
