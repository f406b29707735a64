"""Two towers: a vector for the user's side, one for the item's, and their product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..engine.data.modalities import Modalities
from ..kernels.csr import CSR
from ..kernels.op import Implementation
from .fusion import FusionSettings, FusionTransformer
from .item_vectors import fused
from .layers import Dense, FieldEmbedding, Linear, Sharing, side_by_side


class TwoTower(nnx.Module):
    """`score = user(fields, history) . item(fields) / temperature + bias`, of vectors of length 1 if normalized.

    A tower adds up the vectors of its fields, and on the user's side a projection of the mean of the history's vectors,
    which are those of the items; with `hidden` layers it takes them side by side instead.

    Args:
        user_sizes: How many ids each field of users has; none for users that are their history alone.
        item_sizes: How many ids each field of items has; the first is the item itself.
        width: Of the vectors.
        hidden: Layers of each tower, before the last, of `width`.
        share: Whether both sides have one tower, which takes as many vectors side by side for users as for items.
        history: Whether users have one.
        normalize: Whether vectors get length 1: the product is a cosine then.
        temperature: See above.
        user_table: First vectors of the first field of users, `[n_users, width]`, such as the factors of ALS.
        item_table: Those of the items.
        item_bias: Whether items have a bias, from 0 on; or the first ones, `[n_items]`, such as the logarithms of their
            shares of all interactions. It is one more column of the items' vectors, where the users' have a 1.
        fusion: Settings of a `FusionTransformer` that makes one more field of the items' modalities; None for none.
        dropout: In `hidden`.
        init_std: Standard deviation of the first vectors.
        sharing: Of rows among the ids of a field; see `layers.FieldEmbedding`.
        dtype, param_dtype, implementation: See `layers.FieldEmbedding`.
        rngs: Random numbers.

    Raises:
        ValueError: Users without anything, a temperature of 0 or less, a table of another shape, or sides that cannot
            share a tower.

    Source: Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations"; the
    history: Mao et al. 2021, "SimpleX: A Simple and Strong Baseline for Collaborative Filtering", equation 4.

    >>> towers = TwoTower([4], [3, 2], width=8, rngs=nnx.Rngs(0))
    >>> towers(jnp.array([3]), jnp.array([2, 1]), jnp.array([0, -1])).shape
    ()
    """

    def __init__(
        self,
        user_sizes: Sequence[int],
        item_sizes: Sequence[int],
        *,
        width: int = 64,
        hidden: Sequence[int] = (),
        share: bool = False,
        history: bool = True,
        normalize: bool = True,
        temperature: float = 0.1,
        user_table: Array | None = None,
        item_table: Array | None = None,
        item_bias: bool | Array = False,
        fusion: FusionSettings | None = None,
        dropout: float = 0.0,
        init_std: float = 0.1,
        sharing: Sharing | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if not len(user_sizes) and not history:
            raise ValueError(f"{user_sizes=} and {history=}: users need fields or a history")
        if temperature <= 0:
            raise ValueError(f"{temperature=} must be above 0")
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        shared = {"implementation": implementation, **dtypes, "rngs": rngs}
        table = {"init_std": init_std, "sharing": sharing, "implementation": implementation, **dtypes}
        self.users = FieldEmbedding(user_sizes, width, **table, rngs=rngs) if len(user_sizes) else None
        self.items = FieldEmbedding(item_sizes, width, **table, rngs=rngs)
        for name, embedding, start in (("user_table", self.users, user_table), ("item_table", self.items, item_table)):
            if start is not None and embedding is not None:
                _begin(name, embedding, jnp.asarray(start))
        of_item = {**table, "init_std": 0.0, "sharing": None, "rngs": rngs}
        self.bias = None if item_bias is False else FieldEmbedding(item_sizes[:1], 1, **of_item)
        if self.bias is not None and item_bias is not True:
            _begin("item_bias", self.bias, jnp.asarray(item_bias)[:, None])
        self.projection = Linear(width, width, use_bias=False, **shared) if history else None
        tower = {"linear_end": True, "dropout": dropout, **shared}
        parts, n_fields = len(user_sizes) + history, len(item_sizes) + (fusion is not None)
        if share and (not len(hidden) or parts != n_fields):
            raise ValueError(
                f"{share=} is for {hidden=} layers that take as many vectors for users as for items; there are {parts} "
                f"and {n_fields}, histories and content among them"
            )
        own = len(hidden) and not share
        self.user_tower = Dense([parts * width, *hidden, width], **tower) if own else None
        self.fusion = None if fusion is None else FusionTransformer(**dict(fusion), width=width, **shared)
        self.item_tower = Dense([n_fields * width, *hidden, width], **tower) if len(hidden) else None
        self.share, self.normalize, self.temperature = share, normalize, float(temperature)
        self.implementation: Implementation = implementation

    def __call__(
        self,
        user_fields: Int[Array, "*batch n_user_fields"] | None,
        item_fields: Int[Array, "*batch n_item_fields"],
        history: Int[Array, "*batch length"] | None = None,
        modalities: Modalities | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch"]:
        """Logits of pairs."""
        items = self.item(item_fields, modalities, key=key)
        return jnp.sum(self.user(user_fields, history, key=key) * items, axis=-1)

    def user(
        self,
        fields: Int[Array, "*batch n_user_fields"] | None,
        history: Int[Array, "*batch length"] | CSR | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch columns"]:
        """Vectors of users, over the temperature; histories are padded with -1, or rows of any length."""
        if (self.users is None) != (fields is None) or (self.projection is None) != (history is None):
            raise ValueError(
                f"the model was made with{'out' if self.users is None else ''} fields of users, "
                f"and with{'out' if self.projection is None else ''} histories"
            )
        parts = []
        if self.users is not None and fields is not None:
            parts.append(self.users(fields))
        if self.projection is not None:
            parts.append(self.projection(self._mean(history))[..., None, :])
        tower = self.item_tower if self.share else self.user_tower
        vectors = self._end(jnp.concatenate(parts, axis=-2), tower, key) / self.temperature
        return vectors if self.bias is None else jnp.concatenate([vectors, jnp.ones_like(vectors[..., :1])], axis=-1)

    def item(
        self,
        fields: Int[Array, "*batch n_item_fields"],
        modalities: Modalities | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch columns"]:
        """Vectors of items, with their bias behind; modalities are those of the same items."""
        if (modalities is None) != (self.fusion is None):
            raise ValueError(f"the model was made with{'out' if self.fusion is None else ''} modalities of items")
        parts, key_of_fusion = self.items(fields), None
        if self.fusion is not None and modalities is not None:
            if key is not None:
                key, key_of_fusion = jax.random.split(key)
            content = fused(self.fusion, modalities, key_of_fusion).astype(parts.dtype)
            parts = jnp.concatenate([parts, content[..., None, :]], axis=-2)
        vectors = self._end(parts, self.item_tower, key)
        if self.bias is None:
            return vectors
        bias = self.bias(fields[..., :1])[..., 0].astype(vectors.dtype)
        return jnp.concatenate([vectors, bias], axis=-1)

    def _mean(self, history: Any) -> Array:
        if isinstance(history, CSR):
            rows, shape = history, (history.n_rows,)
        else:
            shape, length = history.shape[:-1], history.shape[-1]
            each = jnp.arange(math.prod(shape) + 1, dtype=jnp.int32) * length
            rows = CSR(each, jnp.asarray(history, jnp.int32).ravel(), jnp.ones(1))
        means = self.items.means_of_field(0, rows)
        return means.astype(jnp.float32).reshape(*shape, means.shape[1])

    def _end(self, vectors: Array, tower: Dense | None, key: PRNGKeyArray | None) -> Array:
        flat = side_by_side(vectors)
        out = jnp.sum(vectors.astype(jnp.float32), axis=-2) if tower is None else tower(flat, key=key)
        if not self.normalize:
            return out
        # The root of 0 has no derivative: somebody without anything gets a vector of 0.
        square = jnp.sum(out**2, axis=-1, keepdims=True)
        return jnp.where(square > 0, out * jnp.where(square > 0, square, 1.0) ** -0.5, 0.0)


def _begin(name: str, embedding: FieldEmbedding, start: Array) -> None:
    """Sets the vectors of the first field."""
    try:
        embedding.set_field(0, start)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
