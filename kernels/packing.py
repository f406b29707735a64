"""Windows of sequences laid out in rows of one length, on the host: one a row, or several that fill it."""

from __future__ import annotations

import numba
import numpy as np


def host_pack(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Which row each window goes to, and where it begins there: as few rows as best fit decreasing finds.

    The longest come first, each into the fullest row that still has room for it.

    Args:
        lengths: `[n]` int64, in `[1, capacity]`.
        capacity: Of a row.

    Returns:
        `(rows, starts)`, int32 `[n]`; rows count from 0 without a gap.

    >>> rows, starts = host_pack(np.array([2, 3, 1]), 4)
    >>> rows.tolist(), starts.tolist()
    ([1, 0, 0], [0, 0, 3])
    """
    return _pack(np.argsort(-lengths, kind="stable"), lengths.astype(np.int64), capacity)


@numba.njit(cache=True, nogil=True)
def _pack(order, lengths, capacity):
    n = len(lengths)
    rows, starts = np.empty(n, np.int32), np.empty(n, np.int32)
    # The rows with so much room left, as lists linked through `after`.
    first, after = np.full(capacity + 1, -1, np.int32), np.empty(n, np.int32)
    n_rows = 0
    for window in order:
        length = lengths[window]
        room = length
        while room <= capacity and first[room] < 0:
            room += 1
        if room > capacity:
            row, room = n_rows, capacity
            n_rows += 1
        else:
            row = first[room]
            first[room] = after[row]
        rows[window], starts[window] = row, capacity - room
        left = room - length
        after[row] = first[left]
        first[left] = row
    return rows, starts


@numba.njit(cache=True, nogil=True)
def host_lay_out(values, begins, ends, indptr, windows, starts, chosen, target):
    """Writes the values of the windows of some rows where they begin there; what is around them stays as it is.

    Args:
        values: `[n]`.
        begins: `[n_windows]`: window w has `values[begins[w]:ends[w]]`; so are its
        ends.
        indptr: `[n_rows + 1]`: a row has
        windows: so many of these.
        starts: `[n_windows]`, where each begins in its row.
        chosen: `[b]`, the rows.
        target: `[b, length]`, which is written.
    """
    for b in range(len(chosen)):
        for place in range(indptr[chosen[b]], indptr[chosen[b] + 1]):
            window = windows[place]
            column = starts[window]
            for k in range(begins[window], ends[window]):
                target[b, column] = values[k]
                column += 1
