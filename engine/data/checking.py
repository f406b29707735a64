"""Columns of interactions: checked, and given the one dtype they have here."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels.csr import MAX_INDEX
from ..errors import InteractionError

_MOST_EMPTY = 1000  # rows an interaction, from which on ids are taken for outside ids by mistake


def _vector(what: str, data: Any) -> np.ndarray:
    try:
        array = np.asarray(data)
    except ValueError as error:  # lists of different lengths
        raise InteractionError(f"{what} must be one-dimensional: {error}") from error
    if array.ndim != 1:
        raise InteractionError(f"{what} must be one-dimensional; got shape {array.shape}")
    if np.ma.is_masked(data):  # NumPy would give what is under the mask
        raise InteractionError(f"{what} are masked at {int(np.ma.count_masked(data)):,} places; leave those out")
    return array


def checked_ids(side: str, ids: Any, n: int | None) -> tuple[np.ndarray, int]:
    """Dense ids as int32 and their number, or an InteractionError that names the first that cannot be one."""
    array = _vector(f"{side}s", ids)
    if array.size == 0:
        return array.astype(np.int32), n or 0
    if array.dtype.kind not in "iu":
        raise InteractionError(
            f"{side} ids must be whole numbers; got {array.dtype} such as {array[:1].tolist()}. "
            "Vocabulary maps other ids to dense indices"
        )
    limit = MAX_INDEX if n is None else n - 1
    if n is not None and not 0 <= n <= MAX_INDEX:
        raise InteractionError(f"n_{side}s={n} must be in [0, {MAX_INDEX}]")
    wrong = (array < 0) | (array > limit)
    if wrong.any():
        first = int(np.argmax(wrong))
        bound = f"[0, {n}) given by n_{side}s={n}" if n is not None else "[0, 2**31 - 1)"
        raise InteractionError(f"{side} id {array[first]} is outside {bound}; first at position {first:,}")
    if n is None:
        n = int(array.max()) + 1
        if n > MAX_INDEX:
            raise InteractionError(f"{side} id {array.max()} is outside [0, 2**31 - 1)")
        if n > max(_MOST_EMPTY * len(array), 1 << 24):
            raise InteractionError(
                f"{side} id {array.max()} would make {n:,} {side}s of {len(array):,} interactions. "
                f"clean(...) or Vocabulary numbers ids densely; n_{side}s={n} says that so many are meant"
            )
    return array.astype(np.int32), n


def checked_values(values: Any) -> np.ndarray:
    """Values as finite float32, or an InteractionError that names the first that is not."""
    array = _vector("values", values)
    if array.dtype.kind not in "iufb":
        raise InteractionError(f"values must be numbers; got {array.dtype} such as {array[:1].tolist()}")
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    _require_finite("value", array, narrow)
    return narrow


def checked_timestamps(timestamps: Any) -> np.ndarray:
    """Timestamps as int64 or finite float64; datetimes become seconds since 1970, whole ones if all are."""
    array = _vector("timestamps", timestamps)
    if array.dtype.kind == "M":
        if np.isnat(array).any():
            raise InteractionError(f"timestamp missing at position {int(np.argmax(np.isnat(array))):,}")
        microseconds = array.astype("datetime64[us]").astype(np.int64)
        return microseconds / 10**6 if (microseconds % 10**6).any() else microseconds // 10**6
    if array.dtype.kind in "iu":
        if array.max(initial=0) > np.iinfo(np.int64).max:
            raise InteractionError(f"timestamp {array.max()} does not fit int64")
        return array.astype(np.int64)
    if array.dtype.kind == "f":
        wide = array.astype(np.float64)
        _require_finite("timestamp", array, wide)
        return wide
    raise InteractionError(f"timestamps must be numbers or datetimes; got {array.dtype}")


def _require_finite(what: str, given: np.ndarray, converted: np.ndarray) -> None:
    wrong = ~np.isfinite(converted)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InteractionError(
            f"{what} {given[first]} at position {first:,} is not a finite float32 number "
            f'({int(wrong.sum())} such). clean(..., missing="drop") leaves them out'
            if what == "value"
            else f"{what} {given[first]} at position {first:,} is not finite ({int(wrong.sum())} such)"
        )


def check_side_table(side: str, table: Any, n: int, ids: Any) -> None:
    """Whether a table has a row for each user or item, in the order of their ids where a column has these.

    Raises:
        InteractionError: It has not; the message names the first row that is another's.
    """
    import polars as pl

    if not isinstance(table, pl.DataFrame):
        raise InteractionError(f"{side}_features is {type(table).__name__}; a frame of polars is accepted")
    if len(table) != n:
        raise InteractionError(f"{side}_features has {len(table)} rows for {n} {side}s")
    if ids is None:
        return
    own = pl.Series(ids.ids)
    for column in table:
        # Another column may look like ids, too: it is one of theirs only where it has all of them.
        same = column.dtype.is_integer() == own.dtype.is_integer() and not column.dtype.is_nested()
        if not same or column.dtype.is_float() or column.dtype.is_temporal():
            continue
        given = column.cast(own.dtype, strict=False)
        if given.null_count() or (given == own).all() or not given.sort().equals(own.sort(), check_names=False):
            continue
        row = int((given != own).arg_max() or 0)
        raise InteractionError(
            f"{side}_features, row {row:,}, is of {side} {given[row]!r} by its column {column.name!r}, and index "
            f"{row:,} is {own[row]!r}: sort the table in the order of {side}_ids"
        )
