"""Anything tabular as one kind of table: columns user, item, value, time, and the place of each row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InteractionError

if TYPE_CHECKING:
    import polars as pl

ROLES = ("user", "item", "value", "time")
_USUAL_NAMES = {
    "user": ("user", "user_id", "userid", "uid", "users", "customer", "customer_id", "visitor_id", "session_id"),
    "item": ("item", "item_id", "itemid", "iid", "items", "movie_id", "movieid", "product_id", "sku", "track_id"),
    "value": ("value", "rating", "score", "count", "weight", "plays", "stars", "values"),
    "time": ("time", "timestamp", "timestamps", "date", "datetime", "ts", "unixreviewtime"),
}
_SKIP = ("", "_", "skip")
Columns = Sequence[str] | Mapping[str, str | int]


@dataclass(frozen=True)
class Table:
    """Rows to be cleaned.

    Always true: `frame` has the columns user and item and, where the source has them, value (float64, null where
    it is missing) and time (int64 or float64, null likewise); `place` holds the line or row number of each row;
    `raw` the same rows before their fields were parsed, for messages. `spelled` tells that the source is plain text,
    where a whole number and the text that spells it are the same id.
    """

    frame: pl.DataFrame
    place: np.ndarray
    source: str
    place_word: str = "row"
    raw: pl.DataFrame | None = None
    spelled: bool = False


def as_table(source: Any, columns: Columns | None = None) -> Table:
    """A table from a frame of pandas, polars or pyarrow, a scipy sparse matrix, or a tuple of arrays.

    Args:
        source: The data; a tuple is `(users, items[, values[, timestamps]])`.
        columns: Names of the columns by role, such as `{"user": "customer", "item": "sku"}`, or a sequence of
            roles in column order. If None the usual names are looked for (user, user_id, rating, timestamp, …).

    Raises:
        InteractionError: No such column, one that mixes types, or a source of an unknown kind.
    """
    import polars as pl

    if hasattr(source, "tocoo"):
        coo = source.tocoo()
        source = (*coo.coords, coo.data)
    series = _from_tuple(source) if isinstance(source, tuple) else _from_frame(source, columns)
    frame = pl.DataFrame(series)
    return parse_table(Table(frame, np.arange(len(frame), dtype=np.int64), "the data"))


def _from_tuple(source: tuple[Any, ...]) -> list[pl.Series]:
    import polars as pl

    if not 2 <= len(source) <= 4:
        raise InteractionError(f"a tuple must be (users, items[, values[, timestamps]]); got {len(source)} arrays")
    series = []
    for role, data in zip(ROLES, source, strict=False):
        if data is None:
            if role in ("user", "item"):
                raise InteractionError(f"a tuple must hold {role} ids; got None")
            continue
        if np.ma.is_masked(data) or not hasattr(data, "__len__") or isinstance(data, str):
            raise InteractionError(f"{role}: a column must be a plain array or list; got {type(data).__name__}")
        # NumPy would turn the list ["a", 1] into two texts, so a list is looked at before NumPy sees it.
        array = np.asarray(data) if hasattr(data, "dtype") else None
        if array is None or array.dtype.kind not in "biufM":
            series.append(column_of(role, list(data)))
        elif array.ndim == 1:
            times = array.dtype.kind == "M"
            series.append(pl.Series(role, array.astype("datetime64[us]") if times else array))
        else:
            raise InteractionError(f"{role}: a column must be one-dimensional; got shape {array.shape}")
    lengths = {column.name: len(column) for column in series}
    if len(set(lengths.values())) > 1:
        raise InteractionError(f"columns must have one length; got {lengths}")
    return series


def _from_frame(source: Any, columns: Columns | None) -> list[pl.Series]:
    import narwhals.stable.v2 as nw

    try:
        frame = nw.from_native(source, eager_only=True)
        names = frame.columns
    except TypeError as error:
        raise InteractionError(
            f"cannot read interactions from {type(source).__name__}; accepted are frames of pandas, polars and "
            "pyarrow, scipy sparse matrices, and tuples of arrays"
        ) from error
    except nw.exceptions.NarwhalsError as error:
        raise InteractionError(f"the frame cannot be used: {error}") from error
    series = []
    for role, name in choose_columns(names, columns, "the frame").items():
        column = frame.get_column(name)
        if column.dtype in (nw.Object, nw.Unknown):  # any Python values; Arrow would not say which it refuses
            series.append(column_of(role, column.to_list()))
        else:
            series.append(column.to_frame().to_polars().to_series().alias(role))
    return series


def column_of(role: str, values: list[Any], place: Callable[[int], str] = "position {:,}".format) -> pl.Series:
    """A column of Python values of one type, in which None and NaN stand for what is missing.

    Args:
        role: What the column is for.
        values: Numbers, texts, dates or None.
        place: Words for the place of value k, for messages.

    Raises:
        InteractionError: Values of several types, or such as no column can hold; the message names the first.
    """
    import polars as pl

    types = set(map(type, values))
    if any(issubclass(kind, np.generic) for kind in types):
        values = [value.item() if isinstance(value, np.generic) else value for value in values]
        types = set(map(type, values))
    if float in types:
        values = [None if isinstance(value, float) and value != value else value for value in values]
        types = set(map(type, values))
    types -= {type(None)}
    if types == {int, float} and role not in ("user", "item"):
        types = {float}
    if len(types) > 1:
        first = next(type(value) for value in values if value is not None)
        other = next(k for k, value in enumerate(values) if type(value) not in (first, type(None)))
        raise InteractionError(
            f"{place(other)}: {role} {values[other]!r} is of type {type(values[other]).__name__}, "
            f"and those before are of type {first.__name__}: types must not mix"
        )
    try:
        if types == {float}:
            return pl.Series(role, [None if value is None else float(value) for value in values], dtype=pl.Float64)
        return pl.Series(role, values)
    except (ValueError, TypeError, OverflowError, pl.exceptions.PolarsError) as error:
        raise InteractionError(f"{role}: no column can hold these values: {error}") from error


def usual_roles(names: Sequence[Any]) -> dict[str, Any]:
    """The columns whose names say what they hold, by role."""
    usual = {str(name).strip().lower().split(":")[0].replace(" ", "_"): name for name in reversed(names)}
    roles = {}
    for role, usuals in _USUAL_NAMES.items():
        present = [usual[name] for name in usuals if name in usual]
        if present:
            roles[role] = present[0]
    return roles


def choose_columns(names: Sequence[Any], columns: Columns | None, where: str) -> dict[str, Any]:
    """The source's column for each role: `{"user": …, "item": …[, "value": …][, "time": …]}`."""
    chosen: dict[str, Any] = {}
    if columns is None:
        chosen = usual_roles(names)
    elif isinstance(columns, Mapping):
        for role, name in columns.items():
            if isinstance(name, int):
                if not 0 <= name < len(names):
                    raise InteractionError(f"{where}: column {name} for {role} is outside [0, {len(names)})")
                name = names[name]
            if name not in names:
                raise InteractionError(f"{where} has no column {name!r} for {role}; it has {list(names)}")
            chosen[role] = name
    else:
        roles = [role for role in columns if role not in _SKIP]
        if isinstance(columns, str) or len(set(roles)) < len(roles):
            raise InteractionError(f"columns={columns!r} must be a sequence of different roles")
        if len(columns) > len(names):
            raise InteractionError(f"{where} has {len(names)} columns, {list(names)}; {list(columns)} names more")
        chosen = dict(zip(columns, names, strict=False))
    unknown = [role for role in chosen if role not in (*ROLES, *_SKIP)]
    if unknown:
        raise InteractionError(f'column roles are {list(ROLES)} ("skip" leaves one out); got {unknown}')
    for role in ("user", "item"):
        if role not in chosen:
            raise InteractionError(
                f"{where}: no {role} column among {list(names)}. Say which column is what: "
                f"columns={{'user': …, 'item': …}} by name, or, without a header, ('user', 'item', 'value', 'time') in "
                "order; on the command line --columns user=…,item=… or --columns user,item,value,time"
            )
    return {role: chosen[role] for role in ROLES if role in chosen}


