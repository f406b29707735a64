"""`Interactions`: who met what, how strongly and when; the one data type that everything trains on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np

from ...kernels import csr
from ..errors import InteractionError
from ..memory import aligned_zeros, as_jax
from .checking import check_side_table, checked_ids, checked_timestamps, checked_values
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import polars
    import scipy.sparse


@dataclass(frozen=True, eq=False)
class Interactions:
    """User-item interactions on the host, sorted by user and item. Immutable.

    Build it by `from_coo`, `from_scipy`, `read_interactions` or `clean`. Always true:

    - `indptr` is int64 `[n_users + 1]`, ascending from 0 to `nnz`; `items` is int32 `[nnz]`, ascending within a
      user, each in `[0, n_items)`: no pair occurs twice.
    - `values`, where there are any, is finite float32 `[nnz]`; without values every interaction counts 1.
    - `timestamps`, where there are any, is int64 or finite float64 `[nnz]`, in the unit of the source.
    - `user_ids` and `item_ids`, where there are any, name every user and item.
    - `user_features` and `item_features`, where there are any, are frames whose row i describes index i.
    - `notes` says what was left out or merged on the way here.

    It never enters a JAX trace; `to_device` gives the arrays that do.

    >>> x = Interactions.from_coo([0, 1, 0], [2, 0, 1], values=[5.0, 3.0, 1.0])
    >>> x.n_users, x.n_items, x.nnz
    (2, 3, 3)
    >>> x.items_of(0)
    array([1, 2], dtype=int32)
    """

    indptr: np.ndarray
    items: np.ndarray
    n_items: int
    values: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    user_ids: Vocabulary | None = None
    item_ids: Vocabulary | None = None
    user_features: polars.DataFrame | None = field(default=None, repr=False)
    item_features: polars.DataFrame | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        for array in (self.indptr, self.items, self.values, self.timestamps):
            if array is not None:
                _frozen(array)
        for side, n, ids, features in (
            ("user", self.n_users, self.user_ids, self.user_features),
            ("item", self.n_items, self.item_ids, self.item_features),
        ):
            if ids is not None and len(ids) != n:
                raise InteractionError(f"{side}_ids has {len(ids)} ids for {n} {side}s")
            if features is not None:
                check_side_table(side, features, n, ids)

    @classmethod
    def from_coo(
        cls,
        users: Any,
        items: Any,
        values: Any = None,
        timestamps: Any = None,
        *,
        n_users: int | None = None,
        n_items: int | None = None,
        user_ids: Vocabulary | None = None,
        item_ids: Vocabulary | None = None,
    ) -> Interactions:
        """Interactions from parallel arrays, in any order.

        Args:
            users: `[nnz]` whole numbers in `[0, n_users)`.
            items: `[nnz]` whole numbers in `[0, n_items)`.
            values: `[nnz]` finite numbers, such as ratings or counts; None where there are none.
            timestamps: `[nnz]` finite numbers, or datetimes, which become seconds since 1970; None where there
                are none.
            n_users: One more than the largest id if None.
            n_items: Likewise.
            user_ids: Outside ids of the users; gives `n_users`.
            item_ids: Outside ids of the items; gives `n_items`.

        Raises:
            InteractionError: Empty data, lengths that differ, ids that are no whole numbers, negative, beyond
                the shape or beyond 2**31 - 1, values or times that are not finite, or a pair that occurs twice
                (`clean` merges those). The message names the first such place.
        """
        n_users = len(user_ids) if n_users is None and user_ids is not None else n_users
        n_items = len(item_ids) if n_items is None and item_ids is not None else n_items
        users, n_users = checked_ids("user", users, n_users)
        items, n_items = checked_ids("item", items, n_items)
        columns = {"users": users, "items": items}
        if values is not None:
            columns["values"] = values = checked_values(values)
        if timestamps is not None:
            columns["timestamps"] = timestamps = checked_timestamps(timestamps)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InteractionError(f"columns must have one length; got {lengths}")
        if len(users) == 0:
            raise InteractionError("no interactions: at least one is needed")
        order, indptr = csr.sort_pairs(users, items, n_users, n_items)
        first = csr.first_in_group(users, items, order)
        if not first.all():
            again = int(order[np.argmin(first)])
            raise InteractionError(
                f"user {users[again]}, item {items[again]} occurs more than once, again at position {again} "
                f'({int((~first).sum())} such repetitions). clean(..., duplicates="last", "sum" or "mean") merges them'
            )
        return cls(
            indptr=indptr,
            items=_taken(items, order),
            n_items=n_items,
            values=None if values is None else _taken(values, order),
            timestamps=None if timestamps is None else timestamps[order],
            user_ids=user_ids,
            item_ids=item_ids,
        )

    @classmethod
    def from_scipy(cls, matrix: scipy.sparse.sparray | scipy.sparse.spmatrix) -> Interactions:
        """Interactions from a scipy sparse matrix `[n_users, n_items]`; stored zeros are kept as values.

        Raises:
            InteractionError: As `from_coo`.
        """
        import scipy.sparse

        coo = scipy.sparse.coo_array(matrix)
        if coo.ndim != 2:
            raise InteractionError(f"the matrix must be [n_users, n_items]; got shape {coo.shape}")
        n_users, n_items = cast(tuple[int, int], coo.shape)
        return cls.from_coo(coo.row, coo.col, coo.data, n_users=n_users, n_items=n_items)

    @property
    def n_users(self) -> int:
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        return len(self.items)

    def __len__(self) -> int:
        return self.nnz

    @property
    def shape(self) -> tuple[int, int]:
        return self.n_users, self.n_items

    @functools.cached_property
    def users(self) -> np.ndarray:
        """User of each interaction, int32 `[nnz]`."""
        return _frozen(np.repeat(np.arange(self.n_users, dtype=np.int32), np.diff(self.indptr)))

    def by_item(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(indptr [n_items + 1] int64, users [nnz] int32, values [nnz] float32)`: the same sorted by item and user.

        Without values these are one 1, for all. Computed at each call: kept, it would double the memory of the data.
        """
        values = self._values_or_one()
        users, values_t = aligned_zeros((self.nnz,), np.int32), aligned_zeros(values.shape, np.float32)
        values_t[:1] = values[:1]  # the one for all, where there is but one
        return csr.transpose(self.indptr, self.items, values, self.n_items, users, values_t), users, values_t

    def _values_or_one(self) -> np.ndarray:
        return np.ones(1, np.float32) if self.values is None else self.values

    def items_of(self, user: int) -> np.ndarray:
        """Items of one user, ascending."""
        if not 0 <= user < self.n_users:
            raise InteractionError(f"user {user} is outside [0, {self.n_users})")
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def to_scipy(self) -> scipy.sparse.csr_matrix:
        """The matrix `[n_users, n_items]`, with ones where there are no values."""
        import scipy.sparse

        values = np.ones(self.nnz, np.float32) if self.values is None else self.values
        # Copied: compiled code of other libraries refuses read-only arrays.
        return scipy.sparse.csr_matrix((values, self.items, self.indptr), shape=self.shape, copy=True)

    def to_device(self) -> csr.SparseMatrix:
        """The arrays that JAX code trains on: both orientations in CSR with int32 indices.

        On CPU they are, where they can be, the memory of these interactions; a donation leaves that alone.

        Raises:
            InteractionError: 2**31 interactions or more, which int32 cannot index: use `blocks`.
        """
        import jax.numpy as jnp

        if self.nnz > csr.MAX_INDEX:
            raise InteractionError(
                f"{self.nnz:,} interactions exceed the {csr.MAX_INDEX:,} that one device can index; "
                "use blocks(rows_per_block, entries_per_block)"
            )
        indptr, users, values = self.by_item()
        by_item = csr.CSR(jnp.asarray(indptr.astype(np.int32)), as_jax(users), as_jax(values))
        indptr = jnp.asarray(self.indptr.astype(np.int32))
        return csr.SparseMatrix(csr.CSR(indptr, as_jax(self.items), as_jax(self._values_or_one())), by_item)

    def blocks(self, max_entries: int) -> Iterator[tuple[int, csr.CSR]]:
        """Runs of users with at most `max_entries` interactions, all of one shape, for data beyond a device.

        Args:
            max_entries: Interactions in a block, a bound for memory (8 bytes each, 4 without values).

        Yields:
            `(first_user, block)`. Every block has the same number of rows and the same nnz; surplus rows are
            empty and surplus entries belong to no row, so one compiled program serves all of them.

        Raises:
            InteractionError: A single user has more interactions than fit a block, or the bound is not in range.
        """
        import jax.numpy as jnp

        longest = int(np.diff(self.indptr).max())
        if not longest <= max_entries <= csr.MAX_INDEX:
            raise InteractionError(
                f"{max_entries=} must be at least the {longest} interactions of the busiest user, "
                f"and at most {csr.MAX_INDEX}"
            )
        bounds = [0]
        while bounds[-1] < self.n_users:
            end = int(np.searchsorted(self.indptr, self.indptr[bounds[-1]] + max_entries, side="right")) - 1
            bounds.append(min(end, self.n_users))
        n_rows = int(np.diff(bounds).max())
        n_entries = max(int(np.diff(self.indptr[bounds]).max()), 1)
        for first, last in itertools.pairwise(bounds):
            begin, end = int(self.indptr[first]), int(self.indptr[last])
            indptr = np.full(n_rows + 1, end - begin, np.int32)
            indptr[: last - first + 1] = self.indptr[first : last + 1] - begin
            indices = np.zeros(n_entries, np.int32)
            indices[: end - begin] = self.items[begin:end]
            values = np.ones(1, np.float32)
            if self.values is not None:
                values = np.zeros(n_entries, np.float32)
                values[: end - begin] = self.values[begin:end]
            yield first, csr.CSR(jnp.asarray(indptr), jnp.asarray(indices), jnp.asarray(values))

    def select(self, keep: np.ndarray, *, note: str | None = None) -> Interactions:
        """The interactions where `keep` is True; users and items keep their indices.

        Args:
            keep: `[nnz]` bool.
            note: Added to `notes`.
        """
        if keep.shape != (self.nnz,) or keep.dtype != bool:
            raise InteractionError(f"keep must be bool [{self.nnz}]; got {keep.dtype} {list(keep.shape)}")
        return replace(
            self,
            indptr=np.concatenate([[0], np.cumsum(keep)])[self.indptr].astype(np.int64),
            items=self.items[keep],
            values=None if self.values is None else self.values[keep],
            timestamps=None if self.timestamps is None else self.timestamps[keep],
            notes=self.notes + (() if note is None else (note,)),
        )

    def with_values(self, values: np.ndarray | None) -> Interactions:
        """The same pairs with other values."""
        if values is not None:
            values = checked_values(values)
            if len(values) != self.nnz:
                raise InteractionError(f"{len(values)} values for {self.nnz} interactions")
        return replace(self, values=values)

    def split(self, how: str = "leave-last", **options: Any) -> tuple[Interactions, Interactions]:
        """`(train, test)` by one of the functions in `engine.data.splitting`.

        Args:
            how: "random" (`test_fraction=0.2, seed=0`), "leave-last" (`n=1`) or "time" (`fraction=0.2`).
            **options: Passed on.
        """
        from . import splitting

        ways = {
            "random": splitting.split_random,
            "leave-last": splitting.split_leave_last,
            "time": splitting.split_at_time,
        }
        if how not in ways:
            raise ValueError(f"{how=} must be one of {sorted(ways)}")
        return ways[how](self, **options)


def _taken(array: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`array[order]`, where JAX takes it as it is."""
    out = aligned_zeros(order.shape, array.dtype)
    return array.take(order, out=out, mode="clip")  # "raise" would copy it once more


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


_P = ParamSpec("_P")
_R = TypeVar("_R")


def takes_interactions(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, but for a TypeError that says what to do where its first argument is something else."""

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given = args[0] if args else kwargs.get("interactions")
        if given is not None and not isinstance(given, Interactions):
            raise TypeError(not_interactions(function.__name__, given))
        return function(*args, **kwargs)

    return checked


def not_interactions(caller: str, given: Any) -> str:
    """What is wrong with `given`, and what makes interactions of it."""
    return (
        f"{caller}: interactions are a {type(given).__module__.split('.')[0]} {type(given).__name__} and must be "
        "Interactions; Interactions.from_scipy makes them of a sparse matrix, Interactions.from_coo of users, items "
        "and values, and clean of a data frame"
    )
