"""The classic networks: vectors side by side into dense layers, alone and beside products of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..kernels.op import Implementation
from .layers import Dense, FieldEmbedding, Sharing, side_by_side


class MLP(nnx.Module):
    """Dense layers on the vectors of all ids, and on numbers, side by side: the classic rating regressor is 64-64-1.

    Args:
        sizes: How many ids each field has; there may be none where there are numbers.
        numbers: How many numbers an example has besides.
        width: Of the vectors.
        hidden: Layers but the last, of 1.
        dropout: In these.
        init_std: Standard deviation of the first vectors.
        sharing: Of rows among the ids of a field; see `layers.FieldEmbedding`.
        dtype, param_dtype, implementation: See `layers.FieldEmbedding`.
        rngs: Random numbers.

    >>> MLP([3, 2], width=4, rngs=nnx.Rngs(0))(jnp.array([2, 1])).shape
    ()
    >>> MLP([], numbers=2, rngs=nnx.Rngs(0))(None, jnp.ones((5, 2))).shape
    (5,)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        numbers: int = 0,
        width: int = 16,
        hidden: Sequence[int] = (64, 64),
        dropout: float = 0.0,
        init_std: float = 0.1,
        sharing: Sharing | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if not len(sizes) and numbers < 1:
            raise ValueError(f"{sizes=} and {numbers=}: a network needs ids or numbers")
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        self.embedding = (
            FieldEmbedding(sizes, width, init_std=init_std, sharing=sharing, **shared) if len(sizes) else None
        )
        self.numbers = numbers
        self.network = Dense([len(sizes) * width + numbers, *hidden, 1], dropout=dropout, linear_end=True, **shared)

    def __call__(
        self,
        fields: Int[Array, "*batch n_fields"] | None,
        numbers: Float[Array, "*batch n_numbers"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch"]:
        """Logits, or predicted values; with a key there is dropout."""
        if (fields is None) != (self.embedding is None):
            raise ValueError(f"the model was made {'without' if self.embedding is None else 'with'} fields of ids")
        parts = []
        if self.embedding is not None and fields is not None:
            vectors = self.embedding(fields)
            parts.append(side_by_side(vectors))
        if (numbers is None) != (self.numbers == 0):
            raise ValueError(f"the model was made with {self.numbers} numbers an example")
        if numbers is not None:
            parts.append(numbers)
        return self.network(jnp.concatenate(parts, axis=-1), key=key)[..., 0]


class NeuMF(nnx.Module):
    """Neural matrix factorization: products of two vectors, beside dense layers on two others.

    `h . [p_u * q_i, layers(p'_u, q'_i)]`, with tables of their own for both parts.

    Args:
        sizes: How many users and items there are.
        width: Of the vectors whose products are taken.
        hidden: Layers of the network, one or more; its own vectors are as wide as the first.
        dropout: In these.
        init_std: Standard deviation of the first vectors.
        sharing: Of rows among the ids of a field; see `layers.FieldEmbedding`.
        dtype, param_dtype, implementation: See `layers.FieldEmbedding`.
        rngs: Random numbers.

    Source: He et al. 2017, "Neural Collaborative Filtering", equation 12.

    >>> NeuMF([3, 2], width=4, hidden=[8, 4], rngs=nnx.Rngs(0))(jnp.array([2, 1])).shape
    ()
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        width: int = 16,
        hidden: Sequence[int] = (32, 16, 8),
        dropout: float = 0.0,
        init_std: float = 0.01,
        sharing: Sharing | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if len(sizes) != 2 or not len(hidden):
            raise ValueError(f"{sizes=} must be of users and items, and {hidden=} have a layer or more")
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        self.width = width
        # Both tables side by side: one lookup.
        self.embedding = FieldEmbedding(sizes, width + hidden[0], init_std=init_std, sharing=sharing, **shared)
        self.network = Dense([2 * hidden[0], *hidden], dropout=dropout, **shared)
        self.end = Dense([width + hidden[-1], 1], linear_end=True, **shared)

    def __call__(self, fields: Int[Array, "*batch 2"], *, key: PRNGKeyArray | None = None) -> Float[Array, "*batch"]:
        """Logits of `[user, item]`; with a key there is dropout."""
        vectors = self.embedding(fields)
        factors, inner = vectors[..., : self.width], vectors[..., self.width :]
        deep = self.network(side_by_side(inner), key=key)
        product = factors[..., 0, :] * factors[..., 1, :]
        return self.end(jnp.concatenate([product, deep.astype(product.dtype)], axis=-1))[..., 0]
