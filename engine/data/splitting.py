"""Train and test parts. Each function says what may leak, and keeps the indices of users and items."""

from __future__ import annotations

import numpy as np

from ...kernels import csr
from ..errors import InteractionError
from .interactions import Interactions


def split_random(x: Interactions, test_fraction: float = 0.2, seed: int = 0) -> tuple[Interactions, Interactions]:
    """A random share of the interactions goes to the test part.

    Leaks: time. The training part holds interactions later than the test part's, which real use never has.
    For rating prediction, where published numbers are made so.

    Args:
        x: Interactions.
        test_fraction: In (0, 1); `round(test_fraction * nnz)` interactions are tested, at least one.
        seed: Of NumPy's generator.

    Raises:
        InteractionError: A part would be empty.
        ValueError: The fraction is out of range.
    """
    check_fraction("test_fraction", test_fraction)
    n_test = max(1, round(test_fraction * x.nnz))
    test = np.zeros(x.nnz, bool)
    test[np.random.default_rng(seed).permutation(x.nnz)[:n_test]] = True
    return _parts(x, test, f"split at random, seed {seed}")


def split_leave_last(x: Interactions, n: int = 1) -> tuple[Interactions, Interactions]:
    """The last `n` interactions of every user with more than `n` go to the test part.

    Leaks: across users. One user's training part may be later than another's test part, so popularity from the
    future is seen; within a user nothing is. Ties: among equal timestamps the higher item index counts as later,
    so the outcome does not depend on the order of the input. Users with `n` or fewer stay in training.

    Args:
        x: Interactions with timestamps.
        n: How many to leave out, at least 1.

    Raises:
        InteractionError: No timestamps, or no user has more than `n` interactions.
        ValueError: `n` below 1.
    """
    if n < 1:
        raise ValueError(f"{n=} must be at least 1")
    times = _timestamps(x, 'split_leave_last (or split("leave-last"))')
    order = csr.stable_order(x.users, x.indptr, np.argsort(times, kind="stable"))  # by user, time, item
    counts = np.diff(x.indptr)
    from_end = np.repeat(x.indptr[1:], counts) - np.arange(x.nnz)  # 1 for the last of each user
    test = np.zeros(x.nnz, bool)
    test[order] = (from_end <= n) & np.repeat(counts > n, counts)
    return _parts(x, test, f"last {n} of each user")


def split_at_time(x: Interactions, fraction: float = 0.2) -> tuple[Interactions, Interactions]:
    """All interactions after one moment go to the test part: the split that is closest to real use.

    Leaks: nothing. Interactions at the very moment of the cut stay in training, so that equal times never fall
    on both sides: at most `max(1, round(fraction * nnz))` are tested. Users and items seen only after the cut stay in
    the test part, where metrics count them apart.

    Args:
        x: Interactions with timestamps.
        fraction: Share of the interactions to test, in (0, 1).

    Raises:
        InteractionError: No timestamps, or so many equal ones that a part would be empty.
        ValueError: The fraction is out of range.
    """
    check_fraction("fraction", fraction)
    times = _timestamps(x, 'split_at_time (or split("time"))')
    n_train = min(max(1, x.nnz - round(fraction * x.nnz)), x.nnz - 1) if x.nnz > 1 else 1
    cut = np.partition(times, n_train - 1)[n_train - 1]
    return _parts(x, times > cut, f"split at time {cut}")


def _parts(x: Interactions, test: np.ndarray, note: str) -> tuple[Interactions, Interactions]:
    for part, size in (("training", (~test).sum()), ("test", test.sum())):
        if size == 0:
            raise InteractionError(f"{note}: the {part} part is empty ({x.nnz} interactions)")
    return x.select(~test, note=f"training part, {note}"), x.select(test, note=f"test part, {note}")


def _timestamps(x: Interactions, need: str) -> np.ndarray:
    if x.timestamps is None:
        raise InteractionError(f'{need} needs timestamps, and these interactions have none; split("random") needs none')
    return x.timestamps


def check_fraction(name: str, value: float) -> None:
    """Raises ValueError where it is not between 0 and 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name}={value} must be in (0, 1)")
