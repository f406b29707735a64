"""Interactions from files: delimited text, Parquet and JSON lines, each also gzipped."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InteractionError
from .cleaning import clean
from .interactions import Interactions
from .tables import Columns, Table, choose_columns, parse_table, text_ids_to_numbers

if TYPE_CHECKING:
    import polars as pl

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".data": "\t", ".dat": "::", ".txt": None}


def read_interactions(
    path: str | Path,
    *,
    columns: Columns | None = None,
    separator: str | None = None,
    header: bool | None = None,
    **cleaning: Any,
) -> Interactions:
    """Reads a file of interactions, cleans it and gives its users and items dense indices.

    Args:
        path: A `.csv`, `.tsv`, `.dat` (`::`), `.parquet`, `.jsonl` or `.ndjson` file, or any of these with `.gz`.
            Other endings are read as delimited text.
        columns: Which column is what: a mapping `{"user": "customer", "item": "sku", "value": 3}` of names or
            positions, or a sequence `("user", "item", "value", "time")` in column order, where "skip" leaves one out.
            If None, the header must hold the usual names (user, user_id, item_id, rating, timestamp, …).
        separator: Of delimited text; by the ending of the file, else found in the first line, if None.
        header: Whether the first line names the columns; if None, True unless `columns` goes by position.
        **cleaning: Passed to `clean`: missing, duplicates, thresholds, vocabularies.

    Returns:
        Interactions with `user_ids` and `item_ids`. Ids that are all whole numbers become int64, others stay text.

    Raises:
        InteractionError: A file that is empty or malformed, a column that is not there, or what `clean` raises;
            the message names the file and the line.
        FileNotFoundError: No such file.
    """
    path = Path(path)
    data = _read_bytes(path)
    if not data.strip():
        raise InteractionError(f"{path.name} is empty")
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind in (".parquet", ".pq"):
        frame, place = _binary(path, data, "parquet"), None
    elif kind in (".jsonl", ".ndjson"):
        frame, place = _json_lines(path, data), 1
    else:
        if header is None:
            header = columns is None or (
                not isinstance(columns, (list, tuple))
                and not all(isinstance(name, int) for name in dict(columns).values())
            )
        frame = _delimited(path, data, separator or _SEPARATORS.get(kind), header)
        place = 2 if header else 1
    chosen = choose_columns(frame.columns, columns, path.name)
    import polars as pl

    texts = frame.select(pl.col(name).alias(role) for role, name in chosen.items())
    if place is not None and kind not in (".jsonl", ".ndjson"):
        texts = texts.with_columns(text_ids_to_numbers(texts[role]) for role in ("user", "item"))
    places = np.arange(len(texts), dtype=np.int64) + (place or 0)
    return clean(parse_table(Table(texts, places, path.name, "row" if place is None else "line")), **cleaning)


def _read_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InteractionError(f"{path.name} is no whole gzip file: {error}") from error


def _binary(path: Path, data: bytes, kind: str) -> pl.DataFrame:
    import polars as pl

    try:
        return pl.read_parquet(io.BytesIO(data))
    except pl.exceptions.PolarsError as error:
        raise InteractionError(f"{path.name} is no readable {kind} file: {error}") from error


def _json_lines(path: Path, data: bytes) -> pl.DataFrame:
    import json

    import polars as pl

    try:
        return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        for number, line in enumerate(data.splitlines(), start=1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    raise ValueError("it is no object")
            except ValueError as reason:
                raise InteractionError(f"{path.name}, line {number:,}: not a JSON object ({reason})") from error
        raise InteractionError(f"{path.name}: {error}") from error


def _delimited(path: Path, data: bytes, separator: str | None, header: bool) -> pl.DataFrame:
    """All fields as text, one row a line; a line with another number of fields is an error that names it."""
    import polars as pl

    first = data.split(b"\n", 1)[0].decode("utf-8", "replace")
    if separator is None:
        separator = max(("::", "\t", ",", ";", "|", " "), key=lambda s: (first.count(s) > 0, len(s), first.count(s)))
    quote = '"' if separator in (",", ";") else None
    if len(separator) > 1 or (quote is None and b"\r" not in data):
        return _split_lines(path, data, separator, header)
    try:
        frame = pl.read_csv(
            io.BytesIO(data),
            separator=separator,
            has_header=header,
            infer_schema=False,
            quote_char=quote,
            missing_utf8_is_empty_string=True,
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise _malformed(path, data, separator) or InteractionError(f"{path.name}: {error}") from error
    n_lines = data.count(b"\n") + (not data.endswith(b"\n"))
    n_separators = data.count(separator.encode())
    if quote and quote.encode() in data:
        return frame
    if n_lines != len(frame) + header or n_separators != n_lines * (len(frame.columns) - 1):
        error = _malformed(path, data, separator)
        if error is not None:
            raise error
    return frame


def _split_lines(path: Path, data: bytes, separator: str, header: bool) -> pl.DataFrame:
    import polars as pl

    try:
        lines = pl.Series("line", data.decode("utf-8").splitlines())
    except UnicodeDecodeError as error:
        raise _encoding_error(path, data, error) from error
    width = lines[0].count(separator) + 1
    counts = lines.str.count_matches(separator, literal=True)
    wrong = (counts != width - 1).to_numpy()
    if wrong.any():
        raise _field_error(path, int(wrong.argmax()) + 1, int(counts[int(wrong.argmax())]) + 1, width)
    names = lines[0].split(separator) if header else [f"column_{k + 1}" for k in range(width)]
    if len(set(names)) < width:
        raise InteractionError(f"{path.name}, line 1: column names repeat: {names}")
    fields = lines[int(header) :].str.split_exact(separator, width - 1).struct.unnest()
    fields.columns = names
    return fields


def _malformed(path: Path, data: bytes, separator: str) -> InteractionError | None:
    """The error for the first line whose number of fields is not that of the first line."""
    import csv

    text = io.StringIO(data.decode("utf-8", "replace"), newline="")
    width = None
    rows = csv.reader(text, delimiter=separator)
    try:
        for fields in rows:
            width = width or len(fields)
            if len(fields) != width:
                return _field_error(path, rows.line_num, len(fields), width)
    except csv.Error as error:
        return InteractionError(f"{path.name}, line {rows.line_num:,}: {error}")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return _encoding_error(path, data, error)
    return None


def _field_error(path: Path, line: int, found: int, width: int) -> InteractionError:
    return InteractionError(f"{path.name}, line {line:,}: {found} fields where the first line has {width}")


def _encoding_error(path: Path, data: bytes, error: UnicodeDecodeError) -> InteractionError:
    line = data[: error.start].count(b"\n") + 1
    return InteractionError(f"{path.name}, line {line:,}: byte {data[error.start]:#04x} is not UTF-8 text")
