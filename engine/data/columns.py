"""One column of a side table at a time: its kind, and its encoding by scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import FeatureError, InteractionError
from .tables import column_of

if TYPE_CHECKING:
    import polars as pl
    import scipy.sparse

KINDS = ("numeric", "categorical", "multi-hot", "text", "embedding")


@dataclass(frozen=True, eq=False)
class EncodedColumn:
    """A fitted column: `imputer`, where its kind has one and it is asked for, then `encoder`, both of scikit-learn."""

    name: str
    kind: str
    names: np.ndarray
    encoder: Any
    imputer: Any
    impute: bool
    separator: str

    def apply(self, column: pl.Series, unseen: str) -> scipy.sparse.csr_array:
        """`[n_rows, len(names)]`; see `FeatureEncoder.apply`."""
        import scipy.sparse

        values = _values(column, self.kind, self.separator, self.impute)
        if self.imputer is not None:
            values = self.imputer.transform(values)
        if self.kind in ("categorical", "multi-hot"):
            values = self._known(values, unseen)
        if self.kind == "embedding":
            if values.shape[1] != len(self.names):
                raise FeatureError(
                    f"column {self.name!r}: vectors of length {values.shape[1]}; in training they had {len(self.names)}"
                )
            return scipy.sparse.csr_array(values)
        return scipy.sparse.csr_array(self.encoder.transform(values))

    def _known(self, values: Any, unseen: str) -> Any:
        """What training had of the categories or labels; the others are an error unless they count as none."""
        known = set(self.encoder.classes_ if self.kind == "multi-hot" else self.encoder.categories_[0])
        rows = values if self.kind == "multi-hot" else values.tolist()
        new = [(row, value) for row, several in enumerate(rows) for value in several if value not in known]
        if new and unseen == "error":
            row, value = new[0]
            raise FeatureError(
                f"column {self.name!r}, row {row:,}: {value!r} is none of the {len(known)} values of training "
                f'({len(new)} such). unseen="zero" counts them as none'
            )
        return [[v for v in several if v in known] for several in rows] if self.kind == "multi-hot" else values


_IMPUTED = {"numeric": "mean", "embedding": "mean", "categorical": "most_frequent"}


def fit_column(column: pl.Series, kind: str, *, separator: str, max_terms: int | None, impute: bool) -> EncodedColumn:
    """Fits one column; see `fit_features`."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.impute import SimpleImputer
        from sklearn.preprocessing import MultiLabelBinarizer, OneHotEncoder, StandardScaler
    except ImportError as error:
        raise ValueError("features need scikit-learn: pip install 'affinax[features]'") from error
    if kind not in KINDS:
        raise ValueError(f"column {column.name!r}: kind {kind!r} must be one of {KINDS}")
    values = _values(column, kind, separator, impute)
    imputer = None
    if impute and kind in _IMPUTED:
        hole: Any = None if kind == "categorical" else np.nan
        imputer = SimpleImputer(strategy=_IMPUTED[kind], missing_values=hole)
        values = imputer.fit_transform(values)
    encoder: Any = None
    if kind == "numeric":
        encoder = StandardScaler().fit(values)
        names = [column.name]
    elif kind == "categorical":
        encoder = OneHotEncoder(handle_unknown="ignore", dtype=cast(Any, np.float32)).fit(values)
        names = [f"{column.name}={category}" for category in encoder.categories_[0]]
    elif kind == "multi-hot":
        encoder = MultiLabelBinarizer(sparse_output=True).fit(values)
        names = [f"{column.name}={label}" for label in encoder.classes_]
    elif kind == "text":
        encoder = TfidfVectorizer(dtype=cast(Any, np.float32), max_features=max_terms)
        try:
            encoder.fit(values)
        except ValueError as error:
            raise FeatureError(f"column {column.name!r}: {error}") from error
        names = [f"{column.name}:{term}" for term in encoder.get_feature_names_out()]
    else:
        names = [f"{column.name}[{place}]" for place in range(values.shape[1])]
    return EncodedColumn(column.name, kind, np.asarray(names, np.str_), encoder, imputer, impute, separator)


def kinds_of(frame: Any, *, separator: str = "|") -> dict[str, str]:
    """The kind that suits each column, by its type and how often its values recur.

    Numbers are "numeric" but for whole ones that are all different, which are ids; lists are "multi-hot", of fractions
    "embedding"; texts with the separator are "multi-hot", those of which there are at most half as many as rows
    "categorical", and of the others those of several words "text". Any other column, such as a date or a post code, has
    none.

    >>> import polars as pl
    >>> kinds_of(pl.DataFrame({"id": [1, 2], "sex": ["f", "f"], "title": ["Alien (1979)", "Fargo (1996)"]}))
    {'sex': 'categorical', 'title': 'text'}
    """
    kinds = {}
    for column in side_table(frame):
        kind = _kind_of(column, separator)
        if kind is not None:
            kinds[column.name] = kind
    return kinds


