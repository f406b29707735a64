"""Cross entropy over a whole catalogue, a part of its logits at a time."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from . import cross_entropy_numba
from .op import Implementation, Op, dispatch

_LOGITS = 1 << 21  # held at a time
_LEAST_ROWS = 16  # of which there is a product
_CACHED = 1 << 17  # items whose logits, for a block of rows, the cache of a core or of all of them still holds


def cross_entropy(
    hidden: Float[Array, "n width"],
    table: Float[Array, "n_items width"],
    labels: Int32[Array, " n"],
    weights: Float[Array, " n"] | None = None,
    *,
    bias: Float[Array, " n_items"] | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, ""]:
    """`sum_r w_r (log sum_j exp(h_r . t_j + b_j) - h_r . t_y - b_y)`, y the label of row r, summed in float32.

    Differentiable once in all but the labels. The gradients come with the value, where they are asked for: so that the
    logits are computed once, and never more of them than some rows have. Sums have a fixed order.

    Args:
        hidden: A vector for each row.
        table: One for each item.
        labels: Items; a row with a negative one does not count, one beyond the table makes the sum NaN.
        weights: Of the rows; 1 if None.
        bias: Of the items; 0 if None.
        implementation: See `kernels.op.dispatch`.

    Raises:
        ValueError: Shapes or dtypes that do not go together.

    Source: Wijmans et al. 2025, "Cut Your Losses in Large-Vocabulary Language Models", for the logits that are never
    held.

    >>> round(float(cross_entropy(jnp.zeros((2, 3)), jnp.ones((4, 3)), jnp.array([1, -1]))), 4)
    1.3863
    """
    if hidden.ndim != 2 or table.ndim != 2 or hidden.shape[1] != table.shape[1] or not table.shape[0]:
        raise ValueError(f"kernels.cross_entropy: {hidden.shape=} and {table.shape=} must be [n, d] and [n_items, d]")
    if labels.shape != hidden.shape[:1] or labels.dtype != jnp.int32:
        raise ValueError(
            f"kernels.cross_entropy: labels of {labels.dtype}{list(labels.shape)} must be int32, {[len(hidden)]}"
        )
    for name, array, n in (("weights", weights, len(hidden)), ("bias", bias, len(table))):
        if array is not None and array.shape != (n,):
            raise ValueError(f"kernels.cross_entropy: {name} of shape {list(array.shape)} must be {[n]}")
    weights = jnp.ones(hidden.shape[:1], jnp.float32) if weights is None else weights.astype(jnp.float32)
    bias = jnp.zeros(table.shape[:1], jnp.float32) if bias is None else bias
    # Of a row that does not count anything may be given, NaN too, which 0 times would leave NaN.
    hidden = jnp.where((labels < 0)[:, None], jnp.zeros_like(hidden), hidden)
    found: Any = _summed(hidden, table, bias, labels, weights, implementation)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _summed(hidden, table, bias, labels, weights, implementation: Implementation):
    return dispatch(OP, hidden, table, bias, labels, weights, implementation=implementation, slopes=False)[0]


def _summed_forward(hidden, table, bias, labels, weights, implementation: Implementation):
    found = dispatch(OP, hidden, table, bias, labels, weights, implementation=implementation, slopes=True)
    return found[0], found[1:]


def _summed_backward(implementation: Implementation, slopes, cotangent):
    of_hidden, of_table, of_bias, of_weights = ((slope * cotangent).astype(slope.dtype) for slope in slopes)
    return of_hidden, of_table, of_bias, None, of_weights


_summed.defvjp(_summed_forward, _summed_backward)


def _reference(hidden, table, bias, labels, weights, *, slopes: bool):
    """The sum, and with `slopes` its gradients in all but the labels."""
    (n, width), n_items = hidden.shape, table.shape[0]
    size = min(max(_LEAST_ROWS, _LOGITS // n_items), max(n, 1))
    weights = jnp.where(labels < 0, 0.0, weights)
    # Beyond the table an item has NaN for a logit.
    given = tuple(
        jnp.pad(a, [(0, -n % size), *[(0, 0)] * (a.ndim - 1)], constant_values=-1 if a is labels else 0)
        for a in (hidden, labels, weights)
    )
    given = tuple(a.reshape(-1, size, *a.shape[1:]) for a in given)
    precise = {"preferred_element_type": jnp.float32}

    def part(carried, rows):
        h, label, weight = rows
        logits = jnp.einsum("nd,md->nm", h, table, **precise) + bias.astype(jnp.float32)[None, :]
        greatest = lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        exponentials = jnp.exp(logits - greatest)
        total = jnp.sum(exponentials, axis=-1, keepdims=True)
        place = jnp.where(label < 0, 0, label)[:, None]
        own = jnp.take_along_axis(logits, place, axis=-1, mode="fill", fill_value=jnp.nan)[:, 0]
        losses = jnp.where(label < 0, 0.0, jnp.log(total[:, 0]) + greatest[:, 0] - own)
        if not slopes:
            return carried + jnp.sum(weight * losses), None
        value, of_table, of_bias = carried
        chances = exponentials * (weight[:, None] / total)
        of_hidden = jnp.einsum("nm,md->nd", chances.astype(table.dtype), table, **precise)
        of_table += jnp.einsum("nm,nd->md", chances.astype(h.dtype), h, **precise)
        carried = value + jnp.sum(weight * losses), of_table, of_bias + jnp.sum(chances, axis=0)
        return carried, (of_hidden, losses)

    # Made of the labels, since under `shard_map` a sum has to be of the rows of a device from the start.
    zero = jnp.sum(labels[:1] * 0).astype(jnp.float32)
    if not slopes:
        return (lax.scan(part, zero, given)[0],)
    start = zero, jnp.full((n_items, width), zero), jnp.full(n_items, zero)
    scanned: Any = lax.scan(part, start, given)
    (value, of_table, of_bias), (of_hidden, losses) = scanned
    of_hidden, losses = of_hidden.reshape(-1, width)[:n], losses.reshape(-1)[:n]
    own = jnp.where(labels < 0, n_items, labels)  # beyond the table, where nothing is added
    of_hidden -= weights[:, None] * table.at[own].get(mode="fill", fill_value=0).astype(jnp.float32)
    of_table = of_table.at[own].add(-weights[:, None] * hidden.astype(jnp.float32), mode="drop")
    of_bias = of_bias.at[own].add(-weights, mode="drop")
    dtypes = hidden.dtype, table.dtype, bias.dtype
    found = (a.astype(dtype) for a, dtype in zip((of_hidden, of_table, of_bias), dtypes, strict=True))
    return value, *found, losses


def _supports(hidden: Array, table: Array, bias: Array, labels: Array, weights: Array, **static: Any) -> str | None:
    kinds = {str(a.dtype) for a in (hidden, table, bias)}
    if kinds != {"float32"}:
        return f"arrays of {sorted(kinds)} must all be float32"
    if not (hidden.size and table.size):
        return "there are no rows, or vectors of nothing"
    # A block of rows has its logits in cache.
    return None if table.shape[0] <= _CACHED else f"{table.shape[0]} items are more than the {_CACHED} that serve here"


OP = Op("cross_entropy", _reference, _supports, numba=cross_entropy_numba.losses)
