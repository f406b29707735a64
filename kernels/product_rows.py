"""Tables whose rows are put together from a few parts that all rows choose among."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ProductRows:
    """A table by rows: part p of row i is `centroids[p, codes[i, p]]`.

    Always true:

    - `codes` is uint8 `[n, parts]`, or uint16 or uint32 where there are more, below the number of centroids of a part.
    - `centroids` is `[parts, n_codes, width / parts]`, finite.
    - `exact` is float32 `[n, columns]`: further columns as they are, such as biases.

    It is indexed as `QuantizedRows` are.
    """

    codes: Array
    centroids: Float[Array, "parts n_codes width"]
    exact: Float[Array, "n columns"]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the table, exact columns included."""
        parts, _, width = self.centroids.shape
        return self.codes.shape[0], parts * width + self.exact.shape[1]

    @property
    def nbytes(self) -> int:
        """Of all its arrays."""
        return self.codes.nbytes + self.centroids.nbytes + self.exact.nbytes

    def __getitem__(self, index: Any) -> Any:
        if index is ...:
            return self
        if isinstance(index, slice):
            return replace(self, codes=self.codes[index], exact=self.exact[index])
        return _put_together(self, checked_index(index, self.shape[0]))

    def floats(self) -> Float[Array, "n columns"]:
        """The table that it stands for; differentiable in the centroids."""
        return self[jnp.arange(self.shape[0], dtype=jnp.int32)]

    def with_columns(self, columns: Float[Array, "n more"]) -> ProductRows:
        """With further exact columns behind."""
        return replace(self, exact=jnp.concatenate([self.exact, columns], axis=1))


@functools.partial(jax.jit, inline=True)
def _put_together(rows: ProductRows, index: Array) -> Array:
    codes, each = rows.codes[index].astype(jnp.int32), jnp.arange(rows.codes.shape[1], dtype=jnp.int32)
    parts = rows.centroids[jnp.broadcast_to(each, codes.shape), codes]
    return jnp.concatenate([parts.reshape(*codes.shape[:-1], -1), rows.exact[index]], axis=-1)


def checked_index(index: Any, n: int) -> Array:
    """Ids of rows: IndexError for a whole number beyond them, TypeError for what is none."""
    if isinstance(index, int | np.integer) and not isinstance(index, bool) and not -n <= index < n:
        raise IndexError(f"row {index} of {n}")
    ids = None if isinstance(index, tuple) else jnp.asarray(index)
    if ids is None or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"rows are chosen by ids, a slice or ..., and not by {index!r}")
    return ids
