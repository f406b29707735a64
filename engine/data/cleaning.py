"""From rows as they come to interactions that can be trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...kernels import csr
from ..errors import InteractionError
from .interactions import Interactions
from .tables import Columns, Table, as_table, text_ids_to_numbers
from .vocabulary import Vocabulary, text_ids

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
            `(users, items[, values[, timestamps]])`, or `Interactions`, which thresholds and counts apply to.
        columns: As in `read_interactions`.
        missing: "error", or "drop" to leave out rows in which anything is missing or not finite.
        duplicates: What to do with a pair that occurs more than once: "error", keep the "last" (the latest, in
            input order among equal times), "sum" or "mean" of the values, with the latest time.
        min_value: Keep interactions with at least this value.
        max_value: Keep interactions with at most this value.
        min_per_user: Keep users with at least so many interactions, and likewise
        min_per_item: items; repeated until both hold (the k-core). Sides whose vocabulary is given keep their indices;
            on others the indices are renumbered.
        user_ids: A vocabulary fitted before, to apply to new data; fitted here if None.
        item_ids: Likewise.
        unknown: What to do with rows whose id is not in a given vocabulary: "error" or "drop".

    Returns:
        Interactions with vocabularies.

    Raises:
        InteractionError: Anything of the above that is an error; the message names the row, the value and what
            to pass instead. Also if nothing is left.
        ValueError: An unknown option, or one that does not apply to the source.

    >>> x = clean((["ann", "bob", "ann"], ["tea", "tea", "tea"], [1.0, 2.0, 4.0]), duplicates="sum")
    >>> x.values, x.notes
    (array([5., 2.], dtype=float32), ('1 repeated pair merged by sum',))
    """
    if duplicates not in ("error", *_MERGES):
        raise ValueError(f"{duplicates=} must be one of {('error', *_MERGES)}")
    if min(min_per_user, min_per_item) < 1:
        raise ValueError(f"{min_per_user=} and {min_per_item=} must be at least 1")
    if isinstance(source, Interactions):
        if columns is not None or user_ids is not None or item_ids is not None:
            raise ValueError("columns, user_ids and item_ids apply to raw data; these interactions are encoded already")
        return _core(_thresholds(source, min_value, max_value), min_per_user, min_per_item, False, False)
    rows = {"missing": missing, "min_value": min_value, "max_value": max_value, "unknown": unknown}
    found = encoded(source, columns=columns, user_ids=user_ids, item_ids=item_ids, **rows)
    x = _merged(found, duplicates)
    if min_per_user == min_per_item == 1:
        return x
    return _core(x, min_per_user, min_per_item, user_ids is not None, item_ids is not None)


class Encoded(NamedTuple):
    """Rows with the indices of their users and items; `notes` says which others were left out."""

    table: Table
    users: np.ndarray
    items: np.ndarray
    user_ids: Vocabulary
    item_ids: Vocabulary
    notes: list[str]

    def column(self, role: str) -> np.ndarray | None:
        """The "value" or "time" of each row, where there is such a column."""
        frame = self.table.frame
        return frame[role].to_numpy(writable=True) if role in frame.columns else None


def encoded(
    source: Any,
    *,
    columns: Columns | None = None,
    missing: str = "error",
    min_value: float | None = None,
    max_value: float | None = None,
    user_ids: Vocabulary | None = None,
    item_ids: Vocabulary | None = None,
    unknown: str = "error",
) -> Encoded:
    """The first steps of `clean`, each row for itself; arguments and errors as there."""
    for name, value in (("missing", missing), ("unknown", unknown)):
        if value not in ("error", "drop"):
            raise ValueError(f"{name}={value!r} must be one of {('error', 'drop')}")
    table = source if isinstance(source, Table) else as_table(source, columns)
    notes: list[str] = []
    table = _filtered(table, _present(table, missing), "with missing or non-finite values left out", notes)
    if "value" in table.frame.columns:
        inside = _inside(table.frame["value"].to_numpy(), min_value, max_value)
        table = _filtered(table, inside, "outside the value thresholds left out", notes)
    elif min_value is not None or max_value is not None:
        raise InteractionError(f"{table.source} has no values to hold against min_value or max_value")
    users, user_vocabulary = _encode(table, "user", user_ids)
    items, item_vocabulary = _encode(table, "item", item_ids)
    known = (users >= 0) & (items >= 0)
    if unknown == "error" and not known.all():
        row = int(np.argmin(known))
        role = "user" if users[row] < 0 else "item"
        raise InteractionError(
            f"{_place(table, row)}: {role} {table.frame[role][row]!r} is not in the given "
            f'vocabulary ({_count(~known, "such row")}). Pass unknown="drop" to leave them out'
        )
    table = _filtered(table, known, "with unknown ids left out", notes)
    return Encoded(table, users[known], items[known], user_vocabulary, item_vocabulary, notes)


def _filtered(table: Table, keep: np.ndarray, what: str, notes: list[str]) -> Table:
    """The rows to keep, with a note of those left out; raises if none remain."""
    if keep.all():
        return table
    notes.append(f"{_count(~keep, 'row')} {what}")
    if not keep.any():
        raise InteractionError(f"{table.source}: no interactions are left ({'; '.join(notes)})")
    raw = None if table.raw is None else table.raw.filter(keep)
    return replace(table, frame=table.frame.filter(keep), place=table.place[keep], raw=raw)


def _place(table: Table, row: int) -> str:
    return f"{table.source}, {table.place_word} {table.place[row]:,}"


