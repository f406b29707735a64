"""Minibatches: cut on the host by Numba, the same for the same seed and step, on a thread ahead of the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ...kernels import sampling
from ..data.interactions import Interactions, not_interactions
from ..errors import InteractionError
from .checking import check_ids, check_range
from .histories import earlier_items, other_items

Seed = np.ndarray  # uint32 [2]
_ORDER, _NEGATIVES, _HISTORY = 0, 1, 2  # what a seed is drawn for
_CHECKED = 1 << 20  # examples at a time


class Batches(NamedTuple):
    """What cuts minibatches out of data.

    The examples of one epoch follow those of the other without a gap: every batch has the same shape, and in the course
    of epochs every example comes equally often. Batch n depends on nothing but the seed and n, so that training goes on
    anywhere as if it had come from the start.

    Attributes:
        make: `make(step)`, counted from 1: a pytree of NumPy arrays. It may run on another thread, one call at a time.
        size: Examples in a batch.
        examples: Examples in an epoch.
    """

    make: Callable[[int], Any]
    size: int
    examples: int

    def steps(self, epochs: int | float) -> int:
        """Batches in so many epochs, the last one full."""
        return -int(-epochs * self.examples // self.size)


def example_batches(
    batch_size: int,
    *,
    sizes: Mapping[str, int | Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Callable[[Mapping[str, np.ndarray], Seed], Batches]:
    """Batches of labelled examples, in a random order of each epoch.

    Args:
        batch_size: Examples in each.
        sizes: How many ids an array may have, or each of its columns: it is checked once whether all are in
            `[-1, size)`, -1 being a missing one.
        ranges: The least and the greatest number that an array may have, such as `{"labels": (0, 1)}`: checked once.

    Returns:
        A function of the data, arrays `[n, ...]` by name, which may be memory-mapped, and a seed, for
        `gradient`. A batch has the same names.

    Raises:
        InteractionError: Arrays of unequal length, fewer examples than a batch takes, or what `sizes` and `ranges` do
            not allow; the message has the first place.

    >>> data = {"fields": np.arange(8).reshape(4, 2), "labels": np.array([0.0, 1.0, 2.0, 3.0])}
    >>> batches = example_batches(2)(data, np.array([0, 7], np.uint32))
    >>> sorted(batches.make(1)["labels"].tolist() + batches.make(2)["labels"].tolist())
    [0.0, 1.0, 2.0, 3.0]
    """

    def cut(data: Mapping[str, np.ndarray], seed: Seed) -> Batches:
        if not isinstance(data, Mapping) or not data:
            raise InteractionError(f"examples must be arrays by name; got {type(data).__name__}")
        unknown = sorted({*(sizes or {}), *(ranges or {})} - data.keys())
        if unknown:
            raise InteractionError(f"there is no array {unknown[0]!r} among the examples; there are {sorted(data)}")
        lengths = {name: len(array) for name, array in data.items()}
        n = next(iter(lengths.values()))
        if len(set(lengths.values())) > 1:
            raise InteractionError(f"examples of unequal number: {lengths}")
        for first in range(0, n, _CHECKED):  # of memory-mapped arrays no more than that lies in memory
            for name, of in (sizes or {}).items():
                check_ids(name, data[name][first : first + _CHECKED], of, first)
            for name, (least, greatest) in (ranges or {}).items():
                check_range(name, data[name][first : first + _CHECKED], least, greatest, first)
        order = shuffled(n, batch_size, seed)

        def make(step: int) -> dict[str, np.ndarray]:
            rows = order(step)
            return {
                name: array.take(rows, axis=0) for name, array in data.items()
            }  # twice as fast as indexing, or more

        return Batches(make, batch_size, n)

    return cut


def pair_batches(
    batch_size: int,
    *,
    negatives: int = 0,
    popularity: float = 0.0,
    verify: bool = True,
    history: Literal["earlier", "others"] | None = None,
    length: int = 50,
) -> Callable[[Interactions, Seed], Batches]:
    """Batches of interactions, each with negatives and a history of its own.

    Args:
        batch_size: Interactions in each.
        negatives: How many for each interaction.
        popularity: They are drawn by `count ** popularity`; 0 is uniform.
        verify: Whether what the user met is no negative.
        history: What else its user met: "earlier", the last before it, or "others", whenever; see `histories`.
        length: Of the histories.

    Returns:
        A function of `Interactions` and a seed, for `gradient`. A batch has `users [b]`, `items [b]`, and where there
        are any `values [b]`, `negatives [b, m]`, -1 where none was found, and `history [b, length]`, padded with -1.

    Raises:
        InteractionError: Fewer interactions than a batch takes, or earlier ones without timestamps.
        TypeError: Something else than `Interactions`.

    >>> x = Interactions.from_coo([0, 0, 1], [0, 1, 2])
    >>> batch = pair_batches(3, negatives=1)(x, np.array([0, 7], np.uint32)).make(1)
    >>> {name: array.shape for name, array in batch.items()}
    {'users': (3,), 'items': (3,), 'negatives': (3, 1)}
    """
    if negatives < 0 or (history is not None and length < 1):
        raise ValueError(f"{negatives=} must be at least 0 and {length=} at least 1")
    if history not in (None, "earlier", "others"):
        raise ValueError(f'{history=} must be "earlier", "others" or None')

    def cut(data: Interactions, seed: Seed) -> Batches:
        if not isinstance(data, Interactions):
            raise TypeError(not_interactions("fit", data))
        if history == "earlier" and data.timestamps is None:
            raise InteractionError('history="earlier" needs timestamps, and these interactions have none; try "others"')
        order = shuffled(data.nnz, batch_size, seed)
        users = data.users
        weights = np.bincount(data.items, minlength=data.n_items) ** popularity if popularity else None
        met = (data.indptr.astype(np.int32), data.items) if negatives and verify else None
        draw = sampling.host_negatives(data.n_items, negatives, positives=met, weights=weights)
        earlier = earlier_items(data, length) if history == "earlier" else None
        others = other_items(data, length) if history == "others" else None

        def make(step: int) -> dict[str, np.ndarray]:
            rows = order(step)
            batch = {"users": users[rows], "items": data.items[rows]}
            if data.values is not None:
                batch["values"] = data.values[rows]
            if negatives:
                batch["negatives"] = draw(seed_for(seed, _NEGATIVES, step), batch["users"])
            if earlier is not None:
                batch["history"] = earlier(rows)
            if others is not None:
                batch["history"] = others(seed_for(seed, _HISTORY, step), rows)
            return batch

        return Batches(make, batch_size, data.nnz)

    return cut


def shuffled(n: int, batch_size: int, seed: Seed) -> Callable[[int], np.ndarray]:
    """A function of the step: the rows of its batch, from a random order of `n` for each epoch.

    Raises:
        InteractionError: `n` is less than `batch_size`, which must be at least 1.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"{batch_size=} must be a whole number and at least 1")
    if batch_size > n:
        raise InteractionError(f"{batch_size=} is more than the {n:,} examples there are; {n} or less is accepted")
    orders: dict[int, np.ndarray] = {}

    def order_of(epoch: int) -> np.ndarray:
        if epoch not in orders:
            orders.pop(epoch - 2, None)
            orders[epoch] = sampling.host_permutation(seed_for(seed, _ORDER, epoch), n)
        return orders[epoch]

    def rows(step: int) -> np.ndarray:
        epoch, place = divmod((step - 1) * batch_size, n)
        found = order_of(epoch)[place : place + batch_size]
        if len(found) < batch_size:
            found = np.concatenate([found, order_of(epoch + 1)[: batch_size - len(found)]])
        return found

    return rows


def seed_for(seed: Seed, purpose: int, number: int) -> Seed:
    """A seed of its own for the `number`-th thing of one purpose."""
    return np.random.SeedSequence([*np.asarray(seed).tolist(), purpose, number]).generate_state(2)
