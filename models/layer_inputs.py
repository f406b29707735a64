"""What the layers of a network are given, on examples: what its compression is calibrated by."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..engine.compression import CompressionError, LayerInputs
from ..engine.compression.parameters import parameters_of
from .layers import Linear

_USERS, _AT_ONCE = 1024, 128


def inputs_of_layers(model: Any, examples: Iterable[Any] | None = None) -> dict[str, LayerInputs]:
    """Runs a network on examples, layer by layer, and keeps of the inputs of each dense layer what `LayerInputs` has.

    A network on sequences multiplies what comes out of it with the vectors of items: these are a layer as well.

    Args:
        model: A network, or a model that has one.
        examples: The arguments of its calls: an array each, a tuple of several, or a dict of them by name. If None the
            `windows` of a `SequenceNetwork`, of 1,024 of its users or all.

    Returns:
        For each `Linear`, under its name in the network, what it was given, and for the table of items, unless these
        share rows or are fused; of sequences at places that have an event.

    Raises:
        CompressionError: No examples, and no windows that could serve; no dense layer that read them, or inputs that
            are not finite.

    >>> from affinax.models import MLP
    >>> network = MLP([3], width=2, hidden=[4], rngs=nnx.Rngs(0))
    >>> seen = inputs_of_layers(network, [jnp.array([[0], [2]])])
    >>> {name: (found.examples, found.gramian.shape) for name, found in seen.items()}
    {'network.layers.0': (2, (2, 2)), 'network.layers.1': (2, (4, 4))}
    """
    if not isinstance(parameters_of(model), nnx.Module):
        raise CompressionError(f"{type(model).__name__} has no network, and so no layers")
    network: Any = jax.tree.map(lambda leaf: leaf, parameters_of(model))  # a copy, whose layers watch
    seen: dict[str, LayerInputs] = {}
    there: np.ndarray | None = None  # places of sequences that are no padding

    def watch(name: str) -> Any:
        def see(x: Any) -> None:
            rows = np.asarray(x, np.float64)
            if there is not None and there.shape == rows.shape[:-1]:
                rows = rows[there]
            rows = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
            if not len(rows):
                return
            try:
                found = LayerInputs.of(rows)
            except CompressionError as error:
                raise CompressionError(f"{name}: {error}") from None
            seen[name] = found if name not in seen else seen[name].joined(found)

        return see

    for path, module in nnx.iter_graph(network):
        if isinstance(module, Linear):
            module.watch = watch(".".join(map(str, path)))
    n = 0
    for n, example in enumerate(_windows(model) if examples is None else examples, start=1):  # noqa: B007
        if isinstance(example, dict):
            call, items = functools.partial(network, **example), example.get("items")
        else:
            given = example if isinstance(example, tuple) else (example,)
            call, items = functools.partial(network, *given), given[0]
        there = np.asarray(items) >= 0 if hasattr(network, "masks") else None
        found = call()
        if _has_rows_for_items(network):
            watch("items.embedding.table")(found)
    if n == 0:
        raise CompressionError("no examples: calibration needs some, such as users that the model was trained on")
    if not seen:
        raise CompressionError(f"{type(network).__name__} gave none of its dense layers anything on these examples")
    return dict(sorted(seen.items()))


def _has_rows_for_items(network: Any) -> bool:
    """Whether places of sequences are multiplied with the rows of a table as they are."""
    if not hasattr(network, "masks"):
        return False
    items = network.items
    return items.embedding is not None and items.embedding.sharing is None and items.fusion is None


def _windows(model: Any) -> Iterator[Any]:
    """Of users from the first to the last."""
    if not hasattr(model, "windows") or model.modalities is not None:
        raise CompressionError(
            "only networks on sequences without content have windows of users that could serve: "
            "give examples, the arguments of calls"
        )
    users = np.unique(np.linspace(0, model.n_users - 1, min(model.n_users, _USERS)).astype(np.int32))
    for start in range(0, len(users), _AT_ONCE):
        yield model.windows(jnp.asarray(users[start : start + _AT_ONCE]))
