"""Steps of `fit`, jitted, and several of them in one call where each takes a batch.

Between two calls the device waits for Python, which finds its own memory gone from the caches and takes as long for it
as a small model for a tenth of its step or more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from ..errors import InteractionError
from .algorithm import Algorithm, Info

_AT_ONCE = 8  # batches in a call, at most
_BYTES = 1 << 22  # that they may have, for they lie in memory twice
_LONG = 0.1  # seconds that a call of several steps should take at most, after which progress is shown

_Step = Callable[..., tuple[Any, Info]]
_Call = Callable[..., tuple[list[Any], Info, Any]]


class Steps:
    """Takes steps of an algorithm, one after the other.

    Args:
        algorithm: Whose step it is.
        keys: Of the steps from `first` on.
        first: The number of the first step.
        structure: Of the states, which are given as their leaves.
        like: What a step takes.
    """

    def __init__(self, algorithm: Algorithm, keys: Array, first: int, structure: Any, like: Any):
        # As plain numbers: an array of keys gives them out more slowly than a small step takes.
        kind = str(jax.random.key_impl(keys)) if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else None
        self._words = np.asarray(keys if kind is None else jax.random.key_data(keys))
        self._first = first
        if algorithm.batches is None:
            self._most, make = 1, _by_all
        else:
            n_bytes = sum(getattr(leaf, "nbytes", 8) for leaf in jax.tree.leaves(like))
            self._most, make = max(1, min(_AT_ONCE, _BYTES // max(n_bytes, 1))), _by_batches
        self._call = make(algorithm.step, kind, structure)

    def in_a_call(self, most: int, seconds: list[float]) -> int:
        """How many steps to take at once, up to `most`, after steps that took so long."""
        return max(1, min(most, self._most, int(_LONG / seconds[-1]))) if seconds else 1

    def take(self, leaves: list[Any], number: int, data: list[Any]) -> tuple[list[Any], Info]:
        """Takes a step by each of the data, the first of this number, until one is not finite.

        Returns:
            The state after the last step, or before the one that is not finite; and of each step, in front, its info.
        """
        # What is missing to as many as the program takes is filled up by the last.
        rows = np.minimum(np.arange(self._most), len(data) - 1)
        words, filled = self._words[number - self._first + rows], [data[row] for row in rows]
        leaves, info, taken = self._call(words, leaves, filled, np.int32(len(data)))
        taken = int(taken)
        return leaves, jax.tree.map(lambda a: np.asarray(a)[:taken], info)


@functools.lru_cache(maxsize=32)
def _by_all(step: _Step, kind: str | None, structure: Any) -> _Call:
    """A step that takes all the data, which leaves a state as it is that would not be finite.

    Of states it takes the leaves, of keys of this kind the numbers. Kept, so that another fit by the same step compiles
    nothing: the numbers of an algorithm are in its state.

    Returns:
        `call(words, leaves, data, count) -> (leaves, info, taken)`: of one step, with an axis for it in front.
    """

    def call(words, leaves, data, count):
        new, info = _one(step, kind, structure, words[0], leaves, data[0])
        new = jax.tree.map(lambda a, b: jnp.where(_good(info), a, b), new, leaves)
        return new, jax.tree.map(lambda a: a[None], info), count

    return jax.jit(call, donate_argnums=1)


@functools.lru_cache(maxsize=32)
def _by_batches(step: _Step, kind: str | None, structure: Any) -> _Call:
    """As many steps as it is told, up to the number of batches given, or to the first that is not finite.

    One program for all counts, so that results do not depend on what is taken together.

    Returns:
        As that of `_by_all`; of `info` the first `taken` count.
    """

    def call(words, leaves, batches, count):
        given = words, _stacked(batches)
        n = len(batches)
        infos = Info(jnp.zeros(n), jnp.zeros((n, 2), jnp.int32), jnp.zeros((n, 2), jnp.int32))

        def more(carry):
            taken, good, _, _ = carry
            return good & (taken < count)

        def one(carry):
            taken, _, leaves, infos = carry
            word, batch = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, taken, keepdims=False), given)
            leaves, info = _one(step, kind, structure, word, leaves, batch)
            infos = jax.tree.map(lambda of_all, own: of_all.at[taken].set(own), infos, info)
            return taken + 1, _good(info), leaves, infos

        start = jnp.int32(0), jnp.bool_(True), leaves, infos
        taken, _, leaves, infos = lax.while_loop(more, one, start)
        return leaves, infos, taken

    return jax.jit(call, donate_argnums=1)


def _stacked(batches: list[Any]) -> Any:
    shapes = [jax.tree.map(jnp.shape, batch) for batch in batches]
    for other in shapes:
        if other != shapes[0]:
            raise InteractionError(
                f"a batch has arrays of the shapes {other}, another {shapes[0]}; all batches must have the same: "
                "fill a short one up, and mask what fills it"
            )
    return jax.tree.map(lambda *parts: jnp.stack(parts), *batches)


def _one(step, kind, structure, words, leaves, data):
    key = words if kind is None else jax.random.wrap_key_data(words, impl=kind)
    new, info = step(key, jax.tree.unflatten(structure, leaves), data)
    new, after = jax.tree.flatten(new)
    if after != structure:
        raise TypeError(f"a step must give a state of the structure that it was given: {after} is not {structure}")
    return new, info


def _good(info: Info) -> Array:
    return jnp.isfinite(info.loss) & jnp.all(info.nonfinite == 0)
