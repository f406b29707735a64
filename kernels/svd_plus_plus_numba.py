"""`kernels.svd_plus_plus` on CPU, the rank a constant of the compiled code."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numba
import numpy as np

from . import simd, xla_ffi

MAX_RANK = 1024


def sweep(users, items, feedback, user_bias, item_bias, indptr, indices, values, order, numbers, *, side_by_side):
    """The Numba implementation of `svd_plus_plus.OP`, one user after the other."""
    assert side_by_side == 1  # says `supports`
    rank = users.shape[1]
    width = -(-rank // 8) * 8
    tables = [jnp.pad(table, [(0, 0), (0, width - rank)]) for table in (users, items, feedback)]
    results = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (*tables, user_bias, item_bias, numbers[:1])]
    arguments = (*tables, user_bias, item_bias, indptr, indices, values, order, numbers)
    *new, total = xla_ffi.call(f"svd_plus_plus_{width}", _kernel(width), results, *arguments)
    return (*(table[:, :rank] for table in new[:3]), *new[3:], total[0])


@functools.cache
def _kernel(width: int):
    """The kernel for rows of `width` columns."""

    @numba.njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})
    def sweep(
        users,
        items,
        feedback,
        user_bias,
        item_bias,
        indptr,
        indices,
        values,
        order,
        numbers,
        new_users,
        new_items,
        new_feedback,
        new_user_bias,
        new_item_bias,
        total,
    ):
        new_users[:] = users
        new_items[:] = items
        new_feedback[:] = feedback
        new_user_bias[:] = user_bias
        new_item_bias[:] = item_bias
        rate, l2, mean = numbers[0], numbers[1], numbers[2]
        keep = np.float32(1) - rate * l2
        step = np.int64(len(values) > 1)
        # The sum of the feedback vectors, what each has gained, and the user's vector beside its feedback.
        everything, gained, context = (
            np.empty(width, np.float32),
            np.empty(width, np.float32),
            np.empty(width, np.float32),
        )
        squares = 0.0
        for u in order:
            first, last = np.int64(indptr[u]), np.int64(indptr[u + 1])
            root = np.sqrt(np.float32(max(last - first, 1)))
            everything[:] = 0
            gained[:] = 0
            for k in range(first, last):
                simd.axpy(np.float32(1), new_feedback, np.int64(indices[k]) * width, everything, 0, width)
            for k in range(first, last):
                there = np.int64(indices[k]) * width
                for c in range(width):
                    context[c] = new_users[u, c] + everything[c] / root
                score = mean + new_user_bias[u] + new_item_bias[indices[k]]
                error = values[k * step] - score - simd.dot(new_items, there, context, 0, width)
                squares += error * error
                pull = rate * error
                gain = pull / root
                q = new_items[indices[k]]
                for c in range(width):
                    gained[c] = keep * gained[c] + gain * q[c]
                    everything[c] = keep * everything[c] + root * pull * q[c]
                    new_users[u, c] = keep * new_users[u, c] + pull * q[c]
                    q[c] = keep * q[c] + pull * context[c]
                new_user_bias[u] = keep * new_user_bias[u] + pull
                new_item_bias[indices[k]] = keep * new_item_bias[indices[k]] + pull
            shrunk = keep ** np.float32(last - first)
            for k in range(first, last):
                y = new_feedback[indices[k]]
                for c in range(width):
                    y[c] = shrunk * y[c] + gained[c]
        total[0] = np.float32(0.5 * squares)

    return sweep
