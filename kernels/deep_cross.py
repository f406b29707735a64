"""Cross layers and a network beside them, up to the logit of both."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import cross_network, deep_cross_numba, dense
from .op import Implementation, Op, all_float32, dispatch
from .tiles import left_to_xla


def logits(
    x: Float[Array, "*batch n"],
    crosses: tuple[Float[Array, "layers n n"], Float[Array, "layers n"]],
    layers: dense.Layers,
    ends: tuple[Float[Array, " n"], Float[Array, " k"]],
    *,
    implementation: Implementation = "auto",
) -> Float[Array, "*batch"]:
    """`c(x) . u + d(x) . v`, where c are `cross_network.cross`, d is `dense.network` with a relu at its end.

    As the two, but nothing lies between them and their products with u and v: neither their results nor the slopes of
    these are written to memory, nor are the slopes of x of both, which are added.

    Args:
        x: Rows.
        crosses: W and b of all cross layers.
        layers: W and b of each layer of the network.
        ends: u and v.
        implementation: See `kernels.op.dispatch`.

    Returns:
        float32.

    Raises:
        ValueError: As `cross` and `network`, or ends that are not as long as what they multiply.

    >>> crosses = jnp.array([[[0.0, 1.0], [1.0, 0.0]]]), jnp.array([[0.5, 0.0]])
    >>> layers = [(jnp.array([[1.0], [1.0]]), jnp.array([-1.0]))]
    >>> logits(jnp.array([[1.0, 2.0]]), crosses, layers, (jnp.array([1.0, 10.0]), jnp.array([100.0]))).tolist()
    [243.5]
    """
    n = cross_network.check(x, *crosses)
    k = dense.check(x, layers)
    if ends[0].shape != (n,) or ends[1].shape != (k,):
        raise ValueError(f"kernels.deep_cross: ends of {ends[0].shape} and {ends[1].shape} must be [{n}] and [{k}]")
    if implementation == "auto" and left_to_xla(x, crosses[0], *(w for w, _ in layers)):
        implementation = "reference"
    flat = tuple(array for pair in layers for array in pair)
    y: Any = _deep_cross(x.reshape(-1, n), (*crosses, *ends, *flat), implementation)
    return y.reshape(x.shape[:-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _deep_cross(x: Array, weights: tuple[Array, ...], implementation: Implementation) -> Array:
    return dispatch(OP, x, *weights, implementation=implementation)[0]


def _forward(x: Array, weights: tuple[Array, ...], implementation: Implementation):
    y, *kept = dispatch(OP, x, *weights, implementation=implementation)
    return y, (x, kept, weights)


def _backward(implementation: Implementation, saved, slope):
    x, kept, (cross_weights, cross_biases, cross_end, end, *layers) = saved
    weights = cross_weights, cross_end, end, *layers[::2]
    of_x, *found = dispatch(GRADIENT, x, *kept, slope, *weights, implementation=implementation)
    given = cross_weights, cross_biases, cross_end, end, *layers
    return of_x.astype(x.dtype), tuple(a.astype(b.dtype) for a, b in zip(found, given, strict=True))


_deep_cross.defvjp(_forward, _backward)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b.astype(jnp.float32), precision="highest")


def _reference(x, cross_weights, cross_biases, cross_end, end, *layers):
    """The logits, and what is remembered: see `cross_network` and `dense`."""
    crossed, inner = cross_network.OP.reference(x, cross_weights, cross_biases)
    deep, hidden = dense.OP.reference(x, *layers, relu_end=True)
    return _product(crossed, cross_end) + _product(deep, end), inner, deep, hidden


def _gradient_reference(x, inner, deep, hidden, slope, cross_weights, cross_end, end, *weights):
    """Gradients in x, in all of the cross layers, in the ends, and in all of the layers."""
    crossed = cross_network.rows_of(x, inner)[-1]
    of_crossed, of_deep = (jnp.outer(slope, vector.astype(jnp.float32)) for vector in (cross_end, end))
    of_deep = jnp.where(deep > 0, of_deep, jnp.zeros_like(of_deep))
    of_x, *of_crosses = cross_network.GRADIENT.reference(x, cross_weights, inner, of_crossed)
    more, *of_layers = dense.GRADIENT.reference(x, of_deep, hidden, *weights)
    return of_x + more, *of_crosses, _product(slope, crossed), _product(slope, deep), *of_layers


OP = Op("deep_cross", _reference, all_float32, numba=deep_cross_numba.logits)
GRADIENT = Op("deep_cross_gradient", _gradient_reference, all_float32, numba=deep_cross_numba.gradient)
