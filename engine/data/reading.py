"""Interactions and sequences from files: delimited text, Parquet and JSON lines, each also gzipped."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InteractionError
from .cleaning import clean, encoded
from .interactions import Interactions
from .sequences import Sequences
from .tables import Columns, Table, choose_columns, column_of, parse_table, usual_roles

if TYPE_CHECKING:
    import polars as pl

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_GUESSED = ("::", "\t", ",", ";", "|", " ")


def read_interactions(
    path: str | Path,
    *,
    columns: Columns | None = None,
    separator: str | None = None,
    header: bool | None = None,
    **cleaning: Any,
) -> Interactions:
    """Reads a file of interactions, cleans it and gives its users and items dense indices.

    Blank lines are passed over. Fields of comma- and semicolon-separated text may be quoted, over several lines too;
    elsewhere a quotation mark is a character like any other.

    Args:
        path: A `.csv`, `.tsv`, `.parquet`, `.jsonl` or `.ndjson` file, or any of these with `.gz`. Other endings
            (`.dat`, `.data`, `.txt`, …) are read as delimited text.
        columns: Which column is what: a mapping `{"user": "customer", "item": "sku", "value": 3}` of names or
            positions, or a sequence `("user", "item", "value", "time")` in column order, where "skip" leaves one out.
            If None, the header must hold the usual names (user, user_id, item_id, rating, timestamp, …).
        separator: Of delimited text. If None, that of `.csv` or `.tsv` if the first line holds it, else the first of
            `::`, tab, `,`, `;`, `|` and space that it holds.
        header: Whether the first line names the columns; if None, True unless `columns` goes by position, when a
            first line that reads like a header is refused.
        **cleaning: Passed to `clean`: missing, duplicates, thresholds, vocabularies.

    Returns:
        Interactions with `user_ids` and `item_ids`. In delimited text, ids that all spell whole numbers ("7", not
        "007") become int64, unless the given vocabulary holds text; others stay text.

    Raises:
        InteractionError: A file that is empty or malformed, a column that is not there, or what `clean` raises;
            the message names the file and the line.
        FileNotFoundError: No such file.
    """
    return clean(_read_table(path, columns, separator, header), **cleaning)


def read_sequences(
    source: Any,
    *,
    columns: Columns | None = None,
    separator: str | None = None,
    header: bool | None = None,
    **cleaning: Any,
) -> Sequences:
    """Events with every repetition, as a path or frames hold them, in order of time.

    Args:
        source: A file as in `read_interactions`, or what `clean` takes: frames and arrays.
        columns, separator, header: See `read_interactions`; the last two are of files.
        **cleaning: missing, min_value, max_value, user_ids, item_ids and unknown, as in `clean`.

    Returns:
        Sequences with `user_ids` and `item_ids`. Values are left out, which `min_value` and `max_value` apply to; where
        there are no times, the order of the rows is that of time; `notes` says both.

    Raises:
        InteractionError, FileNotFoundError: As `read_interactions`.
        ValueError: An unknown option.

    >>> x = read_sequences((["ann"] * 3, ["tea", "rye", "tea"], [1, 1, 1], [3, 1, 2]))
    >>> x.item_ids.ids[x.items_of(0)].tolist()
    ['rye', 'tea', 'tea']
    """
    if isinstance(source, str | Path):
        source, columns = _read_table(source, columns, separator, header), None
    elif separator is not None or header is not None:
        raise ValueError(f"{separator=} and {header=} are of files")
    found = encoded(source, columns=columns, **cleaning)
    times = found.column("time")
    x = Sequences.from_events(found.users, found.items, times, user_ids=found.user_ids, item_ids=found.item_ids)
    notes = found.notes + ["values left out, of which sequences have none"] * (found.column("value") is not None)
    notes += ["no times: the order of the rows is taken for theirs"] * (times is None)
    return replace(x, notes=tuple(notes))


def _read_table(path: str | Path, columns: Columns | None, separator: str | None, header: bool | None) -> Table:
    """The rows of a file; see `read_interactions`."""
    path = Path(path)
    data = path.read_bytes()
    kind = path.suffix.lower()
    if kind == ".gz":
        data, kind = _decompressed(path, data), Path(path.stem).suffix.lower()
    if not data or data.isspace():
        raise InteractionError(f"{path.name} is empty")
    if kind in (".parquet", ".pq"):
        table = _parquet(path, data, columns)
    elif kind in (".jsonl", ".ndjson"):
        table = _json_lines(path, _decoded(path, data), columns)
    else:
        text = _decoded(path, data)
        if separator is None:
            first = text.lstrip("\r\n").split("\n", 1)[0]
            usual = _SEPARATORS.get(kind, ",")
            separator = next(
                (guess for guess in ((usual, *_GUESSED) if kind in _SEPARATORS else _GUESSED) if guess in first), usual
            )
        table = _delimited(path, text, columns, separator, header)
    return parse_table(table)


def _decompressed(path: Path, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InteractionError(f"{path.name} is no whole gzip file: {error}") from error


def _decoded(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        byte = data[error.start]
        raise InteractionError(f"{path.name}, line {line:,}: byte {byte:#04x} is not UTF-8 text") from error
    if not text:
        raise InteractionError(f"{path.name} is empty")
    return text


def _parquet(path: Path, data: bytes, columns: Columns | None) -> Table:
    import polars as pl

    try:
        names = list(pl.read_parquet_schema(io.BytesIO(data)))
        chosen = choose_columns(names, columns, path.name)
        frame = pl.read_parquet(io.BytesIO(data), columns=list(dict.fromkeys(chosen.values())))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise InteractionError(f"{path.name} is no readable Parquet file: {error}") from error
    frame = frame.select(pl.col(name).alias(role) for role, name in chosen.items())
    return Table(frame, np.arange(len(frame), dtype=np.int64), path.name)


def _json_lines(path: Path, text: str, columns: Columns | None) -> Table:
    import polars as pl

    rows, places = [], []
    decode = json.JSONDecoder().decode
    # Not by polars, which would make the ids 1 and "1" of one column the same without a word.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or line.isspace():
            continue
        try:
            row = decode(line)
        except (ValueError, RecursionError) as error:
            raise InteractionError(f"{path.name}, line {number:,}: not a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise InteractionError(f"{path.name}, line {number:,}: not a JSON object, but {line[:40].strip()}")
        rows.append(row)
        places.append(number)
    names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))

    def place(k: int) -> str:
        return f"{path.name}, line {places[k]:,}"

    frame = pl.DataFrame(
        column_of(role, [row.get(name) for row in rows], place)
        for role, name in choose_columns(names, columns, path.name).items()
    )
    return Table(frame, np.asarray(places, np.int64), path.name, "line")


def _delimited(path: Path, text: str, columns: Columns | None, separator: str, header: bool | None) -> Table:
    """All fields as text, one row a line; a line with another number of fields is an error that names it."""
    import polars as pl

    split = _split_quoted if separator in (",", ";") and '"' in text else _split_lines
    names, places, take = split(path, text, separator)
    if header is None:
        named = isinstance(columns, Mapping) and not all(isinstance(name, int) for name in columns.values())
        header = columns is None or named
        if not header and usual_roles(names).keys() >= {"user", "item"}:
            raise InteractionError(
                f"{path.name}, line {places[0]:,} reads like a header: {names}. "
                "header=True (--header) takes it for one, header=False (--no-header) for an interaction"
            )
    if not header:
        names = [f"column_{k + 1}" for k in range(len(names))]
    if len(set(names)) < len(names):
        raise InteractionError(f"{path.name}, line {places[0]:,}: column names repeat: {names}")
    chosen = choose_columns(names, columns, path.name)
    skipped = int(header)
    frame = pl.DataFrame(take(names.index(name)).slice(skipped).alias(role) for role, name in chosen.items())
    return Table(frame, places[skipped:], path.name, "line", spelled=True)


_Split = tuple[list[str], np.ndarray, "Callable[[int], pl.Series]"]  # first row, lines of the rows, one column


def _split_lines(path: Path, text: str, separator: str) -> _Split:
    import polars as pl

    # Not splitlines, which splits at a dozen other characters too.
    lines = pl.Series(text.replace("\r\n", "\n").split("\n"))
    if "\r" in text:
        stray = lines.str.contains("\r", literal=True)
        if stray.any():
            raise InteractionError(
                f"{path.name}, line {int(stray.to_numpy().argmax()) + 1:,}: carriage return inside the line"
            )
    filled = lines != ""
    places = np.flatnonzero(filled.to_numpy()) + 1
    lines = lines.filter(filled)
    first = lines[0].split(separator)
    counts = lines.str.count_matches(separator, literal=True).to_numpy()
    wrong = counts != len(first) - 1
    if wrong.any():
        row = int(wrong.argmax())
        raise _field_error(path, places[row], counts[row] + 1, len(first))
    fields = lines.str.split_exact(separator, len(first) - 1)
    return first, places, lambda k: fields.struct.field(f"field_{k}")


def _split_quoted(path: Path, text: str, separator: str) -> _Split:
    import polars as pl

    cells, places, width = [], [], 0  # one flat list: a million small ones keep the garbage collector busy
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator, strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                width = width or len(fields)
                if len(fields) != width:
                    raise _field_error(path, line, len(fields), width)
                cells += fields
                places.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise InteractionError(f"{path.name}, line {line:,}: {error}") from error
    return cells[:width], np.asarray(places, np.int64), lambda k: pl.Series(cells[k::width])


def _field_error(path: Path, line: int, found: int, width: int) -> InteractionError:
    return InteractionError(f"{path.name}, line {line:,}: {found} fields where the first line has {width}")
