"""Networks as recommenders: algorithms that train them on interactions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from ..engine.data.fields import user_and_item_fields
from ..engine.data.interactions import Interactions, not_interactions
from ..engine.errors import InteractionError
from ..engine.factorization.algorithm import Algorithm, Factors
from ..engine.factorization.settings import with_settings
from ..engine.training import losses
from ..engine.training.batches import pair_batches
from ..engine.training.histories import last_items
from ..kernels.csr import CSR
from .descent import View, network_algorithm, require_optimizer, require_positive, require_same
from .din import DIN
from .fusion import Fusion
from .item_content import checked_fusion, content_of_items
from .layers import Sharing
from .trained import Blueprint, PairNetwork, TowerNetwork
from .two_tower import TwoTower

if TYPE_CHECKING:
    import optax


@with_settings
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
    optimizer: optax.GradientTransformation | None = None,
    view: View | None = None,
    **settings: Any,
) -> Algorithm:
    """A network that scores pairs, trained by Adam: on clicks and random negatives, or on ratings.

    Args:
        network: One of this package that takes fields: `NeuMF`, `DeepFM`, `DIN`, …
        columns: Of the side tables: fields besides the ids; see `engine.data.fields`.
        ratings: Whether values are to be predicted, by squared error, rather than clicks, by binary cross entropy.
        negatives: For each click.
        length: Of the histories of a network that reads them; what users met before, or, without timestamps, besides.
        batch_size: Interactions in a batch; if None 64 to 1,024, by how many there are.
        learning_rate: Of Adam.
        l2: A batch costs `l2 / 2` times the squares of the vectors and weights that it looks up besides; 0 is none.
        optimizer: In place of Adam and `learning_rate`.
        view: The loss is that of `view(network)`, such as of `compression.rounded`.
        **settings: Of the network.

    Returns:
        An `Algorithm` on `Interactions`, whose state is a `PairNetwork`.

    Raises:
        ValueError: A number out of range.
    """
    import optax

    require_positive(negatives=negatives, batch_size=batch_size, length=length, learning_rate=learning_rate)
    require_optimizer(optimizer)
    if not l2 >= 0 or (negatives == 0 and not ratings):
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

    def renewed(model: PairNetwork, x: Any) -> PairNetwork:
        require_same(model, _checked(x), "users", "items")
        return model._replace(history=jnp.asarray(last_items(x, length))) if with_history else model

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

    optimizer = optax.adam(learning_rate) if optimizer is None else optimizer
    return network_algorithm(name, start, inputs, loss, optimizer, batches, renewed, view)


@with_settings
def tower_retriever(
    *,
    columns: Sequence[str] | str = (),
    width: int = 64,
    hidden: Sequence[int] = (),
    share: bool = False,
    users: bool = True,
    history: bool = False,
    length: int = 50,
    batch_size: int | None = None,
    learning_rate: float = 1e-2,
    normalize: bool = False,
    temperature: float = 1.0,
    l2: float = 0.1,
    dropout: float = 0.0,
    init_std: float = 0.1,
    sharing: Sharing | None = None,
    item_bias: bool = True,
    content: Sequence[str] | str = (),
    fusion: Fusion = "attention",
    modality_dropout: float = 0.1,
    factors: Factors | None = None,
    optimizer: optax.GradientTransformation | None = None,
    view: View | None = None,
) -> Algorithm:
    """Two towers, trained by Adam on the softmax over the items of a batch, corrected for how often each is there.

    Args:
        columns: Of the side tables: fields besides the ids; see `engine.data.fields`.
        width, hidden, share, normalize, temperature, dropout, init_std, sharing: Of `TwoTower`.
        users: Whether users have vectors of their own, besides `history` and columns.
        history: Whether users have histories: what they met before, or, without timestamps, besides. With them the
            towers know newcomers, too; to rank for those who are known they are often the worse.
        length: Of these, at most; but without timestamps a trained model reads them whole.
        batch_size: Interactions in a batch: each has the items of the others as negatives; if None 64 to 1,024,
            by how many there are.
        learning_rate: Of Adam.
        l2: A batch costs `l2 / 2` times the mean squares of the vectors of its users and items, before they are
            normalized, besides.
        item_bias: Whether items have a bias, which begins as the logarithm of their share of the interactions: how
            popular an item is need not be learned by vectors then.
        content: Columns of the items' side table that are fused to one more vector of an item; see `item_modalities`.
            An item that training has no event of is known by these alone, but counts for nothing in a history.
        fusion: How, by a `FusionTransformer`.
        modality_dropout: How likely one of these, or the id, is left out in a step of training.
        factors: Vectors of users and items to begin with, such as those of ALS, of the same `width`.
        optimizer, view: See `pair_ranker`.

    Returns:
        An `Algorithm` on `Interactions`, whose state is a `TowerNetwork`.

    Source: Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations".
    """
    import optax

    require_positive(batch_size=batch_size, length=length, learning_rate=learning_rate, temperature=temperature)
    require_optimizer(optimizer)
    if not l2 >= 0:
        raise ValueError(f"{l2=} must be at least 0")
    of_fusion = {"fusion": fusion, "modality_dropout": modality_dropout, "dropout": dropout}
    checked_fusion(content, width, of_fusion)

    def start(key: PRNGKeyArray, x: Interactions) -> TowerNetwork:
        of_users, of_items = user_and_item_fields(_checked(x), columns)
        met_items = np.bincount(x.items, minlength=x.n_items) > 0
        modalities, fused = content_of_items(x, content, met_items, of_fusion)
        first = 0 if users else 1
        plan = Blueprint.of(
            TwoTower,
            user_sizes=of_users.sizes[first:],
            item_sizes=of_items.sizes,
            width=width,
            hidden=hidden,
            share=share,
            history=history,
            normalize=normalize,
            temperature=temperature,
            dropout=dropout,
            init_std=init_std,
            sharing=sharing,
            item_bias=item_bias,
            **fused,
        )
        met = _histories(x, length) if history else None
        tables = {}
        if factors is not None:
            tables = {"item_table": factors.items} | ({"user_table": factors.users} if users else {})
        if item_bias:
            # Less their mean, so that an item without an id, whose bias is 0, counts as one in the middle.
            tables["item_bias"] = jnp.asarray(_log_shares(x) - _log_shares(x).mean())
        item_ids = of_items.ids.copy()
        if modalities is not None:
            item_ids[~met_items, 0] = -1
        fields = jnp.asarray(of_users.ids[:, first:]), jnp.asarray(item_ids)
        return TowerNetwork(plan.build(key, **tables), plan, *fields, met, modalities)

    def renewed(model: TowerNetwork, x: Any) -> TowerNetwork:
        require_same(model, _checked(x), "users", "items")
        if model.modalities is not None:
            known = np.where(np.bincount(x.items, minlength=x.n_items) > 0, np.arange(x.n_items, dtype=np.int32), -1)
            model = model._replace(item_fields=model.item_fields.at[:, 0].set(known))
        return model._replace(history=_histories(x, length)) if history else model

    def loss(network: TwoTower, batch: Any, key: PRNGKeyArray) -> Array:
        keys, fields = jax.random.split(key, 3), batch["item_fields"]
        queries = network.user(batch["user_fields"], batch.get("history"), key=keys[0])
        if "modalities" in batch:
            gone = jax.random.bernoulli(keys[2], modality_dropout, fields.shape[:1])
            fields = fields.at[:, 0].set(jnp.where(gone, -1, fields[:, 0]))
        items = network.item(fields, batch.get("modalities"), key=keys[1])
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
        if model.modalities is not None:
            found["modalities"] = jax.tree.map(lambda rows: rows[batch["items"]], model.modalities)
        return found | ({"history": batch["history"]} if history else {})

    def batches(x: Interactions, seed: np.ndarray) -> Any:
        _checked(x)
        kind = ("others" if x.timestamps is None else "earlier") if history else None
        pairs = pair_batches(_size(batch_size, x), history=kind, length=length)(x, seed)
        log_q = _log_shares(x)

        def make(step: int) -> dict[str, np.ndarray]:
            batch = pairs.make(step)
            return batch | {"log_q": log_q[batch["items"]]}

        return pairs._replace(make=make)

    optimizer = optax.adam(learning_rate) if optimizer is None else optimizer
    return network_algorithm("TwoTower", start, inputs, loss, optimizer, batches, renewed, view)


def settings_of(network: type[nnx.Module]) -> dict[str, inspect.Parameter]:
    """The settings of a network that are numbers or names: what its trainer hands on to it."""
    held_back = (
        "self",
        "sizes",
        "n_items",
        "rngs",
        "item_field",
        "numbers",
        "bottom",
        "dtype",
        "param_dtype",
        "implementation",
        "attention_implementation",
        "fusion",  # which trainers make of their own settings
    )
    parameters = inspect.signature(network.__init__).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in held_back}


def _histories(x: Interactions, length: int) -> CSR:
    """What each user met, last if there are timestamps, of what there is no more than `length` then."""
    if x.timestamps is None:
        return CSR(jnp.asarray(x.indptr.astype(np.int32)), jnp.asarray(x.items), jnp.ones(1))
    met = last_items(x, length)
    indptr = np.append(0, np.cumsum((met >= 0).sum(axis=1)))
    return CSR(jnp.asarray(indptr.astype(np.int32)), jnp.asarray(met[met >= 0]), jnp.ones(1))


def _log_shares(x: Interactions) -> np.ndarray:
    """Logarithm of each item's share of the interactions; of one that has none, as if it had one."""
    return np.log(np.maximum(np.bincount(x.items, minlength=x.n_items), 1) / x.nnz).astype(np.float32)


def _squares(network: Any, fields: Array) -> Array:
    """Sum of squares of all vectors and weights that an example looks up, the mean of the examples."""
    return jnp.mean(jnp.sum(network.embedding(fields).astype(jnp.float32) ** 2, axis=(-2, -1)))


def _size(batch_size: int | None, x: Interactions) -> int:
    """The batch asked for; else one that makes 50 steps an epoch or more, but for very few interactions."""
    return min(x.nnz, max(64, min(1024, x.nnz // 50))) if batch_size is None else batch_size


def _checked(x: Any) -> Interactions:
    if not isinstance(x, Interactions):
        raise TypeError(not_interactions("fit", x))
    return x
