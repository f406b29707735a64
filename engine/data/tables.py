"""Anything tabular as one kind of table: columns user, item, value, time, and the place of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InteractionError
from .interactions import Interactions

if TYPE_CHECKING:
    import polars as pl

ROLES = ("user", "item", "value", "time")
_USUAL_NAMES = {
    "user": ("user", "user_id", "userid", "uid", "users", "customer", "customer_id", "visitor_id", "session_id"),
    "item": ("item", "item_id", "itemid", "iid", "items", "movie_id", "movieid", "product_id", "sku", "track_id"),
    "value": ("value", "rating", "score", "count", "weight", "plays", "stars", "values"),
    "time": ("time", "timestamp", "timestamps", "date", "datetime", "ts", "unixreviewtime"),
}
Columns = Sequence[str] | Mapping[str, str | int]


@dataclass(frozen=True)
class Table:
    """Rows to be cleaned.

    Always true: `frame` has the columns user and item and, where the source has them, value (float64, null where
    it is missing) and time (int64 or float64, null likewise); `place` holds the line or row number of each row;
    `raw` the same rows before their fields were parsed, for messages.
    """

    frame: pl.DataFrame
    place: np.ndarray
    source: str
    place_word: str = "row"
    raw: pl.DataFrame | None = None


def as_table(source: Any, columns: Columns | None = None) -> Table:
    """A table from a frame of pandas, polars or pyarrow, a scipy sparse matrix, or a tuple of arrays.

    Args:
        source: The data; a tuple is `(users, items[, values[, timestamps]])`.
        columns: Names of the columns by role, such as `{"user": "customer", "item": "sku"}`, or a sequence of
            roles in column order. If None the usual names are looked for (user, user_id, rating, timestamp, …).

    Raises:
        InteractionError: No such column, or a source of an unknown kind.
    """
    import narwhals.stable.v2 as nw
    import polars as pl

    if isinstance(source, Interactions):
        raise TypeError("interactions are cleaned by `clean` as they are; they are no table")
    if hasattr(source, "tocoo"):
        coo = source.tocoo()
        source = (coo.row, coo.col, coo.data)
    if isinstance(source, tuple):
        if not 2 <= len(source) <= 4:
            raise InteractionError(f"a tuple must be (users, items[, values[, timestamps]]); got {len(source)} arrays")
        arrays = {role: np.asarray(column) for role, column in zip(ROLES, source, strict=False) if column is not None}
        lengths = {role: array.shape for role, array in arrays.items()}
        if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
            raise InteractionError(f"columns must be one-dimensional and of one length; got {lengths}")
        frame = pl.DataFrame({role: _series(role, array) for role, array in arrays.items()})
        columns = {role: role for role in arrays}
    else:
        try:
            frame = nw.from_native(source, eager_only=True).to_polars()
        except TypeError as error:
            raise InteractionError(
                f"cannot read interactions from {type(source).__name__}; accepted are frames of pandas, polars and "
                "pyarrow, scipy sparse matrices, and tuples of arrays"
            ) from error
    chosen = choose_columns(frame.columns, columns, "the frame")
    frame = frame.select(pl.col(name).alias(role) for role, name in chosen.items())
    place = np.arange(len(frame), dtype=np.int64)
    return parse_table(Table(frame, place, "the data"))


def _series(role: str, array: np.ndarray) -> pl.Series:
    import polars as pl

    if array.dtype.kind == "O" and role in ("user", "item"):
        kinds = {type(v) for v in array.tolist() if v is not None}
        if len(kinds) > 1:
            raise InteractionError(f"{role} ids mix types: {sorted(k.__name__ for k in kinds)}; use one")
    return pl.Series(role, array.tolist() if array.dtype.kind == "O" else array)


def choose_columns(names: Sequence[str], columns: Columns | None, where: str) -> dict[str, str]:
    """The source's column for each role: `{"user": …, "item": …[, "value": …][, "time": …]}`."""
    if columns is None:
        lowered = {name.lower().split(":")[0].replace(" ", "_"): name for name in reversed(names)}
        chosen = {
            role: next(lowered[usual] for usual in usuals if usual in lowered)
            for role, usuals in _USUAL_NAMES.items()
            if any(usual in lowered for usual in usuals)
        }
    elif isinstance(columns, Mapping):
        chosen = {}
        for role, name in columns.items():
            if isinstance(name, int):
                if not 0 <= name < len(names):
                    raise InteractionError(f"{where}: column {name} for {role} is outside [0, {len(names)})")
                name = names[name]
            if name not in names:
                raise InteractionError(f"{where} has no column {name!r} for {role}; it has {list(names)}")
            chosen[role] = name
    else:
        if len(columns) > len(names):
            raise InteractionError(f"{where} has {len(names)} columns, {list(names)}; {list(columns)} names more")
        chosen = dict(zip(columns, names, strict=False))
    unknown = [role for role in chosen if role not in ROLES and role not in ("", "_", "skip")]
    if unknown:
        raise InteractionError(f'column roles are {list(ROLES)} ("skip" leaves one out); got {unknown}')
    for role in ("user", "item"):
        if role not in chosen:
            raise InteractionError(
                f"{where}: no {role} column among {list(names)}. Name it: columns={{'user': …, 'item': …}} "
                f"or, without a header, columns=('user', 'item', 'value', 'time')"
            )
    return {role: chosen[role] for role in ROLES if role in chosen}


