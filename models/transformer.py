"""The encoder that sequential models are made of: blocks of attention within sequences and dense layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ..kernels.attention import AttentionImplementation, attention
from ..kernels.op import Implementation
from .layers import Dense, Initializer, Linear, dropped

Norm = Literal["pre", "post"]
Positions = Literal["learned", "rotary"]


class SelfAttention(nnx.Module):
    """Attention of the places of a sequence to each other, in several heads; see `kernels.attention`."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool,
        rotary: bool,
        head_width: int | None = None,
        output_init: Initializer | None = None,
        dtype: Any,
        param_dtype: Any,
        implementation: Implementation,
        attention_implementation: AttentionImplementation | None = None,
        rngs: nnx.Rngs,
    ):
        if head_width is None and width % heads:
            raise ValueError(f"{width=} must be divisible by {heads=}")
        inner = width // heads if head_width is None else head_width
        if rotary and inner % 2:
            raise ValueError(f"rotary positions turn pairs of numbers: the width of a head, {inner}, must be even")
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        self.inputs = Linear(width, 3 * heads * inner, **shared)  # queries, keys and values
        self.output = Linear(heads * inner, width, kernel_init=output_init, **shared)
        self.heads, self.causal, self.rotary = heads, causal, rotary
        self.implementation: AttentionImplementation = attention_implementation or implementation

    def __call__(
        self,
        x: Float[Array, "*batch length width"],
        segments: Int32[Array, "*batch length"],
        positions: Array,
        maps: list[Array] | None = None,
    ) -> Float[Array, "*batch length width"]:
        heads = self.inputs(x)
        heads = heads.reshape(*x.shape[:-1], 3, self.heads, heads.shape[-1] // (3 * self.heads))
        queries, keys, values = (heads[..., part, :, :] for part in range(3))
        if self.rotary:
            queries, keys = rotated(queries, positions), rotated(keys, positions)
        attend = functools.partial(attention, causal=self.causal, implementation=self.implementation)
        if maps is not None:
            maps.append(attend(queries, keys, one_hot_values(keys), segments))
        found = attend(queries, keys, values, segments)
        return self.output(found.reshape(*x.shape[:-1], self.heads * found.shape[-1]))


class Block(nnx.Module):
    """Attention, then two dense layers, each added to what it is given: `x + f(norm(x))`, or `norm(x + f(x))`."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        norm: Norm,
        causal: bool,
        rotary: bool,
        head_width: int | None = None,
        activation: Callable[[Array], Array],
        dropout: float,
        init: Initializer | None = None,
        dtype: Any,
        param_dtype: Any,
        implementation: Implementation,
        attention_implementation: AttentionImplementation | None = None,
        rngs: nnx.Rngs,
    ):
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        turned = {"causal": causal, "rotary": rotary, "head_width": head_width}
        turned |= {"attention_implementation": attention_implementation}
        self.attention = SelfAttention(width, heads, **turned, output_init=init, **shared)
        self.dense = Dense([width, hidden, width], activation=activation, linear_end=True, kernel_init=init, **shared)
        self.norms = nnx.List(layer_norm(width, dtype, param_dtype, rngs) for _ in range(2))
        self.norm: Norm = norm
        self.dropout = dropout

    def __call__(
        self,
        x: Array,
        segments: Array,
        positions: Array,
        key: PRNGKeyArray | None,
        maps: list[Array] | None = None,
    ) -> Array:
        keys = (None, None) if key is None else jax.random.split(key)
        for part, norm, own in zip(
            (lambda y: self.attention(y, segments, positions, maps), self.dense), self.norms, keys, strict=True
        ):
            if self.norm == "pre":
                x = x + dropped(part(norm(x)), self.dropout, own)
            else:
                x = norm(x + dropped(part(x), self.dropout, own))
        return x


class Encoder(nnx.Module):
    """Blocks one after the other, on vectors to which positions are added; then, with norms before, one more norm.

    Args:
        width: Of the vectors.
        length: Positions there are.
        blocks: How many.
        heads: Of the attention of each.
        head_width: Of the vectors of a head; `width // heads` if None.
        hidden: Width between the two dense layers of a block.
        norm: "pre" or "post": before each part of a block, or after it.
        positions: "learned" vectors, or "rotary": queries and keys turned by where they are.
        causal: Whether a place sees those before it alone.
        share: Whether all blocks have the same parameters.
        activation: Between the dense layers.
        dropout: On what blocks begin with, and on what each part adds.
        dtype, param_dtype, implementation: See `layers.Linear`.
        attention_implementation: Of `kernels.attention` alone; `implementation` if None.
        rngs: Random numbers.

    Raises:
        ValueError: A number out of range, or an unknown choice.

    Source: Vaswani et al. 2017, "Attention Is All You Need"; norms before: Xiong et al. 2020, "On Layer Normalization
    in the Transformer Architecture"; rotary: Su et al. 2021, "RoFormer"; shared blocks: Lan et al. 2020, "ALBERT".
    """

    def __init__(
        self,
        width: int,
        length: int,
        *,
        blocks: int,
        heads: int,
        head_width: int | None = None,
        hidden: int,
        norm: Norm,
        positions: Positions,
        causal: bool,
        share: bool,
        activation: Callable[[Array], Array],
        dropout: float,
        dtype: Any,
        param_dtype: Any,
        implementation: Implementation,
        attention_implementation: AttentionImplementation | None,
        rngs: nnx.Rngs,
    ):
        for name, number in {
            "width": width,
            "length": length,
            "blocks": blocks,
            "heads": heads,
            "head_width": head_width,
            "hidden": hidden,
        }.items():
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"{dropout=} must be in [0, 1)")
        for name, choice, among in (("norm", norm, get_args(Norm)), ("positions", positions, get_args(Positions))):
            if choice not in among:
                raise ValueError(f"{name}={choice!r} must be one of {among}")
        learned = positions == "learned"
        start = 0.02 * jax.random.normal(rngs.params(), (length, width), param_dtype) if learned else None
        self.positions = nnx.Param(start) if learned else None
        settings = {"norm": norm, "causal": causal, "rotary": not learned, "activation": activation, "dropout": dropout}
        # Blocks add little to begin with; where the variance stays from layer to layer SASRec learns the slower.
        settings |= {
            "head_width": head_width,
            "init": nnx.initializers.normal(0.02),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "implementation": implementation,
            "attention_implementation": attention_implementation,
            "rngs": rngs,
        }
        self.blocks = nnx.List(Block(width, heads, hidden, **settings) for _ in range(1 if share else blocks))
        self.end = layer_norm(width, dtype, param_dtype, rngs) if norm == "pre" else None
        self.rounds, self.length, self.dropout = blocks if share else 1, length, dropout

    def __call__(
        self,
        x: Float[Array, "*batch length width"],
        segments: Int32[Array, "*batch length"],
        positions: Int32[Array, "*batch length"],
        *,
        key: PRNGKeyArray | None = None,
        maps: list[Array] | None = None,
    ) -> Float[Array, "*batch length width"]:
        """Vectors of the places; with a key there is dropout. Weights of attention are appended to `maps`, if given."""
        if self.positions is not None:
            x = x + self.positions[...].astype(x.dtype)[jnp.maximum(positions, 0)]
        n = 1 + self.rounds * len(self.blocks)
        keys = iter([None] * n if key is None else jax.random.split(key, n))
        x = dropped(x, self.dropout, next(keys))
        for _ in range(self.rounds):
            for block in self.blocks:
                x = block(x, segments, positions, next(keys), maps)
        return x if self.end is None else self.end(x)


def one_hot_values(keys: Float[Array, "*batch length heads width"]) -> Float[Array, "*batch length heads length"]:
    """Values of which attention makes its own weights: each place has a 1 in its own column."""
    length, heads = keys.shape[-3:-1]
    own = jnp.eye(length, dtype=keys.dtype)[:, None, :]
    return jnp.broadcast_to(own, (*keys.shape[:-3], length, heads, length))


def layer_norm(width: int, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Of mean 0 and variance 1, then scaled and moved."""
    return nnx.LayerNorm(width, epsilon=1e-6, dtype=dtype, param_dtype=param_dtype, rngs=rngs)


def rotated(x: Float[Array, "*batch length heads width"], positions: Int32[Array, "*batch length"]) -> Array:
    """Pairs of numbers turned by angles that are multiples of the position, one factor for each pair.

    >>> turned = rotated(jnp.ones((3, 1, 4)), jnp.arange(3, dtype=jnp.int32))
    >>> turned[0].tolist(), bool(jnp.allclose(turned[1] @ turned[2].T, turned[0] @ turned[1].T))
    ([[1.0, 1.0, 1.0, 1.0]], True)
    """
    half = x.shape[-1] // 2
    factors = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.einsum("...,f->...f", positions.astype(jnp.float32), factors)[..., None, :]
    cosine, sine, a, b = jnp.cos(angles), jnp.sin(angles), x[..., :half], x[..., half:]
    return jnp.concatenate([a * cosine - b * sine, a * sine + b * cosine], axis=-1).astype(x.dtype)
