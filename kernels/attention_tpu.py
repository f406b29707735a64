"""Attention on TPU by Pallas: blocks of queries against blocks of keys, whose scores are never written out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from .attention_blocks import FARTHEST, Blocks, slopes_of_scores

_PLACES = 128  # in a block


def attend(queries, keys, values, segments, times, position_bias, time_bias, *, causal, activation, interpret=False):
    """See `attention`; also the logarithm of each softmax's sum, `[batch, heads, length]`."""
    del times, position_bias, time_bias  # which `supports` refuses
    call = _Call(queries, segments, causal, activation, interpret)
    q, k, v = (call.by_head(array) for array in (queries, keys, values))
    kernel = functools.partial(_forward, **call.static)
    block, whole = call.block_of, call.whole_of
    out, logs = call.run(
        kernel,
        [(q, block(q)), (k, whole(k)), (v, whole(v)), (call.column, call.of_rows), (call.row, call.of_all)],
        [(jax.ShapeDtypeStruct(v.shape, values.dtype), block(v)), (call.numbers_of_rows(), call.number)],
    )
    return call.by_place(out), call.by_row(logs[..., 0])


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
    interpret=False,
):
    """Of queries, keys and values; and None for the biases, which there are none of."""
    del times, position_bias, time_bias
    call = _Call(queries, segments, causal, activation, interpret)
    q, k, v, slopes = (call.by_head(array) for array in (queries, keys, values, slope))
    rows = jnp.stack(call.numbers_of_slopes(logs, out, slope), axis=1)  # [batch x heads, 2, length]
    columns = jnp.swapaxes(rows, 1, 2)
    block, whole = call.block_of, call.whole_of

    def given(of_keys: bool) -> list[tuple[Any, Any]]:
        """What stays, by blocks, what is gone through, whole, and where they meet."""
        stay, go = (whole, block) if of_keys else (block, whole)
        numbers = (rows, whole(rows)) if of_keys else (columns, block(columns))
        arrays = [(q, stay(q)), (k, go(k)), (v, go(v)), (slopes, stay(slopes)), numbers]
        return [*arrays, (call.column, call.of_rows), (call.row, call.of_all)]

    (of_queries,) = call.run(
        functools.partial(_of_queries, **call.static),
        given(False),
        [(jax.ShapeDtypeStruct(q.shape, q.dtype), block(q))],
    )
    of_keys, of_values = call.run(
        functools.partial(_of_keys_and_values, **call.static),
        given(True),
        [(jax.ShapeDtypeStruct(a.shape, a.dtype), block(a)) for a in (k, v)],
    )
    return *(call.by_place(a) for a in (of_queries, of_keys, of_values)), None, None


