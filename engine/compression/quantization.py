"""Tables of float32 numbers in fewer bits, row by row, and back."""

from __future__ import annotations

import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from ...kernels.quantized_kernel import is_quantized
from ...kernels.quantized_rows import Kind, QuantizedRows
from ..errors import CompressionError
from .half_bytes import Clip, in_half_bytes
from .parameters import is_whole

_GREATEST = {"int8": 127.0, "float8": 448.0, "bfloat16": float(jnp.finfo(jnp.bfloat16).max)}  # of a code
_SHARES = 1.0 - 0.025 * np.arange(25, dtype=np.float32)  # of a row's range, which clipping is tried at
_FLOATS = {"float8": jnp.float8_e4m3fn, "bfloat16": jnp.bfloat16}


def quantize(
    table: Float[Array, "n width"],
    kind: Kind = "int8",
    *,
    symmetric: bool = True,
    clip: Clip = "none",
    exact: int = 0,
) -> QuantizedRows:
    """Rows as codes, `row = scale code + offset`, rounded to the nearest.

    Args:
        table: Finite numbers, such as the vectors of items.
        kind: Of the codes. Of "int8" a table of 64 columns takes 27 % of its bytes, of "int4", two in a byte and a
            multiplier of the scale for every 16 columns, 14 %.
            "float8", with 3 bits behind the leading one, is finer near 0, "bfloat16" has 7 and a scale of 1; both are
            searched as float32.
        symmetric: Whether the offset is 0; else it is the middle of the row's range, of which a code has more to tell
            where the numbers of a row are not around 0; numbers that are 0 do not stay so.
        clip: "none" has codes for all of a row's range; "search" gives it up at the ends as far as the squared error
            of the row, or of 16 columns of it, becomes less by it, which pays with 4 bits.
        exact: How many of the last columns stay as they are, such as biases.

    Returns:
        `QuantizedRows`, which `retrieval.top_k` searches as they are. A row that is the same number throughout comes
        back exactly where it is 0 or has an offset.

    Raises:
        CompressionError: No table of rows, no column to quantize, numbers that are not finite (with row and column), or
            rows that are quantized already.
        ValueError: Unknown kind or clip.

    Source: Guan et al. 2019, "Post-Training 4-bit Quantization on Embedding Tables"; the multipliers, Dai et al. 2021,
    "VS-Quant: Per-vector Scaled Quantization for Accurate Low-Precision Neural Network Inference".

    >>> rows = quantize(jnp.array([[0.5, -1.0, 1.0], [0.0, 0.0, 0.0]]))
    >>> rows.codes.tolist(), dequantize(rows).round(2).tolist()
    ([[64, -127, 127], [0, 0, 0]], [[0.5, -1.0, 1.0], [0.0, 0.0, 0.0]])
    """
    if kind not in get_args(Kind):
        raise ValueError(f"{kind=} must be one of {get_args(Kind)}")
    if clip not in get_args(Clip):
        raise ValueError(f"{clip=} must be one of {get_args(Clip)}")
    checked_table(table, exact)
    return _quantized(jnp.asarray(table, jnp.float32), kind, symmetric, clip, exact)


@functools.partial(jax.jit, static_argnames=("kind", "symmetric", "clip", "exact"))
def _quantized(table: Array, kind: Kind, symmetric: bool, clip: Clip, exact: int) -> QuantizedRows:
    rows, kept = jnp.split(table, [table.shape[1] - exact], axis=1)
    width = rows.shape[1]
    low, high = jnp.min(rows, axis=1), jnp.max(rows, axis=1)
    offsets = jnp.zeros_like(low) if symmetric else low / 2 + high / 2
    centred = rows - offsets[:, None]
    codes, scales = in_half_bytes(centred, clip) if kind == "int4" else _by_scales(centred, kind, clip)
    return QuantizedRows(codes, scales, None if symmetric else offsets, kept, width)


def _by_scales(centred: Array, kind: Kind, clip: Clip) -> tuple[Array, Array]:
    """Codes that have a place each, and scales."""
    most, reach = _GREATEST[kind], jnp.max(jnp.abs(centred), axis=1)

    def codes_of(scales: Array) -> Array:
        parts = centred / jnp.where(scales > 0, scales, 1.0)[:, None]
        parts = jnp.clip(parts, -most, most)
        return parts.astype(_FLOATS[kind]) if kind in _FLOATS else jnp.rint(parts).astype(jnp.int8)

    def error(share: Array) -> Array:
        scales = share * reach / most
        return jnp.sum((codes_of(scales).astype(jnp.float32) * scales[:, None] - centred) ** 2, axis=1)

    scales = jnp.ones_like(reach) if kind == "bfloat16" else reach / most
    if clip == "search" and kind != "bfloat16":
        errors = lax.map(error, jnp.asarray(_SHARES))
        scales *= jnp.asarray(_SHARES)[jnp.argmin(errors, axis=0)]
    return codes_of(scales), scales


def dequantize(quantized: Any) -> Any:
    """The table that rows stand for, exact columns included; or a model with all its parameters as numbers again.

    `rows[ids]` gives some rows of a table.

    Raises:
        CompressionError: Something else than `quantize` and `quantize_model` give.

    >>> dequantize(quantize(jnp.array([[1.0, -1.0]]))).tolist()
    [[1.0, -1.0]]
    """
    leaves, structure = jax.tree.flatten(quantized, is_leaf=is_quantized)
    if not any(map(is_quantized, leaves)):
        raise CompressionError(f"{type(quantized).__name__} has nothing quantized; what quantize gave is accepted")
    return structure.unflatten([leaf.floats() if is_quantized(leaf) else leaf for leaf in leaves])


def checked_table(table: Any, exact: int) -> None:
    """Raises CompressionError for what is no table of finite numbers, or is quantized."""
    if is_quantized(table):
        raise CompressionError(f"these rows are {getattr(table, 'kind', 'products')} already; dequantize them first")
    if not hasattr(table, "ndim") or not any(jnp.issubdtype(table.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise CompressionError(
            f"{type(table).__name__} is no table of real numbers: an array of NumPy or JAX is accepted"
        )
    if table.ndim != 2 or not table.size:
        raise CompressionError(f"a table of shape {list(table.shape)} has no rows of numbers")
    if not is_whole(exact) or not 0 <= exact < table.shape[1]:
        raise CompressionError(f"{exact=} must be a whole number below the {table.shape[1]} columns")
    if isinstance(table, Tracer):
        return
    wrong = ~np.isfinite(np.asarray(table, np.float32))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise CompressionError(f"row {row:,}, column {column:,} is {table[row, column]}; all must be finite float32")
