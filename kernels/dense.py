"""Dense layers: products, biases and relus, one layer after the other."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import dense_numba
from .op import Implementation, Op, all_float32, dispatch
from .tiles import left_to_xla

Layers = Sequence[tuple[Array, Array]]


def network(
    x: Float[Array, "*batch k"], layers: Layers, *, relu_end: bool = False, implementation: Implementation = "auto"
) -> Float[Array, "*batch n"]:
    """`x W + b` of each layer, `max(x W + b, 0)` before the next one, summed in float32.

    Differentiable in all, twice by the reference alone. Sums over the batch have a fixed order, so that gradients are
    the same to the last bit on any number of threads.

    Args:
        x: Rows.
        layers: W and b of each, `[k, n]` and `[n]`.
        relu_end: Whether numbers below 0 become 0 after the last one, too.
        implementation: See `kernels.op.dispatch`.

    Returns:
        float32.

    Raises:
        ValueError: No layer, shapes that do not go together, or weights of no row or no column.

    >>> w, b = jnp.array([[1.0, 0.0], [1.0, -1.0]]), jnp.array([0.5, 1.0])
    >>> network(jnp.array([[1.0, 2.0]]), [(w, b)]).tolist(), network(jnp.array([[1.0, 2.0]]), [(w, b)] * 2).tolist()
    ([[3.5, -1.0]], [[4.0, 1.0]])
    """
    k = check(x, layers)
    if implementation == "auto" and left_to_xla(x, *(w for w, _ in layers)):
        implementation = "reference"
    flat = tuple(array for pair in layers for array in pair)
    y: Any = _network(x.reshape(-1, x.shape[-1]), flat, relu_end, implementation)
    return y.reshape(*x.shape[:-1], k)


def check(x: Array, layers: Layers) -> int:
    """Width of the last layer, or ValueError; see `network`."""
    k = x.shape[-1] if x.ndim else 0
    for number, (w, b) in enumerate(layers):
        if w.ndim != 2 or not w.size or len(w) != k or b.shape != w.shape[1:]:
            raise ValueError(
                f"kernels.dense: layer {number} of {w.shape=} and {b.shape=} must be [{k}, n] and [n], with {k} and n "
                "at least 1"
            )
        k = w.shape[1]
    if not layers:
        raise ValueError("kernels.dense: a network needs a layer or more")
    return k


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _network(x: Array, layers: tuple[Array, ...], relu_end: bool, implementation: Implementation) -> Array:
    return dispatch(OP, x, *layers, implementation=implementation, relu_end=relu_end)[0]


def _network_forward(x: Array, layers: tuple[Array, ...], relu_end: bool, implementation: Implementation):
    y, hidden = dispatch(OP, x, *layers, implementation=implementation, relu_end=relu_end)
    empty = tuple(bias[:0] for bias in layers[1::2])
    return y, (x, layers[::2], empty, hidden, y if relu_end else None)


def _network_backward(relu_end: bool, implementation: Implementation, saved, slope):
    x, weights, empty, hidden, y = saved
    if y is not None:
        slope = jnp.where(y > 0, slope, jnp.zeros_like(slope))
    of_x, *found = dispatch(GRADIENT, x, slope, hidden, *weights, implementation=implementation)
    kinds = [a for pair in zip(weights, empty, strict=True) for a in pair]
    return of_x.astype(x.dtype), tuple(a.astype(b.dtype) for a, b in zip(found, kinds, strict=True))


_network.defvjp(_network_forward, _network_backward)


def _product(a: Array, b: Array, kind: Any) -> Array:
    return jnp.matmul(a.astype(kind), b.astype(kind), preferred_element_type=jnp.float32)


def _reference(x, *layers, relu_end: bool):
    """The result, and the rows between the layers, those of one after those of the other."""
    y, rows, kind = x, [x], jnp.result_type(x, layers[0])
    for w, b in zip(layers[::2], layers[1::2], strict=True):
        y = _product(rows[-1], w, kind)
        y += jnp.broadcast_to(b.astype(jnp.float32), y.shape)
        rows.append(jax.nn.relu(y))
    hidden = [row.reshape(-1) for row in rows[1:-1]]
    return (rows[-1] if relu_end else y), jnp.concatenate(hidden) if hidden else jnp.zeros(0, jnp.float32)


def _gradient_reference(x, slope, hidden, *weights):
    """Gradients in x and in the weights and the bias of each layer, of the slopes of the result before its relu."""
    found, rows, kind = [], [x], jnp.result_type(x, weights[0])
    for w in weights[1:]:
        place, size = sum(row.size for row in rows[1:]), len(x) * len(w)
        rows.append(hidden[place : place + size].reshape(len(x), len(w)))
    for layer in reversed(range(len(weights))):
        found = [_product(rows[layer].T, slope, kind), jnp.sum(slope, axis=0), *found]
        slope = _product(slope, weights[layer].T, kind)
        if layer > 0:
            slope = jnp.where(rows[layer] > 0, slope, jnp.zeros_like(slope))
    return slope, *found


OP = Op("dense", _reference, all_float32, numba=dense_numba.network)
GRADIENT = Op("dense_gradient", _gradient_reference, all_float32, numba=dense_numba.gradient)
