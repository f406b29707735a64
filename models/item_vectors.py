"""Vectors of items: one for each id, and one that a fusion makes of an item's content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ..engine.data.modalities import Modalities
from ..engine.training.checking import check_ids
from ..kernels.embedding import lookup
from ..kernels.op import Implementation
from ..kernels.product_rows import ProductRows
from ..kernels.quantized_rows import Table, floats_of
from .fusion import FusionSettings, FusionTransformer
from .layers import FieldEmbedding, Sharing

ITEM, CODES = "item", "codes"  # among modalities, the id of the item itself, and what it is put together from
_AT_ONCE = 4096  # items that are fused together


class ItemVectors(nnx.Module):
    """A vector for each item: that of its id, and with `fusion` the sum of that and what is made of its content.

    So items begin as their content has them, and ids tell them apart.

    Args:
        n_items: Items there are.
        width: Of the vectors.
        marks: Further ids, from `n_items` on, that are no items, such as a mask.
        fusion: Settings of a `FusionTransformer` for the content; None for none.
        sharing: Of rows among ids; see `layers.FieldEmbedding`.
        products: In place of a row for each id, `(parts, n_codes)`: a vector is put together from so many parts, each
            one of so many, which the "codes" among modalities choose; see `compression.codes_by_order`.
        init_std: Standard deviation of the first vectors of a table.
        dtype, param_dtype, implementation: See `layers.Linear`.
        rngs: Random numbers.

    >>> ItemVectors(5, 4, rngs=nnx.Rngs(0))(jnp.array([2, -1])).shape
    (2, 4)
    """

    def __init__(
        self,
        n_items: int,
        width: int,
        *,
        marks: int = 0,
        fusion: FusionSettings | None = None,
        init_std: float = 0.02,
        sharing: Sharing | None = None,
        products: tuple[int, int] | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        shared = {"dtype": dtype, "param_dtype": param_dtype, "implementation": implementation, "rngs": rngs}
        own, alone = {"init_std": init_std, **shared}, sharing is not None or products is not None
        if sharing is not None and products is not None:
            raise ValueError(f"vectors of items either share rows or are put together: got {sharing=} and {products=}")
        ids = [n_items if alone else n_items + marks]
        self.embedding = FieldEmbedding(ids, width, sharing=sharing, **own) if products is None else None
        parts = None if products is None else _centroids(width, products, rngs, param_dtype)
        self.centroids = None if parts is None else nnx.Param(init_std * parts)
        # A mark that shared its row would be taken for an item.
        self.mark = FieldEmbedding([marks], width, **own) if marks and alone else None
        self.fusion = None if fusion is None else FusionTransformer(**dict(fusion), width=width, **shared)
        self.n_items, self.width, self.marks = n_items, width, marks
        self.implementation: Implementation = implementation

    def __call__(self, items: Int32[Array, "*batch"], table: Table | None = None) -> Float[Array, "*batch width"]:
        """Vectors of items and marks, 0 for -1.

        Args:
            items: Their ids.
            table: What `table` gave, needed with a fusion, of which no vector is made anew here.

        Raises:
            InteractionError: An id that is none, where ids are concrete; in a trace its vector is NaN.
            ValueError: No table where one is needed.
        """
        embedding: Any = self.embedding
        if table is None and not self.needs_modalities and self.mark is None:
            return embedding.of_field(0, items)
        if table is None and self.needs_modalities:
            raise ValueError("the vectors of these items are made of their modalities: give those of all, as a table")
        vectors = self.table() if table is None else table
        check_ids("ids", items, self.n_items + self.marks)
        if self.marks:
            place = jnp.arange(self.marks, dtype=jnp.int32)
            marks = embedding.of_field(0, self.n_items + place) if self.mark is None else self.mark.of_field(0, place)
            vectors = floats_of(vectors)
            vectors = jnp.concatenate([vectors, marks.astype(vectors.dtype)])
        return lookup(vectors, jnp.asarray(items, jnp.int32), implementation=self.implementation)

    def set_rows(self, vectors: Float[Array, "n_items width"]) -> None:
        """Sets the vectors of all items; those of marks stay.

        Raises:
            ValueError: Items without a row each.
        """
        if self.needs_modalities or self.embedding is None:
            raise ValueError("vectors of these items are made of modalities, and have no rows that could be set")
        marks = self.embedding.whole_field(0)[self.n_items :]
        self.embedding.set_field(0, jnp.concatenate([vectors.astype(marks.dtype), marks]))

    @property
    def needs_modalities(self) -> bool:
        """Whether `table` is made of modalities."""
        return self.fusion is not None or self.centroids is not None

    def table(self, modalities: Modalities | None = None, *, key: PRNGKeyArray | None = None) -> Table:
        """Vectors of all items; with a key there is dropout where they have content, of which ids are left out as well.

        Args:
            modalities: Of all items, and the ids of these as "item", -1 for those that are known by their content
                alone.
            key: See above.

        Raises:
            ValueError: Modalities missing, or where none are read, or not a row for each item.
        """
        if (modalities is None) == self.needs_modalities:
            raise ValueError(f"the model was made to read {'' if self.needs_modalities else 'no '}modalities of items")
        if self.centroids is not None and modalities is not None:
            own = ProductRows(modalities.inputs[CODES], self.centroids[...], jnp.zeros((self.n_items, 0)))
        else:
            embedding: Any = self.embedding
            own = embedding.whole_field(0)[: self.n_items]
        if self.fusion is None or modalities is None:
            return own
        for name, array in {**modalities.inputs, **modalities.where}.items():
            if array.shape[0] != self.n_items:
                raise ValueError(f"modality {name!r} has {array.shape[0]} rows for {self.n_items} items")
        own = floats_of(own)
        fusion, known = self.fusion, modalities.inputs[ITEM] >= 0
        content = modalities._replace(inputs={k: v for k, v in modalities.inputs.items() if k not in (ITEM, CODES)})
        if key is not None:
            key, of_ids = jax.random.split(key)
            known &= ~jax.random.bernoulli(of_ids, fusion.modality_dropout, known.shape)
        found = by_parts(lambda part, own: fused(fusion, part, own), content, self.n_items, key)
        return jnp.where(known, own.astype(found.dtype), 0) + found


def _centroids(width: int, products: tuple[int, int], rngs: nnx.Rngs, dtype: Any) -> Array:
    if not isinstance(products, tuple | list) or len(products) != 2:
        raise ValueError(f"{products=} must be (parts, n_codes)")
    parts, n_codes = products
    if not 0 < parts <= width or width % parts:
        raise ValueError(f"products of {parts} parts must divide {width=}")
    if not 2 <= n_codes <= 256:
        raise ValueError(f"products of {n_codes} codes must be of 2 to 256")
    return jax.random.normal(rngs.params(), (parts, n_codes, width // parts), dtype)


def fused(fusion: FusionTransformer, modalities: Modalities, key: PRNGKeyArray | None) -> Array:
    """What it makes of modalities, of variance 1 / width, so that products are of the order of 1 to begin with."""
    vectors = fusion(modalities.inputs, where=modalities.where, key=key)
    return vectors * vectors.shape[-1] ** -0.5


def by_parts(
    function: Callable[[Any, PRNGKeyArray | None], Array], rows: Any, n: int, key: PRNGKeyArray | None = None
) -> Float[Array, "n width"]:
    """`function(rows, key)` of n rows of arrays, some thousands at a time, each part with a key of its own."""
    n_parts = -(-n // _AT_ONCE)
    if n_parts <= 1:
        return function(rows, key)
    size = -(-n // n_parts)

    def part(array: Array) -> Array:
        padding = [(0, n_parts * size - n), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, padding).reshape(n_parts, size, *array.shape[1:])

    keys = None if key is None else jax.random.split(key, n_parts)
    vectors = lax.map(jax.checkpoint(lambda given: function(*given)), (jax.tree.map(part, rows), keys))
    return vectors.reshape(n_parts * size, -1)[:n]
