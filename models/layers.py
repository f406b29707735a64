"""What the networks are made of: one table for all fields, dense layers, dropout by explicit keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..engine.training.checking import check_ids
from ..kernels.dense import network
from ..kernels.embedding import lookup
from ..kernels.op import Implementation
from ..kernels.quantized_kernel import QuantizedKernel

Initializer = Callable[..., Array]  # (key, shape, dtype)
_ROWS = 64  # tables have a multiple of it, so that a mesh can share them evenly


class FieldEmbedding(nnx.Module):
    """A vector for each id of each field, all of them in one table.

    An id of -1 is a missing one, whose vector is 0.

    Args:
        sizes: How many ids each field has: `[0, size)`.
        width: Of the vectors.
        init_std: Standard deviation of the first ones, or that of each field.
        dtype: Of the vectors that it gives; that of the table if None.
        param_dtype: Of the table.
        implementation: See `kernels.op.dispatch`; "reference" where a mesh shares the table.
        rngs: Random numbers.

    Raises:
        ValueError: No field, or one of no ids; or not as many `init_std` as fields.

    >>> fields = FieldEmbedding([3, 2], 4, rngs=nnx.Rngs(0))
    >>> fields(jnp.array([2, 1])).shape, fields(jnp.zeros((5, 2), jnp.int32)).shape
    ((2, 4), (5, 2, 4))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        width: int,
        *,
        init_std: float | Sequence[float] = 0.01,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if width < 1:
            raise ValueError(f"{width=} must be at least 1")
        if not len(sizes) or min(sizes) < 1:
            raise ValueError(f"{sizes=} must name one field or more, each with an id or more")
        self.sizes = tuple(int(size) for size in sizes)
        self.dtype = dtype
        self.implementation: Implementation = implementation
        n_rows = -(-sum(self.sizes) // _ROWS) * _ROWS
        if np.shape(init_std) not in ((), (len(self.sizes),)):
            raise ValueError(f"{init_std=} must be one number, or one for each of the {len(self.sizes)} fields")
        std = np.repeat(np.broadcast_to(np.asarray(init_std, np.float32), len(self.sizes)), self.sizes)
        std = jnp.asarray(np.pad(std, (0, n_rows - len(std)))[:, None], param_dtype)
        self.table = nnx.Param(std * jax.random.normal(rngs.params(), (n_rows, width), param_dtype))

    def __call__(self, ids: Int[Array, "*batch n_fields"]) -> Float[Array, "*batch n_fields width"]:
        """Vectors of the fields.

        Raises:
            InteractionError: An id that its field does not have, where ids are concrete; in a trace its vector is NaN.
        """
        vectors = lookup(self.table[...], self.rows(ids), implementation=self.implementation)
        return vectors if self.dtype is None else vectors.astype(self.dtype)

    def rows(self, ids: Int[Array, "*batch n_fields"]) -> Int[Array, "*batch n_fields"]:
        """Rows of the table, -1 for a missing id; see `__call__`."""
        return self._rows(ids, np.asarray(self.sizes), np.cumsum([0, *self.sizes[:-1]]))

    def of_field(self, field: int, ids: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        """Vectors of ids of one field; see `__call__`."""
        vectors = lookup(self.table[...], self.rows_of_field(field, ids), implementation=self.implementation)
        return vectors if self.dtype is None else vectors.astype(self.dtype)

    def rows_of_field(self, field: int, ids: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """Rows of ids of one field; see `rows`."""
        return self._rows(ids, np.asarray(self.sizes[field]), np.asarray(sum(self.sizes[:field])))

    def _rows(self, ids: Any, sizes: np.ndarray, first: np.ndarray) -> Array:
        check_ids("ids", ids, sizes)
        ids = jnp.asarray(ids, jnp.int32)
        shape = (1,) * (ids.ndim - sizes.ndim) + sizes.shape
        first, sizes = (a.astype(np.int32).reshape(shape) for a in (first, sizes))
        # Beyond its field an id would be another field's: beyond the table it is nobody's.
        return jnp.where(ids < 0, -1, jnp.where(ids < sizes, ids + first, self.table.shape[0]))


class Linear(nnx.Module):
    """`x W + b`.

    Args:
        n_in, n_out: Widths.
        kernel_init, bias_init: Draw W and b; if None W as LeCun et al. 1998, and b is 0.
        dtype: Of the products; that of what they are made of if None. Sums are float32.
        param_dtype: Of the weights.
        implementation: See `kernels.op.dispatch`; "reference" where a mesh shares the batch.
        rngs: Random numbers.

    >>> Linear(3, 2, rngs=nnx.Rngs(0))(jnp.ones(3)).shape
    (2,)
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        start = nnx.initializers.lecun_normal() if kernel_init is None else kernel_init
        self.kernel = nnx.Param(start(rngs.params(), (n_in, n_out), param_dtype))
        start = nnx.initializers.zeros if bias_init is None else bias_init
        self.bias = nnx.Param(start(rngs.params(), (n_out,), param_dtype))
        self.watch: Callable[[Array], None] | None = None  # is shown what the layer is given; see `layer_inputs`
        self.dtype = dtype
        self.implementation: Implementation = implementation

    def __call__(self, x: Float[Array, "*batch n_in"]) -> Float[Array, "*batch n_out"]:
        """What it is."""
        if self.watch is not None:
            self.watch(x)
        kernel = self.kernel[...]
        if isinstance(kernel, QuantizedKernel):
            found = kernel.product(x)
            found += jnp.broadcast_to(self.bias[...], found.shape)
            return found if self.dtype is None else found.astype(self.dtype)
        return network(self._cast(x), [self.weights()], implementation=self.implementation)

    @property
    def alone(self) -> bool:
        """Whether it is computed by itself, and not fused with others: quantized, or watched."""
        return self.watch is not None or isinstance(self.kernel[...], QuantizedKernel)

    def of_parts(self, *parts: Float[Array, "*batch _"]) -> Float[Array, "*batch n_out"]:
        """That of x in parts of its columns, which nothing lays side by side: for few columns of the result."""
        ends = np.cumsum([part.shape[-1] for part in parts])
        (kernel, bias), total = self.weights(), jnp.float32(0)
        for part, weights in zip(parts, jnp.split(kernel, ends[:-1]), strict=True):
            total += network(self._cast(part), [(weights, bias)], implementation=self.implementation)
            bias = jnp.zeros_like(bias)
        return total

    def weights(self) -> tuple[Array, Array]:
        """W and b as products take them."""
        kernel = self.kernel[...]
        if isinstance(kernel, QuantizedKernel):
            kernel = kernel.floats()
        return self._cast(kernel), self._cast(self.bias[...])

    def _cast(self, array: Any) -> Array:
        return jnp.asarray(array, self.dtype)


def he_normal(scale: float = 2.0) -> Initializer:
    """Weights of variance `scale` over the number of inputs: with 2 the variance stays, of which relu takes half."""
    return nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")


class Dense(nnx.Module):
    """Layers of `activation(x W + b)`, with dropout after each; the last one too, unless `linear_end`.

    Args:
        widths: Of the input and of each layer.
        activation: Between layers.
        dropout: Share of numbers that are 0 in training.
        linear_end: Whether the last layer is a product alone.
        kernel_init, bias_init: Draw the first weights of each layer; if None as He et al. 2015, and biases are 0.
        dtype, param_dtype, implementation: See `Linear`.
        rngs: Random numbers.

    >>> Dense([3, 8, 1], linear_end=True, rngs=nnx.Rngs(0))(jnp.ones(3)).shape
    (1,)
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Callable[[Array], Array] = jax.nn.relu,
        dropout: float = 0.0,
        linear_end: bool = False,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if not 0 <= dropout < 1:
            raise ValueError(f"{dropout=} must be in [0, 1)")
        start = he_normal() if kernel_init is None else kernel_init
        settings = {"kernel_init": start, "bias_init": bias_init, "implementation": implementation, "rngs": rngs}
        settings |= {"dtype": dtype, "param_dtype": param_dtype}
        self.layers = nnx.List(Linear(a, b, **settings) for a, b in itertools.pairwise(widths))
        self.activation, self.dropout, self.linear_end = activation, dropout, linear_end

    def __call__(
        self, x: Float[Array, "*batch width"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch last"]:
        """The last layer. With a key there is dropout: in training."""
        if not self.layers:
            return x
        fused = not any(linear.alone for linear in self.layers)
        if fused and self.activation is jax.nn.relu and (key is None or self.dropout == 0):
            first = self.layers[0]
            options = {"relu_end": not self.linear_end, "implementation": first.implementation}
            return network(jnp.asarray(x, first.dtype), [linear.weights() for linear in self.layers], **options)
        for number, linear in enumerate(self.layers):
            x = linear(x)
            if number < len(self.layers) - 1 or not self.linear_end:
                x = dropped(self.activation(x), self.dropout, None if key is None else jax.random.fold_in(key, number))
        return x


def dropped(x: Array, share: float, key: PRNGKeyArray | None) -> Array:
    """`x` with a share of its numbers 0 and the others larger, so that their expectation stays; `x` without a key.

    The share is rounded to a multiple of 1 / 65,536: so that a number takes 16 random bits.
    """
    if key is None or share == 0:
        return x
    gone = min(max(round(share * 65_536), 1), 65_535)
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.uint16(gone)
    return jnp.where(keep, x * jnp.asarray(65_536 / (65_536 - gone), x.dtype), jnp.zeros_like(x))
