"""Missing values filled in: fitted on what is there, applied to any other data. Ratings, and columns of side tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FeatureError, InteractionError
from .checking import checked_ids
from .interactions import Interactions

if TYPE_CHECKING:
    import polars as pl

RATING_KINDS = ("global-mean", "user-mean", "item-mean", "regression")
COLUMN_KINDS = ("mean", "median", "regression")


@dataclass(frozen=True, eq=False)
class RatingImputation:
    """Fitted means of users and items, and what they weigh: `constant + a user_mean + b item_mean`.

    >>> x = Interactions.from_coo([0, 0, 1], [0, 1, 0], values=[1.0, 3.0, 5.0])
    >>> fit_imputation(x, "user-mean").values([1], [1])
    array([5.], dtype=float32)
    >>> fit_imputation(x, "item-mean").apply(x, [1], [1]).values
    array([1., 3., 5., 3.], dtype=float32)
    """

    kind: str
    user_means: np.ndarray
    item_means: np.ndarray
    weights: np.ndarray

    def values(self, users: Any, items: Any) -> np.ndarray:
        """Imputed ratings `[cells]` of these pairs.

        Args:
            users: `[cells]` indices.
            items: `[cells]` indices.

        Raises:
            InteractionError: Users or items that it was not fitted on, or lengths that differ.
        """
        users, items = self._cells(users, items)
        constant, of_user, of_item = self.weights
        found = constant + of_user * self.user_means[users] + of_item * self.item_means[items]
        return found.astype(np.float32)

    def apply(self, x: Interactions, users: Any, items: Any) -> Interactions:
        """Ratings with these missing cells filled in; the filled ones have no time, and so none has.

        Raises:
            InteractionError: As `values`; ratings without values, or of other users and items than it was fitted on;
                a cell that is not missing.
        """
        if x.values is None:
            raise InteractionError("imputed ratings need others beside them, and these interactions have no values")
        fitted = len(self.user_means), len(self.item_means)
        if x.shape != fitted:
            raise InteractionError(f"ratings of shape {x.shape}; this imputation was fitted on {fitted}")
        users, items = self._cells(users, items)
        there = np.isin(users.astype(np.int64) * x.n_items + items, x.users.astype(np.int64) * x.n_items + x.items)
        if there.any():
            first = int(np.argmax(there))
            raise InteractionError(
                f"user {users[first]}, item {items[first]} at position {first:,} is not missing ({there.sum():,} such)"
            )
        values = self.values(users, items)
        filled = Interactions.from_coo(
            np.concatenate([x.users, users]),
            np.concatenate([x.items, items]),
            np.concatenate([x.values, values]),
            n_users=x.n_users,
            n_items=x.n_items,
        )
        note = f"{len(values):,} values imputed by {self.kind}"
        return replace(
            x,
            indptr=filled.indptr,
            items=filled.items,
            values=filled.values,
            timestamps=None,
            notes=(*x.notes, note),
        )

    def _cells(self, users: Any, items: Any) -> tuple[np.ndarray, np.ndarray]:
        users, _ = checked_ids("user", users, len(self.user_means))
        items, _ = checked_ids("item", items, len(self.item_means))
        if len(users) != len(items):
            raise InteractionError(f"{len(users)} users for {len(items)} items: a cell is a pair")
        return users, items


def fit_imputation(x: Interactions, kind: str) -> RatingImputation:
    """Fits an imputation of missing ratings; only means are held, never a dense matrix.

    Args:
        x: Ratings that are there.
        kind: "global-mean", "user-mean", "item-mean", or "regression": the least squares of `r` on 1, the mean of the
            user's other ratings and the mean of the item's other ratings. A mean of nothing is the global one.

    Raises:
        InteractionError: No values.
        ValueError: An unknown kind.

    Source: Little, Rubin 2002, "Statistical Analysis with Missing Data", section 4.2.
    """
    if kind not in RATING_KINDS:
        raise ValueError(f"{kind=} must be one of {RATING_KINDS}")
    if x.values is None:
        raise InteractionError(f"{kind} imputation needs values, and these interactions have none")
    r = x.values.astype(np.float64)
    mean = float(r.mean())
    (user_means, other_users), (item_means, other_items) = (
        _means(row, n, r, mean) for row, n in ((x.users, x.n_users), (x.items, x.n_items))
    )
    weights = {"global-mean": (mean, 0.0, 0.0), "user-mean": (0.0, 1.0, 0.0), "item-mean": (0.0, 0.0, 1.0)}.get(kind)
    if weights is None:
        # Means that hold the rating itself would explain it too well.
        known = np.stack([np.ones_like(r), other_users, other_items], axis=1)
        weights = np.linalg.lstsq(known, r, rcond=None)[0]
    return RatingImputation(kind, user_means, item_means, np.asarray(weights, np.float64))


def _means(row: np.ndarray, n_rows: int, values: np.ndarray, default: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each row, and for each entry that of the others in its row."""
    counts = np.bincount(row, minlength=n_rows)
    sums = np.bincount(row, values, n_rows)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), default)
    others = counts[row] - 1
    return means, np.where(others > 0, (sums[row] - values) / np.maximum(others, 1), default)


