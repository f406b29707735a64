"""The k best of many positive scores, each packed with its id into one number.

A positive float32 is ordered as its bits are, so that `bits << 32 | (MAX_INDEX - id)` is greater for the better of two
answers: the higher score or, among equal ones, the lower id. Whole numbers are partitioned without a branch, several
times faster than a heap of as many answers is kept.
"""

from __future__ import annotations

import numba
import numpy as np

_MAX_INDEX = 2**31 - 1
_FEW = 16  # numbers that are sorted by insertion


@numba.njit(cache=True, nogil=True)
def pack(bits, item):
    """A score above 0, given by its bits, and an id."""
    return (np.int64(bits) << 32) | (_MAX_INDEX - np.int64(item))


@numba.njit(cache=True, nogil=True)
def take_best(packed, n, ids, scores):
    """Writes the best of `packed[:n]` to the front of two lists, best first; what is behind stays as it is."""
    k = min(n, len(ids))
    _to_front(packed, n, k)
    best = packed[:k]
    best.sort()
    bits = scores.view(np.int32)
    for place in range(k):
        number = best[k - 1 - place]
        bits[place] = number >> 32
        ids[place] = _MAX_INDEX - (number & 0xFFFFFFFF)


@numba.njit(cache=True, nogil=True)
def _to_front(numbers, n, k):
    """Reorders `numbers[:n]`, all different, so that the k greatest come first."""
    low, high = 0, n
    while low < k < high:
        if high - low <= _FEW:
            for i in range(low + 1, high):
                number, j = numbers[i], i
                while j > low and numbers[j - 1] < number:
                    numbers[j] = numbers[j - 1]
                    j -= 1
                numbers[j] = number
            return
        # The median of three is neither the least nor the greatest, so that both sides shrink.
        a, b, c = numbers[low], numbers[(low + high) // 2], numbers[high - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        split = low
        for i in range(low, high):
            number = numbers[i]
            numbers[i] = numbers[split]
            numbers[split] = number
            split += number >= pivot
        if split >= k:
            high = split
        else:
            low = split
