"""Attention on NVIDIA GPUs by Pallas (Mosaic GPU): blocks of queries against blocks of keys, by the tensor cores.

Each program has one block of one head, the other blocks come by and are never all there, and scores are never written
out. Numbers are bfloat16 or float16, sums float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as gpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .attention_blocks import FARTHEST, Blocks, slopes_of_scores
from .gpu_memory import fetch, store, tile

_PLACES = 64  # in a block, and the columns that a width is a multiple of: rows of a tile are 128 bytes
_OF_ROWS, _OF_COLUMNS = gpu.Layout.WGMMA.reduce(1), gpu.Layout.WGMMA.reduce(0)


def attend(queries, keys, values, segments, times, position_bias, time_bias, *, causal, activation, interpret=None):
    """See `attention`; also the logarithm of each softmax's sum, `[batch, heads, length]`."""
    del times, position_bias, time_bias  # which `supports` refuses
    call = _Call(queries, segments, causal, activation, interpret)
    q, k, v = (call.by_head(array, _PLACES) for array in (queries, keys, values))
    scratch = {"q_s": _tile(q), "k_s": _tile(k), "v_s": _tile(v), "out_s": _tile(v), "logs_s": _numbers()}
    out, logs = call.run(_forward, [q, k, v], [v, call.numbers], scratch, first=2, each=3)
    return call.by_place(out, values.shape[-1]), call.by_row(logs)


def gradient(
    queries,
    keys,
    values,
    segments,
    times,
    position_bias,
    time_bias,
    out,
    logs,
    slope,
    *,
    causal,
    activation,
    interpret=None,
):
    """Of queries, keys and values; and None for the biases, which there are none of."""
    del times, position_bias, time_bias
    call = _Call(queries, segments, causal, activation, interpret)
    q, k, v, slopes = (call.by_head(array, _PLACES) for array in (queries, keys, values, slope))
    given = [q, k, v, slopes, *call.numbers_of_slopes(logs, out, slope)]
    scratch = {"q_s": _tile(q), "k_s": _tile(k), "v_s": _tile(v), "slopes_s": _tile(v)}
    scratch |= {"logs_s": _numbers(), "products_s": _numbers()}
    (of_queries,) = call.run(_of_queries, given, [q], scratch | {"out_s": _tile(q)}, first=5, each=3)
    outs = {"of_k_s": _tile(k), "of_v_s": _tile(v), "of_scores_s": _tile(q[..., :_PLACES])}
    of_keys, of_values = call.run(_of_keys_and_values, given, [k, v], scratch | outs, first=3, each=5)
    found = (call.by_place(a, b.shape[-1]) for a, b in ((of_queries, queries), (of_keys, keys), (of_values, values)))
    return *found, None, None


def _tile(array: jax.Array) -> Any:
    """Shared memory for a block of rows."""
    return tile(_PLACES, array.shape[-1], array.dtype)


def _numbers(dtype: Any = jnp.float32) -> Any:
    """The same for a number for each."""
    return gpu.SMEM((_PLACES,), dtype)


class _Call(Blocks):
    """A call, and how its programs run."""

    def __init__(self, queries, segments, causal, activation, interpret):
        super().__init__(queries, _PLACES, causal, activation)
        self.segments = self.of_places(segments)
        self.numbers = jax.ShapeDtypeStruct((self.batch * self.heads, self.blocks * self.size), jnp.float32)
        self.static |= {"heads": self.heads}
        self.interpret = interpret

    def run(
        self,
        kernel: Callable[..., None],
        given: list[jax.Array],
        made: list[Any],
        scratch: dict[str, Any],
        first: int,
        each: int,
    ) -> Any:
        """`kernel(segments, *given, *made, …)`, which waits for so many copies at first and so many for each step."""
        scratch = scratch | {"rows_s": _numbers(jnp.int32), "columns_s": _numbers(jnp.int32)}
        scratch |= {"at_first": gpu.Barrier(num_arrivals=first), "at_each": gpu.Barrier(num_arrivals=each)}
        scratch |= {"weights_s": _tile(given[0][..., :_PLACES])}
        return gpu.kernel(
            functools.partial(kernel, **self.static),
            out_type=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in made],
            grid=(self.blocks, self.batch * self.heads),
            grid_names=("block", "head"),
            scratch_types=scratch,
            interpret=self.interpret,
        )(self.segments, *given)


