"""Hierarchical sequential transduction units: attention without a softmax, gated, with biases of distance and time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ..engine.errors import InteractionError
from ..kernels.attention import AttentionImplementation, attention
from ..kernels.op import Implementation
from ..kernels.quantized_rows import Table, floats_of
from .fusion import FusionSettings
from .item_vectors import ItemVectors
from .layers import Linear, Sharing, dropped
from .sequential import places
from .transformer import layer_norm, one_hot_values

_BUCKETS = 128  # of times between two events


class HSTULayer(nnx.Module):
    """`x + W (norm(A(q, k) v) * u)`, with u, v, q and k the parts of `silu(W' norm(x))`."""

    def __init__(
        self,
        width: int,
        length: int,
        heads: int,
        inner: int,
        *,
        times: bool,
        dropout: float,
        dtype: Any,
        param_dtype: Any,
        implementation: Implementation,
        attention_implementation: AttentionImplementation | None,
        rngs: nnx.Rngs,
    ):
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        start = nnx.initializers.normal(0.02)
        self.inputs = Linear(width, 4 * heads * inner, kernel_init=start, **shared)
        self.output = Linear(heads * inner, width, kernel_init=nnx.initializers.glorot_uniform(), **shared)
        self.before = layer_norm(width, dtype, param_dtype, rngs)
        self.after = layer_norm(heads * inner, dtype, param_dtype, rngs)
        self.position_bias = nnx.Param(start(rngs.params(), (heads, 2 * length - 1), param_dtype))
        self.time_bias = nnx.Param(start(rngs.params(), (heads, _BUCKETS), param_dtype)) if times else None
        self.heads, self.dropout = heads, dropout
        self.implementation: AttentionImplementation = attention_implementation or implementation

    def __call__(
        self,
        x: Array,
        segments: Array,
        times: Array | None,
        key: PRNGKeyArray | None,
        maps: list[Array] | None = None,
    ) -> Array:
        parts = jax.nn.silu(self.inputs(self.before(x)))
        parts = parts.reshape(*x.shape[:-1], 4, self.heads, parts.shape[-1] // (4 * self.heads))
        gates, values, queries, keys = (parts[..., part, :, :] for part in range(4))
        attend = functools.partial(
            attention,
            activation="silu",
            position_bias=self.position_bias[...],
            time_bias=None if self.time_bias is None else self.time_bias[...],
            times=None if times is None else jnp.asarray(times),
            implementation=self.implementation,
        )
        # Sums are divided by how many places a row has; in the published equation, by how many it may have.
        share = x.shape[-2] / ((self.position_bias.shape[1] + 1) // 2)
        if maps is not None:
            maps.append(share * attend(queries, keys, one_hot_values(keys), segments))
        found = share * attend(queries, keys, values, segments)
        flat = *x.shape[:-1], self.heads * found.shape[-1]
        flat = self.after(found.reshape(flat)) * gates.reshape(flat)
        return x + self.output(dropped(flat, self.dropout, key))


class HSTU(nnx.Module):
    """The next item after each place, as `SASRec`, by hierarchical sequential transduction units.

    Args:
        n_items: Items there are.
        width, length, blocks, heads, dropout, init_std, sharing, products, fusion: See `SASRec`.
        inner: Width of queries, keys and values of a head; `width / heads` if None.
        times: Whether the time between two events counts; sequences have timestamps then.
        normalize: Whether vectors of places and items have length 1: the product is a cosine then, and the loss wants a
            temperature.
        dtype, param_dtype, implementation, attention_implementation: See `SASRec`.
        rngs: Random numbers.

    Raises:
        ValueError: A number out of range.

    Source: Zhai et al. 2024, "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
    Recommendations", equations 1 to 3.

    >>> model = HSTU(5, width=4, length=3, rngs=nnx.Rngs(0))
    >>> model(jnp.array([-1, 2, 4])).shape, round(float(jnp.linalg.norm(model.item_table()[0])), 4)
    ((3, 4), 1.0)
    """

    masks = False

    def __init__(
        self,
        n_items: int,
        *,
        width: int = 50,
        length: int = 200,
        blocks: int = 2,
        heads: int = 1,
        inner: int | None = None,
        times: bool = False,
        normalize: bool = True,
        dropout: float = 0.2,
        init_std: float = 0.02,
        sharing: Sharing | None = None,
        products: tuple[int, int] | None = None,
        fusion: FusionSettings | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        attention_implementation: AttentionImplementation | None = None,
        rngs: nnx.Rngs,
    ):
        numbers = {"width": width, "length": length, "blocks": blocks, "heads": heads, "inner": inner}
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise ValueError(f"{name}={number} must be at least 1")
        if inner is None and width % heads:
            raise ValueError(f"{width=} must be divisible by {heads=}, or inner given")
        if not 0 <= dropout < 1:
            raise ValueError(f"{dropout=} must be in [0, 1)")
        inner = width // heads if inner is None else inner
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        self.items = ItemVectors(
            n_items, width, init_std=init_std, sharing=sharing, products=products, fusion=fusion, **shared
        )
        self.positions = nnx.Param(init_std * jax.random.normal(rngs.params(), (length, width), param_dtype))
        layer = {"times": times, "dropout": dropout, "attention_implementation": attention_implementation, **shared}
        self.layers = nnx.List(HSTULayer(width, length, heads, inner, **layer) for _ in range(blocks))
        self.length, self.n_items, self.times = length, n_items, times
        self.normalize, self.dropout = normalize, dropout

    def __call__(
        self,
        items: Int32[Array, "*batch length"],
        *,
        segments: Int32[Array, "*batch length"] | None = None,
        positions: Int32[Array, "*batch length"] | None = None,
        times: Int32[Array, "*batch length"] | None = None,
        table: Float[Array, "n_items width"] | None = None,
        key: PRNGKeyArray | None = None,
        maps: list[Array] | None = None,
    ) -> Float[Array, "*batch length width"]:
        """A vector for each place; see `SASRec`.

        Args:
            times: Of the events, from wherever they count, if the model reads them.
            maps: A list that weights of attention are appended to; see `attention_maps`.

        Raises:
            ValueError: Times missing, or where none are read; see also `SASRec`.
            InteractionError: Times of another dtype than int32.
        """
        if (times is None) == self.times:
            raise ValueError(f"the model was made to read {'' if self.times else 'no '}times")
        if times is not None and times.dtype != np.int32:
            raise InteractionError(f"times are {times.dtype} and must be int32, whole numbers from wherever they count")
        segments, positions = places(items, segments, positions, self.length)
        keys = [None] * (1 + len(self.layers)) if key is None else jax.random.split(key, 1 + len(self.layers))
        x = self.items(items, table) * self.items.width**0.5
        x = dropped(x + self.positions[...].astype(x.dtype)[jnp.maximum(positions, 0)], self.dropout, keys[0])
        for layer, own in zip(self.layers, keys[1:], strict=True):
            x = layer(x, segments, times, own, maps)
        return _unit(x) if self.normalize else x

    def item_table(self, table: Table | None = None) -> Table:
        """Vectors of the items, that places are multiplied with; see `SASRec`."""
        found = self.items.table() if table is None else table
        return _unit(floats_of(found)) if self.normalize else found

    def item_bias(self) -> Float[Array, " n_items"] | None:
        """What is added to the scores."""
        return None


def _unit(x: Array) -> Array:
    """Of length 1, but for vectors of next to nothing."""
    square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))).astype(x.dtype)
