"""Networks as recommenders: trained on interactions by `fit`, answering like any other model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from ..engine.data.fields import user_and_item_fields
from ..engine.data.interactions import Interactions, not_interactions
from ..engine.errors import InteractionError
from ..engine.factorization.algorithm import Algorithm, Factors, Info
from ..engine.training import losses
from ..engine.training.batches import Batches, pair_batches
from ..engine.training.gradient_descent import TrainingState, gradient_step, start_training
from ..engine.training.histories import last_items
from ..kernels.csr import CSR
from .din import DIN
from .two_tower import TwoTower

_PAIRS = 1 << 14  # that a network scores at a time


@jax.tree_util.register_static
@dataclass(frozen=True)
class Blueprint:
    """What a network is built from: its class, by name, and the arguments.

    >>> Blueprint.of(DIN, sizes=[3, 2], width=4).build(jax.random.key(0)).embedding.sizes
    (3, 2)
    """

    network: str
    settings: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, network: type[nnx.Module], **settings: Any) -> Blueprint:
        """With lists as tuples, so that two of the same are equal."""
        return cls(network.__name__, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in settings.items()))

    def build(self, key: PRNGKeyArray, **more: Any) -> Any:
        """The network, with parameters drawn from a key, but for tables among further arguments."""
        from .. import models

        return getattr(models, self.network)(**dict(self.settings), **more, rngs=nnx.Rngs(params=key))


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

    Attributes: As of `PairNetwork`, but that `network` is a `TwoTower` and `history` has a row for each user.
    """

    network: Any
    blueprint: Blueprint
    user_fields: Int32[Array, "n_users n_user_fields"]
    item_fields: Int32[Array, "n_items n_item_fields"]
    history: CSR | None = None
    training: TrainingState | None = None

    @property
    def n_users(self) -> int:
        return self.user_fields.shape[0]

    @property
    def n_items(self) -> int:
        return self.item_fields.shape[0]

    def queries(self, users: Int32[Array, " batch"]) -> Float[Array, "batch width"]:
        """Vectors of users."""
        known = self.network.users is not None
        if self.history is None:
            return self.network.user(self.user_fields[users])
        # Of all users, since a traced program cannot tell how long the rows of a few are.
        return self.network.user(self.user_fields if known else None, self.history)[users]

    def item_table(self) -> Float[Array, "n_items width"]:
        """Vectors of items."""
        return self.network.item(self.item_fields)

    def with_history(self, history: CSR) -> TowerNetwork:
        """The same towers for newcomers, whose own fields are missing.

        Raises:
            ValueError: Towers without histories.
        """
        if self.history is None:
            raise ValueError("these towers know the users that they were trained on and read no histories")
        fields = jnp.full((history.n_rows, self.user_fields.shape[1]), -1, jnp.int32)
        return self._replace(user_fields=fields, history=history._replace(values=jnp.ones(1)))


KINDS = (Blueprint, PairNetwork, TowerNetwork)  # what a saved model may name