def _product(a: Any, b: Any) -> jax.Array:
    """`a b` of shared memory, summed in float32."""

    def summed(sums):
        gpu.wgmma(sums, a, b)
        return sums[...]

    return pl.run_scoped(summed, gpu.WGMMAAccumulatorRef((_PLACES, b.shape[-1]), jnp.float32))


def _times(weights: jax.Array, weights_s: Any, b: Any) -> jax.Array:
    """`weights b`, by way of shared memory."""
    weights_s[...] = weights.astype(weights_s.dtype)
    gpu.commit_smem()
    return _product(weights_s, b)


def _of_rows(numbers: jax.Array, columns: int = _PLACES) -> jax.Array:
    """`[block, columns]` of a number for each row."""
    return lax.broadcast_in_dim(numbers, (_PLACES, columns), [0])


def _read(ref: Any, layout: Any) -> jax.Array:
    """`[block, block]` of a number for each row or column."""
    return lax.broadcast_in_dim(gpu.layout_cast(ref[...], layout), (_PLACES, _PLACES), [0 if layout is _OF_ROWS else 1])


def _zeros(columns: int) -> jax.Array:
    return gpu.layout_cast(jnp.zeros((_PLACES, columns), jnp.float32), gpu.Layout.WGMMA)


def _allowed(rows_s: Any, columns_s: Any, first: Any, begin: Any, causal: bool, keys_are_rows: bool) -> jax.Array:
    """Which rows and columns see each other, by their segments and, with `causal`, their places."""
    rows, columns = _read(rows_s, _OF_ROWS), _read(columns_s, _OF_COLUMNS)
    found = (rows == columns) & (rows >= 0)
    if not causal:
        return found
    i, j = (
        start + gpu.broadcasted_iota(jnp.int32, (_PLACES, _PLACES), axis, layout=gpu.Layout.WGMMA)
        for axis, start in enumerate((first, begin))
    )
    return found & ((i <= j) if keys_are_rows else (i >= j))


def _here() -> tuple[Any, Any]:
    """Head and block of this program."""
    return lax.axis_index("head"), lax.axis_index("block")


def _at(block: Any) -> Any:
    return pl.ds(block * _PLACES, _PLACES)


def _forward(
    segments, q, k, v, out, logs, *, q_s, k_s, v_s, out_s, weights_s, rows_s, columns_s, logs_s, at_first, at_each,
    causal, activation, size, blocks, length, scale, heads
):  # fmt: skip
    g, i = _here()
    b = lax.div(g, heads)
    fetch(at_first, (q.at[g, _at(i)], q_s), (segments.at[b, _at(i)], rows_s))

    def step(j, carry):
        greatest, total, found = carry
        fetch(at_each, (k.at[g, _at(j)], k_s), (v.at[g, _at(j)], v_s), (segments.at[b, _at(j)], columns_s))
        scores = _product(q_s, k_s.transpose((1, 0))) * scale
        allowed = _allowed(rows_s, columns_s, i * size, j * size, causal, False)
        if activation == "silu":
            weights = jnp.where(allowed, scores * jax.nn.sigmoid(scores) / length, 0.0)
            found += _times(weights, weights_s, v_s)
        else:
            new = jnp.maximum(greatest, jnp.max(jnp.where(allowed, scores, FARTHEST), axis=1))
            weights, shrunk = jnp.where(allowed, jnp.exp(scores - _of_rows(new)), 0.0), jnp.exp(greatest - new)
            total, greatest = total * shrunk + jnp.sum(weights, axis=1), new
            found = found * _of_rows(shrunk, found.shape[1]) + _times(weights, weights_s, v_s)
        gpu.commit_smem()  # no warp reads any more what the next copies go over
        return greatest, total, found

    start = (gpu.layout_cast(jnp.full((_PLACES,), number, jnp.float32), _OF_ROWS) for number in (FARTHEST, 0.0))
    greatest, total, found = lax.fori_loop(0, i + 1 if causal else blocks, step, (*start, _zeros(v.shape[-1])))
    if activation == "silu":
        out_s[...], logs_s[...] = found.astype(out.dtype), total
    else:
        some = total > 0  # a place that is padding sees nothing
        sure = jnp.where(some, total, 1.0)
        out_s[...] = (found / _of_rows(sure, found.shape[1])).astype(out.dtype)
        logs_s[...] = jnp.where(some, greatest + jnp.log(sure), 0.0)
    store((out_s, out.at[g, _at(i)]), (logs_s, logs.at[g, _at(i)]))


