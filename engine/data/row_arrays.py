"""Columns of a table as the arrays that models take: int32 or float32, one or several numbers a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import InteractionError

if TYPE_CHECKING:
    import polars as pl

_INT32 = np.iinfo(np.int32)
_PADDING = -1


class Piece(NamedTuple):
    """Consecutive rows of a file.

    Attributes:
        frame: The rows.
        file: Name of the file.
        first: Number of the first row in it.
    """

    frame: pl.DataFrame
    file: str
    first: int


@dataclass(frozen=True)
class RowArray:
    """What becomes one array.

    Attributes:
        columns: One, or several of numbers side by side.
        stacked: Whether it is given as several, so that an array has a second dimension.
        lists: Whether it is one column of lists.
        whole: Whether its numbers are whole ones.
        width: Of a list, once it is known.
        truncate: Whether of longer lists the last `width` numbers are taken.
    """

    columns: tuple[str, ...]
    stacked: bool
    lists: bool
    whole: bool
    width: int | None = None
    truncate: bool = False

    @property
    def dtype(self) -> np.dtype:
        """Of the array."""
        return np.dtype(np.int32 if self.whole else np.float32)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The array's shape behind the rows."""
        if self.lists:
            return (self.width or 0,)
        return (len(self.columns),) if self.stacked else ()

    def of(self, piece: Piece) -> np.ndarray:
        """The rows of a piece.

        Raises:
            InteractionError: A number that is missing, NaN or infinite or does not fit the dtype, or a list that is
                too long, or, of floats, too short.
        """
        if self.lists:
            return self._of_lists(piece)
        numbers = [self._of_numbers(piece.frame[name], piece, name) for name in self.columns]
        return np.stack(numbers, axis=1) if self.stacked else numbers[0]

    def longest(self, piece: Piece) -> int:
        """Length of the longest list in it."""
        lists = _lists(piece.frame[self.columns[0]]).drop_nulls()
        return int(lists.list.len().to_numpy().max(initial=0))

    def _of_lists(self, piece: Piece) -> np.ndarray:
        name, width = self.columns[0], self.row_shape[0]
        lists = _lists(piece.frame[name])
        _refuse(lists.is_null(), piece, name, "is missing; an empty list is accepted")
        if self.truncate:
            lists = lists.list.tail(width)
        lengths = lists.list.len().to_numpy()
        for wrong, accepted in (
            (lengths > width, f"at most {width} are accepted; truncate=True takes the last {width}"),
            # There is no number to pad them with that is not a value like any other.
            (lengths < width, f"lists of floats must all have {width}") if not self.whole else (lengths < 0, ""),
        ):
            if wrong.any():
                row = int(wrong.argmax())
                raise InteractionError(f"{_place(piece, name, row)} has {lengths[row]} numbers; {accepted}")
        # Polars makes a null of an empty list.
        flat = lists.filter(lists.list.len() > 0).explode()
        array = np.full((len(lists), width), _PADDING, self.dtype)
        array[np.arange(width) >= width - lengths[:, None]] = self._of_numbers(flat, piece, name, lengths)
        return array

    def _of_numbers(self, column: pl.Series, piece: Piece, name: str, lengths: np.ndarray | None = None) -> np.ndarray:
        import polars as pl

        _refuse(column.is_null(), piece, name, "is missing; numbers are accepted", lengths)
        if self.whole:
            narrow = column.cast(pl.Int32, strict=False)
            bounds = f"{_INT32.min} to {_INT32.max}"
            said = f"{{}} does not fit int32, which holds {bounds}; Vocabulary numbers ids densely"
            _refuse(narrow.is_null(), piece, name, said, lengths, column)
        else:
            narrow = column.cast(pl.Float32)
            _refuse(~narrow.is_finite(), piece, name, "{} is no finite float32 number", lengths, column)
        return narrow.to_numpy()


def row_array(
    columns: str | tuple[str, ...], schema: pl.Schema, file: str, length: int | None, truncate: bool
) -> RowArray:
    """How columns of a file become an array.

    Raises:
        InteractionError: A column that is not there, is not of numbers, or of another kind than those beside it.
    """
    import polars as pl

    stacked = not isinstance(columns, str)
    names = tuple(columns) if stacked else (columns,)
    kinds = {}
    for name in names:
        if name not in schema:
            raise InteractionError(f"{file} has no column {name!r}; it has {list(schema)}")
        dtype = schema[name]
        lists = isinstance(dtype, pl.List | pl.Array)
        inner: Any = dtype.inner if isinstance(dtype, pl.List | pl.Array) else dtype
        if not (inner.is_integer() or inner.is_float() or inner == pl.Boolean):
            advice = "; number texts with Vocabulary first" if inner in (pl.String, pl.Categorical, pl.Enum) else ""
            raise InteractionError(
                f"{file}, column {name!r} is {dtype}; numbers, booleans and lists of them are accepted{advice}"
            )
        if lists and stacked:
            raise InteractionError(f"{file}, column {name!r} is {dtype}; a column of lists is an array of its own")
        kinds[name] = (lists, not inner.is_float())
    if len(set(kinds.values())) > 1:
        other = next(name for name in names if kinds[name] != kinds[names[0]])
        raise InteractionError(
            f"{file}: column {names[0]!r} is {schema[names[0]]} and {other!r} is {schema[other]}; "
            "an array is accepted of whole numbers only or of floats only"
        )
    lists, whole = kinds[names[0]]
    if length is not None and not lists:
        raise InteractionError(f"{file}, column {names[0]!r} is {schema[names[0]]}; a length is accepted of lists only")
    return RowArray(names, stacked, lists, whole, length, truncate)


def _lists(column: pl.Series) -> pl.Series:
    import polars as pl

    return column.arr.to_list() if isinstance(column.dtype, pl.Array) else column


def _place(piece: Piece, name: str, row: int) -> str:
    return f"{piece.file}, column {name!r}, row {piece.first + row:,}"


def _refuse(
    wrong: pl.Series,
    piece: Piece,
    name: str,
    message: str,
    lengths: np.ndarray | None = None,
    values: pl.Series | None = None,
) -> None:
    if wrong.any():
        first = int(wrong.to_numpy().argmax())
        said = message if values is None else message.format(values[first])
        row = first if lengths is None else int(np.searchsorted(np.cumsum(lengths), first, side="right"))
        raise InteractionError(f"{_place(piece, name, row)}: {said}")
