"""Products of all pairs of an example's vectors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import pair_products_numba
from .op import Implementation, Op, dispatch


def pair_products(
    vectors: Float[Array, "*batch n d"], *, implementation: Implementation = "auto"
) -> Float[Array, "*batch n_pairs"]:
    """`v_i . v_j` for all i > j, summed in float32: (1, 0), (2, 0), (2, 1), (3, 0), …

    Differentiable.

    Args:
        vectors: Those of each example.
        implementation: See `kernels.op.dispatch`.

    Returns:
        float32, `n (n - 1) / 2` an example.

    Raises:
        ValueError: Fewer than two axes.

    >>> pair_products(jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])).tolist()
    [11.0, 17.0, 39.0]
    """
    if vectors.ndim < 2:
        raise ValueError(f"kernels.pair_products: {vectors.shape=} must be [..., n, d]")
    products: Any = _products(vectors.reshape(-1, *vectors.shape[-2:]), implementation)
    return products.reshape(*vectors.shape[:-2], products.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _products(vectors: Array, implementation: Implementation) -> Array:
    return dispatch(OP, vectors, implementation=implementation)


def _products_forward(vectors: Array, implementation: Implementation):
    return _products(vectors, implementation), vectors


def _products_backward(implementation: Implementation, vectors, slope):
    return (dispatch(GRADIENT, vectors, slope, implementation=implementation).astype(vectors.dtype),)


_products.defvjp(_products_forward, _products_backward)


def _reference(vectors):
    rows, columns = np.tril_indices(vectors.shape[-2], -1)
    products = jnp.einsum("bid,bjd->bij", vectors, vectors, preferred_element_type=jnp.float32)
    return products[:, rows, columns]


def _gradient_reference(vectors, slope):
    n = vectors.shape[-2]
    rows, columns = np.tril_indices(n, -1)
    lower = jnp.zeros((len(vectors), n, n), jnp.float32).at[:, rows, columns].set(slope)
    both = (lower + jnp.swapaxes(lower, 1, 2)).astype(vectors.dtype)
    return jnp.einsum("bij,bjd->bid", both, vectors, preferred_element_type=jnp.float32)


def _supports(vectors: Array, *slopes: Array) -> str | None:
    kinds = {str(a.dtype) for a in (vectors, *slopes)}
    if kinds != {"float32"}:
        return f"arrays of {sorted(kinds)} must all be float32"
    return None if vectors.shape[1] and vectors.shape[2] else f"vectors of shape {list(vectors.shape)} are none"


OP = Op("pair_products", _reference, _supports, numba=pair_products_numba.products)
GRADIENT = Op("pair_products_gradient", _gradient_reference, _supports, numba=pair_products_numba.gradient)
