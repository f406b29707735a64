"""Trained networks as models: what they were built from, and how they answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ..engine.data.modalities import Modalities
from ..engine.data.sequences import Sequences
from ..engine.errors import InteractionError
from ..engine.training.gradient_descent import TrainingState
from ..kernels.csr import CSR
from ..kernels.quantized_rows import Table, with_columns
from .item_vectors import by_parts

_PAIRS = 1 << 14  # that a network scores at a time
_SEQUENCES = 128  # that a network reads at a time


@jax.tree_util.register_static
@dataclass(frozen=True)
class Blueprint:
    """What a network is built from: its class, by name, and the arguments.

    >>> from .din import DIN
    >>> Blueprint.of(DIN, sizes=[3, 2], width=4).build(jax.random.key(0)).embedding.sizes
    (3, 2)
    """

    network: str
    settings: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, network: type[nnx.Module], **settings: Any) -> Blueprint:
        """With lists as tuples and dtypes by name, so that two of the same are equal, and can be saved.

        Raises:
            ValueError: A class that is none of `models`, by whose names models are saved.
        """
        from .. import models

        if getattr(models, network.__name__, None) is not network:
            raise ValueError(
                f"{network.__name__} is none of affinax.models, by whose names models are saved; "
                "training.gradient trains a network of your own"
            )
        return cls(network.__name__, tuple((name, _plain(name, value)) for name, value in settings.items()))

    def build(self, key: PRNGKeyArray, **more: Any) -> Any:
        """The network, with parameters drawn from a key, but for those among further arguments."""
        return _drawn(self, key) if not more and not isinstance(key, Tracer) else self._build(key, more)

    def _build(self, key: PRNGKeyArray, more: dict[str, Any]) -> Any:
        from .. import models

        return getattr(models, self.network)(**(dict(self.settings) | more), rngs=nnx.Rngs(params=key))


def _plain(name: str, value: Any) -> Any:
    if name in ("dtype", "param_dtype") and value is not None:
        try:
            return jnp.dtype(value).name
        except TypeError as error:
            raise ValueError(f"{name}={value!r} is no dtype") from error
    return tuple(value) if isinstance(value, list) else value


@functools.partial(jax.jit, static_argnums=0)
def _drawn(blueprint: Blueprint, key: PRNGKeyArray) -> Any:
    """One program, where each layer has several otherwise."""
    return blueprint._build(key, {})


class PairNetwork(NamedTuple):
    """A network on the fields of a user and an item: `score(u, i) = network([fields of u, fields of i]) + mean`.

    Attributes:
        network: A module of this package.
        blueprint: What it was built from.
        user_fields: `[n_users, n_user_fields]`.
        item_fields: `[n_items, n_item_fields]`.
        mean: Of the values it was trained on, 0 for clicks.
        history: `[n_users, length]`, what each user met, padded with -1; or None.
        training: State of the optimizer, which no score needs, or None.
    """

    network: Any
    blueprint: Blueprint
    user_fields: Int32[Array, "n_users n_user_fields"]
    item_fields: Int32[Array, "n_items n_item_fields"]
    mean: Float[Array, ""]
    history: Int32[Array, "n_users length"] | None = None
    training: TrainingState | None = None

    @property
    def n_users(self) -> int:
        return self.user_fields.shape[0]

    @property
    def n_items(self) -> int:
        return self.item_fields.shape[0]

    def pair_scores(self, users: Int32[Array, " batch"], items: Int32[Array, " batch"]) -> Float[Array, " batch"]:
        """The scores of pairs."""
        return _by_parts(self._forward, users, items)

    def scores(self, users: Int32[Array, " batch"]) -> Float[Array, "batch n_items"]:
        """The scores of all items for some users."""
        shape = users.shape[0], self.n_items
        items = jnp.broadcast_to(jnp.arange(self.n_items, dtype=jnp.int32), shape)
        return _by_parts(self._forward, jnp.repeat(users, self.n_items), items.reshape(-1)).reshape(shape)

    def with_history(self, history: CSR) -> PairNetwork:
        """The same network for newcomers, whose own fields are missing.

        Raises:
            ValueError: A network that reads no histories: it knows nothing of newcomers.
        """
        if self.history is None:
            raise ValueError(
                f"{type(self.network).__name__} knows the users that it was trained on and reads no histories: train "
                "it anew with the newcomers, or choose din, two-tower or a factorization"
            )
        return self._replace(**_newcomers(self, history))

    def _forward(self, users: Array, items: Array) -> Array:
        fields = jnp.concatenate([self.user_fields[users], self.item_fields[items]], axis=-1)
        more = () if self.history is None else (self.history[users],)
        return self.network(fields, *more).astype(jnp.float32) + self.mean


class TowerNetwork(NamedTuple):
    """Two towers: `score(u, i)` is the product of their vectors.

    Attributes: As of `PairNetwork`, but that `network` is a `TwoTower` and `history` has a row for each user; and
        modalities: Of the items, where what is fused of them is a part of their vectors; or None.
    """

    network: Any
    blueprint: Blueprint
    user_fields: Int32[Array, "n_users n_user_fields"]
    item_fields: Int32[Array, "n_items n_item_fields"]
    history: CSR | None = None
    modalities: Modalities | None = None
    training: TrainingState | None = None

    @property
    def n_users(self) -> int:
        return self.user_fields.shape[0]

    @property
    def n_items(self) -> int:
        return self.item_fields.shape[0]

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch width"]:
        """Vectors of users."""
        known, history = self.network.users is not None, self.history
        if history is None:
            return self.network.user(self.user_fields[users])
        if self.modalities is not None and history.nnz:
            # An item that is known by its content has no vector of its own to be read in a history.
            ids = self.item_fields[history.indices, 0]
            history = history._replace(indices=jnp.where(ids < 0, -1, history.indices))
        # Of all users, since a traced program cannot tell how long the rows of a few are.
        return self.network.user(self.user_fields if known else None, history)[users]

    def item_table(self) -> Float[Array, "n_items width"]:
        """Vectors of items, with their biases, if there are any, in the last column."""
        if self.modalities is None:
            return self.network.item(self.item_fields)
        return _fused_items(self.network, self.item_fields, self.modalities)

    @property
    def items(self) -> Float[Array, "n_items width"]:
        """Vectors of items without their biases, which make no two of them alike."""
        table = self.item_table()
        return table if self.network.bias is None else table[:, :-1]

    def with_item_table(self, table: Float[Array, "n_items width"]) -> TowerNetwork:
        """The same towers with other vectors of items, and biases, as `item_table` gives them.

        What the other fields of an item have in its vector stays; the row of its id makes up the rest.

        Raises:
            ValueError: Items whose vector is not the sum of the rows of their fields, or of ids that share rows.
        """
        towers = _copied(self.network)
        if towers.item_tower is not None or towers.fusion is not None:
            raise ValueError(
                "items of these towers are the outcome of layers or content: no row of their own is theirs"
            )
        vectors, first = towers.items(self.item_fields).astype(jnp.float32), self.item_fields[:, 0]
        if not isinstance(first, Tracer) and not bool(jnp.all(first == jnp.arange(self.n_items))):
            raise ValueError("the first field of an item must be its id")
        width = towers.items.table.shape[1]
        towers.items.set_field(0, table[:, :width] - jnp.sum(vectors[:, 1:], axis=1))
        if towers.bias is not None:
            towers.bias.set_field(0, table[:, width:])
        return self._replace(network=towers, training=None)

    def with_history(self, history: CSR) -> TowerNetwork:
        """The same towers for newcomers, whose own fields are missing.

        Raises:
            ValueError: Towers without histories.
        """
        if self.history is None:
            raise ValueError(
                "these towers know the users that they were trained on and read no histories: train them with "
                "history=True for newcomers"
            )
        fields = jnp.full((history.n_rows, self.user_fields.shape[1]), -1, jnp.int32)
        return self._replace(user_fields=fields, history=history._replace(values=jnp.ones(1)))


class SequenceNetwork(NamedTuple):
    """A network on the last events of each user: `score(u, i) = vector after the last . item vector`.

    Attributes:
        network: `SASRec`, or another that has what it has.
        blueprint: What it was built from.
        history: What each user met, the oldest first.
        times: Of these, since the user's first, where the network reads them; or None.
        modalities: Of the items, where their vectors are fused from them; or None.
        training: State of the optimizer, which no score needs, or None.
    """

    network: Any
    blueprint: Blueprint
    history: CSR
    times: Int32[Array, " nnz"] | None = None
    modalities: Modalities | None = None
    training: TrainingState | None = None

    in_order = True  # of time: what a history has to be in

    @property
    def n_users(self) -> int:
        return self.history.n_rows

    @property
    def n_items(self) -> int:
        return self.network.n_items

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch width"]:
        """Vectors of users; one who met nothing has that of an empty sequence."""
        n, vectors = users.shape[0], self._fused()
        # Few sizes, each of which compiles.
        part = min(_SEQUENCES, 1 << max(n - 1, 0).bit_length())
        rows = jnp.pad(users, (0, -n % part)).reshape(-1, part)
        if len(rows) == 1:
            return _last_places(self.network, self.windows(rows[0]), vectors)[:n]
        after = _after(self._replace(modalities=None, training=None), vectors, rows)
        return after.reshape(-1, after.shape[-1])[:n]

    def _fused(self) -> Array | None:
        return None if self.modalities is None else _table(self.network.items, self.modalities)

    def windows(self, users: Int32[Array, " batch"]) -> dict[str, Array]:
        """What the network is called with for some users: their last items, `[batch, length]`, padded with -1.

        Behind them is a mask where the network reads masks, beside them are their times where it reads times.
        """
        masks = self.network.masks
        items, times = _last_events(self.history, self.times, users, n=self.network.length - masks)
        if masks:
            items = jnp.pad(items, ((0, 0), (0, 1)), constant_values=self.n_items)
        return {"items": items} | ({} if times is None else {"times": times})

    def item_table(self) -> Table:
        """Vectors of items, with their biases, if there are any, in the last column."""
        bias = self.network.item_bias()
        return self.items if bias is None else with_columns(self.items, bias)

    @property
    def items(self) -> Table:
        """Vectors of items without their biases."""
        return self.network.item_table(self._fused())

    def with_item_table(self, table: Float[Array, "n_items width"]) -> SequenceNetwork:
        """The same network with other vectors of items, and biases, as `item_table` gives them.

        Raises:
            ValueError: Items without a row each, or quantized ones.
        """
        network = _copied(self.network)
        biases = network.item_bias() is not None
        network.items.set_rows(table[:, :-1] if biases else table)
        if biases:
            network.bias[...] = table[:, -1].astype(network.bias.dtype)
        return self._replace(network=network, training=None)

    def with_history(self, history: CSR | Sequences) -> SequenceNetwork:
        """The same network for users with other histories, the oldest event first.

        Raises:
            InteractionError: No timestamps, where the network reads them.
        """
        if isinstance(history, Sequences):
            rows, times = rows_of(history, self.network.times)
        elif self.network.times:
            raise InteractionError("this network reads times: give the histories as Sequences with timestamps")
        else:
            rows, times = history._replace(values=jnp.ones(1)), None
        return self._replace(history=rows, times=times)


@jax.jit
def _fused_items(towers: Any, fields: Array, modalities: Modalities) -> Array:
    return by_parts(lambda part, _: towers.item(*part), (fields, modalities), len(fields))


@jax.jit
def _table(items: Any, modalities: Modalities) -> Array:
    return items.table(modalities)


@jax.jit
def _last_places(network: Any, windows: dict[str, Array], vectors: Array | None) -> Array:
    """Vectors of the last places, with a 1 behind where items have biases."""
    after = network(**windows, table=vectors)[:, -1].astype(jnp.float32)
    return after if network.item_bias() is None else jnp.concatenate([after, jnp.ones_like(after[:, :1])], axis=1)


@functools.partial(jax.jit, static_argnames="n", inline=True)
def _last_events(history: CSR, times: Array | None, users: Array, *, n: int) -> tuple[Array, Array | None]:
    places = history.indptr[users + 1][:, None] + jnp.arange(-n, 0, dtype=jnp.int32)[None, :]
    there = places >= history.indptr[users][:, None]
    events = jnp.maximum(places, 0)
    items = jnp.where(there, history.indices[events], -1) if history.nnz else jnp.full_like(places, -1)
    return items, None if times is None else jnp.where(there, times[events], 0)


@jax.jit
def _after(model: SequenceNetwork, vectors: Array | None, rows: Array) -> Array:
    """Vectors of many users, some at a time."""
    return lax.map(lambda users: _last_places(model.network, model.windows(users), vectors), rows)


def _copied(network: Any) -> Any:
    """The same, whose arrays may be set."""
    return jax.tree.map(lambda leaf: leaf, network)


def rows_of(x: Sequences, times: bool) -> tuple[CSR, Array | None]:
    """Sequences on the device, and their times, if these are asked for."""
    rows = CSR(jnp.asarray(x.indptr.astype(np.int32)), jnp.asarray(x.items), jnp.ones(1))
    return rows, jnp.asarray(x.since_first()) if times else None


KINDS = (Blueprint, PairNetwork, SequenceNetwork, TowerNetwork)  # what a saved model may name


def _by_parts(score: Callable[[Array, Array], Array], users: Array, items: Array) -> Array:
    """Scores of pairs, a number of them at a time."""
    n = users.shape[0]
    part = min(_PAIRS, max(n, 1))
    pairs = (jnp.pad(a, (0, -n % part)).reshape(-1, part) for a in (users, items))
    return lax.map(lambda pair: score(*pair), tuple(pairs)).reshape(-1)[:n]


def _newcomers(model: Any, rows: CSR) -> dict[str, Array]:
    """Fields and histories of newcomers: all that each met; in a trace, the last of each as many as in training."""
    length = model.history.shape[1]
    if not isinstance(rows.indptr, Tracer):
        length = max(int(np.diff(np.asarray(rows.indptr)).max(initial=0)), 1)
    places = rows.indptr[1:, None] + jnp.arange(-length, 0, dtype=jnp.int32)[None, :]
    there = places >= rows.indptr[:-1, None]
    items = rows.indices[jnp.maximum(places, 0)] if rows.nnz else jnp.zeros(places.shape, jnp.int32)
    fields = jnp.full((rows.n_rows, model.user_fields.shape[1]), -1, jnp.int32)
    return {"user_fields": fields, "history": jnp.where(there, items, -1)}