def pair_ranker(
    network: type[nnx.Module],
    *,
    columns: Sequence[str] | str = (),
    ratings: bool = False,
    negatives: int = 4,
    length: int = 50,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    l2: float = 0.0,
    **settings: Any,
) -> Algorithm:
    """A network that scores pairs, trained by Adam: on clicks and random negatives, or on ratings.

    Args:
        network: One of this package that takes fields: `NeuMF`, `DeepFM`, `DIN`, …
        columns: Of the side tables: fields besides the ids; see `engine.data.fields`.
        ratings: Whether values are to be predicted, by squared error, rather than clicks, by binary cross entropy.
        negatives: For each click.
        length: Of the histories of a network that reads them; what users met before, or, without timestamps, besides.
        batch_size: Interactions in a batch; if None 1,024, or all where there are fewer.
        learning_rate: Of Adam.
        l2: A batch costs `l2 / 2` times the squares of the vectors and weights that it looks up besides; 0 is none.
        **settings: Of the network.

    Returns:
        An `Algorithm` on `Interactions`, whose state is a `PairNetwork`.

    Raises:
        ValueError: A number out of range.
    """
    import optax

    _check(negatives=negatives, batch_size=batch_size, length=length, learning_rate=learning_rate)
    if l2 < 0 or (negatives == 0 and not ratings):
        raise ValueError(f"{l2=} must be at least 0, and {negatives=} above 0 for clicks")
    with_history, name = network is DIN, network.__name__

    def blueprint(user_sizes: Sequence[int], item_sizes: Sequence[int]) -> Blueprint:
        more = {"item_field": len(user_sizes)} if with_history else {}
        return Blueprint.of(network, sizes=(*user_sizes, *item_sizes), **more, **settings)

    nnx.eval_shape(lambda: blueprint((2,), (2,)).build(jax.random.key(0)))  # so that it refuses settings here

    def start(key: PRNGKeyArray, x: Interactions) -> PairNetwork:
        users, items = user_and_item_fields(_checked(x), columns)
        plan = blueprint(users.sizes, items.sizes)
        mean = np.mean(x.values) if ratings and x.values is not None else 0.0
        history = last_items(x, length) if with_history else None
        tables = (jnp.asarray(users.ids), jnp.asarray(items.ids), jnp.float32(mean))
        return PairNetwork(plan.build(key), plan, *tables, None if history is None else jnp.asarray(history))

    def loss(network: Any, batch: Any, key: PRNGKeyArray) -> Array:
        more = (batch["history"],) if with_history else ()
        out = network(batch["fields"], *more, key=key)
        if ratings:
            cost = losses.squared_error(out, batch["targets"])
        else:
            cost = losses.binary_cross_entropy(out, batch["targets"], where=batch["where"])
        return cost + 0.5 * l2 * _squares(network, batch["fields"]) if l2 else cost

    def inputs(model: PairNetwork, batch: Any) -> dict[str, Array]:
        """What the loss takes, of a batch of pairs."""
        items = batch["items"][:, None]
        if not ratings:
            items = jnp.concatenate([items, batch["negatives"]], axis=1)
        users = jnp.broadcast_to(batch["users"][:, None], items.shape)
        fields = jnp.concatenate([model.user_fields[users], model.item_fields[jnp.maximum(items, 0)]], axis=-1)
        found = {"fields": fields, "where": items >= 0}
        if ratings:
            found["targets"] = batch["values"][:, None] - model.mean
        else:
            found["targets"] = jnp.zeros(items.shape).at[:, 0].set(1.0)
        if with_history:
            found["history"] = jnp.broadcast_to(batch["history"][:, None], (*items.shape, batch["history"].shape[1]))
        return found

    def batches(x: Interactions, seed: np.ndarray) -> Any:
        _checked(x)
        if ratings and x.values is None:
            raise InteractionError(f"{name} learns from ratings here, and these interactions have no values")
        history = ("others" if x.timestamps is None else "earlier") if with_history else None
        n_negatives = 0 if ratings else negatives
        return pair_batches(_size(batch_size, x), negatives=n_negatives, history=history, length=length)(x, seed)

    return _algorithm(name, start, inputs, loss, optax.adam(learning_rate), batches)


def tower_retriever(
    *,
    columns: Sequence[str] | str = (),
    width: int = 64,
    hidden: Sequence[int] = (),
    users: bool = True,
    history: bool = True,
    length: int = 50,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    normalize: bool = True,
    temperature: float = 0.1,
    l2: float = 0.0,
    dropout: float = 0.0,
    init_std: float = 0.1,
    factors: Factors | None = None,
) -> Algorithm:
    """Two towers, trained by Adam on the softmax over the items of a batch, corrected for how often each is there.

    Args:
        columns: Of the side tables: fields besides the ids; see `engine.data.fields`.
        width, hidden, normalize, temperature, dropout, init_std: Of `TwoTower`.
        users: Whether users have vectors of their own, besides `history` and columns.
        history: Whether users have histories: what they met before, or, without timestamps, besides.
        length: Of these, at most; but without timestamps a trained model reads them whole.
        batch_size: Interactions in a batch: each has the items of the others as negatives; if None 1,024, or all where
            there are fewer.
        learning_rate: Of Adam.
        l2: A batch costs `l2 / 2` times the mean squares of the vectors of its users and items, before they are
            normalized, besides.
        factors: Vectors of users and items to begin with, such as those of ALS, of the same `width`.

    Returns:
        An `Algorithm` on `Interactions`, whose state is a `TowerNetwork`.

    Source: Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations".
    """
    import optax

    _check(batch_size=batch_size, length=length, learning_rate=learning_rate, temperature=temperature)
    if l2 < 0:
        raise ValueError(f"{l2=} must be at least 0")

    def start(key: PRNGKeyArray, x: Interactions) -> TowerNetwork:
        of_users, of_items = user_and_item_fields(_checked(x), columns)
        first = 0 if users else 1
        plan = Blueprint.of(
            TwoTower,
            user_sizes=of_users.sizes[first:],
            item_sizes=of_items.sizes,
            width=width,
            hidden=hidden,
            history=history,
            normalize=normalize,
            temperature=temperature,
            dropout=dropout,
            init_std=init_std,
        )
        met = _histories(x, length) if history else None
        tables = {}
        if factors is not None:
            tables = {"item_table": factors.items} | ({"user_table": factors.users} if users else {})
        return TowerNetwork(
            plan.build(key, **tables), plan, jnp.asarray(of_users.ids[:, first:]), jnp.asarray(of_items.ids), met
        )

    def loss(network: TwoTower, batch: Any, key: PRNGKeyArray) -> Array:
        keys = jax.random.split(key)
        queries = network.user(batch["user_fields"], batch.get("history"), key=keys[0])
        items = network.item(batch["item_fields"], key=keys[1])
        cost = losses.in_batch_softmax(queries, items, item_ids=batch["items"], log_q=batch["log_q"])
        if not l2:
            return cost
        squares = jnp.mean(network.items(batch["item_fields"]) ** 2)
        if network.users is not None:
            squares += jnp.mean(network.users(batch["user_fields"]) ** 2)
        return cost + 0.5 * l2 * width * squares

    def inputs(model: TowerNetwork, batch: Any) -> dict[str, Any]:
        fields = model.user_fields[batch["users"]] if model.network.users is not None else None
        found = {"items": batch["items"], "log_q": batch["log_q"], "user_fields": fields}
        found["item_fields"] = model.item_fields[batch["items"]]
        return found | ({"history": batch["history"]} if history else {})

    def batches(x: Interactions, seed: np.ndarray) -> Any:
        _checked(x)
        kind = ("others" if x.timestamps is None else "earlier") if history else None
        pairs = pair_batches(_size(batch_size, x), history=kind, length=length)(x, seed)
        log_q = np.log(np.maximum(np.bincount(x.items, minlength=x.n_items), 1) / x.nnz).astype(np.float32)

        def make(step: int) -> dict[str, np.ndarray]:
            batch = pairs.make(step)
            return batch | {"log_q": log_q[batch["items"]]}

        return pairs._replace(make=make)

    return _algorithm("TwoTower", start, inputs, loss, optax.adam(learning_rate), batches)