@dataclass(frozen=True, eq=False)
class ColumnImputation:
    """A fitted imputer of scikit-learn for the numeric columns `names` of a side table."""

    kind: str
    names: tuple[str, ...]
    imputer: Any

    def apply(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with the missing numbers of these columns filled in, as Float64; other columns stay as they are.

        Raises:
            FeatureError: A column that is not there or not numeric, or holds an infinite number.
        """
        import polars as pl

        _require_frame(frame)
        filled = self.imputer.transform(_numbers(frame, self.names))
        return frame.with_columns(pl.Series(name, filled[:, place]) for place, name in enumerate(self.names))


def fit_column_imputation(
    frame: pl.DataFrame, kind: str, *, columns: tuple[str, ...] | list[str] | None = None, seed: int = 0
) -> ColumnImputation:
    """Fits an imputation of missing numbers (null or NaN) in a side table.

    Args:
        frame: Rows that are known, such as `interactions.user_features`.
        kind: "mean" or "median" of the column, or "regression": each column by Bayesian ridge regression on the others,
            in turns (scikit-learn's `IterativeImputer`).
        columns: Which; every numeric one if None.
        seed: Of the regression.

    Raises:
        FeatureError: No polars frame, no column, one that is named twice or is not numeric, has no number at all or an
            infinite one.
        ValueError: An unknown kind, or scikit-learn is not installed.

    Source: van Buuren, Groothuis-Oudshoorn 2011, "mice: Multivariate Imputation by Chained Equations in R".

    >>> import polars as pl
    >>> table = pl.DataFrame({"age": [20.0, None, 40.0], "city": ["Bonn", "Rome", None]})
    >>> fit_column_imputation(table, "mean").apply(table)["age"].to_list()
    [20.0, 30.0, 40.0]
    """
    if kind not in COLUMN_KINDS:
        raise ValueError(f"{kind=} must be one of {COLUMN_KINDS}")
    _require_frame(frame)
    if columns is None:
        columns = [name for name in frame.columns if frame[name].dtype.is_numeric()]
    if isinstance(columns, str) or len(set(columns)) < len(columns):
        raise FeatureError(f"{columns=} must be a list of names, each once")
    if not columns:
        raise FeatureError(f"no numeric column to impute among {frame.columns}")
    numbers = _numbers(frame, columns)
    empty = np.isnan(numbers).all(axis=0)
    if empty.any():
        name = columns[int(np.argmax(empty))]
        raise FeatureError(
            f"column {name!r}: all {len(frame):,} values are missing, so nothing says what they could be"
        )
    try:
        from sklearn.experimental import enable_iterative_imputer  # noqa: F401
        from sklearn.impute import IterativeImputer, SimpleImputer
    except ImportError as error:
        raise ValueError("imputation of columns needs scikit-learn: pip install 'affinax[features]'") from error
    imputer = IterativeImputer(random_state=seed) if kind == "regression" else SimpleImputer(strategy=kind)
    return ColumnImputation(kind, tuple(columns), imputer.fit(numbers))


def _require_frame(frame: pl.DataFrame) -> None:
    import polars as pl

    if not isinstance(frame, pl.DataFrame):
        raise FeatureError(f"the table must be a polars DataFrame; got {type(frame).__module__}.{type(frame).__name__}")


def _numbers(frame: pl.DataFrame, columns: tuple[str, ...] | list[str]) -> np.ndarray:
    """The columns `[n_rows, n_columns]` as float64, NaN where a number is missing."""
    for name in columns:
        if name not in frame.columns:
            raise FeatureError(f"the table has no column {name!r}; it has {frame.columns}")
        if not frame[name].dtype.is_numeric():
            raise FeatureError(f"column {name!r} is {frame[name].dtype}; only numbers can be imputed")
    numbers = np.stack([frame[name].cast(float).fill_null(float("nan")).to_numpy() for name in columns], axis=1)
    infinite = np.isinf(numbers)
    if infinite.any():
        row, place = (int(i) for i in np.argwhere(infinite)[0])
        raise FeatureError(f"column {columns[place]!r}, row {row:,}: {numbers[row, place]} is not finite")
    return numbers
