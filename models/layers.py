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
from ..kernels.embedding import lookup
from ..kernels.op import Implementation

_ROWS = 64  # tables have a multiple of it, so that a mesh can share them evenly


class FieldEmbedding(nnx.Module):
    """A vector for each id of each field, all of them in one table.

    An id of -1 is a missing one, whose vector is 0.

    Args:
        sizes: How many ids each field has: `[0, size)`.
        width: Of the vectors.
        init_std: Standard deviation of the first ones.
        dtype: Of the vectors that it gives; that of the table if None.
        param_dtype: Of the table.
        implementation: See `kernels.op.dispatch`; "reference" where a mesh shares the table.
        rngs: Random numbers.

    Raises:
        ValueError: No field, or one of no ids.

    >>> fields = FieldEmbedding([3, 2], 4, rngs=nnx.Rngs(0))
    >>> fields(jnp.array([2, 1])).shape, fields(jnp.zeros((5, 2), jnp.int32)).shape
    ((2, 4), (5, 2, 4))
    """

    def __init__(
        self,
        sizes: Sequence[int],
        width: int,
        *,
        init_std: float = 0.01,
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
        self.table = nnx.Param(init_std * jax.random.normal(rngs.params(), (n_rows, width), param_dtype))

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


class Dense(nnx.Module):
    """Layers of `activation(x W + b)`, with dropout after each; the last one too, unless `linear_end`.

    Args:
        widths: Of the input and of each layer.
        activation: Between layers.
        dropout: Share of numbers that are 0 in training.
        linear_end: Whether the last layer is a product alone.
        dtype: Of the products; sums are float32.
        param_dtype: Of the weights.
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
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 <= dropout < 1:
            raise ValueError(f"{dropout=} must be in [0, 1)")
        # Without weights decayed by depth: relu halves the variance, which the 2 of He et al. 2015 gives back.
        start = nnx.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
        settings = {"kernel_init": start, "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.layers = nnx.List(
            nnx.Linear(a, b, preferred_element_type=jnp.float32, **settings) for a, b in itertools.pairwise(widths)
        )
        self.activation, self.dropout, self.linear_end = activation, dropout, linear_end

    def __call__(
        self, x: Float[Array, "*batch width"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch last"]:
        """The last layer. With a key there is dropout: in training."""
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number < len(self.layers) - 1 or not self.linear_end:
                x = dropped(self.activation(x), self.dropout, None if key is None else jax.random.fold_in(key, number))
        return x


def dropped(x: Array, share: float, key: PRNGKeyArray | None) -> Array:
    """`x` with a share of its numbers 0 and the others larger, so that their expectation stays; `x` without a key."""
    if key is None or share == 0:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - share, x.shape), x / (1 - share), jnp.zeros_like(x))
