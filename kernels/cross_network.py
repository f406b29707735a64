"""The cross layers of a deep and cross network."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import cross_network_numba
from .op import Implementation, Op, all_float32, dispatch
from .tiles import left_to_xla


def cross(
    x: Float[Array, "*batch n"],
    weights: Float[Array, "layers n n"],
    biases: Float[Array, "layers n"],
    *,
    implementation: Implementation = "auto",
) -> Float[Array, "*batch n"]:
    """`x_L` of the layers `x_(l+1) = x_0 * (x_l W_l + b_l) + x_l`, with `x_0` the rows given, summed in float32.

    Differentiable in all three, twice by the reference alone. Sums over the batch have a fixed order, so that gradients
    are the same to the last bit on any number of threads.

    Args:
        x: Rows.
        weights, biases: W and b of each layer.
        implementation: See `kernels.op.dispatch`.

    Returns:
        float32.

    Raises:
        ValueError: Shapes that do not go together, or weights of no layer or of no column.

    Source: Wang et al. 2021, "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to
    Rank Systems", equation 1.

    >>> cross(jnp.array([[1.0, 2.0]]), jnp.array([[[0.0, 1.0], [1.0, 0.0]]]), jnp.array([[0.5, 0.0]])).tolist()
    [[3.5, 4.0]]
    """
    n = check(x, weights, biases)
    if implementation == "auto" and left_to_xla(x, weights):
        implementation = "reference"
    y: Any = _cross(x.reshape(-1, n), weights, biases, implementation)
    return y.reshape(x.shape)


def check(x: Array, weights: Array, biases: Array) -> int:
    """Width of the rows, or ValueError; see `cross`."""
    n = x.shape[-1] if x.ndim else 0
    if weights.ndim != 3 or not weights.size or weights.shape[1:] != (n, n) or biases.shape != (len(weights), n):
        raise ValueError(
            f"kernels.cross_network: {x.shape=}, {weights.shape=} and {biases.shape=} must be [..., n], [layers, n, n] "
            "and [layers, n], with a layer and a column at least"
        )
    return n


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross(x: Array, weights: Array, biases: Array, implementation: Implementation) -> Array:
    return dispatch(OP, x, weights, biases, implementation=implementation)[0]


def _cross_forward(x: Array, weights: Array, biases: Array, implementation: Implementation):
    found: Any = dispatch(OP, x, weights, biases, implementation=implementation)
    return found[0], (x, weights, found[1], biases[:, :0])


def _cross_backward(implementation: Implementation, saved, slope):
    x, weights, inner, empty = saved
    found = dispatch(GRADIENT, x, weights, inner, slope, implementation=implementation)
    return tuple(a.astype(b.dtype) for a, b in zip(found, (x, weights, empty), strict=True))


_cross.defvjp(_cross_forward, _cross_backward)


def rows_of(x, inner):
    """`x_l` of all layers and the result, from the products `inner` of each."""
    start, rows = x.astype(jnp.float32), [x.astype(jnp.float32)]
    for z in inner:
        rows.append(start * z + rows[-1])
    return rows


def _product(a: Array, b: Array, kind: Any) -> Array:
    return jnp.matmul(a.astype(kind), b.astype(kind), preferred_element_type=jnp.float32)


def _reference(x, weights, biases):
    """The result, and the products `x_l W_l + b_l` of the layers."""
    kind = jnp.result_type(x, weights)
    start, row, inner = x.astype(jnp.float32), x.astype(jnp.float32), []
    for w, b in zip(weights, biases, strict=True):
        inner.append(_product(row, w, kind) + jnp.broadcast_to(b.astype(jnp.float32), row.shape))
        row = start * inner[-1] + row
    return row, jnp.stack(inner)


def _gradient_reference(x, weights, inner, slope):
    """Gradients in x, in the weights and in the biases, of the slopes of the result."""
    kind = jnp.result_type(x, weights)
    start, rows = x.astype(jnp.float32), rows_of(x, inner)
    of_start, of_weights, of_biases = jnp.zeros_like(start), [], []
    for layer in reversed(range(len(weights))):
        of_start += slope * inner[layer]
        of_inner = slope * start
        of_weights.insert(0, _product(rows[layer].T, of_inner, kind))
        of_biases.insert(0, jnp.sum(of_inner, axis=0))
        slope = slope + _product(of_inner, weights[layer].T, kind)
    return of_start + slope, jnp.stack(of_weights), jnp.stack(of_biases)


OP = Op("cross_network", _reference, all_float32, numba=cross_network_numba.cross)
GRADIENT = Op("cross_network_gradient", _gradient_reference, all_float32, numba=cross_network_numba.gradient)
