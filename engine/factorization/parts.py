"""What the factorization algorithms share: first rows, checks of parameters, and the report of a step."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from ...kernels.csr import SparseMatrix
from .algorithm import Info


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: PRNGKeyArray, shape: tuple[int, int], scale: float) -> Array:
    return scale * jax.random.normal(key, shape, jnp.float32)


def random_rows(key: PRNGKeyArray, data: SparseMatrix, rank: int, std: float) -> tuple[Array, Array]:
    """Normal rows of both sides with standard deviation `std / sqrt(rank)`."""
    scale = std / math.sqrt(rank)
    user_key, item_key = jax.random.split(key)
    n_users, n_items = data.shape
    return _normal(user_key, (n_users, rank), scale), _normal(item_key, (n_items, rank), scale)


def info_of(loss: Array, users: Array, items: Array) -> Info:
    """The report of a step: its loss, and which rows are not finite."""
    bad = [~jnp.all(jnp.isfinite(rows), axis=-1) for rows in (users, items)]
    counts = jnp.stack([jnp.sum(b, dtype=jnp.int32) for b in bad])
    first = jnp.stack([jnp.argmax(b).astype(jnp.int32) for b in bad])
    return Info(loss, counts, jnp.where(counts > 0, first, -1))


def scalar(number: Any) -> Float[Array, ""]:
    """A float32 scalar, traced or not."""
    return jnp.asarray(number, jnp.float32)


def require_at_least(bound: int, **parameters: Any) -> None:
    """Checks parameters where they are concrete; a traced one is the caller's business."""
    for name, value in parameters.items():
        if isinstance(value, Tracer):
            continue
        array = np.asarray(value, np.float64)
        if not np.all(np.isfinite(array) & (array >= bound)):
            raise ValueError(f"{name}={value} must be finite and at least {bound}")


def require_whole(bound: int, **parameters: Any) -> None:
    """Checks numbers that say how many there are of something."""
    for name, value in parameters.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < bound:
            raise ValueError(f"{name}={value!r} must be a whole number and at least {bound}")


def check_shape_parameters(rank: int, init_std: float) -> None:
    """Refuses a rank below 1 and a standard deviation below 0."""
    require_at_least(1, rank=rank)
    require_at_least(0, init_std=init_std)
