"""A dense layer: one product, its bias and its relu."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import dense_numba
from .op import Implementation, Op, dispatch


def layer(
    x: Float[Array, "*batch k"],
    weights: Float[Array, "k n"],
    bias: Float[Array, "n"],
    *,
    relu: bool = False,
    implementation: Implementation = "auto",
) -> Float[Array, "*batch n"]:
    """`y = x W + b`, or `max(x W + b, 0)`, summed in float32.

    Differentiable in all three. Sums over the batch have a fixed order, so that gradients are the same to the last bit
    on any number of threads.

    Args:
        x: Rows.
        weights, bias: W and b.
        relu: Whether numbers below 0 become 0.
        implementation: See `kernels.op.dispatch`.

    Returns:
        float32.

    Raises:
        ValueError: Shapes that do not go together, or weights of no row or no column.

    >>> layer(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0], [1.0, -1.0]]), jnp.array([0.5, 1.0]), relu=True).tolist()
    [[3.5, 0.0]]
    """
    if weights.ndim != 2 or not weights.size or x.shape[-1:] != weights.shape[:1] or bias.shape != weights.shape[1:]:
        raise ValueError(
            f"kernels.dense: {x.shape=}, {weights.shape=} and {bias.shape=} must be [..., k], [k, n] and [n], "
            "with k and n at least 1"
        )
    y: Any = _layer(x.reshape(-1, x.shape[-1]), weights, bias, relu, implementation)
    return y.reshape(*x.shape[:-1], weights.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer(x: Array, weights: Array, bias: Array, relu: bool, implementation: Implementation) -> Array:
    return dispatch(OP, x, weights, bias, implementation=implementation, relu=relu)


def _layer_forward(x: Array, weights: Array, bias: Array, relu: bool, implementation: Implementation):
    y: Any = _layer(x, weights, bias, relu, implementation)
    return y, (x, weights, y if relu else y[:0], bias[:0])


def _layer_backward(relu: bool, implementation: Implementation, saved, slope):
    x, weights, y, empty = saved
    found = dispatch(GRADIENT, x, weights, y, slope, implementation=implementation, relu=relu)
    return tuple(a.astype(b.dtype) for a, b in zip(found, (x, weights, empty), strict=True))


_layer.defvjp(_layer_forward, _layer_backward)


def _kind(a: Array, b: Array) -> Any:
    return a.dtype if a.dtype == b.dtype else jnp.float32


def _product(a: Array, b: Array) -> Array:
    kind = _kind(a, b)
    return jnp.matmul(a.astype(kind), b.astype(kind), preferred_element_type=jnp.float32)


def _reference(x, weights, bias, *, relu: bool):
    y = _product(x, weights) + jnp.broadcast_to(bias.astype(jnp.float32), (x.shape[0], weights.shape[1]))
    return jax.nn.relu(y) if relu else y


def _gradient_reference(x, weights, y, slope, *, relu: bool):
    """Gradients in x, in the weights and in the bias, of the slopes of y."""
    if relu:
        slope = jnp.where(y > 0, slope, jnp.zeros_like(slope))
    inner = slope.astype(_kind(x, weights))  # as low as the products of the layer
    return _product(inner, weights.T), _product(x.T, inner), jnp.sum(slope, axis=0)


def _supports(*arrays: Array, **static: Any) -> str | None:
    kinds = {str(a.dtype) for a in arrays}
    return None if kinds == {"float32"} else f"arrays of {sorted(kinds)} must all be float32"


OP = Op("dense", _reference, _supports, numba=dense_numba.layer)
GRADIENT = Op("dense_gradient", _gradient_reference, _supports, numba=dense_numba.gradient)
