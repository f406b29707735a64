"""`kernels.quantized_rows` on NVIDIA GPUs by Pallas (Mosaic GPU): products of bytes by the tensor cores.

Each program goes through a part of the items tile by tile, with the best answers of its queries in registers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as gpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from . import quantized_rows_blocks as blocks
from .gpu_memory import LINE, fetch, store, tile

_ROWS, _COLUMNS = 64, 64  # queries and items that meet at a time
_ANSWERS = LINE // 4  # a list has a multiple of
_PROGRAMS = 264  # to keep a GPU busy: for few queries the items are in many parts
_OF_ROWS, _OF_COLUMNS = gpu.Layout.WGMMA.reduce(1), gpu.Layout.WGMMA.reduce(0)


def search_rows(*arguments, k: int, interpret=None):
    """See `quantized_rows.search`."""
    lists_of = functools.partial(_lists, k=k, interpret=interpret)
    return blocks.search_blocks(lists_of, (_ROWS,), arguments, k)


def _lists(queries, items, allowed, size, *, k, interpret):
    (batch, n_items), length = allowed.shape, -(-k // _ANSWERS) * _ANSWERS
    n_blocks, n_tiles = batch // size, pl.cdiv(n_items, _COLUMNS)
    tiles = pl.cdiv(n_tiles, max(1, min(n_tiles, _PROGRAMS // n_blocks)))
    n_parts = pl.cdiv(n_tiles, tiles)
    beyond = n_parts * tiles * _COLUMNS - n_items

    def deep(codes):
        return jnp.pad(codes, [(0, 0), (0, -codes.shape[1] % LINE)])

    def whole(array):
        return jnp.pad(array, [(0, beyond)] + [(0, 0)] * (array.ndim - 1))

    # What is added is not allowed.
    allowed = jnp.pad(allowed, [(0, 0), (0, beyond)])
    items = jax.tree.map(whole, items._replace(codes=deep(items.codes)))
    queries, depth = queries._replace(codes=deep(queries.codes)), items.codes.shape[1]
    leaves, structure = jax.tree.flatten((queries, items))
    scratch = {
        "codes_s": tile(_ROWS, depth, jnp.int8),
        "item_codes_s": tile(_COLUMNS, depth, jnp.int8),
        "allowed_s": tile(_ROWS, _COLUMNS, jnp.int8),
        "of_rows_s": [gpu.SMEM((_ROWS,), jnp.float32) for _ in jax.tree.leaves(queries)[1:]],
        "of_columns_s": [gpu.SMEM((_COLUMNS,), jnp.float32) for _ in jax.tree.leaves(items)[1:]],
        "ids_s": tile(_ROWS, length, jnp.int32),
        "kept_s": tile(_ROWS, length, jnp.float32),
        "at_first": gpu.Barrier(num_arrivals=len(jax.tree.leaves(queries))),
        "at_each": gpu.Barrier(num_arrivals=len(jax.tree.leaves(items)) + 1),
    }
    return gpu.kernel(
        functools.partial(_part, structure=structure, tiles=tiles, k=k),
        out_type=[jax.ShapeDtypeStruct((batch, n_parts * length), dtype) for dtype in (jnp.int32, jnp.float32)],
        grid=(n_parts, n_blocks),
        grid_names=("part", "block"),
        scratch_types=scratch,
        interpret=interpret,
    )(*leaves, allowed)


def _part(
    *refs, structure, tiles, k, codes_s, item_codes_s, allowed_s, of_rows_s, of_columns_s, ids_s, kept_s, at_first,
    at_each
):  # fmt: skip
    *given, allowed, ids, kept = refs
    queries, items = jax.tree.unflatten(structure, given)
    rows = pl.ds(lax.axis_index("block") * _ROWS, _ROWS)
    fetch(at_first, (queries.codes.at[rows], codes_s), *_pairs(queries, rows, of_rows_s))
    of_rows = _numbers(queries, of_rows_s, _OF_ROWS)
    in_list = _places(ids_s.shape)
    places = _places((_ROWS, _COLUMNS))

    def step(number, lists):
        first = (lax.axis_index("part") * tiles + number) * _COLUMNS
        columns = pl.ds(first, _COLUMNS)
        copies = (items.codes.at[columns], item_codes_s), (allowed.at[rows, columns], allowed_s)
        fetch(at_each, *copies, *_pairs(items, columns, of_columns_s))

        def summed(sums):
            gpu.wgmma(sums, codes_s, item_codes_s.transpose((1, 0)))
            return sums[...]

        sums = pl.run_scoped(summed, gpu.WGMMAAccumulatorRef((_ROWS, _COLUMNS), jnp.int32))
        here = gpu.layout_cast(allowed_s[...], gpu.Layout.WGMMA).astype(jnp.int32) != 0
        scores = blocks.scores_of(sums, of_rows, _numbers(items, of_columns_s, _OF_COLUMNS), here)
        lists = blocks.keep_best(scores, first, lists[0], lists[1], places, in_list < k)
        gpu.commit_smem()  # no warp reads any more what the next copies go over
        return lists

    ids_s[...], kept_s[...] = lax.fori_loop(0, tiles, step, blocks.empty_list(in_list))
    lists = pl.ds(lax.axis_index("part") * ids_s.shape[1], ids_s.shape[1])
    store((ids_s, ids.at[rows, lists]), (kept_s, kept.at[rows, lists]))


def _places(shape: tuple[int, int]) -> jax.Array:
    return gpu.broadcasted_iota(jnp.int32, shape, 1, layout=gpu.Layout.WGMMA)


def _pairs(arrays: Any, places: Any, targets: list[Any]) -> list[tuple[Any, Any]]:
    """The numbers, one for each, that go to shared memory."""
    return [(a.at[places], target) for a, target in zip(jax.tree.leaves(arrays)[1:], targets, strict=True)]


def _numbers(arrays: Any, held: list[Any], layout: Any) -> Any:
    """The same from there, spread over a tile."""

    def spread(ref):
        numbers = gpu.layout_cast(ref[...], layout)
        return lax.broadcast_in_dim(numbers, (_ROWS, _COLUMNS), [0 if layout is _OF_ROWS else 1])

    leaves, structure = jax.tree.flatten(arrays)
    return jax.tree.unflatten(structure, [leaves[0], *map(spread, held)])
