"""Fields: what is known of users and items as small whole numbers, for the tables of networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import InteractionError
from .interactions import Interactions

if TYPE_CHECKING:
    import polars


class Fields(NamedTuple):
    """Ids of a side's fields; the first field is the user or item itself.

    Attributes:
        names: Of the fields.
        sizes: How many ids each has.
        ids: int32 `[n, n_fields]`, -1 where nothing is known.
        values: What each id of each field stands for; None for the first field.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    ids: np.ndarray
    values: tuple[np.ndarray | None, ...]


def user_and_item_fields(x: Interactions, columns: Sequence[str] | str = ()) -> tuple[Fields, Fields]:
    """Fields of users and of items, from their ids and from columns of their side tables.

    A column of texts, whole numbers or truth values is a field; one of lists is as many as the longest list is long,
    each with the same ids, so that nothing is left out.

    Args:
        x: With `user_features` or `item_features`, which have the columns.
        columns: Their names, as a sequence or a text with commas; both tables may have one.

    Returns:
        `(users, items)`.

    Raises:
        InteractionError: A column that neither table has, or that holds something else, such as fractions.

    >>> import polars as pl
    >>> from dataclasses import replace
    >>> x = Interactions.from_coo([0, 1], [0, 0])
    >>> x = replace(x, user_features=pl.DataFrame({"city": ["Rome", None]}))
    >>> users, items = user_and_item_fields(x, ["city"])
    >>> users.names, users.sizes, users.ids.tolist(), items.sizes
    (('user', 'city'), (2, 1), [[0, 0], [1, -1]], (1,))
    """
    columns = [part.strip() for part in columns.split(",")] if isinstance(columns, str) else columns
    tables = {"user": x.user_features, "item": x.item_features}
    there = {name for table in tables.values() if table is not None for name in table.columns}
    unknown = [column for column in columns if column not in there]
    if unknown:
        known = f"there are {sorted(there)}" if there else "these interactions have no side tables"
        raise InteractionError(f"no side table has a column {unknown[0]!r}; {known}")
    users, items = (
        _fields(side, n, table, [c for c in columns if table is not None and c in table.columns])
        for (side, table), n in zip(tables.items(), x.shape, strict=True)
    )
    return users, items


def _fields(side: str, n: int, table: polars.DataFrame | None, columns: Sequence[str]) -> Fields:
    names, sizes, ids = [side], [n], [np.arange(n, dtype=np.int32)]
    values: list[np.ndarray | None] = [None]
    for column in columns:
        assert table is not None
        for name, known, codes in encoded_column(side, column, table[column]):
            names.append(name)
            sizes.append(max(len(known), 1))
            ids.append(codes)
            values.append(known)
    return Fields(tuple(names), tuple(sizes), np.stack(ids, axis=1), tuple(values))


def encoded_column(side: str, column: str, series: polars.Series) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """`(name, values, ids)` of each field that a column gives."""
    import polars as pl

    parts = {column: series}
    if isinstance(series.dtype, pl.List | pl.Array):
        lists = series.cast(pl.List(series.dtype.inner))  # pyright: ignore[reportAttributeAccessIssue]
        longest = int(lists.list.len().max() or 0)  # pyright: ignore[reportArgumentType]
        parts = {f"{column}.{k + 1}": lists.list.get(k, null_on_oob=True) for k in range(max(longest, 1))}
    dtype = next(iter(parts.values())).dtype
    if not (dtype.is_integer() or dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Null) or dtype == pl.Enum):
        raise InteractionError(
            f"column {column!r} of the {side}s is {series.dtype}; a field is of texts, whole numbers or truth values, "
            "or lists of these: round or bin others first"
        )
    together = pl.concat([part.cast(pl.String) if dtype == pl.Categorical else part for part in parts.values()])
    known = together.drop_nulls().unique().sort()
    place = {value: k for k, value in enumerate(known.to_list())}
    return [
        (name, known.to_numpy(), np.array([place.get(value, -1) for value in part.to_list()], np.int32))
        for name, part in parts.items()
    ]
