"""Outside ids and dense indices."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InteractionError

_MOST_COMPARED = 50_000  # names that a mistyped one is held against, about half a second's worth


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A one-to-one map between the outside ids of users or items and the indices `0 .. len - 1`.

    Always true: `ids` is a one-dimensional int64 or string array without repetition; index `i` stands for
    `ids[i]`; `titles`, where there are any, is a string array of the same length.

    Fit it on training data and apply it to the rest, which never changes it:

    >>> films = Vocabulary.fit(["Fargo", "Alien", "Fargo"])
    >>> films.indices(["Fargo", "Alien"])
    array([1, 0], dtype=int32)
    >>> films.indices(["Brazil", "Alien"], unknown="mark")
    array([-1,  0], dtype=int32)
    >>> films.outside([1])
    array(['Fargo'], dtype='<U5')
    """

    ids: np.ndarray
    titles: np.ndarray | None = None

    def __post_init__(self):
        ids = _id_array(self.ids)
        if len(np.unique(ids)) != len(ids):
            values, counts = np.unique(ids, return_counts=True)
            raise InteractionError(
                f"vocabulary: id {values[counts > 1][0]!r} occurs more than once; ids must be unique"
            )
        titles = None if self.titles is None else np.array(self.titles, np.str_)
        if titles is not None and titles.shape != ids.shape:
            raise InteractionError(f"vocabulary: {titles.shape=} must be that of the ids, {ids.shape}")
        for name, array in (("ids", ids), ("titles", titles)):
            if array is not None:
                array = array.copy() if array is self.ids else array
                array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def fit(cls, ids: Iterable[Any]) -> Vocabulary:
        """The vocabulary of all ids that occur, in sorted order."""
        return cls(np.unique(_id_array(ids)))

    def with_titles(self, titles: dict[Any, str]) -> Vocabulary:
        """The same ids with titles from a mapping; an id without one is its own title."""
        return Vocabulary(self.ids, np.asarray([str(titles.get(i, i)) for i in self.ids.tolist()], np.str_))

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, outside: Any) -> bool:
        try:
            return bool(self.indices([outside], unknown="mark")[0] >= 0)
        except InteractionError:
            return False

    @functools.cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.ids, kind="stable")

    @functools.cached_property
    def _index_of_title(self) -> dict[str, list[int]]:
        index: dict[str, list[int]] = {}
        for i, title in enumerate([] if self.titles is None else self.titles.tolist()):
            index.setdefault(title, []).append(i)
        return index

    def indices(self, outside: Iterable[Any], *, unknown: str = "error") -> np.ndarray:
        """Dense indices of outside ids.

        Args:
            outside: Ids, of the vocabulary's own type (a number is not the text that spells it).
            unknown: "error", or "mark" to give -1 for an id that is not in the vocabulary.

        Returns:
            `[n]` int32.

        Raises:
            InteractionError: An unknown id or one of the wrong type; the message counts them and names the first.
        """
        if unknown not in ("error", "mark"):
            raise ValueError(f'{unknown=} must be "error" or "mark"')
        outside = _id_array(outside)
        if len(outside) == 0:
            return np.empty(0, np.int32)
        if outside.dtype.kind != self.ids.dtype.kind:
            kinds = {"i": "whole numbers", "U": "text"}
            raise InteractionError(
                f"ids here are {kinds[self.ids.dtype.kind]}, such as {self.ids[:1].tolist()}; "
                f"got {kinds[outside.dtype.kind]}, such as {outside[:1].tolist()}"
            )
        if len(self.ids) == 0:
            found, known = np.zeros(len(outside), np.int64), np.zeros(len(outside), bool)
        else:
            place = np.searchsorted(self.ids, outside, sorter=self._order).clip(max=len(self.ids) - 1)
            found = self._order[place]
            known = self.ids[found] == outside
        if unknown == "error" and not known.all():
            first = int(np.argmin(known))
            raise InteractionError(
                f"{int((~known).sum())} of {len(outside)} ids are unknown; the first is {outside[first].item()!r} "
                f'at position {first}. unknown="mark" gives -1 for them'
            )
        return np.where(known, found, -1).astype(np.int32)

    def resolve(self, names: Sequence[Any]) -> np.ndarray:
        """Dense indices of ids or, where an id of that name is absent, of titles.

        Raises:
            InteractionError: Neither; or a title that several ids share.
        """
        found = []
        for name in names:
            if name in self:
                found.append(int(self.indices([name])[0]))
                continue
            holders = self._index_of_title.get(name, []) if isinstance(name, str) else []
            if len(holders) > 1:
                shared = self.ids[holders].tolist()
                raise InteractionError(f"title {name!r} stands for {len(holders)} ids, {shared}: name the id")
            if not holders:
                raise InteractionError(f"{name!r} is neither an id nor a title here{self._similar(name)}")
            found.append(holders[0])
        return np.asarray(found, np.int32)

    def _similar(self, name: Any) -> str:
        import difflib

        candidates = list(self._index_of_title) or ([] if self.ids.dtype.kind == "i" else self.ids.tolist())
        if not isinstance(name, str) or not candidates:
            kind = "whole numbers" if self.ids.dtype.kind == "i" else "text"
            return f"; ids are {kind}, such as {self.ids[:3].tolist()}"
        if len(candidates) > _MOST_COMPARED:
            return f"; names are such as {candidates[:3]}"
        close = difflib.get_close_matches(name, candidates, 3, 0.5)
        return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""

    def outside(self, indices: Iterable[int]) -> np.ndarray:
        """Outside ids of dense indices."""
        return self.ids[self._checked(indices)]

    def names(self, indices: Iterable[int]) -> np.ndarray:
        """Titles of dense indices, or their ids where there are no titles."""
        return (self.ids if self.titles is None else self.titles)[self._checked(indices)]

    def _checked(self, indices: Iterable[int]) -> np.ndarray:
        indices = np.asarray(indices)
        if indices.dtype.kind not in "iu" and indices.size:
            raise InteractionError(f"indices must be whole numbers; got {indices.dtype}")
        indices = indices.astype(np.int64)
        outside = (indices < 0) | (indices >= len(self.ids))
        if outside.any():
            raise InteractionError(f"index {int(indices[outside][0])} is outside [0, {len(self.ids)})")
        return indices


def text_ids(texts: Sequence[str]) -> np.ndarray:
    """A string array; a text that it could not give back is refused."""
    if any(text.endswith("\0") for text in texts):  # NumPy takes it for padding
        raise InteractionError("ids must not end with a NUL character")
    return np.asarray(texts, np.str_)


def _id_array(ids: Iterable[Any]) -> np.ndarray:
    """One-dimensional int64 or string array of ids; anything else is refused."""
    listed = ids if isinstance(ids, np.ndarray) and ids.dtype.kind not in "OT" else list(ids)
    if isinstance(listed, list) and any(isinstance(i, str) for i in listed):
        if not all(isinstance(i, str) for i in listed):
            raise InteractionError("ids mix text with other types; pass all as text or all as whole numbers")
        return text_ids(listed)
    array = np.asarray(listed)
    if array.ndim != 1:
        raise InteractionError(f"ids must be one-dimensional; got shape {array.shape}")
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and len(array) and array.max() > np.iinfo(np.int64).max:
            raise InteractionError(f"id {array.max()} does not fit int64; pass such ids as text")
        return array.astype(np.int64)
    if array.dtype.kind == "U":
        return array
    if array.size == 0:
        return array.astype(np.int64)
    raise InteractionError(
        f"ids must be whole numbers or text; got {array.dtype} such as {array[:1].tolist()}. "
        "Neither is converted in silence"
    )
