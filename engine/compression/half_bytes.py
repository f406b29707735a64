"""Rows in codes of 4 bits: which multipliers and scales they have."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ...kernels.half_bytes import BLOCK, packed

Clip = Literal["none", "search"]
# Of the scale that has codes for all of a row's range.
_PARTS = np.array([0.9, 0.95, 1.0, 1.05, 1.1, 1.15], np.float32)
_MULTIPLIERS = np.array([*range(-8, 0), *range(1, 8)], np.float32)


def in_half_bytes(rows: Array, clip: Clip) -> tuple[Array, Array]:
    """Codes with their multipliers, packed, uint8 `[n, row_bytes(width)]`, and scales, bfloat16 `[n]`. See `quantize`.

    Below 0 a block has one code more than above: its multiplier is below 0 where that is needed on the other side,
    because it reaches further there, or errs less so by search.
    """
    n, width = rows.shape
    blocks = jnp.pad(rows, ((0, 0), (0, -width % BLOCK))).reshape(n, -1, BLOCK)
    below, above = -jnp.min(blocks, axis=2), jnp.max(blocks, axis=2)
    reach = jnp.maximum(below, above)
    steps = jnp.maximum(reach / 8, jnp.minimum(below, above) / 7)
    # Rounded down, so that nothing overflows.
    whole = jnp.max(steps, axis=1) / 7 * (1 - 2**-8)
    scales = whole.astype(jnp.bfloat16)
    of_range = jnp.clip(jnp.ceil(steps / _safe(scales)[:, None]), 1, 7)
    multipliers = jnp.where(above > below, -of_range, of_range)
    if clip == "search":

        def errors(multipliers: Array, scales: Array) -> Array:
            steps = multipliers * scales.astype(jnp.float32)[:, None]
            return jnp.sum((_codes(blocks, steps) * steps[..., None] - blocks) ** 2, axis=2)

        def of_each(scales: Array) -> Array:
            return lax.map(lambda multiplier: errors(multiplier, scales), each)

        def of_rows(part: Array) -> Array:
            return jnp.sum(jnp.min(of_each((part * whole).astype(jnp.bfloat16)), axis=0), axis=1)

        parts, each = jnp.asarray(_PARTS), jnp.asarray(_MULTIPLIERS)
        other = (parts[jnp.argmin(lax.map(of_rows, parts), axis=0)] * whole).astype(jnp.bfloat16)
        others = each[jnp.argmin(of_each(other), axis=0)]
        # Not where squares are beyond float32.
        better = jnp.sum(errors(others, other), axis=1) < jnp.sum(errors(multipliers, scales), axis=1)
        scales, multipliers = jnp.where(better, other, scales), jnp.where(better[:, None], others, multipliers)
    multipliers = jnp.where(reach > 0, multipliers, 0.0)
    codes = _codes(blocks, multipliers * scales.astype(jnp.float32)[:, None]).reshape(n, -1)[:, :width]
    return packed(codes.astype(jnp.int8), multipliers.astype(jnp.int8)), scales


def _codes(blocks: Array, steps: Array) -> Array:
    nearest = jnp.clip(jnp.rint(blocks / _safe(steps)[..., None]), -8, 7)
    return jnp.where(steps[..., None] == 0, 0.0, nearest)


def _safe(divisors: Array) -> Array:
    exact = divisors.astype(jnp.float32)
    return jnp.where(exact == 0, 1.0, exact)
