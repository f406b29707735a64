"""Tables of float32 numbers in bytes or half bytes, row by row, and back."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from ...kernels.quantized_rows import QuantizedRows, packed
from ..errors import CompressionError

Clip = Literal["none", "search"]
_SHARES = 1.0 - 0.025 * np.arange(25, dtype=np.float32)  # of a row's range, which clipping is tried at


def quantize(
    table: Float[Array, "n width"],
    bits: Literal[8, 4] = 8,
    *,
    symmetric: bool = True,
    clip: Clip = "none",
    exact: int = 0,
) -> QuantizedRows:
    """Rows as codes, `row = scale code + offset`, rounded to the nearest.

    Args:
        table: Finite numbers, such as the vectors of items.
        bits: Of a code. Of 8, a table of 64 columns takes 27 % of its bytes, of 4, two in a byte, 14 %.
        symmetric: Whether the offset is 0; else it is the middle of the row's range, of which a code has more to tell
            where the numbers of a row are not around 0.
        clip: "none" has codes for all of a row's range; "search" gives it up at both ends as far as the squared error
            of the row becomes less by it, which pays with 4 bits.
        exact: How many of the last columns stay as they are, such as biases.

    Returns:
        `QuantizedRows`, which `retrieval.top_k` searches as they are. A row that is the same number throughout comes
        back exactly where it is 0 or has an offset.

    Raises:
        CompressionError: No table of rows, no column to quantize, numbers that are not finite (with row and column), or
            rows that are quantized already.
        ValueError: Unknown bits or clip.

    Source: Guan et al. 2019, "Post-Training 4-bit Quantization on Embedding Tables".

    >>> rows = quantize(jnp.array([[0.5, -1.0, 1.0], [0.0, 0.0, 0.0]]))
    >>> rows.codes.tolist(), dequantize(rows).round(2).tolist()
    ([[64, -127, 127], [0, 0, 0]], [[0.5, -1.0, 1.0], [0.0, 0.0, 0.0]])
    """
    if bits not in (8, 4):
        raise ValueError(f"{bits=} must be 8 or 4")
    if clip not in get_args(Clip):
        raise ValueError(f"{clip=} must be one of {get_args(Clip)}")
    _check(table, exact)
    table = jnp.asarray(table, jnp.float32)
    rows, kept = jnp.split(table, [table.shape[1] - exact], axis=1)
    most, width = 127 if bits == 8 else 7, rows.shape[1]
    low, high = jnp.min(rows, axis=1), jnp.max(rows, axis=1)
    offsets = jnp.zeros_like(low) if symmetric else low + (high - low) / 2
    centred = rows - offsets[:, None]
    reach = jnp.max(jnp.abs(centred), axis=1)

    def codes_of(scales: Array) -> Array:
        whole = jnp.rint(centred / jnp.where(scales > 0, scales, 1.0)[:, None])
        return jnp.clip(whole, -most, most)

    def error(share: Array) -> Array:
        scales = share * reach / most
        return jnp.sum((codes_of(scales) * scales[:, None] - centred) ** 2, axis=1)

    scales = reach / most
    if clip == "search":
        errors = lax.map(error, jnp.asarray(_SHARES))
        scales *= jnp.asarray(_SHARES)[jnp.argmin(errors, axis=0)]
    codes = codes_of(scales).astype(jnp.int8)
    return QuantizedRows(codes if bits == 8 else packed(codes), scales, None if symmetric else offsets, kept, width)


def dequantize(rows: QuantizedRows) -> Float[Array, "n width"]:
    """The table that rows stand for, exact columns included; `rows.rows(ids)` gives some of it.

    Raises:
        CompressionError: Something else than `QuantizedRows`.
    """
    if not isinstance(rows, QuantizedRows):
        raise CompressionError(f"{type(rows).__name__} is nothing quantized; what quantize gave is accepted")
    return rows.rows(jnp.arange(rows.shape[0], dtype=jnp.int32))


def _check(table: Any, exact: int) -> None:
    if isinstance(table, QuantizedRows):
        raise CompressionError(f"these rows are of {table.bits} bits already; dequantize them first")
    if table.ndim != 2 or not table.size:
        raise CompressionError(f"a table of shape {list(table.shape)} has no rows of numbers")
    if not 0 <= exact < table.shape[1]:
        raise CompressionError(f"{exact=} of {table.shape[1]} columns leaves none to quantize")
    if isinstance(table, Tracer):
        return
    wrong = ~np.isfinite(np.asarray(table, np.float32))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise CompressionError(f"row {row:,}, column {column:,} is {table[row, column]}; all must be finite float32")
