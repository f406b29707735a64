"""The deep learning recommendation model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..kernels.op import Implementation
from ..kernels.pair_products import pair_products
from .layers import Dense, FieldEmbedding, Sharing


class DLRM(nnx.Module):
    """Products of all pairs of vectors, those of the ids and that of a network on the numbers, into a network.

    Args:
        sizes: How many ids each field has.
        numbers: How many numbers an example has besides.
        width: Of the vectors.
        bottom: Layers of the network on the numbers, but the last, of `width`.
        hidden: Layers of the network on the products.
        dropout: In these.
        init_std: Standard deviation of the first vectors; `(3 size)^-1/2` for those of a field if None, as published.
        sharing: Of rows among the ids of a field; see `layers.FieldEmbedding`.
        dtype, param_dtype, implementation: See `layers.FieldEmbedding`.
        rngs: Random numbers.

    Source: Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems".

    >>> DLRM([3, 2], width=4, hidden=[8], rngs=nnx.Rngs(0))(jnp.array([2, 1])).shape
    ()
    >>> DLRM([3, 2], numbers=2, width=4, rngs=nnx.Rngs(0))(jnp.array([2, 1]), jnp.ones(2)).shape
    ()
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        numbers: int = 0,
        width: int = 16,
        bottom: Sequence[int] = (64,),
        hidden: Sequence[int] = (64, 64),
        dropout: float = 0.0,
        init_std: float | None = None,
        sharing: Sharing | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        self.implementation: Implementation = implementation
        std = [(3 * size) ** -0.5 for size in sizes] if init_std is None else init_std
        self.embedding = FieldEmbedding(sizes, width, init_std=std, sharing=sharing, **shared)
        dense = {**shared, "kernel_init": nnx.initializers.glorot_normal(), "bias_init": _bias}
        self.bottom = Dense([numbers, *bottom, width], **dense) if numbers else None
        n = len(sizes) + (numbers > 0)
        pairs = n * (n - 1) // 2
        if pairs == 0:
            raise ValueError(f"{sizes=} and {numbers=} give one vector and no pair; two or more are needed")
        self.network = Dense([pairs + (width if numbers else 0), *hidden, 1], dropout=dropout, linear_end=True, **dense)

    def __call__(
        self,
        fields: Int[Array, "*batch n_fields"],
        numbers: Float[Array, "*batch n_numbers"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch"]:
        """Logits; with a key there is dropout."""
        vectors, parts = self.embedding(fields), []
        if (numbers is None) != (self.bottom is None):
            raise ValueError(f"the model was made {'without' if self.bottom is None else 'with'} numbers")
        if self.bottom is not None and numbers is not None:
            parts.append(self.bottom(numbers))
            vectors = jnp.concatenate([parts[0][..., None, :].astype(vectors.dtype), vectors], axis=-2)
        products = pair_products(vectors, implementation=self.implementation)
        return self.network(jnp.concatenate([*parts, products], axis=-1), key=key)[..., 0]


def _bias(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any) -> Array:
    """As published: random, of variance 1 over their number."""
    return shape[0] ** -0.5 * jax.random.normal(key, shape, dtype)
