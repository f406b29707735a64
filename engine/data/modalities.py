"""Modalities: what is known of items besides their ids, as arrays that a network fuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import FeatureError, InteractionError
from .columns import kinds_of, labels_of, side_table
from .fields import encoded_column
from .signals import hashed_texts

if TYPE_CHECKING:
    import polars as pl

_SEPARATOR = "|"
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_NUMBERS = rf"^\s*[\[(]?\s*{_NUMBER}([\s,;]+{_NUMBER})+\s*[\])]?\s*$"  # two or more


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
        for name, array in self.inputs.items():
            if array.ndim not in ((2, 3) if name in floats else (2,)):
                raise ValueError(f"modality {name!r} is {array.dtype}{list(array.shape)}; see the attributes")
        ids = {name: (max(int(a.max(initial=0)) + 1, 1),) for name, a in self.inputs.items() if name not in floats}
        single, several = ({name: a.shape[-1] for name, a in floats.items() if a.ndim == n} for n in (2, 3))
        return {"vectors": tuple(single.items()), "tokens": tuple(several.items()), "ids": tuple(ids.items())}


def item_modalities(frame: Any, columns: Sequence[str] | str, *, text_width: int = 256) -> Modalities:
    """Columns of the items' side table as modalities.

    What a column is goes by its type: lists of fractions are vectors, such as embeddings of texts or images, and lists
    of these are several tokens; fractions are one number, less the mean and over the standard deviation; texts of which
    more than half are different are hashed by their words; and other texts, such as "Crime|Drama", whole numbers, truth
    values and lists of them are ids. An item whose value is null lacks the modality.

    Args:
        frame: A row for each item: a frame of polars, pandas or pyarrow.
        columns: Their names, as a sequence or a text with commas.
        text_width: Of the vectors that texts are hashed to; see `hashed_texts`.

    Raises:
        FeatureError: A column that is not there, is named twice, has no value at all, the same fraction in all rows, or
            another type; vectors that are texts, of different lengths, or with a number that is not finite; the message
            names column and row.

    >>> import polars as pl
    >>> films = pl.DataFrame({"title": ["Alien (1979)", "Fargo (1996)"], "genres": [["Horror", "Sci-Fi"], None]})
    >>> found = item_modalities(films, "title, genres")
    >>> found.inputs["title"].shape, found.inputs["genres"].tolist(), found.where["genres"].tolist()
    ((2, 256), [[0, 1], [-1, -1]], [True, False])
    """
    names = [part.strip() for part in columns.split(",")] if isinstance(columns, str) else list(columns)
    if not names or "" in names or len({*names}) < len(names):
        raise FeatureError(f"columns {names} must name one or more, each once")
    table = side_table(frame, names)
    inputs, where = {}, {}
    for column in table:
        there = column.is_not_null().to_numpy()
        if not there.any():
            raise FeatureError(f"column {column.name!r} has no value at all")
        try:
            inputs[column.name] = _encoded(column, text_width)
        except InteractionError as error:
            accepted = "content is of texts, numbers, truth values or lists of these"
            raise FeatureError(f"column {column.name!r} is {column.dtype}; {accepted}") from error
        if not there.all():
            where[column.name] = there
    return Modalities(inputs, where)


def _encoded(column: pl.Series, text_width: int) -> np.ndarray:
    import polars as pl

    kind = kinds_of(column.to_frame(), separator=_SEPARATOR).get(column.name)
    nested = isinstance(column.dtype, pl.List | pl.Array)
    if kind == "text" or (kind is None and column.dtype == pl.String):
        _require_words(column)
        return hashed_texts(column.to_list(), text_width)
    if kind == "embedding" or (nested and kind is None):
        return _stacked(column)
    if column.dtype.is_float():
        values = column.to_numpy().astype(np.float64)
        there = values[column.is_not_null().to_numpy()]
        _require_finite(column, values[:, None])
        if np.ptp(there) == 0:
            raise FeatureError(f"column {column.name!r} is {there[0]} in all rows that have it, which says nothing")
        return ((np.nan_to_num(values) - there.mean()) / there.std()).astype(np.float32)[:, None]
    if kind == "multi-hot":
        labels = labels_of(column, _SEPARATOR)
        if not any(labels):
            raise FeatureError(f"column {column.name!r} has no label at all")
        inner = column.dtype.inner if nested else pl.String  # pyright: ignore[reportAttributeAccessIssue]
        column = pl.Series(column.name, labels, dtype=pl.List(inner))
    return np.stack([codes for _, _, codes in encoded_column("item", column.name, column)], axis=1)


def _require_words(column: pl.Series) -> None:
    """Raises FeatureError for texts of numbers: hashed as words, vectors out of a CSV file would be noise."""
    texts = column.drop_nulls()
    if texts.str.contains(_NUMBERS).all():
        raise FeatureError(
            f"column {column.name!r} holds vectors as texts, such as {texts[0][:40]!r}: give lists of numbers, by "
            f"frame.with_columns(pl.col({column.name!r}).str.json_decode(pl.List(pl.Float32))) where they look like "
            "[0.1, 0.2], or from a file of Parquet"
        )


def _stacked(column: pl.Series) -> np.ndarray:
    """Lists of one shape, zeros where there is none."""
    given = column.to_list()
    first = next(row for row, value in enumerate(given) if value is not None)
    try:
        shape = np.array(given[first], np.float64).shape
        rows = [np.zeros(shape) if value is None else np.array(value, np.float64) for value in given]
    except (TypeError, ValueError) as error:
        raise FeatureError(f"column {column.name!r} of {column.dtype} holds no vectors: {error}") from error
    if len(shape) not in (1, 2) or 0 in shape:
        raise FeatureError(f"column {column.name!r}, row {first:,}: {list(shape)} is no vector, nor several in a list")
    for row, value in enumerate(rows):
        if value.shape != shape:
            raise FeatureError(
                f"column {column.name!r}, row {row:,}: a vector of shape {list(value.shape)}, where row {first:,} has "
                f"{list(shape)}; all must have the same"
            )
    stacked = np.stack(rows)
    _require_finite(column, stacked)
    return stacked.astype(np.float32)


def _require_finite(column: pl.Series, values: np.ndarray) -> None:
    flat = values.reshape(len(values), -1)
    wrong = ~(np.abs(flat) <= np.finfo(np.float32).max) & ~column.is_null().to_numpy()[:, None]
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        raise FeatureError(
            f"column {column.name!r}, row {row:,}: {flat[row, place]} is no finite float32; null says that an item has "
            "none"
        )
