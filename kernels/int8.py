"""Products of int8 matrices, summed exactly in int32."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int8, Int32

from . import int8_numba, int8_tiles
from .op import Implementation, Op, dispatch, imported

_DEEPEST = (2**31 - 1) // (128 * 128 * 2)  # more columns could overflow a sum, with what raising the bytes adds to it


def product(
    a: Int8[Array, "m depth"], b: Int8[Array, "n depth"], *, implementation: Implementation = "auto"
) -> Int32[Array, "m n"]:
    """`a b'`, every sum exact.

    Args:
        a, b: int8, one row for each of the result's rows and columns.
        implementation: See `kernels.op.dispatch`.

    Raises:
        ValueError: Other dtypes, depths that differ, or one beyond 65,535, where int32 could overflow.

    >>> product(jnp.array([[1, -2]], jnp.int8), jnp.array([[3, 4], [-128, 127]], jnp.int8)).tolist()
    [[-5, -382]]
    """
    for name, array in {"a": a, "b": b}.items():
        if array.dtype != jnp.int8 or array.ndim != 2:
            raise ValueError(f"kernels.int8: {name} of {array.dtype}{list(array.shape)} must be int8, [rows, depth]")
    if a.shape[1] != b.shape[1] or a.shape[1] > _DEEPEST:
        raise ValueError(f"kernels.int8: depths {a.shape[1]} and {b.shape[1]} must be equal, and {_DEEPEST:,} at most")
    return dispatch(OP, a, b, implementation=implementation)


def _reference(a, b):
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


def supports_bytes(*arrays: Any, **static: Any) -> str | None:
    """Why the Numba implementation cannot take these arrays, or None."""
    if not int8_tiles.available():
        return "this CPU multiplies no bytes (AVX-512 VNNI)"
    return something(*arrays)


def something(*arrays: Any, **static: Any) -> str | None:
    """Why there is nothing to multiply in the first two of these arrays, or None."""
    return None if all(array.size for array in arrays[:2]) else "nothing is to be multiplied"


# Where there is a unit for tiles of bytes XLA is about twice as fast; see bench/bench_compression.py.
_AUTOMATIC = () if int8_tiles.matrix_unit() else ("cpu",)
OP = Op(
    "int8",
    _reference,
    supports_bytes,
    numba=int8_numba.multiply,
    pallas_gpu=imported("int8_gpu", "multiply"),
    pallas_tpu=imported("int8_tpu", "multiply"),
    gpu_supports=something,
    tpu_supports=something,
    automatic=_AUTOMATIC,
)
