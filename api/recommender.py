"""`Recommender`: train, recommend, evaluate and save, in outside ids only."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .algorithms import checked_parameters, train
from .engine import storage
from .engine.data import Interactions, Sequences, Vocabulary, clean, read_interactions, read_side_table
from .engine.errors import InteractionError, ModelFileError
from .engine.evaluation import Evaluation, evaluate
from .engine.factorization import BayesianFactors, Factors, FeedbackFactors, History
from .engine.neighbors import Popularity, Random, UserNeighbors, UserRatings
from .engine.retrieval import fold_in, recommend, similar_items, with_history
from .saved_models import flatten, restore

if TYPE_CHECKING:
    import polars as pl


_COMPARES_NO_ITEMS = (Popularity, Random, UserNeighbors, UserRatings)


class Recommender:
    """Trains an algorithm and answers in the user's own ids, as frames.

    Args:
        algorithm: A name, such as "implicit-als", "knn-baseline", "ease" or "popularity"; README has them all.
        seed: Of all that is random.
        **parameters: Of the algorithm, such as `rank=64`, and `epochs`, passes over the data.

    Raises:
        ValueError: An unknown algorithm or parameter.

    Attributes:
        model: The trained model, a pytree that the engine's functions take; None before `fit`.
        history: What training reported, or None.

    >>> ratings = [("ann", "tea"), ("ann", "milk"), ("bob", "tea"), ("bob", "milk"), ("bob", "rum"), ("cid", "rum")]
    >>> rec = Recommender("popularity").fit(tuple(np.array(ratings).T))
    >>> rec.recommend("cid", k=1)["item"].to_list()
    ['milk']
    """

    def __init__(self, algorithm: str = "implicit-als", *, seed: int = 0, **parameters: Any):
        self.algorithm = algorithm
        self.seed = seed
        self.parameters = checked_parameters(algorithm, parameters)
        self.model: Any = None
        self.history: History | None = None
        self._train: Interactions | None = None

    def fit(self, data: Any, *, user_features: Any = None, item_features: Any = None, **options: Any) -> Recommender:
        """Trains, and returns the recommender itself.

        Args:
            data: `Interactions`, a path to a file, or anything `clean` takes: frames, sparse matrices, arrays; or
                `Sequences`, which networks on sequences read as they are, with repetitions, and others as the pairs in
                them.
            user_features: A side table of the users, a frame or a path, with their ids in a column "user"; all users of
                the data must be in it.
            item_features: Likewise of the items; those that nobody met can be recommended by their content.
            **options: Passed to `engine.factorization.fit`, such as `callback`, `validate` and `progress` (by default
                a progress bar is shown where the error stream is a terminal).

        Raises:
            InteractionError: Data that cannot be used; see `clean`.
            FeatureError: A side table that cannot be read, or has no ids.
            ValueError: The algorithm needs values and there are none, or side tables beside data that are encoded
                already.
        """
        tables = {"user": user_features, "item": item_features}
        given = {side: read_side_table(table, side) for side, table in tables.items() if table is not None}
        if given and isinstance(data, Interactions | Sequences):
            raise ValueError(
                f"{', '.join(f'{side}_features' for side in given)} go with raw data, whose ids they have; to encoded "
                "data dataclasses.replace(data, item_features=frame) gives a table"
            )
        sequences = data if isinstance(data, Sequences) else None
        found = _interactions(data, **{f"{side}_ids": ids for side, (ids, _) in given.items()})
        interactions = replace(found, **{f"{side}_features": frame for side, (_, frame) in given.items()})
        options |= {} if sequences is None else {"sequences": sequences}
        self.model, self.history = train(
            self.algorithm, interactions, seed=self.seed, parameters=self.parameters, **options
        )
        self._train = interactions
        return self

    @property
    def train(self) -> Interactions:
        """What it was fitted on; a loaded recommender has no timestamps and features.

        Raises:
            ValueError: Not fitted.
        """
        if self._train is None:
            raise ValueError("this recommender is not fitted; call fit(data) first")
        return self._train

    @property
    def user_ids(self) -> Vocabulary:
        """The users of the training data; plain indices where they came without ids."""
        train = self.train
        return train.user_ids or Vocabulary(np.arange(train.n_users))

    @property
    def item_ids(self) -> Vocabulary:
        """The items of the training data, with titles where there are any."""
        train = self.train
        return train.item_ids or Vocabulary(np.arange(train.n_items))

    def recommend(
        self,
        users: Any = None,
        k: int = 10,
        *,
        history: Sequence[Any] | None = None,
        times: Sequence[Any] | None = None,
        exclude_seen: bool = True,
        exclude: Sequence[Any] = (),
        allow: Sequence[Any] | None = None,
    ) -> pl.DataFrame:
        """The best items for known users, or for someone never seen before.

        Args:
            users: An id, or a sequence of ids.
            k: How many, at least 1.
            history: In place of `users`: items (ids or titles) that a newcomer has met, the oldest first, as often as
                they were met; the model is not retrained.
            times: When each of the history was met, as the times of the training data are given, for a network that
                reads times.
            exclude_seen: Whether to leave out what a user met in training (or the history names).
            exclude: Further items (ids or titles) to leave out.
            allow: The only items (ids or titles) that may be answered.

        Returns:
            A frame with rank, item, title (where there are titles) and score, best first; with a sequence of users,
            their id in a first column. Fewer than k rows where fewer items remain, none where nothing does.

        Raises:
            InteractionError: An unknown user, item or title (close names are offered), an empty history, or one
                without times where the model reads them.
            ValueError: Neither or both of `users` and `history`, or a model that cannot take a history.
        """
        train = self.train
        if (users is None) == (history is None):
            raise ValueError("give either users or history")
        if times is not None and history is None:
            raise ValueError("times are those of a history: give history")
        item_ids = self.item_ids
        excluded = item_ids.resolve(_listed(exclude)[0])
        allowed = None
        if allow is not None:
            allowed = np.zeros(train.n_items, bool)
            allowed[item_ids.resolve(_listed(allow)[0])] = True
        if history is not None:
            seen = self._newcomer(history, times)
            model = with_history(self.model, seen)
            rows, names = np.zeros(1, np.int32), None
        else:
            asked, many = _listed(users)
            rows, model, seen = self._rows_of(asked), self.model, train
            names = self.user_ids.outside(rows) if many else None
        repeated = np.tile(excluded, (len(rows), 1)) if len(excluded) else None
        ids, scores = recommend(model, rows, k, seen=seen if exclude_seen else None, exclude=repeated, allow=allowed)
        return _frame("user", names, np.asarray(ids), np.asarray(scores), item_ids)

    def similar_items(self, items: Any, k: int = 10, *, metric: str = "cosine") -> pl.DataFrame:
        """The nearest items to an item, or to each of several (ids or titles).

        Returns:
            A frame as of `recommend`, with the asked item in a first column where a sequence was given.

        Raises:
            InteractionError: An unknown item.
            ValueError: A model without item vectors, or an unknown metric.
        """
        item_ids = self.item_ids
        if isinstance(self.model, _COMPARES_NO_ITEMS):
            raise ValueError(f"{self.algorithm} has neither item vectors nor item-item weights to compare")
        asked, many = _listed(items)
        ids, scores = similar_items(self.model, item_ids.resolve(asked), k, metric=metric)
        names = np.asarray(asked) if many else None
        return _frame("similar_to", names, np.asarray(ids), np.asarray(scores), item_ids)

    def fold_in(self, history: Sequence[Any], *, times: Sequence[Any] | None = None) -> np.ndarray:
        """The vector `[rank]` of someone who has met these items; see `recommend` and `engine.retrieval.fold_in`.

        Raises:
            InteractionError: An unknown item, an empty history, or one without times where the model reads them.
            ValueError: A model without vectors.
        """
        newcomer, model = self._newcomer(history, times), self.model
        of_network = hasattr(model, "network") and hasattr(model, "queries")
        if not of_network and not isinstance(model, BayesianFactors | Factors | FeedbackFactors):
            raise ValueError(f"{self.algorithm} has no vectors to fold a history into")
        return np.asarray(fold_in(model, newcomer))[0]

    def evaluate(self, test: Any, k: int = 10) -> Evaluation:
        """Ranking metrics on held-out interactions, training items left out, over the full catalogue.

        Args:
            test: `Interactions` split off the training data, or anything `clean` takes, with the same outside ids.
                Rows of the latter with users or items that training did not have are left out, and counted in
                `notes`.
            k: Length of the list.

        Raises:
            InteractionError: Interactions of other users or items than the training data's, or nobody to test.
        """
        train = self.train
        if not isinstance(test, Interactions):
            test = _interactions(test, user_ids=self.user_ids, item_ids=self.item_ids, unknown="drop")
            found = evaluate(self.model, test, train=train, k=k)
            return replace(found, notes=test.notes)
        for side, own, other in (
            ("users", train.user_ids, test.user_ids),
            ("items", train.item_ids, test.item_ids),
        ):
            if own is not None and other is not None and not np.array_equal(own.ids, other.ids):
                raise InteractionError(
                    f"the test part has other {side} than the training data: split it off them, "
                    "or give the file or frame that it came from"
                )
        return evaluate(self.model, test, train=train, k=k)

    def with_model(self, model: Any) -> Recommender:
        """The same recommender with another model of the same users and items, such as one that was made smaller.

        Raises:
            ValueError: Not fitted, or a model of other numbers of users or items.
        """
        if not hasattr(model, "n_items"):
            raise ValueError(f"{type(model).__name__} is no model; give what compression makes of this one's .model")
        for side in ("n_users", "n_items"):
            own, other = getattr(self.train, side), getattr(model, side, None)
            if other not in (None, own):
                raise ValueError(f"the model has {side}={other:,}; this recommender has {own:,}")
        other = copy.copy(self)
        # What an optimizer remembers serves no answer.
        other.model = model._replace(training=None) if hasattr(model, "training") else model
        return other

    def save(self, folder: str | Path) -> None:
        """Saves model, vocabularies and training interactions into a folder, atomically; see `engine.storage`."""
        train = self.train
        arrays, described = flatten(self.model)
        for side, ids in (("user", train.user_ids), ("item", train.item_ids)):
            if ids is not None:
                arrays[f"{side}_ids"] = ids.ids
                if ids.titles is not None:
                    arrays[f"{side}_titles"] = ids.titles
        arrays["train.indptr"], arrays["train.items"] = train.indptr, train.items
        if train.values is not None:
            arrays["train.values"] = train.values
        content = {
            "algorithm": self.algorithm,
            "seed": self.seed,
            "parameters": {name: _plain(value) for name, value in self.parameters.items()},
            "model": described,
            "n_items": train.n_items,
        }
        storage.save_arrays(folder, arrays, content)

    @classmethod
    def load(cls, folder: str | Path) -> Recommender:
        """A saved recommender.

        Raises:
            ModelFileError: A folder that is missing, cut short, altered or foreign.
        """
        arrays, content = storage.load_arrays(folder)
        try:
            recommender = cls(content["algorithm"], seed=content["seed"], **content["parameters"])
            recommender.model = restore(content["model"], arrays)

            def ids(side: str) -> Vocabulary | None:
                return (
                    Vocabulary(arrays[f"{side}_ids"], arrays.get(f"{side}_titles")) if f"{side}_ids" in arrays else None
                )

            recommender._train = Interactions(
                arrays["train.indptr"],
                arrays["train.items"],
                content["n_items"],
                arrays.get("train.values"),
                user_ids=ids("user"),
                item_ids=ids("item"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"{folder} does not hold a recommender of this version: {error!r}") from error
        return recommender

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self.parameters.items())
        state = "not fitted" if self._train is None else f"fitted on {self._train.nnz:,} interactions"
        return f"<Recommender {self.algorithm}{settings}, {state}>"

    def _rows_of(self, users: list[Any]) -> np.ndarray:
        rows = self.user_ids.indices(users, unknown="mark")
        unknown = [user for user, row in zip(users, rows, strict=True) if row < 0]
        if unknown:
            try:
                self.user_ids.resolve(unknown[:1])
            except InteractionError as error:  # it offers close names
                raise InteractionError(
                    f"user {error} ({len(unknown)} of {len(users)} users unknown). For someone new give history=[items]"
                ) from None
        return rows

    def _newcomer(self, history: Sequence[Any], times: Sequence[Any] | None) -> Interactions | Sequences:
        """One row of bare items: their sequence for models that read it.

        Others have the items it is of, which count as liked: each with the upper quartile of the training values.
        """
        train = self.train
        given = self.item_ids.resolve(_listed(history)[0])
        if len(given) == 0:
            raise InteractionError("history is empty: it needs at least one item")
        nobody = np.zeros(len(given), int)
        sequence = Sequences.from_events(nobody, given, times, n_users=1, n_items=train.n_items)
        if getattr(self.model, "in_order", False):
            if times is None and getattr(self.model, "times", None) is not None:
                raise InteractionError(
                    f"this {self.algorithm} reads times: give times=, when each of the history was met"
                )
            return sequence
        newcomer = sequence.interactions()
        if train.values is None:
            return newcomer
        return newcomer.with_values(np.full(newcomer.nnz, np.quantile(train.values, 0.75), np.float32))


def _listed(ids: Any) -> tuple[list[Any], bool]:
    """`(ids as a list, whether there were several)`: a text or a number is one id."""
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        return [ids], False
    # NumPy's own scalars become Python's, which is what messages should show.
    return [i.item() if isinstance(i, np.generic) else i for i in ids], True


def _interactions(data: Any, **vocabularies: Any) -> Interactions:
    if isinstance(data, Interactions | Sequences):
        return data if isinstance(data, Interactions) else data.interactions()
    if isinstance(data, (str, Path)):
        return read_interactions(data, **vocabularies)
    return clean(data, **vocabularies)


def _frame(
    label: str, names: np.ndarray | None, ids: np.ndarray, scores: np.ndarray, item_ids: Vocabulary
) -> pl.DataFrame:
    import polars as pl

    row, place = np.nonzero(ids >= 0)
    found = ids[row, place]
    columns: dict[str, Any] = {} if names is None else {label: names[row]}
    columns["rank"] = place + 1
    columns["item"] = item_ids.outside(found)
    if item_ids.titles is not None:
        columns["title"] = item_ids.names(found)
    columns["score"] = scores[row, place]
    return pl.DataFrame(columns)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item") and np.ndim(value) == 0:
        return np.asarray(value).item()
    return jnp.dtype(value).name