def _of_queries(
    segments, q, k, v, slopes, logs, products, out, *, q_s, k_s, v_s, slopes_s, logs_s, products_s, out_s, weights_s,
    rows_s, columns_s, at_first, at_each, causal, activation, size, blocks, length, scale, heads
):  # fmt: skip
    g, i = _here()
    b = lax.div(g, heads)
    fetch(
        at_first,
        *((a.at[g, _at(i)], a_s) for a, a_s in ((q, q_s), (slopes, slopes_s), (logs, logs_s), (products, products_s))),
        (segments.at[b, _at(i)], rows_s),
    )

    def step(j, total):
        fetch(at_each, (k.at[g, _at(j)], k_s), (v.at[g, _at(j)], v_s), (segments.at[b, _at(j)], columns_s))
        scores = _product(q_s, k_s.transpose((1, 0))) * scale
        allowed = _allowed(rows_s, columns_s, i * size, j * size, causal, False)
        of_weights = _product(slopes_s, v_s.transpose((1, 0)))
        numbers = _read(logs_s, _OF_ROWS), _read(products_s, _OF_ROWS)
        _, of_scores = slopes_of_scores(scores, allowed, of_weights, *numbers, activation, length)
        total += _times(of_scores, weights_s, k_s)
        gpu.commit_smem()
        return total

    total = lax.fori_loop(0, i + 1 if causal else blocks, step, _zeros(q.shape[-1]))
    out_s[...] = (total * scale).astype(out.dtype)
    store((out_s, out.at[g, _at(i)]))


def _of_keys_and_values(
    segments, q, k, v, slopes, logs, products, of_k, of_v, *, q_s, k_s, v_s, slopes_s, logs_s, products_s, of_k_s,
    of_v_s, weights_s, of_scores_s, rows_s, columns_s, at_first, at_each, causal, activation, size, blocks, length,
    scale, heads
):  # fmt: skip
    g, j = _here()
    b = lax.div(g, heads)
    fetch(at_first, (k.at[g, _at(j)], k_s), (v.at[g, _at(j)], v_s), (segments.at[b, _at(j)], rows_s))

    def step(i, carry):
        of_keys, of_values = carry
        pairs = (q, q_s), (slopes, slopes_s), (logs, logs_s), (products, products_s)
        fetch(at_each, *((a.at[g, _at(i)], a_s) for a, a_s in pairs), (segments.at[b, _at(i)], columns_s))
        scores = _product(k_s, q_s.transpose((1, 0))) * scale  # keys are the rows here
        allowed = _allowed(rows_s, columns_s, j * size, i * size, causal, True)
        of_weights = _product(v_s, slopes_s.transpose((1, 0)))
        numbers = _read(logs_s, _OF_COLUMNS), _read(products_s, _OF_COLUMNS)
        weights, of_scores = slopes_of_scores(scores, allowed, of_weights, *numbers, activation, length)
        of_keys += _times(of_scores, of_scores_s, q_s)
        of_values += _times(weights, weights_s, slopes_s)
        gpu.commit_smem()
        return of_keys, of_values

    start = _zeros(k.shape[-1]), _zeros(v.shape[-1])
    of_keys, of_values = lax.fori_loop(j if causal else 0, blocks, step, start)
    of_k_s[...], of_v_s[...] = (of_keys * scale).astype(of_k.dtype), of_values.astype(of_v.dtype)
    store((of_k_s, of_k.at[g, _at(j)]), (of_v_s, of_v.at[g, _at(j)]))
