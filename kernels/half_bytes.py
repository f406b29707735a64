"""Codes of 4 bits, two in a byte, of which each block of 16 columns has a multiplier of 4 bits.

A row has the bytes of its codes, then those of its multipliers: in byte j of either the low half is number 2 j, the
high half number 2 j + 1, both raised by 8; a number that is not there is 8, which stands for 0. What a column stands
for is the product of the two, a whole number in [-56, 64], so that products of rows are as exact as those of bytes.

Source: Dai et al. 2021, "VS-Quant: Per-vector Scaled Quantization for Accurate Low-Precision Neural Network Inference".
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array

BLOCK = 16  # columns


def unpacked(codes: Array, width: int) -> Array:
    """What columns stand for, int8 `[n, width]`: of half bytes the products, of anything else itself.

    >>> unpacked(packed(jnp.array([[-7, 1, 7]], jnp.int8), jnp.array([[-2]], jnp.int8)), 3).tolist()
    [[14, -2, -14]]
    """
    if codes.dtype != jnp.uint8:
        return codes
    own, multipliers = parts(codes, width)
    return own * jnp.repeat(multipliers, BLOCK, axis=1)[:, :width]


def parts(codes: Array, width: int) -> tuple[Array, Array]:
    """Codes `[n, width]` and multipliers `[n, blocks]`, int8; the inverse of `packed`."""
    split = (width + 1) // 2
    return _numbers(codes[:, :split])[:, :width], _numbers(codes[:, split:])[:, : -(-width // BLOCK)]


def packed(codes: Array, multipliers: Array) -> Array:
    """Uint8 `[n, row_bytes(width)]` of codes `[n, width]` and multipliers `[n, blocks]`, both int8 in [-8, 7].

    >>> packed(jnp.array([[-7, 1, 7]], jnp.int8), jnp.array([[-2]], jnp.int8)).tolist() == [[0x91, 0x8F, 0x86]]
    True
    """
    return jnp.concatenate([_bytes(codes), _bytes(multipliers)], axis=1)


def row_bytes(width: int) -> int:
    """How many a row of so many columns has.

    >>> row_bytes(64)
    34
    """
    return (width + 1) // 2 + (-(-width // BLOCK) + 1) // 2


def _numbers(stored: Array) -> Array:
    halves = jnp.stack([stored & jnp.uint8(15), stored >> jnp.uint8(4)], axis=-1)
    return halves.reshape(stored.shape[0], -1).astype(jnp.int8) - jnp.int8(8)


def _bytes(numbers: Array) -> Array:
    raised = (numbers + jnp.int8(8)).astype(jnp.uint8)
    raised = jnp.pad(raised, ((0, 0), (0, numbers.shape[1] % 2)), constant_values=8)
    return raised[:, ::2] | (raised[:, 1::2] << jnp.uint8(4))