def _kind_of(column: pl.Series, separator: str) -> str | None:
    import polars as pl

    there = column.drop_nulls()
    if isinstance(column.dtype, pl.List | pl.Array):
        inner = _inner(column.dtype)
        return "embedding" if inner.is_float() else None if inner.is_nested() else "multi-hot"
    if column.dtype.is_float():
        return "numeric"
    if column.dtype.is_integer():
        return None if len(there) > 1 and there.n_unique() == len(there) else "numeric"
    if isinstance(column.dtype, pl.Categorical | pl.Enum | pl.Boolean):
        return "categorical"
    if column.dtype != pl.String or len(there) == 0:
        return None
    if there.str.contains(separator, literal=True).any():
        return "multi-hot"
    if there.n_unique() <= len(there) / 2:
        return "categorical"
    return "text" if there.str.contains(r"\S\s+\S").sum() > len(there) / 2 else None


def side_table(frame: Any, columns: Iterable[str] | None = None) -> pl.DataFrame:
    """The columns of a frame of pandas, polars or pyarrow, all if None.

    Raises:
        FeatureError: No frame, or a column that it does not have.
    """
    import narwhals.stable.v2 as nw
    import polars as pl

    if isinstance(frame, pl.DataFrame) and columns is None:
        return frame
    try:
        table = nw.from_native(frame, eager_only=True)
    except (TypeError, nw.exceptions.NarwhalsError) as error:
        raise FeatureError(f"features are made of frames of polars, pandas and pyarrow: {error}") from error
    found = []
    for name in table.columns if columns is None else columns:
        if name not in table.columns:
            raise FeatureError(f"the frame has no column {name!r}; it has {table.columns}")
        column = table.get_column(name)
        if column.dtype in (nw.Object, nw.Unknown):
            try:
                values = [v.tolist() if isinstance(v, np.ndarray) else v for v in column.to_list()]
                found.append(column_of(name, values))
            except InteractionError as error:
                raise FeatureError(str(error)) from error
        else:
            found.append(column.to_frame().to_polars().to_series().alias(name))
    return pl.DataFrame(found)


def _values(column: pl.Series, kind: str, separator: str, impute: bool) -> Any:
    """The column as scikit-learn takes it; what is missing is an error unless it is to be imputed."""
    import polars as pl

    nested = isinstance(column.dtype, pl.List | pl.Array)
    if column.dtype.is_float():
        column = column.fill_nan(None)
    elif kind == "embedding" and nested and _inner(column.dtype).is_float():
        # A vector is missing where all of it is; one that is missing in part is an error.
        vectors = (np.array(vector or [0.0], np.float64) for vector in column.to_list())
        gone = pl.Series([bool(np.isnan(vector).all()) for vector in vectors])
        column = column.zip_with(~gone, pl.Series([None], dtype=column.dtype)) if gone.any() else column
    if column.null_count() and not impute:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise FeatureError(
            f"column {column.name!r}, row {row:,}: the value is missing ({column.null_count():,} such). "
            'missing="impute" fills them in'
        )
    fits = {
        "numeric": column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null),
        "categorical": not column.dtype.is_nested(),
        "multi-hot": column.dtype in (pl.String, pl.Null) or (nested and not _inner(column.dtype).is_nested()),
        "text": column.dtype in (pl.String, pl.Null),
        "embedding": nested and _inner(column.dtype).is_numeric(),
    }
    if not fits[kind]:
        raise FeatureError(f"column {column.name!r} is {column.dtype}, such as {column[:1].to_list()}: not {kind}")
    if kind == "numeric":
        return _finite(column.name, column.cast(pl.Float64).to_numpy().reshape(-1, 1))
    if kind == "embedding":
        return _finite(column.name, _stacked(column))
    if kind == "categorical":
        values = np.empty((len(column), 1), object)
        values[:, 0] = column.to_list()
        return values
    if kind == "text":
        return column.fill_null("").to_list()
    return labels_of(column, separator)


def labels_of(column: pl.Series, separator: str) -> list[list[Any]]:
    """The labels of each row of lists, or of texts such as "Crime|Drama"; none where it is missing."""
    import polars as pl

    if column.dtype == pl.String:
        parts = (None if text is None else text.split(separator) for text in column)
        return [[label.strip() for label in labels or () if label.strip()] for labels in parts]
    return [[label for label in labels or () if label is not None] for labels in column.to_list()]


def _inner(dtype: pl.DataType) -> pl.DataType:
    """What a list or an array is made of."""
    return cast(Any, dtype).inner


def _stacked(column: pl.Series) -> np.ndarray:
    vectors = column.to_list()
    lengths = [0 if vector is None else len(vector) for vector in vectors]
    width = max(lengths, default=0)
    wrong = next((row for row, vector in enumerate(vectors) if vector is not None and len(vector) != width), None)
    if wrong is not None or width == 0:
        raise FeatureError(
            f"column {column.name!r}, row {wrong or 0}: a vector of length {lengths[wrong or 0]}; others have {width}"
        )
    return np.array([np.full(width, np.nan) if vector is None else vector for vector in vectors], np.float64)


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    """The values, of which only whole rows may be missing."""
    wrong = ~np.isfinite(values) & ~np.isnan(values).all(axis=1, keepdims=True)
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        raise FeatureError(f"column {name!r}, row {row:,}: {values[row, place]} is not finite")
    return values
