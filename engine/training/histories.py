"""What a user met besides: the history of each example of a batch, cut on the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...kernels import sampling
from ..data.interactions import Interactions


def earlier_items(x: Interactions, length: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function of entries: the last `length` items that the user of each met before it, oldest first.

    What has the same time as the entry is not before it, so that nothing of the future is in a history.

    Args:
        x: With timestamps.
        length: Of the histories, which are padded with -1 on the left.

    >>> x = Interactions.from_coo([0, 0, 0], [0, 1, 2], timestamps=[5, 4, 5])
    >>> earlier_items(x, 2)(np.array([0, 1, 2])).tolist()
    [[-1, 1], [-1, -1], [-1, 1]]
    """
    by_time = _by_time(x)
    items, users = x.items[by_time], x.users
    assert x.timestamps is not None
    times = x.timestamps[by_time]
    fresh = np.ones(x.nnz, bool)
    fresh[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    # Of each place in the order, the first of those with its user and time.
    first = np.maximum.accumulate(np.where(fresh, np.arange(x.nnz), 0))
    end = np.empty(x.nnz, np.int64)
    end[by_time] = first

    def histories(entries: np.ndarray) -> np.ndarray:
        return _run_before(items, end[entries], x.indptr[users[entries]], length)

    return histories


def last_items(x: Interactions, length: int) -> np.ndarray:
    """The last `length` items of each user, `[n_users, length]`, padded with -1 on the left; oldest first if there are
    timestamps.

    >>> last_items(Interactions.from_coo([0, 0, 1], [4, 5, 0], timestamps=[2, 1, 0]), 3).tolist()
    [[-1, 5, 4], [-1, -1, 0]]
    """
    items = x.items if x.timestamps is None else x.items[_by_time(x)]
    return _run_before(items, x.indptr[1:], x.indptr[:-1], length)


def other_items(x: Interactions, length: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A function of a seed and entries: other items of the user of each, all where they fit, else random ones.

    Args:
        x: What users met.
        length: Of the histories, padded with -1. Where there are more, they are drawn with repetition.

    >>> x = Interactions.from_coo([0, 0, 0], [4, 5, 6])
    >>> other_items(x, 2)(np.array([0, 7], np.uint32), np.array([1])).tolist()
    [[4, 6]]
    """
    indptr, users = x.indptr, x.users

    def histories(seed: np.ndarray, entries: np.ndarray) -> np.ndarray:
        return sampling.host_others(seed, indptr, x.items, users[entries], entries, length)

    return histories


def _by_time(x: Interactions) -> np.ndarray:
    """Entries in order of user and time; equal times by item."""
    assert x.timestamps is not None
    return np.lexsort((x.timestamps, x.users))


def _run_before(items: np.ndarray, end: np.ndarray, begin: np.ndarray, length: int) -> np.ndarray:
    """The last `length` of `items[begin:end]`, row by row, padded with -1 on the left."""
    places = end[:, None] + np.arange(-length, 0)
    found = items[np.maximum(places, 0)]
    found[places < begin[:, None]] = -1
    return found
