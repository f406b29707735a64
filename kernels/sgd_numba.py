"""`kernels.sgd` on CPU: the rank a constant of the compiled code, rows asked for ahead of their use."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi
from .threads import WORKERS

MAX_RANK = 1024
_LOSSES = {"squared": 0, "logistic": 1, "bpr": 2, "softmax": 3}
_FAR, _AHEAD = 32, 8  # entries between asking for what an entry says, then for its rows, and their use
_LARGE = 1e280  # a product that gets its logarithm taken
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def sweep(
    users,
    items,
    user_bias,
    item_bias,
    indptr,
    indices,
    values,
    order,
    negatives,
    bounds,
    numbers,
    *,
    loss: str,
    biases: bool,
):
    """The Numba implementation of `sgd.OP`."""
    rank = users.shape[1]
    width = -(-rank // 8) * 8

    def padded(table):
        return jnp.pad(table, [(0, 0), (0, width - rank)])

    flags = jnp.asarray([_LOSSES[loss], biases], jnp.int32)
    results = [
        *(jax.ShapeDtypeStruct((table.shape[0], width), jnp.float32) for table in (users, items)),
        *(jax.ShapeDtypeStruct(bias.shape, jnp.float32) for bias in (user_bias, item_bias)),
        jax.ShapeDtypeStruct((bounds.shape[0], bounds.shape[1] - 1), jnp.float32),
    ]
    arguments = (padded(users), padded(items), user_bias, item_bias, indptr, indices, values, order, negatives)
    *new, totals = xla_ffi.call(f"sgd_{width}", _kernel(width), results, *arguments, bounds, numbers, flags)
    return (new[0][:, :rank], new[1][:, :rank], *new[2:]), jnp.sum(totals)


@functools.cache
def _kernel(width: int):
    """The kernel for rows of `width` columns."""

    @numba.njit(parallel=True, nogil=True, cache=True, fastmath=_FAST)
    def sweep(
        users,
        items,
        user_bias,
        item_bias,
        indptr,
        indices,
        values,
        order,
        negatives,
        bounds,
        numbers,
        flags,
        new_users,
        new_items,
        new_user_bias,
        new_item_bias,
        totals,
    ):
        new_users[:] = users
        new_items[:] = items
        new_user_bias[:] = user_bias
        new_item_bias[:] = item_bias
        row_of = np.empty(len(indices), np.int32)
        for row in range(len(indptr) - 1):
            row_of[indptr[row] : indptr[row + 1]] = row
        rate, l2, mean = numbers[0], numbers[1], numbers[2]
        loss, bias_rate = flags[0], rate * np.float32(flags[1])
        keep = np.float32(1) - rate * l2  # of a vector, after a step of its l2
        step = np.int64(len(values) > 1)
        n_blocks = bounds.shape[1] - 1
        queue = np.zeros(len(bounds), np.int64)
        for stage in range(len(bounds)):
            for _worker in numba.prange(min(WORKERS, n_blocks)):
                while True:
                    block = simd.take_number(queue, stage)
                    if block >= n_blocks:
                        break
                    total, product = 0.0, 1.0
                    shares, slope = np.empty(1 + negatives.shape[1], np.float32), np.empty(width, np.float32)
                    for k in range(bounds[stage, block], bounds[stage, block + 1]):
                        far = np.int64(order[min(k + _FAR, len(order) - 1)])
                        simd.prefetch(row_of, far)
                        simd.prefetch(indices, far)
                        simd.prefetch(values, far * step)
                        later = order[min(k + _AHEAD, len(order) - 1)]
                        for place in range(0, width, 16):
                            simd.prefetch(new_users, np.int64(row_of[later]) * width + place)
                            simd.prefetch(new_items, np.int64(indices[later]) * width + place)
                        entry = order[k]
                        u, i = row_of[entry], indices[entry]
                        here = np.int64(u) * width
                        if loss == 2:
                            for place in range(negatives.shape[1]):
                                j = negatives[k, place]
                                if j < 0:
                                    continue
                                liked, other = np.int64(i) * width, np.int64(j) * width
                                score = simd.dot(new_users, here, new_items, liked, width)
                                score -= simd.dot(new_users, here, new_items, other, width)
                                score += new_item_bias[i] - new_item_bias[j]
                                pull, factor = _liked(score)
                                total += np.float32(0.5) * (abs(score) - score)
                                product *= factor
                                simd.contrast(
                                    keep, rate * pull, new_users, here, new_items, liked, new_items, other, width
                                )
                                new_item_bias[i] += bias_rate * (pull - l2 * new_item_bias[i])
                                new_item_bias[j] -= bias_rate * (pull + l2 * new_item_bias[j])
                                if product > _LARGE:
                                    total, product = total + np.log(product), 1.0
                            continue
                        if loss == 3:
                            total += _choice(new_users, new_items, new_item_bias, u, i, negatives[k], shares)
                            slope[:] = 0
                            for place in range(len(shares)):
                                item = i if place == 0 else negatives[k, place - 1]
                                if item < 0:
                                    continue
                                simd.axpy(shares[place], new_items, np.int64(item) * width, slope, 0, width)
                            for place in range(len(shares)):
                                item = i if place == 0 else negatives[k, place - 1]
                                if item < 0:
                                    continue
                                there = np.int64(item) * width
                                simd.axpy(keep - np.float32(1), new_items, there, new_items, there, width)
                                simd.axpy(-rate * shares[place], new_users, here, new_items, there, width)
                                new_item_bias[item] -= bias_rate * (shares[place] + l2 * new_item_bias[item])
                            simd.axpy(keep - np.float32(1), new_users, here, new_users, here, width)
                            simd.axpy(-rate, slope, 0, new_users, here, width)
                            continue
                        for place in range(-1, 0 if loss == 0 else negatives.shape[1]):
                            item = i if place < 0 else negatives[k, place]
                            if item < 0:
                                continue
                            there = np.int64(item) * width
                            score = mean + new_user_bias[u] + new_item_bias[item]
                            score += simd.dot(new_users, here, new_items, there, width)
                            if loss == 0:
                                pull = values[entry * step] - score
                                total += np.float32(0.5) * pull * pull
                            else:
                                sign = np.float32(1) if place < 0 else np.float32(-1)
                                score *= sign
                                pull, factor = _liked(score)
                                pull *= sign
                                total += np.float32(0.5) * (abs(score) - score)
                                product *= factor
                            simd.mix(keep, new_users, here, rate * pull, new_items, there, width)
                            new_user_bias[u] += bias_rate * (pull - l2 * new_user_bias[u])
                            new_item_bias[item] += bias_rate * (pull - l2 * new_item_bias[item])
                            if product > _LARGE:
                                total, product = total + np.log(product), 1.0
                    totals[stage, block] = total + np.log(product)

    return sweep


@numba.njit(cache=True, nogil=True)
def _choice(users, items, item_bias, u, i, negatives, slopes):
    """The loss of choosing item i among the negatives, and its slope in the score of each, i first."""
    width = users.shape[1]
    here, highest = np.int64(u) * width, np.float32(-np.inf)
    for place in range(len(slopes)):
        item = i if place == 0 else negatives[place - 1]
        slopes[place] = -np.inf
        if item >= 0:
            slopes[place] = item_bias[item] + simd.dot(users, here, items, np.int64(item) * width, width)
            highest = max(highest, slopes[place])
    own, total = slopes[0], np.float32(0)
    for place in range(len(slopes)):
        slopes[place] = np.exp(slopes[place] - highest)
        total += slopes[place]
    for place in range(len(slopes)):
        slopes[place] /= total
    slopes[0] -= np.float32(1)
    return np.log(total) + highest - own


@numba.njit(cache=True, nogil=True)
def _liked(score):
    """`(sigmoid(-s), 1 + exp(-|s|))`: the pull upwards of a score that should be high, and a factor of its loss.

    The loss `softplus(-s)` is `(|s| - s) / 2` and the logarithm of that factor; one of a product of many costs less.
    """
    one = np.float32(1)
    small = np.exp(-abs(score))
    share = one / (one + small)
    return (share * small if score > 0 else share), 1.0 + np.float64(small)