def parse_table(table: Table) -> Table:
    """Gives every column its type; what cannot be read becomes null and is reported by `clean`."""
    import polars as pl

    frame = table.frame
    parsed = []
    for role in frame.columns:
        column = frame[role]
        if role in ("user", "item"):
            parsed.append(_parse_ids(column, role))
        elif role == "value":
            parsed.append(_parse_numbers(column))
        else:
            parsed.append(_parse_times(column))
    return Table(pl.DataFrame(parsed), table.place, table.source, table.place_word, raw=frame)


def _parse_ids(column: pl.Series, role: str) -> pl.Series:
    import polars as pl

    if column.dtype.is_integer():
        return column.cast(pl.Int64)
    if column.dtype == pl.Categorical or column.dtype == pl.Enum:
        column = column.cast(pl.String)
    if column.dtype == pl.Null:
        return column.cast(pl.Int64)
    if column.dtype != pl.String:
        raise InteractionError(
            f"{role} ids must be whole numbers or text; the column is {column.dtype}, such as {column.head(1).to_list()}"
        )
    return column.set(column == "", None) if (column == "").any() else column


def text_ids_to_numbers(column: pl.Series) -> pl.Series:
    """int64 where every text is just the spelling of a whole number ("7", not "007"); else the texts."""
    import polars as pl

    numbers = column.cast(pl.Int64, strict=False)
    spelled = numbers.cast(pl.String)
    return numbers if (spelled.eq_missing(column)).all() else column


def _parse_numbers(column: pl.Series) -> pl.Series:
    import polars as pl

    if column.dtype == pl.String:
        column = column.str.strip_chars()
    try:
        return column.cast(pl.Float64, strict=False)
    except pl.exceptions.InvalidOperationError as error:
        raise InteractionError(f"values must be numbers; the column is {column.dtype}") from error


def _parse_times(column: pl.Series) -> pl.Series:
    import polars as pl

    if column.dtype == pl.String:
        for dtype in (pl.Int64, pl.Float64):
            numbers = column.str.strip_chars().cast(dtype, strict=False)
            if numbers.null_count() == column.null_count():
                return numbers
        times = column.str.to_datetime(strict=False, time_unit="us")
        if times.null_count() > len(column) // 2:
            return numbers
        column = times
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        return column.dt.epoch("s")
    if column.dtype.is_integer():
        return column.cast(pl.Int64)
    if column.dtype.is_float() or column.dtype == pl.Null:
        return column.cast(pl.Float64)
    raise InteractionError(f"times must be numbers or dates; the column is {column.dtype}")
