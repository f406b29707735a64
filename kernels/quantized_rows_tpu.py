"""`kernels.quantized_rows` on TPU by Pallas: blocks of queries go through the items tile by tile, keeping the best."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from . import quantized_rows_blocks as blocks

_QUERIES = 32, 64, 96, 128  # at a time
_ITEMS = 1024
_LANES = 128


def search_rows(*arguments, k: int, interpret=False):
    """See `quantized_rows.search`."""
    lists_of = functools.partial(_lists, k=k, interpret=interpret)
    return blocks.search_blocks(lists_of, _QUERIES, arguments, k)


def _lists(queries, items, allowed, size, *, k, interpret):
    (batch, n_items), length = allowed.shape, -(-k // _LANES) * _LANES
    of_rows = jax.tree.map(lambda a: a[:, None], queries._replace(codes=None))._replace(codes=queries.codes)
    of_columns = jax.tree.map(lambda a: a[None], items._replace(codes=None))
    leaves, structure = jax.tree.flatten((of_rows, of_columns))
    # A row a query, or a column an item.
    specs = [pl.BlockSpec((size, a.shape[1]), lambda i, j: (i, 0)) for a in jax.tree.leaves(of_rows)]
    specs += [pl.BlockSpec((1, _ITEMS), lambda i, j: (0, j)) for _ in jax.tree.leaves(of_columns)]
    specs += [
        pl.BlockSpec((_ITEMS, items.codes.shape[1]), lambda i, j: (j, 0)),
        pl.BlockSpec((size, _ITEMS), lambda i, j: (i, j)),
    ]
    return pl.pallas_call(
        functools.partial(_tile, structure, n_items, k),
        grid=(batch // size, pl.cdiv(n_items, _ITEMS)),
        in_specs=specs,
        out_specs=[pl.BlockSpec((size, length), lambda i, j: (i, 0))] * 2,
        out_shape=[jax.ShapeDtypeStruct((batch, length), dtype) for dtype in (jnp.int32, jnp.float32)],
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
    )(*leaves, items.codes, allowed)


def _tile(structure, n_items, k, *refs):
    *given, item_codes, allowed, ids, kept = refs
    first = pl.program_id(1) * _ITEMS
    in_list = lax.broadcasted_iota(jnp.int32, ids.shape, 1)

    @pl.when(pl.program_id(1) == 0)
    def _():
        ids[...], kept[...] = blocks.empty_list(in_list)

    queries, items = jax.tree.unflatten(structure, [ref[...] for ref in given])
    sums = lax.dot_general(queries.codes, item_codes[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    places = lax.broadcasted_iota(jnp.int32, sums.shape, 1)
    # The last tile has columns beyond the last item.
    here = (allowed[...].astype(jnp.int32) != 0) & (first + places < n_items)
    scores = blocks.scores_of(sums, queries, items, here)
    ids[...], kept[...] = blocks.keep_best(scores, first, ids[...], kept[...], places, in_list < k)