def settings_of(network: type[nnx.Module]) -> dict[str, inspect.Parameter]:
    """The settings of a network that are numbers or names: what `pair_ranker` hands on to it."""
    held_back = ("self", "sizes", "rngs", "item_field", "numbers", "bottom", "dtype", "param_dtype", "implementation")
    parameters = inspect.signature(network.__init__).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in held_back}


def _algorithm(
    name: str,
    start: Callable[[PRNGKeyArray, Interactions], Any],
    inputs: Callable[[Any, Any], Any],
    loss: Callable[[Any, Any, PRNGKeyArray], Array],
    optimizer: Any,
    batches: Callable[[Interactions, np.ndarray], Batches],
) -> Algorithm:
    """Gradient descent on a network that is part of a model: the state is the model, with all that it answers by."""
    descend = gradient_step(loss, optimizer)

    def init(key: PRNGKeyArray, x: Interactions) -> Any:
        model = start(key, x)
        return _with_state(model, start_training(model.network, optimizer))

    def step(key: PRNGKeyArray, model: Any, batch: Any) -> tuple[Any, Info]:
        state = model.training._replace(parameters=model.network)
        state, info = descend(key, state, inputs(model, batch))
        return _with_state(model, state), info

    return Algorithm(init, step, name, batches)


def _with_state(model: Any, state: TrainingState) -> Any:
    """The parameters are in the model alone, once."""
    return model._replace(network=state.parameters, training=state._replace(parameters=None))


def _by_parts(score: Callable[[Array, Array], Array], users: Array, items: Array) -> Array:
    """Scores of pairs, a number of them at a time."""
    n = users.shape[0]
    part = min(_PAIRS, max(n, 1))
    pairs = (jnp.pad(a, (0, -n % part)).reshape(-1, part) for a in (users, items))
    return lax.map(lambda pair: score(*pair), tuple(pairs)).reshape(-1)[:n]


def _histories(x: Interactions, length: int) -> CSR:
    """What each user met, last if there are timestamps, of what there is no more than `length` then."""
    if x.timestamps is None:
        return CSR(jnp.asarray(x.indptr.astype(np.int32)), jnp.asarray(x.items), jnp.ones(1))
    met = last_items(x, length)
    indptr = np.append(0, np.cumsum((met >= 0).sum(axis=1)))
    return CSR(jnp.asarray(indptr.astype(np.int32)), jnp.asarray(met[met >= 0]), jnp.ones(1))


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


def _squares(network: Any, fields: Array) -> Array:
    """Sum of squares of all vectors and weights that an example looks up, the mean of the examples."""
    return jnp.mean(jnp.sum(network.embedding(fields).astype(jnp.float32) ** 2, axis=(-2, -1)))


def _size(batch_size: int | None, x: Interactions) -> int:
    return min(1024, x.nnz) if batch_size is None else batch_size


def _checked(x: Any) -> Interactions:
    if not isinstance(x, Interactions):
        raise TypeError(not_interactions("fit", x))
    return x


def _check(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is None:
            continue
        if not number >= 0 or (number == 0 and name != "negatives"):
            raise ValueError(f"{name}={number} must be {'at least' if name == 'negatives' else 'above'} 0")
