"""The k best of many scores in `jax.numpy`: what the references of retrieval share."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

_TILE = 64


def best_of_rows(scores: Float[Array, "rows n"], k: int) -> tuple[Int32[Array, "rows k"], Float[Array, "rows k"]]:
    """`(places, scores)` of the k highest of each row, best first, equal ones by lower place.

    Where a row has fewer than k scores above -inf, the rest is place -1 and score -inf. NaN must not be among them.

    >>> places, best = best_of_rows(jnp.array([[2.0, -jnp.inf, 2.0, 3.0]]), 4)
    >>> places.tolist(), best.tolist()
    ([[3, 0, 2, -1]], [[3.0, 2.0, 2.0, -inf]])
    """
    n = scores.shape[1]
    kept = min(k, n)
    if n <= _TILE * kept:
        best, places = lax.top_k(scores, kept)
    else:
        ways = {"cpu": lambda scores: tuple(lax.top_k(scores, kept)), "default": lambda scores: by_tiles(scores, kept)}
        best, places = lax.platform_dependent(scores, **ways)
    padding = [(0, 0), (0, k - kept)]
    best = jnp.pad(best, padding, constant_values=-jnp.inf)
    places = jnp.pad(places.astype(jnp.int32), padding, constant_values=-1)
    return jnp.where(best == -jnp.inf, -1, places), best


def by_tiles(scores, k: int):
    """The k best lie within the k tiles of the highest maxima: an accelerator sorts those alone, not whole rows."""
    rows, n = scores.shape
    n_tiles = -(-n // _TILE)
    tiles = jnp.pad(scores, [(0, 0), (0, n_tiles * _TILE - n)], constant_values=-jnp.inf).reshape(rows, n_tiles, _TILE)
    # In rising order, so that equal scores still go by lower place.
    chosen = jnp.sort(lax.top_k(jnp.max(tiles, axis=-1), k)[1], axis=1)
    best, where = lax.top_k(jnp.take_along_axis(tiles, chosen[:, :, None], axis=1).reshape(rows, -1), k)
    return best, jnp.take_along_axis(chosen, where // _TILE, axis=1) * _TILE + where % _TILE
