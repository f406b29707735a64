"""Side tables from files: what is known of users or items besides whom and what they met."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FeatureError, InteractionError
from .columns import side_table
from .tables import text_ids_to_numbers, usual_roles
from .vocabulary import Vocabulary, text_ids

if TYPE_CHECKING:
    import polars as pl


_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".jsonl", ".ndjson")


def read_side_table(source: Any, side: str) -> tuple[Vocabulary, pl.DataFrame]:
    """A table with a row for each user or item, from a file or a frame, and the vocabulary of their ids.

    Read interactions with this vocabulary (`read_interactions(..., item_ids=vocabulary)`), and row i describes index i,
    for items that nobody met, too.

    Args:
        source: A frame of polars, pandas or pyarrow; or the path of a `.csv`, `.tsv`, `.parquet`, `.jsonl` or `.ndjson`
            with a header. In text, columns that all spell numbers become numbers ("007" does not), and empty fields are
            missing.
        side: "user" or "item": its ids are in the column of that or another usual name (item, item_id, movie_id, …).

    Returns:
        `(vocabulary, frame)`: ids in the order of the file, with titles where there is a column "title"; the frame has
        the other columns.

    Raises:
        FeatureError: A file of another kind, that cannot be read, without ids, or with one that is missing.
        InteractionError: An id that occurs twice.
    """
    import polars as pl

    of_file = isinstance(source, str | Path)
    where, frame = (Path(source).name, _from_file(Path(source))) if of_file else ("the frame", side_table(source))
    name = usual_roles(frame.columns).get(side)
    if name is None:
        raise FeatureError(f"{where} has no column of {side} ids, such as {side!r}; it has {frame.columns}")
    ids = frame[name]
    if ids.null_count():
        raise FeatureError(f"{where}, row {int(ids.is_null().to_numpy().argmax()):,}: the {side} id is missing")
    titles = frame["title"] if "title" in frame.columns and frame["title"].dtype == pl.String else None
    try:
        vocabulary = Vocabulary(
            ids.to_numpy() if ids.dtype.is_integer() else text_ids(ids.cast(pl.String).to_list()),
            None if titles is None else titles.fill_null(ids.cast(pl.String)).to_numpy(),
        )
    except InteractionError as error:
        raise InteractionError(f"{where}: {error}") from error
    return vocabulary, frame.drop(name)


def _from_file(path: Path) -> pl.DataFrame:
    import polars as pl

    if path.suffix not in _SUFFIXES:
        raise FeatureError(f"{path.name}: a side table must be a file of one of the kinds {', '.join(_SUFFIXES)}")
    try:
        if path.suffix in (".parquet", ".pq"):
            return pl.read_parquet(path)
        if path.suffix in (".jsonl", ".ndjson"):
            return pl.read_ndjson(path)
        separator = "\t" if path.suffix == ".tsv" else ","
        _require_whole_rows(path, separator)
        frame = pl.read_csv(path, separator=separator, infer_schema=False)
        return pl.DataFrame([_numbers(column) for column in frame])
    except pl.exceptions.PolarsError as error:
        raise FeatureError(f"{path.name} cannot be read: {error}") from error


def _require_whole_rows(path: Path, separator: str) -> None:
    """A row with fewer fields than the header would be filled up with missing ones in silence."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file, delimiter=separator)
        n = len(next(rows, []))
        for row in rows:
            if row and len(row) != n:
                raise FeatureError(f"{path.name}, line {rows.line_num}: {len(row)} fields, where the header has {n}")


def _numbers(column: pl.Series) -> pl.Series:
    import polars as pl

    whole = text_ids_to_numbers(column)
    if whole.dtype != pl.String:
        return whole
    # Of fractions only: a code such as "007" is no number.
    numbers = column.cast(pl.Float64, strict=False)
    fractions = column.str.contains(".", literal=True).any()
    return numbers if fractions and numbers.null_count() == column.null_count() else column
