"""Whether ids and labels are what networks take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import Tracer

from ..errors import InteractionError


def check_ids(name: str, ids: Any, sizes: np.ndarray | Sequence[int] | int, first: int = 0) -> None:
    """Whether each id is in `[-1, size)` of its field, the last axis where `sizes` are several; a trace shows but that.

    Args:
        name: Of the array, for the message.
        ids: Whole numbers, of NumPy or JAX.
        sizes: See above.
        first: Number of the first example.

    Raises:
        InteractionError: The first that is not, with its place and what its field accepts.

    >>> check_ids("fields", np.array([[0, 3], [1, 4]]), [2, 4])
    Traceback (most recent call last):
    affinax.engine.errors.InteractionError: fields: id 4 at [1, 1] is outside [0, 4); -1 stands for a missing one
    """
    sizes = np.asarray(sizes)
    if not np.issubdtype(ids.dtype, np.integer):
        raise InteractionError(f"{name} are {ids.dtype}; ids are whole numbers")
    if sizes.ndim and (ids.ndim == 0 or ids.shape[-1] != len(sizes)):
        raise InteractionError(f"{name} have shape {list(ids.shape)}; the last axis must be of {len(sizes)} fields")
    if isinstance(ids, Tracer):
        return
    ids = np.asarray(ids)
    bad = (ids < -1) | (ids >= sizes)
    if bad.any():
        place = np.unravel_index(int(np.argmax(bad)), ids.shape)
        size = sizes[place[-1]] if sizes.ndim else sizes
        raise InteractionError(
            f"{name}: id {ids[place]}{_where(place, first)} is outside [0, {size}); -1 stands for a missing one"
        )


def check_range(name: str, numbers: np.ndarray, least: float, greatest: float, first: int = 0) -> None:
    """Whether each number is finite, and in `[least, greatest]`.

    Raises:
        InteractionError: The first that is not, with its place.

    >>> check_range("labels", np.array([0.0, 1.0, 5.0]), 0, 1)
    Traceback (most recent call last):
    affinax.engine.errors.InteractionError: labels: 5.0 at [2] is outside [0, 1]
    """
    bad = ~((numbers >= least) & (numbers <= greatest))
    if bad.any():
        place = np.unravel_index(int(np.argmax(bad)), numbers.shape)
        raise InteractionError(f"{name}: {numbers[place]}{_where(place, first)} is outside [{least}, {greatest}]")


def _where(place: tuple[np.intp, ...], first: int) -> str:
    return f" at {[int(place[0]) + first, *map(int, place[1:])]}" if place else ""
