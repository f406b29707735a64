"""The deep interest network: what a user met before, weighted by the item in question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..kernels.dense import layer
from ..kernels.op import Implementation
from .layers import Dense, FieldEmbedding, Linear


class DIN(nnx.Module):
    """Dense layers on the vectors of all ids and on `sum_h a(q, v_h) v_h`, the history as the item q weighs it.

    a is a network on `[q, v, q * v]`; its sum over the history is not 1, so that how much was met counts.

    Args:
        sizes: How many ids each field has.
        item_field: Which field is the item, of whose ids the history is made.
        width: Of the vectors.
        hidden: Layers of the network.
        attention: Layers of the network a, but the last, of 1.
        dropout: In `hidden`.
        init_std: Standard deviation of the first vectors.
        dtype, param_dtype, implementation: See `layers.FieldEmbedding`.
        rngs: Random numbers.

    Source: Zhou et al. 2018, "Deep Interest Network for Click-Through Rate Prediction", equation 3.

    >>> DIN([3, 2], item_field=1, width=4, rngs=nnx.Rngs(0))(jnp.array([2, 1]), jnp.array([-1, 0, 1])).shape
    ()
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        item_field: int = 1,
        width: int = 16,
        hidden: Sequence[int] = (64, 64),
        attention: Sequence[int] = (64, 16),
        dropout: float = 0.0,
        init_std: float = 0.05,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if not 0 <= item_field < len(sizes):
            raise ValueError(f"{item_field=} must be one of the {len(sizes)} fields, counted from 0")
        if not len(attention):
            raise ValueError(f"{attention=} must have a layer or more")
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        self.item_field = item_field
        self.implementation: Implementation = implementation
        shared = {**dtypes, "implementation": implementation, "rngs": rngs}
        self.embedding = FieldEmbedding(sizes, width, init_std=init_std, **shared)
        self.of_query = Linear(width, attention[0], **shared)
        self.of_met = nnx.Linear(2 * width, attention[0], use_bias=False, **dtypes, rngs=rngs)
        self.attention = Dense([*attention, 1], linear_end=True, **shared)
        self.network = Dense([(len(sizes) + 1) * width, *hidden, 1], dropout=dropout, linear_end=True, **shared)

    def __call__(
        self,
        fields: Int[Array, "*batch n_fields"],
        history: Int[Array, "*batch length"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch"]:
        """Logits; with a key there is dropout. The history is padded with -1, anywhere."""
        vectors = self.embedding(fields)
        query = vectors[..., self.item_field, :]
        met = self.embedding.of_field(self.item_field, history)
        # The first layer of a, whose weights are two arrays, in one product with no pass after it.
        asked = jnp.broadcast_to(query[..., None, :], met.shape)
        first = layer(
            *self._cast(
                jnp.concatenate([met, met * asked, asked], axis=-1),
                jnp.concatenate([self.of_met.kernel[...], self.of_query.kernel[...]]),
                self.of_query.bias[...],
            ),
            relu=True,
            implementation=self.implementation,
        )
        weights = jnp.where(history >= 0, self.attention(first)[..., 0], 0.0)
        interest = jnp.sum(weights[..., None] * met.astype(jnp.float32), axis=-2)
        flat = vectors.reshape(*vectors.shape[:-2], -1)
        return self.network(jnp.concatenate([flat, interest.astype(flat.dtype)], axis=-1), key=key)[..., 0]

    def _cast(self, *arrays: Array) -> tuple[Array, ...]:
        dtype = self.embedding.dtype
        return arrays if dtype is None else tuple(array.astype(dtype) for array in arrays)
