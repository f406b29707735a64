"""Softmax attention on NVIDIA GPUs by cuDNN, by way of `jax.nn`: rows of one sequence each.

cuDNN is told how long sequences are, not what segment a place is of (but by a mask of all pairs, in memory that grows
with the square of the length): so a sequence is moved to where its row begins, and back.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from .op import platforms

_WIDEST = 128  # numbers of a vector that every GPU with these kernels takes


def attend(queries, keys, values, segments, *, causal: bool, through: Literal["cudnn", "xla"] = "cudnn") -> jax.Array:
    """See `attention`; a row of several segments, or of one with holes, is NaN throughout."""
    own = segments >= 0
    begins, lengths = jnp.argmax(own, axis=1), jnp.sum(own, axis=1, dtype=jnp.int32)
    q, k, v = (_moved(array, -begins) for array in (queries, keys, values))
    of = jnp.maximum(lengths, 1)  # a row of nothing is left out below; its softmax has to be of something
    found = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, query_seq_lengths=of, key_value_seq_lengths=of, implementation=through
    )
    found = jnp.where(own[:, :, None, None], _moved(found, begins), 0)
    together, within = _moved(segments, -begins), jnp.arange(segments.shape[1])[None, :] < lengths[:, None]
    one = jnp.all(~within | (together == together[:, :1]), axis=1)
    return jnp.where(one[:, None, None, None], found, jnp.nan)


def _moved(rows: jax.Array, by: jax.Array) -> jax.Array:
    """Each row turned by its own number of places."""
    return jax.vmap(lambda row, n: jnp.roll(row, n, axis=0))(rows, by)


def reason(queries, keys, values, *biases: jax.Array | None, activation: str) -> str | None:
    """Why cuDNN cannot take these here, or None."""
    kinds = {str(array.dtype) for array in (queries, keys, values)}
    width, depth = keys.shape[-1], values.shape[-1]
    if activation != "softmax" or any(bias is not None for bias in biases):
        return "cuDNN has softmax alone, and no biases but of all pairs"
    if kinds not in ({"bfloat16"}, {"float16"}):
        return f"arrays of {sorted(kinds)} must all be bfloat16 or float16"
    if width != depth or width % 8 or width > _WIDEST:
        return f"vectors of {width} and {depth} numbers must be equally wide, a multiple of 8 up to {_WIDEST}"
    if "cuda" not in platforms():
        return f'implementation="cudnn" is not to be had in this process, which has {", ".join(sorted(platforms()))}'
    return None