class _Call(Blocks):
    """A call, and which parts of its arrays a program of it sees."""

    def __init__(self, queries, segments, causal, activation, interpret):
        super().__init__(queries, _PLACES, causal, activation)
        self.interpret = interpret
        self.static |= {"exact": queries.dtype == jnp.float32}
        padded = self.of_places(segments)
        self.column, self.row = padded[:, :, None], padded[:, None, :]
        self.of_rows = pl.BlockSpec((None, self.size, 1), lambda g, i: (g // self.heads, i, 0))
        self.of_all = pl.BlockSpec((None, 1, self.blocks * self.size), lambda g, i: (g // self.heads, 0, 0))
        self.number = pl.BlockSpec((None, self.size, 1), lambda g, i: (g, i, 0))

    def block_of(self, array: jax.Array) -> Any:
        return pl.BlockSpec((None, self.size, array.shape[-1]), lambda g, i: (g, i, 0))

    def whole_of(self, array: jax.Array) -> Any:
        return pl.BlockSpec((None, *array.shape[1:]), lambda g, i: (g, 0, 0))

    def numbers_of_rows(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.batch * self.heads, self.blocks * self.size, 1), jnp.float32)

    def run(self, kernel: Callable[..., None], given: list[tuple[Any, Any]], made: list[tuple[Any, Any]]) -> Any:
        return pl.pallas_call(
            kernel,
            grid=(self.batch * self.heads, self.blocks),
            in_specs=[spec for _, spec in given],
            out_specs=[spec for _, spec in made],
            out_shape=[shape for shape, _ in made],
            compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
            interpret=self.interpret,
        )(*(array for array, _ in given))


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int], exact: bool) -> jax.Array:
    """`a b`, or with axes (1, 1) `a b'`, summed in float32."""
    precision = lax.Precision.HIGHEST if exact else lax.Precision.DEFAULT
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _allowed(rows: jax.Array, columns: jax.Array, first: Any, begin: Any, causal: bool, keys_are_rows: bool):
    """Which of `[rows, columns]` see each other, by their segments and, with `causal`, their places."""
    found = (rows == columns) & (rows >= 0)
    if not causal:
        return found
    shape = rows.shape[0], columns.shape[1]
    i, j = (start + lax.broadcasted_iota(jnp.int32, shape, axis) for axis, start in enumerate((first, begin)))
    return found & ((i <= j) if keys_are_rows else (i >= j))


def _at(block: Any, size: int) -> Any:
    return pl.ds(pl.multiple_of(block * size, size), size)


def _forward(q, k, v, own, other, out, logs, *, causal, activation, size, blocks, length, scale, exact):
    i = pl.program_id(1)
    queries, rows = q[...], own[...]

    def step(j, carry):
        greatest, total, found = carry
        place = _at(j, size)
        scores = _product(queries, k[place, :], (1, 1), exact) * scale
        allowed = _allowed(rows, other[:, place], i * size, j * size, causal, False)
        if activation == "silu":
            weights = jnp.where(allowed, jax.nn.silu(scores) / length, 0.0)
            return greatest, total, found + _product(weights.astype(v.dtype), v[place, :], (1, 0), exact)
        new = jnp.maximum(greatest, jnp.max(jnp.where(allowed, scores, FARTHEST), axis=1, keepdims=True))
        weights, shrunk = jnp.where(allowed, jnp.exp(scores - new), 0.0), jnp.exp(greatest - new)
        total = total * shrunk + jnp.sum(weights, axis=1, keepdims=True)
        return new, total, found * shrunk + _product(weights.astype(v.dtype), v[place, :], (1, 0), exact)

    start = (
        jnp.full((size, 1), FARTHEST, jnp.float32),
        jnp.zeros((size, 1), jnp.float32),
        jnp.zeros((size, v.shape[-1]), jnp.float32),
    )
    greatest, total, found = lax.fori_loop(0, i + 1 if causal else blocks, step, start)
    if activation == "silu":
        out[...], logs[...] = found.astype(out.dtype), jnp.zeros((size, 1), jnp.float32)
        return
    some = total > 0  # a place that is padding sees nothing
    sure = jnp.where(some, total, 1.0)
    out[...] = (found / sure).astype(out.dtype)
    logs[...] = jnp.where(some, greatest + jnp.log(sure), 0.0)


def _of_queries(q, k, v, slopes, numbers, own, other, out, *, causal, activation, size, blocks, length, scale, exact):
    i = pl.program_id(1)
    queries, slope, rows, logs, products = q[...], slopes[...], own[...], numbers[:, 0:1], numbers[:, 1:2]

    def step(j, total):
        place = _at(j, size)
        keys = k[place, :]
        scores = _product(queries, keys, (1, 1), exact) * scale
        allowed = _allowed(rows, other[:, place], i * size, j * size, causal, False)
        of_weights = _product(slope, v[place, :], (1, 1), exact)
        _, of_scores = slopes_of_scores(scores, allowed, of_weights, logs, products, activation, length)
        return total + _product(of_scores.astype(keys.dtype), keys, (1, 0), exact)

    total = lax.fori_loop(0, i + 1 if causal else blocks, step, jnp.zeros(queries.shape, jnp.float32))
    out[...] = (total * scale).astype(out.dtype)


def _of_keys_and_values(
    q, k, v, slopes, numbers, own, other, of_k, of_v, *, causal, activation, size, blocks, length, scale, exact
):
    j = pl.program_id(1)
    keys, values, rows = k[...], v[...], own[...]

    def step(i, carry):
        of_keys, of_values = carry
        place = _at(i, size)
        queries, slope = q[place, :], slopes[place, :]
        scores = _product(keys, queries, (1, 1), exact) * scale  # keys are the rows here
        allowed = _allowed(rows, other[:, place], j * size, i * size, causal, True)
        of_weights = _product(values, slope, (1, 1), exact)
        logs, products = numbers[0:1, place], numbers[1:2, place]
        weights, of_scores = slopes_of_scores(scores, allowed, of_weights, logs, products, activation, length)
        of_keys += _product(of_scores.astype(queries.dtype), queries, (1, 0), exact)
        return of_keys, of_values + _product(weights.astype(slope.dtype), slope, (1, 0), exact)

    start = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    of_keys, of_values = lax.fori_loop(j if causal else 0, blocks, step, start)
    of_k[...], of_v[...] = (of_keys * scale).astype(of_k.dtype), of_values.astype(of_v.dtype)
