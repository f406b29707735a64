"""Codes of 4 bits, two in a byte: in byte j the low half is that of column 2 j, the high half that of 2 j + 1."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array


def unpacked(codes: Array, width: int) -> Array:
    """Codes one in a place, `[n, width]`.

    >>> unpacked(jnp.array([[0x91, 0x8F]], jnp.uint8), 3).tolist()
    [[-7, 1, 7]]
    """
    if codes.dtype != jnp.uint8:
        return codes
    halves = jnp.stack([codes & jnp.uint8(15), codes >> jnp.uint8(4)], axis=-1)
    return halves.reshape(codes.shape[0], -1)[:, :width].astype(jnp.int8) - jnp.int8(8)


def packed(codes: Array) -> Array:
    """Codes of 4 bits, int8 in [-7, 7], two in a byte; the inverse of `unpacked`.

    >>> packed(jnp.array([[-7, 1, 7]], jnp.int8)).tolist() == [[0x91, 0x8F]]
    True
    """
    raised = (codes + jnp.int8(8)).astype(jnp.uint8)
    raised = jnp.pad(raised, ((0, 0), (0, codes.shape[1] % 2)), constant_values=8)
    return raised[:, ::2] | (raised[:, 1::2] << jnp.uint8(4))
