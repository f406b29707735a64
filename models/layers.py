"""What the networks are made of: one table for all fields, dense layers, dropout by explicit keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..engine.compression.parameters import is_whole
from ..engine.training.checking import check_ids
from ..kernels.csr import CSR
from ..kernels.dense import network
from ..kernels.embedding import bag, lookup
from ..kernels.op import Implementation
from ..kernels.quantized_kernel import QuantizedKernel, is_quantized
from ..kernels.quantized_rows import Table

Initializer = Callable[..., Array]  # (key, shape, dtype)
Sharing = tuple[Literal["hashed", "quotient"], int]
_ROWS = 64  # tables have a multiple of it, so that a mesh can share them evenly


class FieldEmbedding(nnx.Module):
    """A vector for each id of each field, all of them in one table.

    An id of -1 is a missing one, whose vector is 0.

    Args:
        sizes: How many ids each field has: `[0, size)`.
        width: Of the vectors.
        init_std: Standard deviation of the first ones, or that of each field.
        sharing: How ids share rows, and how many times fewer these are: ("hashed", 16), where those whose remainders by
            the number of rows are the same have the same vector; or ("quotient", 16), where a vector is the product of
            one for this remainder and one for the quotient, so that no two are the same. Fields of few ids share none.
        dtype: Of the vectors that it gives; that of the table if None.
        param_dtype: Of the table.
        implementation: See `kernels.op.dispatch`; "reference" where a mesh shares the table.
        rngs: Random numbers.

    Raises:
        ValueError: No field, or one of no ids; not as many `init_std` as fields; or an unknown way of sharing.

    Source: of sharing, Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning"; Shi et al. 2020,
    "Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation Systems".

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
        sharing: Sharing | None = None,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if width < 1:
            raise ValueError(f"{width=} must be at least 1")
        if not len(sizes) or min(sizes) < 1:
            raise ValueError(f"{sizes=} must name one field or more, each with an id or more")
        if any(size != int(size) for size in sizes):
            raise ValueError(f"{sizes=} must be whole numbers")
        self.sizes = tuple(int(size) for size in sizes)
        self.dtype = dtype
        self.implementation: Implementation = implementation
        self.sharing = checked_sharing(sharing)
        self.rows_of = tuple(_rows_of(size, self.sharing) for size in self.sizes)
        n_rows = -(-sum(map(sum, self.rows_of)) // _ROWS) * _ROWS
        if np.shape(init_std) not in ((), (len(self.sizes),)):
            raise ValueError(f"{init_std=} must be one number, or one for each of the {len(self.sizes)} fields")
        std = np.repeat(np.broadcast_to(np.asarray(init_std, np.float32), len(self.sizes)), [*map(sum, self.rows_of)])
        std = np.pad(std, (0, n_rows - len(std)))
        # What vectors are multiplied with begins near 1.
        factor = np.concatenate([np.arange(sum(rows)) >= rows[0] for rows in self.rows_of])
        factor = np.pad(factor, (0, n_rows - len(factor)))
        std, mean = (jnp.asarray(a[:, None], param_dtype) for a in (np.where(factor, 0.1, std), factor))
        self.table = nnx.Param(mean + std * jax.random.normal(rngs.params(), (n_rows, width), param_dtype))

    def __call__(self, ids: Int[Array, "*batch n_fields"]) -> Float[Array, "*batch n_fields width"]:
        """Vectors of the fields.

        Raises:
            InteractionError: An id that its field does not have, where ids are concrete; in a trace its vector is NaN.
        """
        return self._vectors(ids, slice(None))

    def of_field(self, field: int, ids: Int[Array, "*batch"]) -> Float[Array, "*batch width"]:
        """Vectors of ids of one field; see `__call__`."""
        return self._vectors(ids, field)

    def whole_field(self, field: int) -> Table:
        """Vectors of all ids of one field: rows of the table, as they are stored, where none are shared."""
        if self.sharing is not None:
            return self.of_field(field, jnp.arange(self.sizes[field], dtype=jnp.int32))
        first = sum(self.sizes[:field])
        return self.table[...][first : first + self.sizes[field]]

    def set_field(self, field: int, vectors: Float[Array, "n width"]) -> None:
        """Sets the vectors of all ids of one field.

        Raises:
            ValueError: Not a row for each id, or ids that share rows or whose rows are quantized.
        """
        if self.sharing is not None or is_quantized(self.table[...]):
            how = "is quantized" if self.sharing is None else f"has sharing={self.sharing}"
            raise ValueError(f"the table {how}: its ids have no vectors of their own that could be set")
        table, first, expected = self.table[...], sum(self.sizes[:field]), (self.sizes[field], self.table.shape[1])
        if vectors.shape != expected:
            found = f"{list(vectors.shape)} and must be {list(expected)}"
            raise ValueError(f"vectors are {found}: a row for each id of the field")
        self.table[...] = table.at[first : first + len(vectors)].set(vectors.astype(table.dtype))

    def means_of_field(self, field: int, rows: CSR) -> Float[Array, "n_rows width"]:
        """Means of the vectors of ids of one field, those in each row."""
        check_ids("ids", rows.indices, np.asarray(self.sizes[field]))
        if self.sharing is None:
            table, first = self.table[...], sum(self.sizes[:field])
            nobody = jnp.where(rows.indices < 0, -1, table.shape[0])
            inside = (rows.indices >= 0) & (rows.indices < self.sizes[field])
            rows = rows._replace(indices=jnp.where(inside, first + rows.indices, nobody))
        else:
            table = self.whole_field(field)
        return bag(table, rows, mode="mean", implementation=self.implementation)

    def _vectors(self, ids: Any, fields: int | slice) -> Array:
        sizes = np.asarray(self.sizes)[fields]
        check_ids("ids", ids, sizes)
        ids = jnp.asarray(ids, jnp.int32)
        counts, ends = np.asarray(self.rows_of), np.cumsum(np.asarray(self.rows_of).reshape(-1)).reshape(-1, 2)
        one, more = (a[fields].astype(np.int32) for a in counts.T)
        first, second = (a[fields].astype(np.int32) for a in (ends - counts).T)
        shape = (1,) * (ids.ndim - sizes.ndim) + sizes.shape
        one, more, first, second, sizes = (a.reshape(shape) for a in (one, more, first, second, sizes.astype(np.int32)))
        n = self.table.shape[0]

        def rows(own: Array) -> Array:
            # Beyond its field an id would be another field's: beyond the table it is nobody's.
            return jnp.where(ids < 0, -1, jnp.where(ids < sizes, own, n))

        def looked_up(own: Array) -> Array:
            return lookup(self.table[...], rows(own), implementation=self.implementation)

        vectors = looked_up(first + (ids if self.sharing is None else ids % one))
        if more.any():
            factors = looked_up(jnp.where(more > 0, second + ids // one, -1))
            vectors = vectors * jnp.where((more > 0)[..., None], factors, 1.0)
        return vectors if self.dtype is None else vectors.astype(self.dtype)


def checked_sharing(sharing: Any) -> Sharing | None:
    """A way of sharing rows, or ValueError."""
    if sharing is None:
        return None
    kind, ratio = sharing if isinstance(sharing, tuple | list) and len(sharing) == 2 else (None, None)
    if kind not in ("hashed", "quotient") or not is_whole(ratio) or ratio < 2:
        raise ValueError(f'{sharing=} must be ("hashed", ratio) or ("quotient", ratio), of a whole ratio from 2 on')
    return kind, int(ratio)


def _rows_of(size: int, sharing: Sharing | None) -> tuple[int, int]:
    """Rows of a field: those that a remainder chooses from, and those that a quotient does."""
    if sharing is None or size < 8 * sharing[1]:
        return size, 0
    kind, ratio = sharing
    rows = -(-size // ratio)
    return rows, -(-size // rows) if kind == "quotient" else 0


class Linear(nnx.Module):
    """`x W + b`.

    Args:
        n_in, n_out: Widths.
        kernel_init, bias_init: Draw W and b; if None W as LeCun et al. 1998, and b is 0.
        use_bias: Whether there is a b.
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
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        start = nnx.initializers.lecun_normal() if kernel_init is None else kernel_init
        self.kernel = nnx.Param(start(rngs.params(), (n_in, n_out), param_dtype))
        start = nnx.initializers.zeros if bias_init is None else bias_init
        self.bias = nnx.Param(start(rngs.params(), (n_out,), param_dtype)) if use_bias else None
        self.n_out = n_out
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
            return found + jnp.broadcast_to(self.weights()[1], found.shape)
        return network(self._cast(x), [self.weights()], implementation=self.implementation)

    @property
    def alone(self) -> bool:
        """Whether it is computed by itself, and not fused with others: quantized, or watched."""
        return self.watch is not None or isinstance(self.kernel[...], QuantizedKernel)

    def of_parts(self, *parts: Float[Array, "*batch _"]) -> Float[Array, "*batch n_out"]:
        """That of x in parts of its columns, which nothing lays side by side: for few columns of the result."""
        if self.alone:
            return self(jnp.concatenate(parts, axis=-1))
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
        bias = jnp.zeros(self.n_out, kernel.dtype) if self.bias is None else self.bias[...]
        return self._cast(kernel), self._cast(bias)

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
        if self.fused(key):
            first = self.layers[0]
            options = {"relu_end": not self.linear_end, "implementation": first.implementation}
            return network(jnp.asarray(x, first.dtype), [linear.weights() for linear in self.layers], **options)
        for number, linear in enumerate(self.layers):
            x = linear(x)
            if number < len(self.layers) - 1 or not self.linear_end:
                x = dropped(self.activation(x), self.dropout, None if key is None else jax.random.fold_in(key, number))
        return x

    def fused(self, key: PRNGKeyArray | None) -> bool:
        """Whether all layers are one kernel: of relus, without dropout, and none computed alone."""
        alone = any(linear.alone for linear in self.layers)
        return not alone and self.activation is jax.nn.relu and (key is None or self.dropout == 0)


def side_by_side(vectors: Float[Array, "*batch n width"]) -> Float[Array, "*batch columns"]:
    """The vectors of an example as one."""
    return vectors.reshape(*vectors.shape[:-2], vectors.shape[-2] * vectors.shape[-1])


def dropped(x: Array, share: float, key: PRNGKeyArray | None) -> Array:
    """`x` with a share of its numbers 0 and the others larger, so that their expectation stays; `x` without a key.

    The share is rounded to a multiple of 1 / 65,536: so that a number takes 16 random bits.
    """
    if key is None or share == 0:
        return x
    gone = min(max(round(share * 65_536), 1), 65_535)
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= jnp.uint16(gone)
    return jnp.where(keep, x * jnp.asarray(65_536 / (65_536 - gone), x.dtype), jnp.zeros_like(x))
