"""The deep interest network: what a user met before, weighted by the item in question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..kernels.op import Implementation
from .layers import Dense, FieldEmbedding, Sharing, side_by_side


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
        sharing: Of rows among the ids of a field; see `layers.FieldEmbedding`.
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
        sharing: Sharing | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if not 0 <= item_field < len(sizes):
            raise ValueError(f"{item_field=} must be one of the {len(sizes)} fields, counted from 0")
        if not len(attention):
            raise ValueError(f"{attention=} must have a layer or more")
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        self.item_field = item_field
        self.embedding = FieldEmbedding(sizes, width, init_std=init_std, sharing=sharing, **shared)
        self.attention = Dense([3 * width, *attention, 1], linear_end=True, **shared)
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
        met = self.embedding.of_field(self.item_field, history)
        query = jnp.broadcast_to(vectors[..., self.item_field, None, :], met.shape)
        weights = self.attention(jnp.concatenate([query, met, query * met], axis=-1))[..., 0]
        weights = jnp.where(history >= 0, weights, 0.0)
        interest = jnp.einsum("...h,...hd->...d", weights, met, preferred_element_type=jnp.float32)
        flat = side_by_side(vectors)
        return self.network(jnp.concatenate([flat, interest.astype(flat.dtype)], axis=-1), key=key)[..., 0]
