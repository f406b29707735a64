"""Matrices of dense layers in bytes and half bytes, and products with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from . import int8
from .half_bytes import unpacked
from .product_rows import ProductRows
from .quantized_rows import QuantizedRows, to_bytes

Activations = Literal["float", "dynamic", "static"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class QuantizedKernel:
    """The W of `x W`, by the rows of its transpose, so that each output has a scale of its own.

    Always true:

    - `rows` is `[n_out, n_in]`, without exact columns.
    - `activations` is what x is multiplied as: "float" numbers; bytes, "dynamic" by the greatest of each row of x or
      "static" by `reach`, with which codes have to be int8 or int4.
    - `reach` is the greatest number that a code of x stands for, float32 `[]` above 0; None unless "static". What is
      beyond it counts as it.
    """

    rows: QuantizedRows
    reach: Float[Array, ""] | None = None
    activations: Activations = field(default="float", metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """Of W."""
        return self.rows.shape[1], self.rows.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all its arrays."""
        return self.rows.nbytes + (0 if self.reach is None else self.reach.nbytes)

    def __getitem__(self, index: object) -> QuantizedKernel:
        if index is not ...:
            raise TypeError(f"a quantized kernel has no part {index!r}; floats() gives its numbers")
        return self

    def floats(self) -> Float[Array, "n_in n_out"]:
        """The W that it stands for."""
        return self.rows.floats().T

    def product(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """`x W`, float32; sums of products of bytes are exact, in int32.

        The gradient in x is that of the numbers: rounding passes it on, but for what is beyond `reach`.

        Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference"; the gradient, Bengio, Léonard, Courville 2013, "Estimating or Propagating Gradients Through
        Stochastic Neurons for Conditional Computation".
        """
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).astype(jnp.float32)
        if self.activations == "float":
            found = jnp.matmul(flat, self.floats(), precision=lax.Precision.HIGHEST)
        else:
            found = _of_bytes(flat, self)
        return found.reshape(*x.shape[:-1], self.shape[1])


@jax.custom_vjp
def _of_bytes(x: Array, kernel: QuantizedKernel) -> Array:
    rows = kernel.rows
    if kernel.reach is None:
        codes, scales = to_bytes(x)
    else:
        scale = kernel.reach / 127
        codes = jnp.clip(jnp.rint(x / scale), -127, 127).astype(jnp.int8)
        scales = jnp.where(jnp.isnan(x).any(axis=1), jnp.nan, scale)  # of which no byte tells
    sums = int8.product(codes, unpacked(rows.codes, rows.width))
    found = sums.astype(jnp.float32) * scales[:, None] * rows.scales.astype(jnp.float32)[None, :]
    if rows.offsets is not None:
        totals = jnp.sum(codes, axis=1, dtype=jnp.int32).astype(jnp.float32) * scales
        found += totals[:, None] * rows.offsets[None, :]
    return found


def _of_bytes_forward(x: Array, kernel: QuantizedKernel) -> Any:
    return _of_bytes(x, kernel), (x, kernel)


def _of_bytes_backward(saved: Any, slope: Array) -> Any:
    x, kernel = saved
    found = jnp.matmul(slope, kernel.floats().T, precision=lax.Precision.HIGHEST)
    return found if kernel.reach is None else jnp.where(jnp.abs(x) <= kernel.reach, found, 0.0), None


_of_bytes.defvjp(_of_bytes_forward, _of_bytes_backward)


def is_quantized(leaf: object) -> bool:
    """Whether it is an array in fewer bits."""
    return isinstance(leaf, ProductRows | QuantizedKernel | QuantizedRows)
