"""Factorization machines, alone and beside a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..kernels.op import Implementation
from .layers import Dense, FieldEmbedding, Sharing, side_by_side


class FactorizationMachine(nnx.Module):
    """`bias + sum_i w_i + sum_{i<j} v_i . v_j` over the ids of all fields, i and j: weights and vectors.

    Args:
        sizes: How many ids each field has.
        width: Of the vectors.
        init_std: Standard deviation of the first vectors and weights.
        sharing: Of rows among the ids of a field; see `layers.FieldEmbedding`.
        dtype, param_dtype, implementation: See `layers.FieldEmbedding`.
        rngs: Random numbers.

    Source: Rendle 2010, "Factorization Machines", equation 1, pairs by lemma 3.1.

    >>> model = FactorizationMachine([3, 2], width=4, rngs=nnx.Rngs(0))
    >>> model(jnp.array([2, 1])).shape, model(jnp.zeros((5, 2), jnp.int32)).shape
    ((), (5,))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        width: int = 16,
        init_std: float = 0.01,
        sharing: Sharing | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        table = {
            "init_std": init_std,
            "sharing": sharing,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "implementation": implementation,
        }
        self.embedding = FieldEmbedding(sizes, width + 1, **table, rngs=rngs)  # the last column: the weights
        self.bias = nnx.Param(jnp.zeros((), param_dtype))

    def __call__(
        self, fields: Int[Array, "*batch n_fields"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch"]:
        """Logits. There is nothing random: a key makes no difference."""
        rows = self.embedding(fields)
        return self.bias[...] + interactions(rows)


class DeepFM(nnx.Module):
    """A factorization machine plus a network on the same vectors.

    Args:
        sizes: How many ids each field has.
        width: Of the vectors.
        hidden: Layers of the network.
        dropout: In these.
        init_std: Standard deviation of the first vectors and weights.
        sharing: Of rows among the ids of a field; see `layers.FieldEmbedding`.
        dtype, param_dtype, implementation: See `layers.FieldEmbedding`.
        rngs: Random numbers.

    Source: Guo et al. 2017, "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction".

    >>> DeepFM([3, 2], width=4, hidden=[8], rngs=nnx.Rngs(0))(jnp.array([2, 1])).shape
    ()
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        width: int = 16,
        hidden: Sequence[int] = (64, 64),
        dropout: float = 0.0,
        init_std: float = 0.01,
        sharing: Sharing | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        self.embedding = FieldEmbedding(sizes, width + 1, init_std=init_std, sharing=sharing, **shared)
        # Its last layer has the bias of both.
        self.network = Dense([len(sizes) * width, *hidden, 1], dropout=dropout, linear_end=True, **shared)

    def __call__(
        self, fields: Int[Array, "*batch n_fields"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch"]:
        """Logits; with a key there is dropout."""
        rows = self.embedding(fields)
        deep = side_by_side(rows[..., :-1])
        return self.network(deep, key=key)[..., 0] + interactions(rows)


def interactions(rows: Float[Array, "*batch n_fields width_and_1"]) -> Float[Array, "*batch"]:
    """Weights, in the last column, and products of all pairs of vectors: `(|sum v|^2 - sum |v|^2) / 2`."""
    rows = rows.astype(jnp.float32)
    vectors, weights = rows[..., :-1], rows[..., -1]
    total = jnp.sum(vectors, axis=-2)
    return jnp.sum(weights, axis=-1) + 0.5 * (jnp.sum(total**2, axis=-1) - jnp.sum(vectors**2, axis=(-2, -1)))
