"""`kernels.attention` on CPU: a head of a row at a time, some queries against the keys that any of them may see.

Scores of a block of queries stay in cache while they become weights and are multiplied with the values. The gradient
computes them anew, from the logarithms of the sums that are remembered.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import xla_ffi
from .exponentials import exponentials, greatest
from .outer_products import TILE_COLUMNS, WIDE_COLUMNS
from .tiles import ANY, add_product, multiply, n_panels, pack, rounded

_QUERIES = 32  # in a block, a multiple of the rows of a tile
_NEVER = np.float32(-np.inf)


def attend(queries, keys, values, segments, times, position_bias, time_bias, *, causal: bool, activation: str):
    """The Numba implementation of `attention.OP`."""
    batch, length, heads, _ = queries.shape
    shapes = values.shape, (batch, heads, length)
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    arguments = _arguments(queries, keys, values, segments, times, position_bias, time_bias, causal, activation)
    out, logs = xla_ffi.call("attention", ((_n_heads, _forward),), results, *arguments)
    return out, logs


def gradient(
    queries, keys, values, segments, times, position_bias, time_bias, out, logs, slope, *, causal: bool, activation: str
):
    """The Numba implementation of `attention.GRADIENT`."""
    arguments = _arguments(queries, keys, values, segments, times, position_bias, time_bias, causal, activation)
    biases = arguments[5:7]
    shapes = [a.shape for a in (queries, keys, values, *biases)] + [(len(queries), *bias.shape) for bias in biases]
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    passes = ((_n_heads_back, _backward), (_n_biases, _add_up))
    found = xla_ffi.call("attention_gradient", passes, results, *arguments, out, logs, slope)
    of_biases = (
        None if given is None else slope for given, slope in zip((position_bias, time_bias), found[3:5], strict=True)
    )
    return *found[:3], *of_biases


def _arguments(queries, keys, values, segments, times, position_bias, time_bias, causal: bool, activation: str):
    """With empty arrays for what is not there."""
    none = jnp.zeros((queries.shape[2], 0), jnp.float32)
    biases = (none if bias is None else bias for bias in (position_bias, time_bias))
    times = jnp.zeros((len(queries), 0), jnp.int32) if times is None else times
    return queries, keys, values, segments, times, *biases, jnp.array([causal, activation == "silu"], jnp.int32)


@numba.njit(cache=True, nogil=True)
def _n_heads(queries, keys, values, segments, times, position_bias, time_bias, flags, out, logs):
    return queries.shape[0] * queries.shape[2]


@numba.njit(cache=True, nogil=True)
def _forward(number, queries, keys, values, segments, times, position_bias, time_bias, flags, out, logs):
    """One head of one row."""
    length, heads, width = queries.shape[1:]
    depth, row, head = values.shape[3], number // heads, number % heads
    wide, deep = rounded(width, TILE_COLUMNS), rounded(depth, TILE_COLUMNS)
    q, v = _of_head(queries, row, head, wide), _of_head(values, row, head, deep)
    k = _panels(keys[row, :, head])
    n_keys = rounded(length, TILE_COLUMNS)
    scores, zeros = np.empty(_QUERIES * n_keys, np.float32), np.zeros(n_keys, np.float32)
    result = np.empty(_QUERIES * deep, np.float32)
    for first in range(0, length, _QUERIES):
        size = min(_QUERIES, length - first)
        begin, end = _seen(segments[row], first, size, flags[0])
        n = end - begin
        multiply(q, first * wide, wide, _QUERIES, k, begin * width, width, zeros, 0, ANY, scores, 0, n)
        for i in range(_QUERIES):
            own = scores[i * n : (i + 1) * n]
            if i >= size:
                own[:] = 0
                continue
            _bias(own, first + i, begin, length, width, row, head, times, position_bias, time_bias)
            if flags[1]:
                _silu(own, first + i, begin, segments[row], flags[0], scores, i * n, n)
                continue
            _mask(own, first + i, begin, segments[row], flags[0])
            most = greatest(scores, i * n, n)
            if most == _NEVER:
                own[:] = 0
                logs[row, head, first + i] = 0
                continue
            total = exponentials(scores, i * n, most, n)
            logs[row, head, first + i] = most + np.float32(math.log(total))
            own *= np.float32(1) / total
        result[:] = 0
        rows = min(n, length - begin)  # those of the values there are
        add_product(scores, 0, 1, n, _QUERIES, v, begin * deep, False, deep, rows, result, 0, deep)
        for i in range(size):
            out[row, first + i, head] = result[i * deep : i * deep + depth]
        if flags[1]:
            logs[row, head, first : first + size] = 0


@numba.njit(cache=True, nogil=True)
def _of_head(array, row, head, wide):
    """What one head of one row has, a place after the other, with zeros behind each and for a block of places more."""
    length, width = array.shape[1], array.shape[3]
    found = np.zeros((length + _QUERIES) * wide, np.float32)
    for place in range(length):
        found[place * wide : place * wide + width] = array[row, place, head]
    return found


@numba.njit(cache=True, nogil=True)
def _panels(rows):
    """The places of one head as columns."""
    length, width = rows.shape
    found = np.empty(rounded(length, TILE_COLUMNS) * width, np.float32)
    for panel in range(n_panels(rounded(length, TILE_COLUMNS))):
        pack(panel, rows.T, found, 0)
    return found


@numba.njit(cache=True, nogil=True)
def _seen(segments, first, size, causal):
    """Whole panels that hold the keys which some queries may see: from the first of their segments on."""
    length = len(segments)
    begin, end = length, first
    for i in range(first, first + size):
        if segments[i] < 0:
            continue
        for j in range(begin):
            if segments[j] == segments[i]:
                begin = j
                break
        last = i if causal else length - 1
        while last > end and segments[last] != segments[i]:
            last -= 1
        end = max(end, last)
    begin = min(begin, first) // WIDE_COLUMNS * WIDE_COLUMNS
    return begin, min(rounded(end + 1, WIDE_COLUMNS), rounded(length, TILE_COLUMNS))


@numba.njit(cache=True, nogil=True)
def _bias(own, i, begin, length, width, row, head, times, position_bias, time_bias):
    """Scales the scores of a query and adds the biases."""
    scale = np.float32(1 / math.sqrt(width))
    own *= scale
    if position_bias.shape[1]:
        far = position_bias.shape[1] // 2
        for j in range(min(len(own), length - begin)):
            own[j] += position_bias[head, min(max(i - begin - j, -far), far) + far]
    if time_bias.shape[1]:
        for j in range(min(len(own), length - begin)):
            own[j] += time_bias[head, _bucket(times[row, i], times[row, begin + j], time_bias.shape[1])]


@numba.njit(cache=True, nogil=True)
def _bucket(one, other, n):
    gap = np.float32(max(abs(one - other), 1))
    return min(np.int64(np.float32(np.log10(gap)) * np.float32(1 / 0.301)), n - 1)


@numba.njit(cache=True, nogil=True)
def _mask(own, i, begin, segments, causal):
    """Sets to -inf what a query may not see."""
    segment, end = segments[i], min(len(own), len(segments) - begin)
    if segment < 0:
        end = 0
    if causal:
        end = min(end, i + 1 - begin)
    for j in range(end):
        own[j] = own[j] if segments[begin + j] == segment else _NEVER
    own[max(end, 0) :] = _NEVER


@numba.njit(cache=True, nogil=True)
def _silu(own, i, begin, segments, causal, scores, place, n):
    """Scores become weights: `s sigmoid(s) / length` of what a query may see, else 0."""
    kept = own.copy()
    _sigmoids(own, scores, place, n)
    own *= kept
    own *= np.float32(1) / np.float32(len(segments))
    _mask(kept, i, begin, segments, causal)
    for j in range(n):
        own[j] = np.float32(0) if kept[j] == _NEVER else own[j]


@numba.njit(cache=True, nogil=True)
def _sigmoids(own, scores, place, n):
    for j in range(n):
        own[j] = min(-own[j], np.float32(80))
    exponentials(scores, place, np.float32(0), n)
    for j in range(n):
        own[j] = np.float32(1) / (np.float32(1) + own[j])


@numba.njit(cache=True, nogil=True)
def _n_heads_back(
    queries, keys, values, segments, times, position_bias, time_bias, flags, out, logs, slope,
    of_queries, of_keys, of_values, of_position_bias, of_time_bias, position_sums, time_sums,
):  # fmt: skip
    return queries.shape[0] * queries.shape[2]


@numba.njit(cache=True, nogil=True)
def _backward(
    number, queries, keys, values, segments, times, position_bias, time_bias, flags, out, logs, slope,
    of_queries, of_keys, of_values, of_position_bias, of_time_bias, position_sums, time_sums,
):  # fmt: skip
    """One head of one row; the gradients of biases are summed for it alone."""
    length, heads, width = queries.shape[1:]
    depth, row, head = values.shape[3], number // heads, number % heads
    wide, deep = rounded(width, TILE_COLUMNS), rounded(depth, TILE_COLUMNS)
    q, k = _of_head(queries, row, head, wide), _of_head(keys, row, head, wide)
    above = _of_head(slope, row, head, deep)
    k_columns, v_columns = _panels(keys[row, :, head]), _panels(values[row, :, head])
    n_keys = rounded(length, TILE_COLUMNS)
    weights, slopes = np.empty(_QUERIES * n_keys, np.float32), np.empty(_QUERIES * n_keys, np.float32)
    zeros, own_q = np.zeros(n_keys, np.float32), np.empty(_QUERIES * wide, np.float32)
    own_k, own_v = np.zeros(n_keys * wide, np.float32), np.zeros(n_keys * deep, np.float32)
    position_sum, time_sum = position_sums[row, head], time_sums[row, head]
    position_sum[:] = 0
    time_sum[:] = 0
    scale = np.float32(1 / math.sqrt(width))
    for first in range(0, length, _QUERIES):
        size = min(_QUERIES, length - first)
        begin, end = _seen(segments[row], first, size, flags[0])
        n = end - begin
        multiply(q, first * wide, wide, _QUERIES, k_columns, begin * width, width, zeros, 0, ANY, weights, 0, n)
        multiply(above, first * deep, deep, _QUERIES, v_columns, begin * depth, depth, zeros, 0, ANY, slopes, 0, n)
        for i in range(_QUERIES):
            own, back = weights[i * n : (i + 1) * n], slopes[i * n : (i + 1) * n]
            if i >= size or segments[row, first + i] < 0:
                own[:] = 0
                back[:] = 0
                continue
            _bias(own, first + i, begin, length, width, row, head, times, position_bias, time_bias)
            if flags[1]:
                _silu_back(own, back, first + i, begin, segments[row], flags[0], weights, i * n, n)
            else:
                _mask(own, first + i, begin, segments[row], flags[0])
                exponentials(weights, i * n, logs[row, head, first + i], n)
                common = np.float32(0)
                for c in range(depth):
                    common += out[row, first + i, head, c] * slope[row, first + i, head, c]
                for j in range(n):
                    back[j] = own[j] * (back[j] - common)
            for j in range(min(n, length - begin) if position_bias.shape[1] else 0):
                far = position_bias.shape[1] // 2
                position_sum[min(max(first + i - begin - j, -far), far) + far] += back[j]
            for j in range(min(n, length - begin) if time_bias.shape[1] else 0):
                time_sum[_bucket(times[row, first + i], times[row, begin + j], len(time_sum))] += back[j]
        rows = min(n, length - begin)
        own_q[:] = 0
        add_product(slopes, 0, 1, n, _QUERIES, k, begin * wide, False, wide, rows, own_q, 0, wide)
        for i in range(size):
            for c in range(width):
                of_queries[row, first + i, head, c] = own_q[i * wide + c] * scale
        # Of the keys and values, which are the rows of these products, the queries are summed over.
        add_product(slopes, 0, n, 1, n, q, first * wide, False, wide, size, own_k, begin * wide, wide)
        add_product(weights, 0, n, 1, n, above, first * deep, False, deep, size, own_v, begin * deep, deep)
    for place in range(length):
        for c in range(width):
            of_keys[row, place, head, c] = own_k[place * wide + c] * scale
        of_values[row, place, head] = own_v[place * deep : place * deep + depth]


@numba.njit(cache=True, nogil=True)
def _silu_back(own, back, i, begin, segments, causal, weights, place, n):
    """Scores become weights, and slopes of the weights those of the scores."""
    kept, over = own.copy(), np.float32(1) / np.float32(len(segments))
    _sigmoids(own, weights, place, n)
    for j in range(n):
        back[j] *= own[j] * (np.float32(1) + kept[j] * (np.float32(1) - own[j])) * over
        own[j] *= kept[j] * over
    _mask(kept, i, begin, segments, causal)
    for j in range(n):
        own[j] = np.float32(0) if kept[j] == _NEVER else own[j]
        back[j] = np.float32(0) if kept[j] == _NEVER else back[j]


@numba.njit(cache=True, nogil=True)
def _n_biases(
    queries, keys, values, segments, times, position_bias, time_bias, flags, out, logs, slope,
    of_queries, of_keys, of_values, of_position_bias, of_time_bias, position_sums, time_sums,
):  # fmt: skip
    return queries.shape[2]


@numba.njit(cache=True, nogil=True)
def _add_up(
    head, queries, keys, values, segments, times, position_bias, time_bias, flags, out, logs, slope,
    of_queries, of_keys, of_values, of_position_bias, of_time_bias, position_sums, time_sums,
):  # fmt: skip
    """The gradients of a head's biases: the sums of all rows, in their order."""
    of_position_bias[head] = 0
    of_time_bias[head] = 0
    for row in range(len(queries)):
        of_position_bias[head] += position_sums[row, head]
        of_time_bias[head] += time_sums[row, head]
