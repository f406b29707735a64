"""Design matrices for pairs of a user and an item: ids one-hot, features of both, and their crosses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FeatureError, InteractionError
from .checking import checked_ids
from .columns import kinds_of
from .features import Features, fit_features, shape_of
from .interactions import Interactions

if TYPE_CHECKING:
    import scipy.sparse

CROSSES = ("none", "features", "all")


@dataclass(frozen=True, eq=False)
class PairDesign:
    """What the rows of a regression over pairs are made of.

    With p and q the one-hot ids of a user and an item and a and b their features, the row of a pair is the terms
    `[a, b, p, q, a x b, p x b, q x a]` side by side, of which `crosses` says how many there are: "none" of the last
    three, "features" `a x b`, "all" of them. A cross has a column for each two columns.

    Attributes:
        users: Features of the users, a row each; of width 0 where there are none.
        items: Features of the items.
        crosses: See above.
        user_names: Names of the users, for the columns of their ids, and
        item_names: these of the items.

    >>> x = Interactions.from_coo([0, 1, 1], [0, 0, 1])
    >>> pair_design(x).names.tolist()
    ['user=0', 'user=1', 'item=0', 'item=1']
    >>> pair_design(x).rows(x.users, x.items).toarray().astype(int).tolist()
    [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]]
    """

    users: Features
    items: Features
    crosses: str
    user_names: np.ndarray
    item_names: np.ndarray

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the weights of each term, in the order of the columns."""
        n, a, m, b = self.users.n_rows, self.users.n_features, self.items.n_rows, self.items.n_features
        shapes = {"user features": (a,), "item features": (b,), "users": (n,), "items": (m,)}
        crosses = {"user features x item features": (a, b)}
        if self.crosses == "all":
            crosses |= {"users x item features": (n, b), "items x user features": (m, a)}
        return shapes if self.crosses == "none" else shapes | crosses

    @property
    def n_features(self) -> int:
        """The width of a row."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def names(self) -> np.ndarray:
        """The name of each column, such as "gender=F x genres=Drama"."""
        a, b = self.users.names, self.items.names
        p, q = (
            np.char.add(f"{side}=", names) for side, names in (("user", self.user_names), ("item", self.item_names))
        )
        two = {
            "user features x item features": (a, b),
            "users x item features": (p, b),
            "items x user features": (q, a),
        }
        names = {"user features": a, "item features": b, "users": p, "items": q}
        for term in self.shapes:
            if term in two:
                left, right = two[term]
                names[term] = np.char.add(np.char.add(left, " x ")[:, None], right[None, :]).ravel()
        return np.concatenate([names[term] for term in self.shapes])

    def rows(self, users: Any, items: Any) -> scipy.sparse.csr_array:
        """The design matrix `[n_pairs, n_features]` of pairs of users and items, by index.

        Raises:
            InteractionError: An index that is outside, or other numbers of users and items.
        """
        import scipy.sparse

        users, _ = checked_ids("user", users, self.users.n_rows)
        items, _ = checked_ids("item", items, self.items.n_rows)
        if len(users) != len(items):
            raise InteractionError(f"{len(users):,} users and {len(items):,} items do not make pairs")
        a, b = self.users.matrix[users], self.items.matrix[items]
        p, q = _one_hot(users, self.users.n_rows), _one_hot(items, self.items.n_rows)
        blocks = [a, b, p, q]
        if self.crosses != "none":
            blocks.append(crossed(a, b))
        if self.crosses == "all":
            blocks += [crossed(p, b), crossed(q, a)]
        return scipy.sparse.csr_array(scipy.sparse.hstack(blocks, format="csr"))

    def parts(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The weights of each term, in the shapes of `shapes`."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        pieces = np.split(np.asarray(weights), np.cumsum(sizes)[:-1])
        return {term: piece.reshape(self.shapes[term]) for term, piece in zip(self.shapes, pieces, strict=True)}


def pair_design(
    x: Interactions,
    *,
    crosses: str = "features",
    user_columns: dict[str, str] | None = None,
    item_columns: dict[str, str] | None = None,
    missing: str = "error",
) -> PairDesign:
    """The design of pairs of these users and items, from their side tables where they have any.

    Args:
        x: Interactions, with `user_features`, `item_features` or neither.
        crosses: Which products of terms there are; see `PairDesign`.
        user_columns: Kinds of the columns, as in `fit_features`; if None, what `kinds_of` makes of them, without texts.
        item_columns: Likewise. An empty one means no features.
        missing: What a missing value does: "error" or "impute"; see `fit_features`.

    Raises:
        FeatureError: Side tables that cannot be encoded; see `fit_features`.
        ValueError: An unknown `crosses` or `missing`.
    """
    if crosses not in CROSSES:
        raise ValueError(f"{crosses=} must be one of {CROSSES}")
    user_ids, item_ids = (
        np.arange(n) if ids is None else ids.ids for n, ids in ((x.n_users, x.user_ids), (x.n_items, x.item_ids))
    )
    return PairDesign(
        side_features(x.user_features, x.n_users, user_columns, missing),
        side_features(x.item_features, x.n_items, item_columns, missing),
        crosses,
        user_ids.astype(np.str_),
        item_ids.astype(np.str_),
    )


def side_features(frame: Any, n_rows: int, columns: dict[str, str] | None, missing: str = "error") -> Features:
    """The features of one side: none without a table, and what is constant in it left out."""
    import scipy.sparse

    if frame is not None and columns is None:
        columns = {name: kind for name, kind in kinds_of(frame).items() if kind != "text"}
    if not columns:
        return Features(scipy.sparse.csr_array((n_rows, 0), dtype=np.float32), np.empty(0, np.str_))
    if frame is None:
        raise FeatureError(f"columns {list(columns)} are asked for, and these interactions have no such side table")
    return fit_features(frame, columns, missing=missing, constant="drop").apply(frame)


def crossed(left: scipy.sparse.csr_array, right: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """The products of every two columns, row by row: `[n, p]` and `[n, q]` make `[n, p q]`.

    >>> import scipy.sparse
    >>> crossed(scipy.sparse.csr_array([[1, 2]]), scipy.sparse.csr_array([[3, 0, 5]])).toarray().tolist()
    [[3, 0, 5, 6, 0, 10]]
    """
    import scipy.sparse

    many, each = np.diff(left.indptr).astype(np.int64), np.diff(right.indptr).astype(np.int64)
    # Each entry of the left meets all entries of the right in its row.
    row = np.repeat(np.arange(len(many)), many)
    repeats = each[row]
    ends = np.cumsum(repeats)
    offset = np.arange(repeats.sum()) - np.repeat(ends - repeats, repeats)
    entry = np.repeat(right.indptr[row], repeats) + offset
    (n_rows, p), (_, q) = shape_of(left), shape_of(right)
    columns = np.repeat(left.indices.astype(np.int64), repeats) * q + right.indices[entry]
    values = np.repeat(left.data, repeats) * right.data[entry]
    indptr = np.append(0, np.cumsum(many * each))
    return scipy.sparse.csr_array((values, columns, indptr), shape=(n_rows, p * q))


def _one_hot(ids: np.ndarray, n: int) -> scipy.sparse.csr_array:
    import scipy.sparse

    ones = np.ones(len(ids), np.float32)
    return scipy.sparse.csr_array((ones, ids, np.arange(len(ids) + 1)), shape=(len(ids), n))