def _present(table: Table, missing: str) -> np.ndarray:
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
        kind = "no number and no date (year first)" if role == "time" else "no finite float32 number"
        what = "is missing" if text is None or text == "" else f"{text!r} is {kind}"
        maybe_header = table.spelled and row == 0 and table.place[0] == 1
        raise InteractionError(
            f"{_place(table, row)}: {role} {what}. "
            + ("If this line is a header, say header=True (--header). Else pass" if maybe_header else "Pass")
            + f' missing="drop" (--missing drop) to leave such rows out ({int(wrong.sum()):,} here)'
        )
    return ~wrong


def _inside(values: np.ndarray, min_value: float | None, max_value: float | None) -> np.ndarray:
    inside = np.ones(len(values), bool)
    if min_value is not None:
        inside &= values >= min_value
    if max_value is not None:
        inside &= values <= max_value
    return inside


def _encode(table: Table, role: str, vocabulary: Vocabulary | None) -> tuple[np.ndarray, Vocabulary]:
    import polars as pl

    column = table.frame[role]
    if table.spelled and (vocabulary is None or vocabulary.ids.dtype.kind == "i"):
        column = text_ids_to_numbers(column)
    if vocabulary is not None:
        lookup = vocabulary
        if table.spelled and column.dtype == pl.String and vocabulary.ids.dtype.kind == "i":
            lookup = Vocabulary(vocabulary.ids.astype(np.str_))  # one text among them is just an unknown id
        return lookup.indices(_outside(column), unknown="mark"), vocabulary
    distinct = column.unique().sort()
    text = column.dtype == pl.String  # for which a hash table takes a third of the time of ranking
    codes = column.cast(pl.Enum(distinct)).to_physical() if text else column.rank("dense") - 1
    return codes.cast(pl.Int32).to_numpy(), Vocabulary(_outside(distinct))


def _outside(column: pl.Series) -> np.ndarray:
    return column.to_numpy() if column.dtype.is_integer() else text_ids(column.to_list())


def _merged(found: Encoded, duplicates: str) -> Interactions:
    """Each pair once."""
    table, users, items, user_ids, item_ids, notes = found
    values, times = found.column("value"), found.column("time")
    if values is None and duplicates == "sum":
        values = np.ones(len(users))  # every interaction counts 1, whether or not another is like it
    order, _ = csr.sort_pairs(users, items, len(user_ids), len(item_ids))
    first = csr.first_in_group(users, items, order)
    if not first.all():
        if duplicates == "error":
            again = int(order[~first].min())
            user, item = user_ids.ids[users[again]].item(), item_ids.ids[items[again]].item()
            raise InteractionError(
                f"{_place(table, again)}: user {user!r}, item {item!r} occurs again "
                f'({_count(~first, "repetition")} here). Pass duplicates="last", "sum" or "mean" (--duplicates last) '
                "to merge them, or read_sequences (--duplicates keep) for sequences, which may repeat"
            )
        position, merged = csr.merge_duplicates(
            order,
            first,
            np.ones(len(users)) if values is None else values,
            np.zeros(len(users), np.int64) if times is None else times,
            _MERGES[duplicates],
        )
        notes.append(_count(~first, "repeated pair") + f" merged by {duplicates}")
        users, items = users[position], items[position]
        values = None if values is None else merged
        times = None if times is None else times[position]
    x = Interactions.from_coo(users, items, values, times, user_ids=user_ids, item_ids=item_ids)
    return replace(x, notes=tuple(notes))


def _thresholds(x: Interactions, min_value: float | None, max_value: float | None) -> Interactions:
    if min_value is None and max_value is None:
        return x
    if x.values is None:
        raise InteractionError("these interactions have no values to hold against min_value or max_value")
    inside = _inside(x.values, min_value, max_value)
    if inside.all():
        return x
    return x.select(inside, note=_count(~inside, "row") + " outside the value thresholds left out")


def _core(x: Interactions, min_per_user: int, min_per_item: int, keep_users: bool, keep_items: bool) -> Interactions:
    """The core in which every user and item has enough interactions, renumbered but for the sides to keep."""
    keep = np.ones(x.nnz, bool)
    while True:
        users = np.bincount(x.users[keep], minlength=x.n_users) >= min_per_user
        items = np.bincount(x.items[keep], minlength=x.n_items) >= min_per_item
        inside = users[x.users] & items[x.items] & keep
        if (inside == keep).all():
            break
        keep = inside
    if not keep.any():
        raise InteractionError(
            f"no interactions are left: no user has {min_per_user} interactions with items that have {min_per_item}"
        )
    users, items = users | keep_users, items | keep_items
    left_out = int((~users).sum()), int((~items).sum()), int((~keep).sum())
    note = "{:,} users, {:,} items and {:,} interactions below the minimum counts left out".format(*left_out)
    x = x.select(keep, note=note) if any(left_out) else x
    # Renumbering keeps the order, so the rows stay sorted.
    new_item = np.cumsum(items, dtype=np.int32) - 1
    return replace(
        x,
        indptr=np.append(x.indptr[:-1][users], x.nnz),
        items=new_item[x.items],
        n_items=int(items.sum()),
        user_ids=_subset(x.user_ids, users),
        item_ids=_subset(x.item_ids, items),
        user_features=None if x.user_features is None else x.user_features.filter(users),
        item_features=None if x.item_features is None else x.item_features.filter(items),
    )


def _subset(vocabulary: Vocabulary | None, keep: np.ndarray) -> Vocabulary:
    if vocabulary is None:
        return Vocabulary(np.flatnonzero(keep))
    titles = None if vocabulary.titles is None else vocabulary.titles[keep]
    return Vocabulary(vocabulary.ids[keep], titles)


def _count(where: np.ndarray, noun: str) -> str:
    n = int(where.sum())
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
