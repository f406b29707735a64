"""Feature matrices from side tables: fitted on the rows of training, applied to any other."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import FeatureError
from .columns import KINDS, EncodedColumn, fit_column, kinds_of, side_table

if TYPE_CHECKING:
    import scipy.sparse

    from ...kernels.csr import CSR

CRITERIA = ("variance", "mutual-information", "chi-square")
_AT_ONCE = 1 << 22  # numbers of a sparse matrix that are held densely together


@dataclass(frozen=True, eq=False)
class Features:
    """A sparse feature matrix whose columns have names.

    Attributes:
        matrix: `[n_rows, n_features]` float32.
        names: `[n_features]`, such as "genres=Drama".
    """

    matrix: scipy.sparse.csr_array
    names: np.ndarray

    def __post_init__(self):
        if shape_of(self.matrix)[1] != len(self.names):
            raise FeatureError(f"{len(self.names)} names for {shape_of(self.matrix)[1]} features")

    @property
    def n_rows(self) -> int:
        return shape_of(self.matrix)[0]

    @property
    def n_features(self) -> int:
        return len(self.names)

    def to_device(self) -> CSR:
        """The rows as JAX code takes them."""
        return device_rows(self.matrix)


@dataclass(frozen=True, eq=False)
class FeatureEncoder:
    """Fitted columns: what `fit_features` and `select_features` give.

    Attributes:
        columns: One fitted encoding for each column of the table.
        kept: `[n_features]`, the places of the features among those that the columns make.
        unseen: "error" or "zero".
        notes: What was left out.

    >>> import polars as pl
    >>> films = pl.DataFrame({"year": [1979, 1996], "genres": [["Horror", "Sci-Fi"], ["Crime"]]})
    >>> encoder = fit_features(films, {"year": "numeric", "genres": "multi-hot"})
    >>> encoder.names.tolist()
    ['year', 'genres=Crime', 'genres=Horror', 'genres=Sci-Fi']
    >>> encoder.apply(films).matrix.toarray()
    array([[-1.,  0.,  1.,  1.],
           [ 1.,  1.,  0.,  0.]], dtype=float32)
    """

    columns: tuple[EncodedColumn, ...]
    kept: np.ndarray
    unseen: str
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> np.ndarray:
        """The features' names."""
        return np.concatenate([column.names for column in self.columns])[self.kept]

    def apply(self, frame: Any) -> Features:
        """The features of the rows of a frame that has the fitted columns.

        Raises:
            FeatureError: A column that is not there, a missing value that was not asked to be imputed, or a category
                that training did not have; the message names column, row and value.
        """
        import scipy.sparse

        table = side_table(frame, [column.name for column in self.columns])
        blocks = [column.apply(table[column.name], self.unseen) for column in self.columns]
        matrix = scipy.sparse.csr_array(scipy.sparse.hstack(blocks, format="csr"), dtype=np.float32)
        return Features(matrix[:, self.kept], self.names)


