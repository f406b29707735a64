"""Modalities: what is known of items besides their ids, as arrays that a network fuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import FeatureError
from .columns import kinds_of, side_table
from .fields import encoded_column
from .signals import hashed_texts

if TYPE_CHECKING:
    import polars as pl

_SEPARATOR = "|"


class Modalities(NamedTuple):
    """Arrays by name, of which row i describes item i.

    Attributes:
        inputs: float32 `[n, width]` of one vector an item, or `[n, tokens, width]` of several, and int32
            `[n, several]` of ids, padded with -1.
        where: bool `[n]`, which items have it, of those that not all have.
    """

    inputs: Mapping[str, Any]
    where: Mapping[str, Any]

    def spec(self) -> dict[str, tuple[tuple[str, Any], ...]]:
        """What a `FusionTransformer` needs to know of them: `vectors`, `tokens` and `ids`.

        >>> Modalities({"title": np.ones((3, 8), np.float32), "genre": np.array([[0], [4], [-1]])}, {}).spec()
        {'vectors': (('title', 8),), 'tokens': (), 'ids': (('genre', (5,)),)}
        """
        floats = {name: a for name, a in self.inputs.items() if np.issubdtype(a.dtype, np.floating)}
        ids = {name: (max(int(a.max(initial=0)) + 1, 1),) for name, a in self.inputs.items() if name not in floats}
        single, several = ({name: a.shape[-1] for name, a in floats.items() if a.ndim == n} for n in (2, 3))
        return {"vectors": tuple(single.items()), "tokens": tuple(several.items()), "ids": tuple(ids.items())}


def item_modalities(frame: Any, columns: Sequence[str] | str, *, text_width: int = 256) -> Modalities:
    """Columns of the items' side table as modalities.

    What a column is goes by its type: lists of fractions are vectors, such as embeddings of texts or images, and lists
    of these are several tokens; fractions are one number, less the mean and over the standard deviation; texts of which
    most are different and of several words are hashed; and other texts (also such as "Crime|Drama"), whole numbers,
    truth values and lists of them are ids. An item whose value is null lacks the modality.

    Args:
        frame: A row for each item: a frame of polars, pandas or pyarrow.
        columns: Their names, as a sequence or a text with commas.
        text_width: Of the vectors that texts are hashed to; see `hashed_texts`.

    Raises:
        FeatureError: A column that is not there, that has no value at all, or of another type; vectors of different
            lengths or with a number that is not finite; the message names column and row.

    >>> import polars as pl
    >>> films = pl.DataFrame({"title": ["Alien (1979)", "Fargo (1996)"], "genres": [["Horror", "Sci-Fi"], None]})
    >>> found = item_modalities(films, "title, genres")
    >>> found.inputs["title"].shape, found.inputs["genres"].tolist(), found.where["genres"].tolist()
    ((2, 256), [[0, 1], [-1, -1]], [True, False])
    """
    names = [part.strip() for part in columns.split(",")] if isinstance(columns, str) else list(columns)
    if not names:
        raise FeatureError("no column is named; at least one is needed")
    table = side_table(frame, names)
    inputs, where = {}, {}
    for column in table:
        there = column.is_not_null().to_numpy()
        if not there.any():
            raise FeatureError(f"column {column.name!r} has no value at all")
        inputs[column.name] = _encoded(column, text_width)
        if not there.all():
            where[column.name] = there
    return Modalities(inputs, where)


def _encoded(column: pl.Series, text_width: int) -> np.ndarray:
    import polars as pl

    kind = kinds_of(column.to_frame(), separator=_SEPARATOR).get(column.name)
    nested = isinstance(column.dtype, pl.List | pl.Array)
    if kind == "text":
        return hashed_texts(column.to_list(), text_width)
    if kind == "embedding" or (nested and kind is None):
        return _stacked(column)
    if column.dtype.is_float():
        values = column.to_numpy().astype(np.float64)
        there = values[column.is_not_null().to_numpy()]
        _require_finite(column, values[:, None])
        return ((np.nan_to_num(values) - there.mean()) / (there.std() or 1.0)).astype(np.float32)[:, None]
    if kind == "multi-hot" and not nested:
        column = column.str.split(_SEPARATOR)
    return np.stack([codes for _, _, codes in encoded_column("item", column.name, column)], axis=1)


def _stacked(column: pl.Series) -> np.ndarray:
    """Lists of one shape, zeros where there is none."""
    given = column.to_list()
    first = next(row for row, value in enumerate(given) if value is not None)
    try:
        shape = np.array(given[first], np.float32).shape
        rows = [np.zeros(shape, np.float32) if value is None else np.array(value, np.float32) for value in given]
    except (TypeError, ValueError) as error:
        raise FeatureError(f"column {column.name!r} of {column.dtype} holds no vectors: {error}") from error
    for row, value in enumerate(rows):
        if value.shape != shape or 0 in shape:
            raise FeatureError(
                f"column {column.name!r}, row {row:,}: a vector of shape {list(value.shape)}; row {first:,} has "
                f"{list(shape)}, and all must have that of one number or more"
            )
    stacked = np.stack(rows)
    _require_finite(column, stacked)
    return stacked


def _require_finite(column: pl.Series, values: np.ndarray) -> None:
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1) | column.is_null().to_numpy()
    if not finite.all():
        row = int(np.argmin(finite))
        raise FeatureError(
            f"column {column.name!r}, row {row:,}: not all numbers are finite; null says that an item has none"
        )
