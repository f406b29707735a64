"""What attention by blocks of places shares among accelerators: how its arrays lie, and the slopes of its scores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

FARTHEST = float(jnp.finfo(jnp.float32).min)


class Blocks:
    """Shapes of one call: heads are the first axis, and lengths are whole blocks of `size` places."""

    def __init__(self, queries: jax.Array, size: int, causal: bool, activation: str):
        self.batch, self.length, self.heads, width = queries.shape
        self.size = size
        self.padding = -self.length % size
        self.blocks = (self.length + self.padding) // size
        self.static: dict[str, Any] = {"causal": causal, "activation": activation, "size": size, "blocks": self.blocks}
        self.static |= {"length": self.length, "scale": width**-0.5}

    def by_head(self, array: jax.Array, columns: int = 1) -> jax.Array:
        """`[batch x heads, length, width]`, padded with zeros to whole blocks and a multiple of `columns`."""
        rows = jnp.swapaxes(array, 1, 2).reshape(-1, self.length, array.shape[-1])
        return jnp.pad(rows, ((0, 0), (0, self.padding), (0, -array.shape[-1] % columns)))

    def by_place(self, rows: jax.Array, width: int | None = None) -> jax.Array:
        """The inverse, of the first `width` columns."""
        cut = rows[:, : self.length, :width].reshape(self.batch, self.heads, self.length, -1)
        return jnp.swapaxes(cut, 1, 2)

    def of_places(self, segments: jax.Array) -> jax.Array:
        """`[batch, length]`, padded with places of no segment."""
        return jnp.pad(segments, ((0, 0), (0, self.padding)), constant_values=-1)

    def numbers_of_slopes(self, logs: jax.Array, out: jax.Array, slope: jax.Array) -> list[jax.Array]:
        """`[batch x heads, length]` each: the logarithms of sums, and the products of what was found with its slope."""
        products = jnp.einsum("blhd,blhd->bhl", out, slope, preferred_element_type=jnp.float32)
        return [jnp.pad(a.reshape(-1, self.length), ((0, 0), (0, self.padding))) for a in (logs, products)]

    def by_row(self, numbers: jax.Array) -> jax.Array:
        """`[batch, heads, length]` of one for each row."""
        return numbers[:, : self.length].reshape(self.batch, self.heads, self.length)


def slopes_of_scores(scores, allowed, of_weights, logs, products, activation, length):
    """The weights, and the gradient of the scores from that of the weights; all of one shape, or broadcast."""
    if activation == "softmax":
        weights = jnp.where(allowed, jnp.exp(jnp.where(allowed, scores - logs, 0.0)), 0.0)
        return weights, weights * (of_weights - products)
    share = jax.nn.sigmoid(scores)
    weights = jnp.where(allowed, scores * share / length, 0.0)
    return weights, jnp.where(allowed, of_weights * share * (1 + scores * (1 - share)) / length, 0.0)
