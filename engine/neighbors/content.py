"""Content-based recommendation: users are the mean of what they met, and get what is like it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...kernels.csr import CSR, SparseMatrix
from ..data.features import Features, device_rows, fit_features, shape_of
from ..data.interactions import Interactions, takes_interactions
from ..errors import FeatureError

if TYPE_CHECKING:
    import scipy.sparse

_DENSE = 0.5  # the share of numbers that are not 0 from which features are held densely


class ContentProfiles(NamedTuple):
    """`score(u, i)` is the cosine of u's profile and i's features.

    Attributes:
        profiles: A row for each user, of length 1; an empty one for a user without history.
        features: `[n_items, n_features]` rows of length 1: in both orders where most are 0, else dense.
        norms: `[n_items]`, those that the rows had.
    """

    profiles: CSR
    features: SparseMatrix | Float[Array, "n_items n_features"]
    norms: Float[Array, " n_items"]

    @property
    def n_users(self) -> int:
        return self.profiles.n_rows

    @property
    def n_items(self) -> int:
        return self.norms.shape[-1]

    def sparse_queries(self) -> CSR:
        """The profile of each user."""
        return self.profiles

    def score_table(self) -> CSR | Float[Array, "n_features n_items"]:
        """The items that have each feature."""
        return self.features.by_item if isinstance(self.features, SparseMatrix) else self.features.T

    def item_rows(self) -> CSR:
        """The features of each item, in the form of a profile."""
        return self.features.by_user if isinstance(self.features, SparseMatrix) else _sparse(self.features)

    def with_history(self, history: CSR) -> ContentProfiles:
        """The same items for users with other histories, whose profiles are made on the host."""
        return self._replace(profiles=_profiles(history, self))

    def with_items(self, features: Any) -> ContentProfiles:
        """The same users among other items, of the same features.

        Raises:
            FeatureError: Another number of features.
        """
        matrix, own = _matrix(features), self.features
        n_features = own.by_item.n_rows if isinstance(own, SparseMatrix) else own.shape[1]
        if shape_of(matrix)[1] != n_features:
            raise FeatureError(f"{shape_of(matrix)[1]} item features; the profiles have {n_features}")
        return _unit_items(matrix)._replace(profiles=self.profiles)


@takes_interactions
def content_profiles(
    interactions: Interactions, *, features: Any = None, columns: dict[str, str] | None = None, missing: str = "error"
) -> ContentProfiles:
    """Users as means of the items they met, `profile = sum of value features / sum of |value|`, and items by cosine.

    Items without interactions are recommended like any other. Where every value is above 0, a dislike counts for its
    item a little; with values centred by `fit_scale`, it counts against it.

    Args:
        interactions: What each user met; values where there are any, else ones.
        features: `[n_items, n_features]`: `Features`, a scipy matrix, or an array such as sentence embeddings. If None,
            they are made of `interactions.item_features`, constant ones left out.
        columns: The kinds of the columns of that side table; see `fit_features`.
        missing: What a value that is missing in it does: "error" or "impute"; likewise.

    Returns:
        `ContentProfiles`. Where features are sparse, items that share nothing with a profile are not answered.

    Raises:
        FeatureError: No features, a row for too few or too many items, or what is no finite number.

    Source: Lops, de Gemmis, Semeraro 2011, "Content-based Recommender Systems: State of the Art and Trends".

    >>> x = Interactions.from_coo([0, 0], [0, 1], n_items=4)
    >>> model = content_profiles(x, features=np.array([[1, 0, 1], [1, 0, 0], [2, 0, 1], [0, 1, 0]]))
    >>> model.score_table().indices.tolist(), np.asarray(model.profiles.values).astype(float).round(3).tolist()
    ([0, 1, 2, 3, 0, 2], [0.894, 0.447])
    """
    if features is None:
        if interactions.item_features is None:
            raise FeatureError(
                "content_profiles needs item features, and these interactions have none. Pass features=…, or give "
                "the interactions a side table: dataclasses.replace(interactions, item_features=frame)"
            )
        encoder = fit_features(interactions.item_features, columns, missing=missing, constant="drop")
        features = encoder.apply(interactions.item_features)
    elif columns is not None:
        raise ValueError("columns say what to make of item_features; with features there is nothing to make")
    items = _matrix(features)
    if shape_of(items)[0] != interactions.n_items:
        raise FeatureError(f"features of {shape_of(items)[0]:,} items; the interactions have {interactions.n_items:,}")
    model = _unit_items(items)
    return model._replace(profiles=_profiles(interactions.to_device().by_user, model))


def _matrix(features: Any) -> scipy.sparse.csr_array:
    import scipy.sparse

    matrix: Any = features.matrix if isinstance(features, Features) else features
    if np.ma.is_masked(matrix):  # NumPy would give what is under the mask
        raise FeatureError(f"features are masked at {int(np.ma.count_masked(matrix)):,} places; fill those in")
    if not scipy.sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    if matrix.ndim != 2:
        raise FeatureError(f"features must be [n_items, n_features]; got shape {matrix.shape}")
    try:
        if matrix.dtype.kind == "c":
            raise TypeError(f"got {matrix.dtype}")
        matrix = scipy.sparse.csr_array(matrix, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise FeatureError(f"features must be real numbers: {error}. fit_features encodes other columns") from error
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    if not np.isfinite(matrix.data).all():
        entry = int(np.argmin(np.isfinite(matrix.data)))
        row = int(np.searchsorted(matrix.indptr, entry, side="right")) - 1
        raise FeatureError(f"features: {matrix.data[entry]} in row {row:,} is not a finite float32 number")
    return matrix


def _unit_items(matrix: scipy.sparse.csr_array) -> ContentProfiles:
    """Items without users."""
    unit, lengths = _unit_rows(matrix)
    nobody = CSR(jnp.zeros(1, jnp.int32), jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.float32))
    if matrix.nnz > _DENSE * np.prod(shape_of(matrix)):
        return ContentProfiles(nobody, jnp.asarray(unit.toarray()), jnp.asarray(lengths))
    both = SparseMatrix(device_rows(unit), device_rows(unit.T.tocsr()))
    return ContentProfiles(nobody, both, jnp.asarray(lengths))


def _profiles(history: CSR, model: ContentProfiles) -> CSR:
    """The direction of the weighted mean of each user's items: what divides it does not matter."""
    import scipy.sparse

    features = model.features
    if isinstance(features, SparseMatrix):
        unit = _on_host(features.by_user, features.by_item.n_rows)
    else:
        unit = np.asarray(features)
    weights = _on_host(history, model.n_items)
    weights.data = weights.data * np.asarray(model.norms)[weights.indices]
    return device_rows(_unit_rows(scipy.sparse.csr_array(weights @ unit))[0])


def _unit_rows(matrix: scipy.sparse.csr_array) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """Rows of length 1, and the lengths they had; a row of zeros stays one."""
    n_rows = shape_of(matrix)[0]
    row = np.repeat(np.arange(n_rows), np.diff(matrix.indptr))
    lengths = np.sqrt(np.bincount(row, np.square(matrix.data, dtype=np.float64), n_rows))
    unit = matrix.copy()
    unit.data = (unit.data / np.where(lengths > 0, lengths, 1)[row]).astype(np.float32)
    unit.eliminate_zeros()
    return unit, lengths.astype(np.float32)


def _on_host(rows: CSR, n_columns: int) -> scipy.sparse.csr_array:
    import scipy.sparse

    values = np.broadcast_to(np.asarray(rows.values), rows.nnz)
    return scipy.sparse.csr_array(
        (values, np.asarray(rows.indices), np.asarray(rows.indptr)), shape=(rows.n_rows, n_columns)
    )


def _sparse(rows: Array) -> CSR:
    """Dense rows, every number of them stored."""
    n, width = rows.shape
    indices = jnp.tile(jnp.arange(width, dtype=jnp.int32), n)
    return CSR(jnp.arange(n + 1, dtype=jnp.int32) * width, indices, rows.reshape(-1))
