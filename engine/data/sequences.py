"""`Sequences`: what each user met, in order of time, as often as it was met; what sequential models train on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InteractionError
from .checking import check_side_table, checked_ids, checked_timestamps
from .interactions import Interactions, not_interactions
from .splitting import check_fraction
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    import polars


@dataclass(frozen=True, eq=False)
class Sequences:
    """Events of each user in order of time, on the host. Immutable.

    Build them by `read_sequences`, or from indices by `from_events` or `from_interactions`. Always true:

    - `indptr` is int64 `[n_users + 1]`, ascending from 0; `items` is int32, each in `[0, n_items)`: the events of a
      user follow each other, the oldest first, and an item may come again.
    - `timestamps`, where there are any, is int64 or finite float64, ascending within a user.
    - `kinds`, where there are any, is int32, each at least 0: what kind of event it was.
    - `item_features`, where there are any, is a frame whose row i describes item i.
    - `notes` says what was left out on the way here, and what leaks.

    >>> x = Sequences.from_events([0, 1, 0], [7, 7, 2], timestamps=[20, 5, 10])
    >>> x.n_users, x.n_items, x.items_of(0).tolist()
    (2, 8, [2, 7])
    """

    indptr: np.ndarray
    items: np.ndarray
    n_items: int
    timestamps: np.ndarray | None = None
    kinds: np.ndarray | None = None
    user_ids: Vocabulary | None = None
    item_ids: Vocabulary | None = None
    item_features: polars.DataFrame | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        for array in (self.indptr, self.items, self.timestamps, self.kinds):
            if array is not None:
                array.flags.writeable = False
        if self.item_features is not None:
            check_side_table("item", self.item_features, self.n_items, self.item_ids)

    @classmethod
    def from_events(
        cls,
        users: Any,
        items: Any,
        timestamps: Any = None,
        *,
        kinds: Any = None,
        n_users: int | None = None,
        n_items: int | None = None,
        user_ids: Vocabulary | None = None,
        item_ids: Vocabulary | None = None,
    ) -> Sequences:
        """Sequences from parallel arrays.

        Events of a user that have the same time stay in the order given, and so do all of them without times.

        Args:
            users: `[n]` whole numbers in `[0, n_users)`.
            items: `[n]` whole numbers in `[0, n_items)`.
            timestamps: `[n]` finite numbers or datetimes; None where the order given is that of time.
            kinds: `[n]` whole numbers, such as 0 for a view and 1 for a purchase; None where all are of one kind.
            n_users: One more than the largest id if None; likewise
            n_items: of the items.
            user_ids: Outside ids of the users; gives `n_users`.
            item_ids: Outside ids of the items; gives `n_items`.

        Raises:
            InteractionError: No event, lengths that differ, or an id, kind or time that is none; the message names
                the first.
        """
        n_users = len(user_ids) if n_users is None and user_ids is not None else n_users
        n_items = len(item_ids) if n_items is None and item_ids is not None else n_items
        users, n_users = checked_ids("user", users, n_users)
        items, n_items = checked_ids("item", items, n_items)
        columns = {"users": users, "items": items}
        if timestamps is not None:
            columns["timestamps"] = timestamps = checked_timestamps(timestamps)
        if kinds is not None:
            columns["kinds"], _ = kinds, _ = checked_ids("kind", kinds, None)
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise InteractionError(f"columns must have one length; got {lengths}")
        if len(users) == 0:
            raise InteractionError("no events: at least one is needed")
        order = np.lexsort((users,) if timestamps is None else (timestamps, users))  # which is stable
        return cls(
            indptr=np.append(0, np.cumsum(np.bincount(users, minlength=n_users))).astype(np.int64),
            items=items[order],
            n_items=n_items,
            timestamps=None if timestamps is None else timestamps[order],
            kinds=None if kinds is None else kinds[order],
            user_ids=user_ids,
            item_ids=item_ids,
        )

    @classmethod
    def from_interactions(cls, interactions: Interactions) -> Sequences:
        """Interactions in order of time, those of the same time by item index.

        Raises:
            InteractionError: No timestamps.
            TypeError: Something else than `Interactions`.
        """
        x = interactions
        if not isinstance(x, Interactions):
            raise TypeError(not_interactions("Sequences.from_interactions", x))
        if x.timestamps is None:
            raise InteractionError(
                "sequences need timestamps, and these interactions have none: read them with a column of times, or "
                "give Sequences.from_events events in the order of time"
            )
        order = np.lexsort((x.timestamps, x.users))
        return cls(
            indptr=x.indptr.copy(),
            items=x.items[order],
            n_items=x.n_items,
            timestamps=x.timestamps[order],
            user_ids=x.user_ids,
            item_ids=x.item_ids,
            item_features=x.item_features,
            notes=x.notes,
        )

    @property
    def n_users(self) -> int:
        return len(self.indptr) - 1

    def __len__(self) -> int:
        """How many events there are."""
        return len(self.items)

    @property
    def lengths(self) -> np.ndarray:
        """Events of each user, int64."""
        return np.diff(self.indptr)

    @property
    def users(self) -> np.ndarray:
        """User of each event, int32."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), self.lengths)

    def items_of(self, user: int) -> np.ndarray:
        """Items of one user, the oldest first."""
        if not 0 <= user < self.n_users:
            raise InteractionError(f"user {user} is outside [0, {self.n_users})")
        return self.items[self.indptr[user] : self.indptr[user + 1]]

    def since_first(self) -> np.ndarray:
        """Time since the user's first event, int32 `[n]`, in the unit of the timestamps.

        Raises:
            InteractionError: No timestamps, some that are no whole numbers, or a span that int32 does not hold.
        """
        if self.timestamps is None:
            raise InteractionError("these sequences have no timestamps, and what reads times needs them")
        if not len(self):
            return np.zeros(0, np.int32)
        times = self.timestamps.astype(np.int64)
        if (times != self.timestamps).any():
            first = int(np.argmax(times != self.timestamps))
            raise InteractionError(f"time {self.timestamps[first]} is no whole number; scale the timestamps first")
        begins = np.repeat(times[np.minimum(self.indptr[:-1], len(self) - 1)], self.lengths)
        span = (times.astype(np.float64) - begins).max()  # which int64 may not hold either
        if span > np.iinfo(np.int32).max:
            raise InteractionError(f"a user's times span {span:,.0f}, more than int32 holds; use a larger unit")
        return (times - begins).astype(np.int32)

    def interactions(self) -> Interactions:
        """The pairs of a user and an item, each once, with the time of the last."""
        users = self.users
        last = np.lexsort((np.arange(len(self)), self.items, users))
        keep = np.ones(len(self), bool)
        keep[:-1] = (users[last][1:] != users[last][:-1]) | (self.items[last][1:] != self.items[last][:-1])
        kept = last[keep]
        pairs = Interactions.from_coo(
            users[kept],
            self.items[kept],
            timestamps=None if self.timestamps is None else self.timestamps[kept],
            n_users=self.n_users,
            n_items=self.n_items,
            user_ids=self.user_ids,
            item_ids=self.item_ids,
        )
        return replace(pairs, item_features=self.item_features)

    def select(self, keep: np.ndarray, *, note: str | None = None) -> Sequences:
        """The events where `keep`, bool, is True; users and items keep their indices."""
        if keep.shape != (len(self),) or keep.dtype != bool:
            raise InteractionError(f"keep must be bool [{len(self)}]; got {keep.dtype} {list(keep.shape)}")
        return replace(
            self,
            indptr=np.append(0, np.cumsum(keep))[self.indptr].astype(np.int64),
            items=self.items[keep],
            timestamps=None if self.timestamps is None else self.timestamps[keep],
            kinds=None if self.kinds is None else self.kinds[keep],
            notes=self.notes + (() if note is None else (note,)),
        )

    def leave_last(self, n: int = 1) -> tuple[Sequences, Interactions]:
        """The last `n` events of every user with more than `n` are tested.

        Leaks across users: one user's training part may be later than another's test part; where there are times, the
        notes of the training part say how often. An item tested that its user met before stays, and who masks what
        was seen can never hit it: the notes count these.

        Returns:
            `(train, test)`, the test part as interactions, which `evaluate` takes.

        Raises:
            InteractionError: No user has more than `n` events.
            ValueError: `n` below 1.

        >>> train, test = Sequences.from_events([0, 0, 0], [4, 5, 6]).leave_last()
        >>> train.items.tolist(), test.items.tolist()
        ([4, 5], [6])
        """
        if n < 1:
            raise ValueError(f"{n=} must be at least 1")
        from_end = np.repeat(self.indptr[1:], self.lengths) - np.arange(len(self))
        test = (from_end <= n) & np.repeat(self.lengths > n, self.lengths)
        return self._parts(test, f"the last {n} of each user")

    def split_at_time(self, fraction: float = 0.2) -> tuple[Sequences, Interactions]:
        """All events after one moment are tested: the split that is closest to real use. Nothing leaks.

        Args:
            fraction: Share of the events, in (0, 1); those at the very moment of the cut stay in training.

        Returns and raises: As `leave_last`; InteractionError without times.
        """
        check_fraction("fraction", fraction)
        if self.timestamps is None:
            raise InteractionError("split_at_time needs timestamps, and these sequences have none; try leave_last")
        if not len(self):
            raise InteractionError("no events: at least two are needed")
        n_train = min(max(1, len(self) - round(fraction * len(self))), max(len(self) - 1, 1))
        cut = np.partition(self.timestamps, n_train - 1)[n_train - 1]
        return self._parts(self.timestamps > cut, f"time {cut}")

    def _parts(self, test: np.ndarray, what: str) -> tuple[Sequences, Interactions]:
        for part, size in (("training", (~test).sum()), ("test", test.sum())):
            if size == 0:
                raise InteractionError(f"split at {what}: the {part} part is empty ({len(self)} events)")
        notes = [f"training part, split at {what}"]
        if self.timestamps is not None and (share := np.mean(self.timestamps[test] <= self.timestamps[~test].max())):
            notes.append(f"leaks: {share:.0%} of the tested events are not later than all of the training part")
        train, tested = self.select(~test), self.select(test).interactions()
        pairs = self.users.astype(np.int64) * self.n_items + self.items
        again = int(np.isin(pairs[test], pairs[~test]).sum())
        if again:
            notes.append(f"{again:,} of the tested events are of items that their user met before")
        return replace(train, notes=(*train.notes, *notes)), tested