def fit_features(
    frame: Any,
    columns: Mapping[str, str] | None = None,
    *,
    separator: str = "|",
    max_terms: int | None = None,
    missing: str = "error",
    unseen: str = "error",
    constant: str = "error",
) -> FeatureEncoder:
    """Fits the encoding of a side table, by scikit-learn.

    Args:
        frame: Training rows: a frame of polars, pandas or pyarrow.
        columns: The kind of each column that is to be used:

            - "numeric": less the mean, over the standard deviation;
            - "categorical": one feature a category, 0 or 1;
            - "multi-hot": one feature a label, 0 or 1, of lists of labels or of texts such as "Crime|Drama";
            - "text": TF-IDF of the words, each row of length 1;
            - "embedding": vectors of one length, taken as they are.

            If None, what `kinds_of` makes of the columns; those it leaves out are in `notes`.
        separator: Between the labels of a text.
        max_terms: The most frequent words of a text column to keep; all if None.
        missing: "error", or "impute": numbers and embeddings get the mean, categories the most frequent one, labels and
            texts none.
        unseen: What a category or label that training did not have does in `apply`: "error", or "zero" for none.
        constant: What a column that is missing in every row, or a feature that is the same in all, does: "error", or
            "drop", which leaves it out with a note.

    Returns:
        `FeatureEncoder`.

    Raises:
        FeatureError: A column that is not there or not of its kind, or what the options above call an error.
        ValueError: An unknown option, or no scikit-learn.
    """
    for name, value, accepted in (
        ("missing", missing, ("error", "impute")),
        ("unseen", unseen, ("error", "zero")),
        ("constant", constant, ("error", "drop")),
    ):
        if value not in accepted:
            raise ValueError(f"{name}={value!r} must be one of {accepted}")
    if not (columns is None or isinstance(columns, Mapping)):
        raise ValueError(f"{columns=} must be a mapping of columns to their kinds, of which there are {KINDS}")
    notes = []
    table = side_table(frame, columns)
    if columns is None:
        columns = kinds_of(table, separator=separator)
        notes += [f"column {name!r} left out: no kind suits it" for name in table.columns if name not in columns]
    if len(table) == 0:
        raise FeatureError("the frame has no rows to fit on")
    empty = [name for name in columns if table[name].null_count() == len(table)]
    if empty and constant == "error":
        raise FeatureError(f'column {empty[0]!r} is missing in all {len(table):,} rows. constant="drop" leaves it out')
    notes += [f"column {name!r} left out: it is missing in all rows" for name in empty]
    fitted = tuple(
        fit_column(table[name], kind, separator=separator, max_terms=max_terms, impute=missing == "impute")
        for name, kind in columns.items()
        if name not in empty
    )
    if not fitted:
        raise FeatureError(f"no column is left to make features of; the frame has {table.columns}")
    whole = FeatureEncoder(fitted, np.arange(sum(len(column.names) for column in fitted)), unseen)
    features = whole.apply(table)
    kept = np.flatnonzero(_variances(features.matrix) > 0)
    same = np.setdiff1d(whole.kept, kept)
    if len(same) and constant == "error":
        raise FeatureError(
            f"feature {str(features.names[same[0]])!r} is the same in all {len(table):,} rows ({len(same)} such). "
            'constant="drop" leaves them out'
        )
    if len(kept) == 0:
        raise FeatureError(f"every feature is the same in all {len(table):,} rows")
    notes += [f"feature {name!r} left out: it is the same in all rows" for name in features.names[same].tolist()]
    return replace(whole, kept=kept, notes=tuple(notes))


def select_features(
    encoder: FeatureEncoder,
    frame: Any,
    by: str,
    *,
    targets: Any = None,
    k: int | None = None,
    threshold: float = 0.0,
) -> FeatureEncoder:
    """The encoder with the features that matter.

    Args:
        encoder: From `fit_features`.
        frame: Training rows, on which the features are judged.
        by: "variance": those that vary by more than `threshold`. "mutual-information" with the targets, or
            "chi-square" of the targets' classes, for features that are never negative: the `k` best.
        targets: `[n_rows]` numbers or classes, one for each row; floats are taken for numbers.
        k: How many to keep.
        threshold: Variance that a feature must exceed.

    Returns:
        A `FeatureEncoder` with fewer features, and a note of how many were left out.

    Raises:
        FeatureError: Targets that do not fit the rows, a negative feature under "chi-square", or nothing left.
        ValueError: An unknown criterion, or arguments that do not go with it.

    >>> import polars as pl
    >>> films = pl.DataFrame({"genre": ["Crime", "Crime", "War", "War"], "colour": ["yes", "no", "yes", "no"]})
    >>> encoder = fit_features(films, {"genre": "categorical", "colour": "categorical"})
    >>> select_features(encoder, films, "chi-square", targets=[1, 1, 0, 0], k=2).names.tolist()
    ['genre=Crime', 'genre=War']
    """
    if by not in CRITERIA:
        raise ValueError(f"{by=} must be one of {CRITERIA}")
    if (by == "variance") != (targets is None) or (by == "variance") != (k is None):
        raise ValueError(f'{by=}: targets and k go with "mutual-information" and "chi-square", and only with them')
    features = encoder.apply(frame)
    if by == "variance":
        chosen = np.flatnonzero(_variances(features.matrix) > threshold)
    else:
        chosen = _best(features, by, np.asarray(targets), k)
    if len(chosen) == 0:
        most = _variances(features.matrix).max()
        raise FeatureError(f"no feature has a variance above {threshold=}; the greatest is {most:.3g}")
    left_out = features.n_features - len(chosen)
    return replace(encoder, kept=encoder.kept[chosen], notes=(*encoder.notes, f"{left_out} features left out by {by}"))


