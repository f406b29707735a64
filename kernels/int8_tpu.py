"""`kernels.int8` on TPU by Pallas: tiles of the result, to which slices of the depth are added in turn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

_TILE = 256  # rows and columns of the result
_DEPTH = 512


def multiply(a, b, *, interpret=False):
    """See `int8.product`."""
    (m, depth), n = a.shape, b.shape[0]
    # Zeros add nothing to a sum.
    a, b = (jnp.pad(array, ((0, -len(array) % _TILE), (0, -depth % _DEPTH))) for array in (a, b))
    found = pl.pallas_call(
        _add_tile,
        grid=(len(a) // _TILE, len(b) // _TILE, a.shape[1] // _DEPTH),
        in_specs=[
            pl.BlockSpec((_TILE, _DEPTH), lambda i, j, k: (i, k)),
            pl.BlockSpec((_TILE, _DEPTH), lambda i, j, k: (j, k)),
        ],
        out_specs=pl.BlockSpec((_TILE, _TILE), lambda i, j, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((len(a), len(b)), jnp.int32),
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
    )(a, b)
    return found[:m, :n]


def _add_tile(a, b, sums):
    @pl.when(pl.program_id(2) == 0)
    def _():
        sums[...] = jnp.zeros(sums.shape, jnp.int32)

    sums[...] += lax.dot_general(a[...], b[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