def parse_table(table: Table) -> Table:
    """Gives every column its type; what cannot be read becomes null and is reported by `clean`."""
    import polars as pl

    parse = {"user": _parse_ids, "item": _parse_ids, "value": _parse_numbers, "time": _parse_times}
    parsed = pl.DataFrame([parse[column.name](column) for column in table.frame])
    return replace(table, frame=parsed, raw=table.frame)


def _parse_ids(column: pl.Series) -> pl.Series:
    import polars as pl

    if column.dtype.is_integer() or column.dtype == pl.Null:
        ids = column.cast(pl.Int64, strict=False)
        if ids.null_count() > column.null_count():
            beyond = column.filter(ids.is_null() & column.is_not_null())[0]
            raise InteractionError(f"{column.name} id {beyond} does not fit int64; pass such ids as text")
        return ids
    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        raise InteractionError(
            f"{column.name} ids must be whole numbers or text; the column is {column.dtype}, "
            f"such as {column.drop_nulls().head(1).to_list()}"
        )
    return _no_empty(column)


def text_ids_to_numbers(column: pl.Series) -> pl.Series:
    """int64 where every text is just the spelling of a whole number ("7", not "007"); else the texts."""
    import polars as pl

    if column.dtype != pl.String:
        return column
    numbers = column.cast(pl.Int64, strict=False)
    return numbers if numbers.cast(pl.String).eq_missing(column).all() else column


