"""Transformers on what users met, in order: what comes next, or what is behind a mask."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ..engine.training.checking import check_ids
from ..kernels.attention import AttentionImplementation
from ..kernels.op import Implementation
from ..kernels.quantized_rows import Table
from .fusion import FusionSettings
from .item_vectors import ItemVectors
from .layers import Linear, Sharing
from .transformer import Encoder, Norm, Positions, layer_norm


class SASRec(nnx.Module):
    """The next item after each place, from the items up to it: the score of an item is its vector's product with that
    of the place.

    Args:
        n_items: Items there are.
        width: Of the vectors.
        length: Places that a sequence has, at most.
        blocks, heads, head_width, norm, positions, dropout: See `transformer.Encoder`.
        hidden: Width between the dense layers of a block; `width` if None.
        share: Whether all blocks have the same parameters.
        init_std: Standard deviation of the first vectors of items.
        sharing: Of rows among items; see `layers.FieldEmbedding`.
        products: Of parts in place of rows; see `ItemVectors`.
        fusion: Settings of a `FusionTransformer` that makes the vectors of the items; see `ItemVectors`.
        dtype, param_dtype, implementation: See `layers.Linear`.
        attention_implementation: Of `kernels.attention` alone; `implementation` if None.
        rngs: Random numbers.

    Source: Kang, McAuley 2018, "Self-Attentive Sequential Recommendation"; scaled and begun as by Klenitskiy, Vasilev
    2023, "Turning Dross Into Gold Loss: Is BERT4Rec Really Better than SASRec?".

    >>> model = SASRec(5, width=4, length=3, rngs=nnx.Rngs(0))
    >>> model(jnp.array([-1, 2, 4])).shape, model.item_table().shape
    ((3, 4), (5, 4))
    """

    masks, times = False, False  # whether items may be masked, and whether it reads times

    def __init__(
        self,
        n_items: int,
        *,
        width: int = 64,
        length: int = 200,
        blocks: int = 2,
        heads: int = 1,
        head_width: int | None = None,
        hidden: int | None = None,
        norm: Norm = "pre",
        positions: Positions = "learned",
        share: bool = False,
        dropout: float = 0.1,
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
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        self.items = ItemVectors(
            n_items, width, init_std=init_std, sharing=sharing, products=products, fusion=fusion, **shared
        )
        self.encoder = Encoder(
            width,
            length,
            blocks=blocks,
            heads=heads,
            head_width=head_width,
            hidden=width if hidden is None else hidden,
            norm=norm,
            positions=positions,
            causal=True,
            share=share,
            activation=jax.nn.relu,
            dropout=dropout,
            attention_implementation=attention_implementation,
            **shared,
        )
        self.length, self.n_items = length, n_items

    def __call__(
        self,
        items: Int32[Array, "*batch length"],
        *,
        segments: Int32[Array, "*batch length"] | None = None,
        positions: Int32[Array, "*batch length"] | None = None,
        table: Float[Array, "n_items width"] | None = None,
        key: PRNGKeyArray | None = None,
        maps: list[Array] | None = None,
    ) -> Float[Array, "*batch length width"]:
        """A vector for each place; with a key there is dropout.

        Args:
            items: The oldest first, padded with -1.
            segments: Which sequence a place belongs to where a row has several; -1 for none.
            positions: Of the places; if None the last of a row is `length - 1`.
            table: Vectors of all items, `items.table(modalities)`, where they are fused.
            key: See above.
            maps: A list that weights of attention are appended to; see `attention_maps`.

        Raises:
            ValueError: More places than the model has positions.
            InteractionError: An item, segment or position that is none, where they are concrete.
        """
        segments, positions = places(items, segments, positions, self.length)
        vectors = self.items(items, table) * self.items.width**0.5
        return self.encoder(vectors, segments, positions, key=key, maps=maps)

    def item_table(self, table: Table | None = None) -> Table:
        """Vectors of the items, that places are multiplied with: those of `table`, where they are fused."""
        return self.items.table() if table is None else table

    def item_bias(self) -> Float[Array, " n_items"] | None:
        """What is added to the scores."""
        return None


class BERT4Rec(nnx.Module):
    """The items behind masks, from all others of the sequence; the next one is behind a mask at its end.

    Args:
        n_items: Items there are; the mask is item `n_items`.
        width, length, blocks, heads, head_width, norm, positions, share, dropout: See `SASRec`, and so
        init_std, sharing, products, fusion: See `SASRec`.
        hidden: Width between the dense layers of a block; four times `width` if None.
        dtype, param_dtype, implementation: See `layers.Linear`.
        attention_implementation: Of `kernels.attention` alone; `implementation` if None.
        rngs: Random numbers.

    Source: Sun et al. 2019, "BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations from
    Transformer".

    >>> model = BERT4Rec(5, width=4, length=3, rngs=nnx.Rngs(0))
    >>> model(jnp.array([2, 4, 5])).shape, model.item_bias().shape
    ((3, 4), (5,))
    """

    masks, times = True, False

    def __init__(
        self,
        n_items: int,
        *,
        width: int = 64,
        length: int = 200,
        blocks: int = 2,
        heads: int = 2,
        head_width: int | None = None,
        hidden: int | None = None,
        norm: Norm = "post",
        positions: Positions = "learned",
        share: bool = False,
        dropout: float = 0.1,
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
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        self.items = ItemVectors(
            n_items, width, marks=1, init_std=init_std, sharing=sharing, products=products, fusion=fusion, **shared
        )
        self.begin = layer_norm(width, dtype, param_dtype, rngs)
        self.encoder = Encoder(
            width,
            length,
            blocks=blocks,
            heads=heads,
            head_width=head_width,
            hidden=4 * width if hidden is None else hidden,
            norm=norm,
            positions=positions,
            causal=False,
            share=share,
            activation=jax.nn.gelu,
            dropout=dropout,
            attention_implementation=attention_implementation,
            **shared,
        )
        self.projection = Linear(width, width, **shared)
        self.end = layer_norm(width, dtype, param_dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(n_items, param_dtype))
        self.length, self.n_items = length, n_items

    def __call__(
        self,
        items: Int32[Array, "*batch length"],
        *,
        segments: Int32[Array, "*batch length"] | None = None,
        positions: Int32[Array, "*batch length"] | None = None,
        table: Float[Array, "n_items width"] | None = None,
        key: PRNGKeyArray | None = None,
        maps: list[Array] | None = None,
    ) -> Float[Array, "*batch length width"]:
        """A vector for each place; see `SASRec`."""
        segments, positions = places(items, segments, positions, self.length)
        x = self.encoder(self.begin(self.items(items, table)), segments, positions, key=key, maps=maps)
        return self.end(jax.nn.gelu(self.projection(x)))

    def item_table(self, table: Table | None = None) -> Table:
        """Vectors of the items, that places are multiplied with: those of `table`, where they are fused."""
        return self.items.table() if table is None else table

    def item_bias(self) -> Float[Array, " n_items"] | None:
        """What is added to the scores."""
        return self.bias[...]


def places(items: Array, segments: Array | None, positions: Array | None, length: int) -> tuple[Array, Array]:
    """Segments and positions of a row of one sequence, where they are not given."""
    n = items.shape[-1]
    if positions is None:
        if n > length:
            raise ValueError(
                f"sequences of {n} places are longer than the {length} positions of the model; give the last"
            )
        positions = jnp.broadcast_to(jnp.arange(length - n, length, dtype=jnp.int32), items.shape)
    if segments is None:
        segments = jnp.where(items >= 0, 0, -1).astype(jnp.int32)
    check_ids("positions", positions, length)
    check_ids("segments", segments, np.iinfo(np.int32).max)
    return jnp.asarray(segments, jnp.int32), jnp.asarray(positions, jnp.int32)