def shape_of(matrix: scipy.sparse.csr_array) -> tuple[int, int]:
    """Its shape, which scipy declares as one that may be missing."""
    return cast("tuple[int, int]", matrix.shape)


def device_rows(matrix: scipy.sparse.csr_array) -> CSR:
    """A scipy matrix as `CSR` on the device, entries that occur again summed.

    Raises:
        FeatureError: More entries than int32 can index.
    """
    import jax.numpy as jnp

    from ...kernels.csr import CSR, MAX_INDEX

    if max(matrix.nnz, *shape_of(matrix)) > MAX_INDEX:
        raise FeatureError(
            f"{matrix.nnz:,} entries of shape {matrix.shape} exceed the {MAX_INDEX:,} that can be indexed"
        )
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return CSR(
        jnp.asarray(matrix.indptr.astype(np.int32)),
        jnp.asarray(matrix.indices.astype(np.int32)),
        jnp.asarray(matrix.data.astype(np.float32)),
    )


def _variances(matrix: scipy.sparse.csr_array) -> np.ndarray:
    """0 for exactly those columns that are constant."""
    from sklearn.feature_selection import VarianceThreshold

    fitted = VarianceThreshold()
    with contextlib.suppress(ValueError):  # raised, once the variances are known, where they are all 0
        fitted.fit(matrix)
    return cast("np.ndarray", fitted.variances_)


def _best(features: Features, by: str, targets: np.ndarray, k: int | None) -> np.ndarray:
    from sklearn.feature_selection import SelectKBest, chi2, mutual_info_classif, mutual_info_regression

    if targets.shape != (features.n_rows,):
        raise FeatureError(f"{targets.shape=} must be ({features.n_rows},): one for each row")
    if k is None or not 1 <= k <= features.n_features:
        raise ValueError(f"{k=} must be in [1, {features.n_features}], the number of features")
    numbers = targets.dtype.kind == "f"
    if numbers and not np.isfinite(targets).all():
        row = int(np.argmin(np.isfinite(targets)))
        raise FeatureError(f"targets: {targets[row]} in row {row:,} is not finite")
    if by == "chi-square":
        if numbers:
            raise FeatureError(f"chi-square needs classes; targets are {targets.dtype}, such as {targets[:1].tolist()}")
        if features.matrix.min() < 0:
            column = int(np.argmax(features.matrix.min(axis=0).toarray().ravel() < 0))
            raise FeatureError(f"chi-square needs features that are never negative; {str(features.names[column])!r} is")
        score: Any = chi2
    else:
        information = mutual_info_regression if numbers else mutual_info_classif

        def by_blocks(matrix, targets):
            """By blocks of columns: mutual information wants numbers, unlike categories, densely."""
            width, found = max(1, _AT_ONCE // matrix.shape[0]), []
            for first in range(0, matrix.shape[1], width):
                block = matrix[:, first : first + width].toarray()
                discrete = ((block == 0) | (block == 1)).all(axis=0)
                found.append(information(block, targets, discrete_features=discrete, random_state=0))
            return np.concatenate(found)

        score = by_blocks

    best = SelectKBest(score, k=k).fit(features.matrix, targets)
    return cast("np.ndarray", best.get_support(indices=True))
