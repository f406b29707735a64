"""Batches of sequences: windows of what users met, in rows of one length, and what is to be predicted where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ...kernels import packing, sampling
from ..data.interactions import Interactions
from ..data.sequences import Sequences
from ..errors import InteractionError
from .batches import Batches, Seed, seed_for, shuffled

Objective = Literal["next", "masked"]
Windows = Literal["last", "all"]
Layout = Literal["packed", "padded"]
NegativesFor = Literal["row", "place", "batch"]
_MASKS, _NEGATIVES = 3, 1  # what a seed is drawn for, as in `batches`


def sequence_batches(
    batch_size: int | None,
    length: int,
    *,
    objective: Objective = "next",
    layout: Layout = "packed",
    windows: Windows = "last",
    mask_share: float = 0.2,
    last_share: float = 0.1,
    negatives: int = 0,
    negatives_for: NegativesFor = "row",
    popularity: float = 0.0,
    times: bool = False,
) -> Callable[[Any, Seed], Batches]:
    """Batches of windows of sequences.

    A row has `length` places. Of a window of n events the last stands at position `length - 1` and the first at
    `length - n`, wherever in its row they are, so that a network reads them as it reads the end of a history. With the
    objective "next" each place has the event after its own as target; with "masked" some events are replaced by a mask,
    item `n_items`, and are the targets.

    Args:
        batch_size: Rows in each; if None 1 to 64, so that an epoch has 8 batches or more.
        length: Of a row.
        objective: See above.
        layout: "packed" puts several windows in a row, as few rows as they need; "padded" one, at its end.
        windows: "last" takes the last events of each user, as many as a row has places; "all" cuts all of them into
            windows, which share no target.
        mask_share: How likely an event is masked; each window has one mask or more.
        last_share: How likely a window has its last event masked and no other, as where the next one is asked for.
        negatives: How many items are drawn for each
        negatives_for: "row", whose places share them, "place", or "batch".
        popularity: They are drawn by `count ** popularity`; 0 is uniform.
        times: Whether batches have the times of the events.

    Returns:
        A function of `Sequences`, or of `Interactions` with timestamps, and a seed, for `gradient`. A batch has
        `items`, `targets`, `segments` (the window of its row that a place belongs to) and `positions`, int32
        `[b, length]`, padded with -1; targets are -1 where nothing is to be predicted. It has `times`, if asked for,
        those since the user's first event, padded with 0; `kinds` where the data have them; and `negatives`,
        `[b, m]`, `[b, length, m]` or `[m]`: those of a place were never met by its user, -1 where none was found; the
        others are any items.

    Raises:
        InteractionError: No user with two events, fewer rows than a batch takes, or no times where they are
            asked for.
        ValueError: A number out of range.

    >>> x = Sequences.from_events([0, 0, 0, 1, 1], [4, 5, 6, 7, 8])
    >>> batch = sequence_batches(1, 3)(x, np.array([0, 7], np.uint32)).make(1)
    >>> batch["items"].tolist(), batch["targets"].tolist()
    ([[4, 5, 7]], [[5, 6, 8]])
    >>> batch["segments"].tolist(), batch["positions"].tolist()
    ([[0, 0, 1]], [[1, 2, 2]])
    """
    for name, number, least in (("length", length, 1), ("negatives", negatives, 0), ("batch_size", batch_size, 1)):
        if number is not None and (number < least or number != int(number)):
            raise ValueError(f"{name}={number} must be a whole number, at least {least}")
    if objective == "masked" and length < 2:
        raise ValueError(f"{length=} must be at least 2 with masks, of which one stands for what is to come")
    if not 0 < mask_share < 1 or not 0 <= last_share <= 1:
        raise ValueError(f"{mask_share=} must be in (0, 1) and {last_share=} in [0, 1]")
    for name, choice, among in (
        ("objective", objective, ("next", "masked")),
        ("layout", layout, ("packed", "padded")),
        ("windows", windows, ("last", "all")),
        ("negatives_for", negatives_for, get_args(NegativesFor)),
    ):
        if choice not in among:
            raise ValueError(f"{name}={choice!r} must be one of {among}")

    def cut(data: Any, seed: Seed) -> Batches:
        x = data if isinstance(data, Sequences) else Sequences.from_interactions(data)
        since = x.since_first() if times else None
        rows = _rows(x, length, objective, layout, windows)
        size = max(1, min(64, rows.n_rows // 8)) if batch_size is None else batch_size
        order = shuffled(rows.n_rows, size, seed)
        events = {"items": x.items} | ({} if x.kinds is None else {"kinds": x.kinds})
        draw = _negatives(x, negatives, negatives_for, popularity) if negatives else None
        users = x.users

        def make(step: int) -> dict[str, np.ndarray]:
            chosen = order(step)
            batch = {name: rows.of(values, chosen) for name, values in events.items()}
            batch |= {"segments": rows.of(rows.numbers, chosen), "positions": rows.of(rows.positions, chosen)}
            if since is not None:
                batch["times"] = rows.of(since, chosen, 0)
            if objective == "next":
                batch["targets"] = rows.of(x.items[1:], chosen)
            else:
                batch |= _masked(batch, x.n_items, mask_share, last_share, seed_for(seed, _MASKS, step))
            if draw is not None:
                batch["negatives"] = draw(seed_for(seed, _NEGATIVES, step), rows.of(users, chosen))
            return batch

        return Batches(make, size, rows.n_rows)

    return cut


class _Rows(NamedTuple):
    """Windows of events, and the rows they lie in.

    Attributes:
        begins, ends: First event of each window, and one after the last.
        indptr, windows: The windows of each row.
        starts: Where each window begins in its row.
        length: Of a row.
        numbers, positions: Of each event in a window: which of its row the window is, and the event's position.
    """

    begins: np.ndarray
    ends: np.ndarray
    indptr: np.ndarray
    windows: np.ndarray
    starts: np.ndarray
    length: int
    numbers: np.ndarray
    positions: np.ndarray

    @property
    def n_rows(self) -> int:
        return len(self.indptr) - 1

    def of(self, values: np.ndarray, chosen: np.ndarray, padding: int = -1) -> np.ndarray:
        """One value for each place of some rows."""
        target = np.full((len(chosen), self.length), padding, values.dtype)
        packing.host_lay_out(values, self.begins, self.ends, self.indptr, self.windows, self.starts, chosen, target)
        return target


def _rows(x: Sequences, length: int, objective: Objective, layout: Layout, windows: Windows) -> _Rows:
    # The last event of a user has no next one: it is a target alone.
    last = x.indptr[1:] - (objective == "next")
    n = last - x.indptr[:-1]
    counts = np.where(n > 0, 1 if windows == "last" else -(-n // length), 0)
    if not counts.any():
        need = "two events or more" if objective == "next" else "an event"
        raise InteractionError(f"nothing to train on: no user has {need}")
    user = np.repeat(np.arange(x.n_users), counts)
    back = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)  # windows of the user after this one
    ends = last[user] - back * length
    begins = np.maximum(ends - length, x.indptr[user])
    sizes = ends - begins
    if layout == "packed":
        row, starts = packing.host_pack(sizes, length)
    else:
        row, starts = np.arange(len(sizes), dtype=np.int32), (length - sizes).astype(np.int32)
    order = np.lexsort((starts, row))
    indptr = np.append(0, np.cumsum(np.bincount(row)))
    number = np.empty(len(sizes), np.int32)
    number[order] = np.arange(len(sizes)) - indptr[row[order]]
    events = np.repeat(begins - np.append(0, np.cumsum(sizes)[:-1]), sizes) + np.arange(sizes.sum())
    numbers, positions = np.zeros(len(x), np.int32), np.zeros(len(x), np.int32)
    numbers[events] = np.repeat(number, sizes)
    positions[events] = length - (np.repeat(ends, sizes) - events)
    return _Rows(begins, ends, indptr, order, starts, length, numbers, positions)


def _masked(batch: dict[str, np.ndarray], n_items: int, share: float, last_share: float, seed: Seed) -> dict[str, Any]:
    """Items with some of them masked, and these as targets."""
    rng, items, segments = np.random.default_rng(seed), batch["items"], batch["segments"]
    real = segments >= 0
    last = real.copy()
    last[:, :-1] &= segments[:, :-1] != segments[:, 1:]
    # A number for each window, known at its last place, for all of its places.
    window = np.cumsum(last[:, ::-1], axis=1)[:, ::-1] + np.arange(len(items))[:, None] * (items.shape[1] + 1)
    only_last = rng.random(int(window.max(initial=0)) + 1)[window] < last_share
    masked = real & np.where(only_last, last, rng.random(items.shape) < share)
    some = np.zeros(int(window.max(initial=0)) + 1, bool)
    some[window[masked]] = True
    masked |= last & ~some[window]
    return {"items": np.where(masked, np.int32(n_items), items), "targets": np.where(masked, items, np.int32(-1))}


def _negatives(x: Sequences, n: int, each: NegativesFor, popularity: float) -> Callable[[Seed, np.ndarray], np.ndarray]:
    """A function of a seed and the users of a batch's places."""
    weights = np.bincount(x.items, minlength=x.n_items) ** popularity if popularity else None
    met: Interactions | None = x.interactions() if each == "place" else None
    positives = None if met is None else (met.indptr.astype(np.int32), met.items)
    draw = sampling.host_negatives(x.n_items, n, positives=positives, weights=weights)

    def drawn(seed: Seed, users: np.ndarray) -> np.ndarray:
        if each == "place":
            flat = users.reshape(-1)
            found = draw(seed, np.maximum(flat, 0))
            found[flat < 0] = -1
            return found.reshape(*users.shape, n)
        found = draw(seed, np.zeros(len(users) if each == "row" else 1, np.int32))
        return found if each == "row" else found[0]

    return drawn
