"""From rows as they come to interactions that can be trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels import csr
from ..errors import InteractionError
from .interactions import Interactions, checked_timestamps, checked_values
from .tables import Columns, Table, as_table
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import polars as pl

_MERGES = {"last": 0, "sum": 1, "mean": 2}


def clean(
    source: Any,
    *,
    columns: Columns | None = None,
    missing: str = "error",
    duplicates: str = "error",
    min_value: float | None = None,
    max_value: float | None = None,
    min_per_user: int = 1,
    min_per_item: int = 1,
    user_ids: Vocabulary | None = None,
    item_ids: Vocabulary | None = None,
    unknown: str = "error",
) -> Interactions:
    """Interactions from a frame, a sparse matrix, arrays or other interactions, with every decision said.

    The steps, in this order: missing values, value thresholds, known ids, duplicates, minimum counts. What each
    left out or merged is written to `notes`.

    Args:
        source: A frame of pandas, polars or pyarrow, a scipy sparse matrix, a tuple of arrays
            `(users, items[, values[, timestamps]])`, or `Interactions`.
        columns: As in `read_interactions`.
        missing: "error", or "drop" to leave out rows in which anything is missing or not finite.
        duplicates: What to do with a pair that occurs more than once: "error", keep the "last" (the latest, in
            input order among equal times), "sum" or "mean" of the values, with the latest time.
        min_value: Keep interactions with at least this value.
        max_value: Keep interactions with at most this value.
        min_per_user: Keep users with at least so many interactions, and likewise
        min_per_item: items; repeated until both hold (the k-core).
        user_ids: A vocabulary fitted before, to apply to new data; fitted here if None.
        item_ids: Likewise.
        unknown: What to do with rows whose id is not in a given vocabulary: "error" or "drop".

    Returns:
        Interactions with vocabularies.

    Raises:
        InteractionError: Anything of the above that is an error; the message names the row, the value and what
            to pass instead. Also if nothing is left.
        ValueError: An unknown option.

    >>> x = clean((["ann", "bob", "ann"], ["tea", "tea", "tea"], [1.0, 2.0, 4.0]), duplicates="sum")
    >>> x.values, x.notes
    (array([5., 2.], dtype=float32), ('1 repeated pair merged by sum',))
    """
    for name, value, accepted in (
        ("missing", missing, ("error", "drop")),
        ("duplicates", duplicates, ("error", *_MERGES)),
        ("unknown", unknown, ("error", "drop")),
    ):
        if value not in accepted:
            raise ValueError(f"{name}={value!r} must be one of {accepted}")
    if isinstance(source, Interactions):
        return _compact(_thresholds(source, min_value, max_value), min_per_user, min_per_item)
    table = source if isinstance(source, Table) else as_table(source, columns)
    notes: list[str] = []
    keep = _present(table, missing, notes)
    frame, place = table.frame.filter(keep), table.place[keep]
    if "value" in frame.columns:
        inside = np.ones(len(frame), bool)
        values = frame["value"].to_numpy()
        if min_value is not None:
            inside &= values >= min_value
        if max_value is not None:
            inside &= values <= max_value
        if not inside.all():
            notes.append(_count(~inside, "row") + " outside the value thresholds left out")
            frame, place = frame.filter(inside), place[inside]
    elif min_value is not None or max_value is not None:
        raise InteractionError(f"{table.source} has no values to hold against min_value or max_value")
    if len(frame) == 0:
        raise InteractionError(f"{table.source}: no interactions are left ({'; '.join(notes) or 'it has no rows'})")
    codes = {}
    for role, vocabulary in (("user", user_ids), ("item", item_ids)):
        codes[role] = _encode(frame[role], vocabulary)
    known = (codes["user"][0] >= 0) & (codes["item"][0] >= 0)
    if not known.all():
        if unknown == "error":
            row = int(np.argmin(known))
            role = "user" if codes["user"][0][row] < 0 else "item"
            raise InteractionError(
                f"{table.source}, {table.place_word} {place[row]:,}: {role} {frame[role][row]!r} is not in the given "
                f'vocabulary ({_count(~known, "such row")}). Pass unknown="drop" to leave them out'
            )
        notes.append(_count(~known, "row") + " with unknown ids left out")
        if not known.any():
            raise InteractionError(f"{table.source}: no interactions are left ({'; '.join(notes)})")
    users, items = codes["user"][0][known], codes["item"][0][known]
    values = frame["value"].to_numpy()[known] if "value" in frame.columns else None
    times = frame["time"].to_numpy()[known] if "time" in frame.columns else None
    vocabularies = codes["user"][1], codes["item"][1]
    users, items, values, times = _merge(
        table, place[known], users, items, values, times, vocabularies, duplicates, notes
    )
    x = Interactions.from_coo(users, items, values, times, user_ids=vocabularies[0], item_ids=vocabularies[1])
    x = _with_notes(x, notes)
    return _compact(x, min_per_user, min_per_item) if max(min_per_user, min_per_item) > 1 else x


def _present(table: Table, missing: str, notes: list[str]) -> np.ndarray:
    """Rows in which nothing is missing; raises for the first other one unless they are to be dropped."""
    frame = table.frame
    if len(frame) == 0:
        raise InteractionError(f"{table.source} has no rows")
    bad = {}
    for role in frame.columns:
        column = frame[role]
        bad[role] = column.is_null().to_numpy()
        if column.dtype.is_float():
            with np.errstate(over="ignore"):
                bad[role] = bad[role] | ~np.isfinite(column.to_numpy().astype(np.float32 if role == "value" else float))
    wrong = np.logical_or.reduce(list(bad.values()))
    if wrong.any() and missing == "error":
        row = int(np.argmax(wrong))
        role = next(role for role in frame.columns if bad[role][row])
        text = (table.raw if table.raw is not None else frame)[role][row]
        what = "is missing" if text is None or text == "" else f'"{text}" is not a finite number'
        raise InteractionError(
            f"{table.source}, {table.place_word} {table.place[row]:,}: {role} {what}. "
            f'Pass missing="drop" to leave such rows out ({int(wrong.sum()):,} here)'
        )
    if wrong.any():
        notes.append(_count(wrong, "row") + " with missing values left out")
    return ~wrong


def _encode(column: pl.Series, vocabulary: Vocabulary | None) -> tuple[np.ndarray, Vocabulary]:
    import polars as pl

    if vocabulary is not None:
        ids = column.to_numpy() if column.dtype.is_integer() else np.asarray(column.to_list(), np.str_)
        return vocabulary.indices(ids, unknown="mark"), vocabulary
    distinct = column.unique().sort()
    ids = distinct.to_numpy() if distinct.dtype.is_integer() else np.asarray(distinct.to_list(), np.str_)
    codes = (column.rank("dense") - 1).cast(pl.Int32).to_numpy()
    return codes, Vocabulary(ids)


def _merge(table, place, users, items, values, times, vocabularies, duplicates, notes):
    order, _ = csr.sort_pairs(users, items, len(vocabularies[0]), len(vocabularies[1]))
    first = csr.first_in_group(users, items, order)
    if first.all():
        return users, items, values, times
    repeated = int((~first).sum())
    if duplicates == "error":
        again = int(order[~first].min())
        user, item = vocabularies[0].ids[users[again]], vocabularies[1].ids[items[again]]
        raise InteractionError(
            f"{table.source}, {table.place_word} {place[again]:,}: user {user.item()!r}, item {item.item()!r} occurs "
            f'again ({repeated:,} repetitions here). Pass duplicates="last", "sum" or "mean" to merge them'
        )
    position, merged = csr.merge_duplicates(
        order,
        first,
        np.ones(len(users)) if values is None else values.astype(np.float64),
        np.zeros(len(users), np.int64) if times is None else times,
        _MERGES[duplicates],
    )
    notes.append(_count(~first, "repeated pair") + f" merged by {duplicates}")
    counted = values is not None or duplicates == "sum"
    return users[position], items[position], merged if counted else None, None if times is None else times[position]


def _thresholds(x: Interactions, min_value: float | None, max_value: float | None) -> Interactions:
    if min_value is None and max_value is None:
        return x
    if x.values is None:
        raise InteractionError("these interactions have no values to hold against min_value or max_value")
    inside = np.ones(x.nnz, bool)
    if min_value is not None:
        inside &= x.values >= min_value
    if max_value is not None:
        inside &= x.values <= max_value
    return x.select(inside, note=_count(~inside, "row") + " outside the value thresholds left out")


def _compact(x: Interactions, min_per_user: int, min_per_item: int) -> Interactions:
    """The core in which every user and item has enough interactions, with indices renumbered."""
    keep = np.ones(x.nnz, bool)
    while True:
        users = np.bincount(x.users[keep], minlength=x.n_users) >= max(min_per_user, 1)
        items = np.bincount(x.items[keep], minlength=x.n_items) >= max(min_per_item, 1)
        inside = users[x.users] & items[x.items] & keep
        if (inside == keep).all():
            break
        keep = inside
    if not keep.any():
        raise InteractionError(
            f"no interactions are left: no user has {min_per_user} interactions with items that have {min_per_item}"
        )
    users, items = np.flatnonzero(users), np.flatnonzero(items)
    new = {"user": np.zeros(x.n_users, np.int32), "item": np.zeros(x.n_items, np.int32)}
    new["user"][users], new["item"][items] = np.arange(len(users)), np.arange(len(items))
    compact = Interactions.from_coo(
        new["user"][x.users[keep]],
        new["item"][x.items[keep]],
        None if x.values is None else checked_values(x.values[keep]),
        None if x.timestamps is None else checked_timestamps(x.timestamps[keep]),
        user_ids=_subset(x.user_ids, users),
        item_ids=_subset(x.item_ids, items),
    )
    from dataclasses import replace

    left_out = x.n_users - len(users), x.n_items - len(items), x.nnz - compact.nnz
    note = "{:,} users, {:,} items and {:,} interactions below the minimum counts left out".format(*left_out)
    return replace(
        compact,
        user_features=None if x.user_features is None else x.user_features[users],
        item_features=None if x.item_features is None else x.item_features[items],
        notes=x.notes + ((note,) if any(left_out) else ()),
    )


def _subset(vocabulary: Vocabulary | None, indices: np.ndarray) -> Vocabulary:
    if vocabulary is None:
        return Vocabulary(indices)
    titles = None if vocabulary.titles is None else vocabulary.titles[indices]
    return Vocabulary(vocabulary.ids[indices], titles)


def _with_notes(x: Interactions, notes: list[str]) -> Interactions:
    from dataclasses import replace

    return replace(x, notes=x.notes + tuple(notes))


def _count(where: np.ndarray, noun: str) -> str:
    n = int(where.sum())
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
