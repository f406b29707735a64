"""Tables whose rows are stored in bytes or half bytes, and the search for the best of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from . import quantized_rows_blocks as blocks
from . import quantized_rows_numba, top_k
from .csr import CSR, nothing_seen
from .half_bytes import unpacked
from .int8 import supports_bytes
from .op import Implementation, Op, dispatch, imported
from .product_rows import ProductRows, checked_index

Kind = Literal["int8", "int4", "float8", "bfloat16"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """A table by rows, `row = scale code + offset`.

    Always true:

    - `codes` is int8 `[n, width]` in [-127, 127]; or uint8, half bytes with their multipliers as `half_bytes` lays them
      out; or float8_e4m3fn or bfloat16 `[n, width]`, finite.
    - `scales` is float32 `[n]`, or bfloat16 with half bytes, finite and 0 or more.
    - `offsets` is float32 `[n]`, finite, or None for 0.
    - `exact` is float32 `[n, columns]`: further columns as they are, such as biases.
    - `width` is how many columns the codes have.

    An array of ids as index gives their rows as numbers, a slice rows as they are stored, and `...` itself. A whole
    number beyond the rows is an IndexError; of an array it is the last row's, as JAX has it.
    """

    codes: Array
    scales: Float[Array, " n"]
    offsets: Float[Array, " n"] | None
    exact: Float[Array, "n columns"]
    width: int = field(metadata={"static": True})

    @property
    def kind(self) -> Kind:
        """Of the codes."""
        return _KINDS[str(self.codes.dtype)]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the table, exact columns included."""
        return self.codes.shape[0], self.width + self.exact.shape[1]

    @property
    def nbytes(self) -> int:
        """Of all its arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))

    def __getitem__(self, index: Any) -> Any:
        if index is ...:
            return self
        if isinstance(index, slice):
            return jax.tree.map(lambda leaf: leaf[index], self)
        return _rows(self, checked_index(index, self.shape[0]))

    def floats(self) -> Float[Array, "n columns"]:
        """The table that it stands for."""
        return self[jnp.arange(self.shape[0], dtype=jnp.int32)]

    def with_columns(self, columns: Float[Array, "n more"]) -> QuantizedRows:
        """With further exact columns behind."""
        return replace(self, exact=jnp.concatenate([self.exact, columns], axis=1))


@jax.jit
def _rows(table: QuantizedRows, ids: Array) -> Array:
    flat = ids.reshape(-1)
    scales = table.scales[flat].astype(jnp.float32)[:, None]
    values = unpacked(table.codes[flat], table.width).astype(jnp.float32) * scales
    if table.offsets is not None:
        values += table.offsets[flat][:, None]
    return jnp.concatenate([values, table.exact[flat]], axis=1).reshape(*ids.shape, -1)


_KINDS: dict[str, Kind] = {"int8": "int8", "uint8": "int4", "float8_e4m3fn": "float8", "bfloat16": "bfloat16"}
Table = Float[Array, "n columns"] | QuantizedRows | ProductRows


def floats_of(table: Table) -> Float[Array, "n columns"]:
    """A table as numbers, quantized or not."""
    return table.floats() if isinstance(table, ProductRows | QuantizedRows) else table


def with_columns(table: Table, *columns: Float[Array, " n"]) -> Any:
    """A table with further columns behind, which stay exact."""
    if not isinstance(table, ProductRows | QuantizedRows):
        return jnp.concatenate([table, *(column[:, None] for column in columns)], axis=1)
    return table.with_columns(jnp.stack([column.astype(jnp.float32) for column in columns], axis=1))


def to_bytes(rows: Float[Array, "n width"]) -> tuple[Array, Float[Array, " n"]]:
    """Codes in [-127, 127] and scales of rows, by the greatest of each."""
    scales = jnp.max(jnp.abs(rows), axis=1, initial=0.0) / 127
    return jnp.rint(rows / jnp.where(scales > 0, scales, 1.0)[:, None]).astype(jnp.int8), scales


def search(
    queries: Float[Array, "batch width"],
    items: QuantizedRows,
    k: int,
    *,
    seen: CSR | None = None,
    seen_rows: Int32[Array, " batch"] | None = None,
    exclude: Int32[Array, "batch h"] | None = None,
    allow: Bool[Array, " n_items"] | None = None,
    implementation: Implementation = "auto",
) -> tuple[Int32[Array, "batch k"], Float[Array, "batch k"]]:
    """Items with the highest products with queries, which are made bytes as well: sums of products are exact, in int32.

    Args and Returns: As `top_k.search`; but the products with exact columns, the last of the queries, are float32.
    Codes that are floats are multiplied as float32, and the table is held as that for the time; half bytes are held as
    bytes but by the Numba implementation. Gradients are those of the queries alone, by the numbers that codes stand
    for: rounding passes them on.

    Raises:
        ValueError: k below 1 or widths that differ.

    >>> items = QuantizedRows(jnp.array([[127, 0], [0, 127]], jnp.int8), jnp.ones(2) / 127, None, jnp.zeros((2, 0)), 2)
    >>> ids, scores = search(jnp.array([[0.0, 2.0]]), items, 2)
    >>> ids.tolist(), scores.round(2).tolist()
    ([[1, 0]], [[2.0, 0.0]])
    """
    if k < 1:
        raise ValueError(f"kernels.quantized_rows: {k=} must be at least 1")
    if queries.shape[1] != items.shape[1]:
        raise ValueError(f"kernels.quantized_rows: queries have width {queries.shape[1]}, items {items.shape[1]}")
    if items.kind not in ("int8", "int4"):
        masks = {"seen": seen, "seen_rows": seen_rows, "exclude": exclude, "allow": allow}
        return top_k.search(queries, items.floats(), k, implementation=implementation, **masks)
    batch = queries.shape[0]
    if seen is None or seen_rows is None:
        seen, seen_rows = nothing_seen(batch)
    exclude = jnp.zeros((batch, 0), jnp.int32) if exclude is None else exclude
    allow = jnp.zeros(0, bool) if allow is None else allow
    return _differentiable(queries, items, (seen.indptr, seen.indices, seen_rows, exclude, allow), k, implementation)


@functools.partial(jax.jit, static_argnames=("k", "implementation"))
def _search(
    queries: Array, items: QuantizedRows, masks: tuple[Array, ...], k: int, implementation: Implementation
) -> tuple[Array, Array]:
    codes, scales = to_bytes(queries[:, : items.width])
    offsets = jnp.zeros(0, jnp.float32) if items.offsets is None else items.offsets
    of_queries = codes, scales, queries[:, items.width :]
    of_items = items.codes, items.scales.astype(jnp.float32), offsets, items.exact
    arguments = map(jnp.asarray, (*of_queries, *of_items, *masks))
    return dispatch(OP, *arguments, implementation=implementation, k=k)


_differentiable: Any = jax.custom_vjp(_search, nondiff_argnums=(3, 4))


def _search_forward(queries, items, masks, k, implementation):
    ids, scores = _search(queries, items, masks, k, implementation)
    return (ids, scores), (items, ids)


def _search_backward(k, implementation, residuals, cotangent):
    items, ids = residuals
    weight = jnp.where(ids >= 0, cotangent[1], 0.0)[..., None]
    return jnp.sum(weight * items[jnp.maximum(ids, 0)], axis=1), None, None


_differentiable.defvjp(_search_forward, _search_backward)


def _reference(codes, scales, columns, item_codes, item_scales, offsets, exact, *masks, k: int):
    items = unpacked(item_codes, codes.shape[1])

    def scores_of(rows):
        sums = lax.dot_general(codes[rows], items, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
        found = sums.astype(jnp.float32) * (scales[rows][:, None] * item_scales[None, :])
        if offsets.shape[0]:
            totals = jnp.sum(codes[rows], axis=1, dtype=jnp.int32).astype(jnp.float32) * scales[rows]
            found += totals[:, None] * offsets[None, :]
        if exact.shape[1]:
            found += jnp.matmul(columns[rows], exact.T, precision=lax.Precision.HIGHEST)
        return found

    return top_k.best_of_scores(scores_of, (codes.shape[0], items.shape[0]), *masks, k=k)


def _supports(codes, scales, columns, item_codes, *_: Any, k: int) -> str | None:
    return supports_bytes(codes, item_codes)


OP = Op(
    "quantized_rows",
    _reference,
    _supports,
    numba=quantized_rows_numba.search_rows,
    pallas_gpu=imported("quantized_rows_gpu", "search_rows"),
    pallas_tpu=imported("quantized_rows_tpu", "search_rows"),
    gpu_supports=blocks.supports(128, 1024),
    tpu_supports=blocks.supports(1024, 4096),
)