def _parse_numbers(column: pl.Series) -> pl.Series:
    import polars as pl

    if isinstance(column.dtype, pl.Categorical | pl.Enum):
        column = column.cast(pl.String)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    elif not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
        raise InteractionError(
            f"values must be numbers; the column is {column.dtype}, such as {column.drop_nulls().head(1).to_list()}"
        )
    return column.cast(pl.Float64, strict=False)


def _parse_times(column: pl.Series) -> pl.Series:
    """Numbers as they are; dates become seconds since 1970, whole ones if all are."""
    import polars as pl

    if column.dtype == pl.String:
        column = _text_times(_no_empty(column.str.strip_chars()))
    if column.dtype == pl.Date or isinstance(column.dtype, pl.Datetime):
        microseconds = column.dt.epoch("us")
        whole = (microseconds % 10**6 == 0).all()
        return microseconds // 10**6 if whole else microseconds / 10**6
    if column.dtype.is_integer():
        times = column.cast(pl.Int64, strict=False)
        return times if times.null_count() == column.null_count() else column.cast(pl.Float64)
    if column.dtype.is_float() or column.dtype == pl.Null:
        return column.cast(pl.Float64)
    raise InteractionError(f"times must be numbers or dates; the column is {column.dtype}")


def _text_times(column: pl.Series) -> pl.Series:
    """The reading, as whole numbers, numbers or ISO dates, that leaves the fewest texts unread."""
    import polars as pl

    readings = [column.cast(pl.Int64, strict=False)]
    if readings[0].null_count() > column.null_count():
        # Only the year first: whether 01/02/2020 is in January or in February cannot be known.
        dates = column.set(~column.str.contains(r"^\d{4}[-/]"), None)
        readings.append(column.cast(pl.Float64, strict=False))
        with contextlib.suppress(pl.exceptions.ComputeError):  # raised where no date is like any known one
            readings.append(dates.str.to_datetime(strict=False, time_unit="us"))
    return min(readings, key=lambda times: times.null_count())


def _no_empty(column: pl.Series) -> pl.Series:
    return column.set(column == "", None)
