"""What the places of a sequence attend to, to be looked at."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32


def attention_maps(
    network: Any, items: Int32[Array, "*batch length"], **inputs: Any
) -> Float[Array, "blocks *batch heads length length"]:
    """How much each place attends to each, in each block and head of a sequential network.

    The whole weights are held: for a few sequences, not for training.

    Args:
        network: `SASRec`, `BERT4Rec` or `HSTU`, whose weights are no shares and may be negative.
        items: What it takes, the oldest first, padded with -1.
        **inputs: What it takes besides, such as `segments`; where items have content,
            `table=network.items.table(model.modalities)`, both of the `SequenceNetwork`.

    Returns:
        `[block, …, head, i, j]`: of place i the weight of j.

    >>> from flax import nnx
    >>> from .sequential import SASRec
    >>> maps = attention_maps(SASRec(5, width=4, length=3, rngs=nnx.Rngs(0)), jnp.array([-1, 2, 4]))
    >>> maps.shape, maps[0, 0].sum(axis=1).round(4).tolist()
    ((2, 1, 3, 3), [0.0, 1.0, 1.0])
    """
    maps: list[Array] = []
    network(items, maps=maps, **inputs)
    return jnp.swapaxes(jnp.stack(maps), -3, -2)


def attention_rollout(
    maps: Float[Array, "blocks *batch heads length length"],
) -> Float[Array, "*batch length length"]:
    """How much of each place is in each place after all blocks: the product of the blocks' weights, the mean of heads.

    Half of a place goes through attention and half past it: `(A + 1) / 2` for each block, rows made to sum to 1.

    Source: Abnar, Zuidema 2020, "Quantifying Attention Flow in Transformers".

    >>> attention_rollout(jnp.array([[[[1.0, 0.0], [0.5, 0.5]]]])).tolist()
    [[1.0, 0.0], [0.25, 0.75]]
    """
    shares = 0.5 * jnp.mean(maps, axis=-3)
    shares += jnp.broadcast_to(0.5 * jnp.eye(maps.shape[-1], dtype=maps.dtype), shares.shape)
    shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    total = shares[0]
    for block in shares[1:]:
        total = jnp.matmul(block, total, precision=lax.Precision.HIGHEST)
    return total
