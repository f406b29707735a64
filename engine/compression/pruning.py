"""Weights that count for little become 0: by magnitude, by what their layer is given, or so many of every few."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ...kernels.product_rows import ProductRows
from ...kernels.quantized_kernel import is_quantized
from ..errors import CompressionError
from .layer_inputs import LayerInputs, inputs_of
from .parameters import chosen, compressible, is_kernel, is_whole, parameters_of, replaced, rows_in_use, with_parameters

Among = Literal["all", "layer", "output"]


def prune(
    model: Any,
    share: float | Mapping[str, float],
    *,
    among: Among = "layer",
    inputs: Mapping[str, LayerInputs] | None = None,
) -> Any:
    """A model whose weights of least magnitude are 0.

    It keeps its shapes and bytes; `keep_zeros` holds the zeros while it is trained on. Rows of 0 that a table ends with
    are nobody's and do not count.

    Args:
        model: `Factors`, a network, or a model that has one.
        share: Of its weights that become 0, in [0, 1); for all tables and matrices of dense layers, or by patterns of
            names, the first that matches.
        among: Which weights are compared: those of the same "layer", with each other "all" that have the same share, or
            those of the same "output" of a layer, or row of a table.
        inputs: What `models.inputs_of_layers` saw: then weights of dense layers count by `|w|` times the root mean
            square of what they are multiplied with.

    Raises:
        CompressionError: A share out of range, nothing to prune, a pattern that matches nothing, parameters that are
            quantized or not finite, or inputs of other layers.
        ValueError: An unknown choice.

    Source: Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks"; with inputs and
    among those of an output, Sun et al. 2024, "A Simple and Effective Pruning Approach for Large Language Models".

    >>> from affinax.engine.factorization import Factors
    >>> model = Factors(jnp.ones((1, 4)), jnp.array([[4.0, -0.1, 2.0, 0.3], [1.0, 0.2, -3.0, 5.0]]))
    >>> prune(model, {"items": 0.5}).items.tolist()
    [[4.0, 0.0, 2.0, 0.0], [0.0, 0.0, -3.0, 5.0]]
    """
    if among not in get_args(Among):
        raise ValueError(f"{among=} must be one of {get_args(Among)}")
    parameters = parameters_of(model)
    shares = prunable(parameters, share)
    scores = {name: _score(name, in_use(name, leaf), inputs) for name, (leaf, _) in shares.items()}
    kept: dict[str, Array] = {}
    if among == "all":
        for part in {part for _, part in shares.values()}:
            names = [name for name, (_, own) in shares.items() if own == part]
            together = jnp.concatenate([scores[name].reshape(-1) for name in names])
            ends = np.cumsum([scores[name].size for name in names])
            masks = jnp.split(largest(together, part), ends[:-1])
            kept |= {name: mask.reshape(scores[name].shape) for name, mask in zip(names, masks, strict=True)}
    for name, (_, part) in shares.items() if among != "all" else ():
        score = scores[name]
        if among == "layer":
            kept[name] = largest(score.reshape(-1), part).reshape(score.shape)
        else:
            kept[name] = largest(score.T, part).T if is_kernel(name) else largest(score, part)
    new = {}
    for name, (leaf, _) in shares.items():
        used = len(kept[name])
        new[name] = leaf.at[:used].set(jnp.where(kept[name], leaf[:used], 0))
    return with_parameters(model, replaced(parameters, new), without=("training",))


def prune_n_of_m(
    model: Any,
    n: int = 2,
    m: int = 4,
    *,
    where: str | tuple[str, ...] = "*.kernel",
    inputs: Mapping[str, LayerInputs] | None = None,
) -> Any:
    """A model in which of every m weights in a row n are left: the pattern that some accelerators multiply faster.

    Args:
        model: See `prune`.
        n, m: See above: `0 < n < m`.
        where: Patterns of names. Weights of a dense layer are in a row if they have the same output.
        inputs: See `prune`.

    Raises:
        CompressionError: As `prune`; or a number of inputs, or of columns, that m does not divide.
        ValueError: n and m out of range.

    Source: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks".

    >>> from affinax.engine.factorization import Factors
    >>> model = Factors(jnp.ones((1, 4)), jnp.array([[4.0, -0.1, 2.0, 0.3]]))
    >>> prune_n_of_m(model, 1, 2, where="items").items.tolist()
    [[4.0, 0.0, 2.0, 0.0]]
    """
    if not is_whole(n) or not is_whole(m) or not 0 < n < m:
        raise ValueError(f"{n=} and {m=} must be whole numbers, n above 0 and below m")
    parameters = parameters_of(model)
    patterns = (where,) if isinstance(where, str) else where
    new = {}
    for name, (leaf, _) in prunable(parameters, dict.fromkeys(patterns, 0.5)).items():
        score = _score(name, leaf, inputs)
        rows = score.T if is_kernel(name) else score
        if rows.shape[1] % m:
            what = "inputs" if is_kernel(name) else "columns"
            raise CompressionError(f"{name} has {rows.shape[1]} {what}, which are no multiple of {m=}")
        kept = largest(rows.reshape(-1, m), 1 - n / m).reshape(rows.shape)
        new[name] = jnp.where(kept.T if is_kernel(name) else kept, leaf, 0)
    return with_parameters(model, replaced(parameters, new), without=("training",))


def prune_rows(model: Any, kept: Mapping[str, Any]) -> Any:
    """A model in which rows of tables that are not kept, such as those of items that few met, have one row together.

    That row is their mean. The arrays are smaller by those rows, but for 1, 2 or 4 bytes that say which row is whose.

    Args:
        model: See `prune`.
        kept: By patterns of the names of tables, which rows stay, bool. Rows behind, such as a mask, stay too, but for
            those of 0 that the table ends with, which are nobody's.

    Returns:
        The model with `ProductRows` of one part, which it answers from; they cannot be trained on or quantized.

    Raises:
        CompressionError: As `prune`; or no bool for the rows, more than there are, or not all of those of several
            fields; a table whose rows ids share, or a matrix of a dense layer.

    >>> from affinax.engine.factorization import Factors
    >>> model = Factors(jnp.ones((1, 2)), jnp.array([[4.0, 0.0], [1.0, 2.0], [3.0, 0.0]]))
    >>> prune_rows(model, {"items": np.array([True, False, False])}).item_table().floats().tolist()
    [[4.0, 0.0], [2.0, 1.0], [2.0, 1.0]]
    """
    parameters, new = parameters_of(model), {}
    masks: dict[str, Any] = chosen(compressible(parameters), kept)
    for name, (table, _) in prunable(parameters, dict.fromkeys(masks, 0.0)).items():
        own = np.asarray(masks[name])
        if is_kernel(name) or own.dtype != bool or own.ndim != 1 or len(own) > len(table):
            what = "a matrix of a dense layer" if is_kernel(name) else f"a table of {len(table)} rows"
            raise CompressionError(f"{name} is {what}: bool for its rows is accepted, got {own.dtype}{list(own.shape)}")
        owner = _owner(parameters, name)
        sizes = getattr(owner, "sizes", ())
        if getattr(owner, "sharing", None) is not None:
            raise CompressionError(f"{name} has rows that ids share: none is that of one item")
        if len(sizes) > 1 and len(own) != sum(sizes):
            raise CompressionError(
                f"{name} has the rows of {len(sizes)} fields, {sum(sizes)} in all: bool for each is accepted, got "
                f"{len(own)}"
            )
        _score(name, table, None)
        own = np.append(own, np.arange(len(own), len(table)) < int(rows_in_use(table)))
        stays, gone = np.flatnonzero(own), np.flatnonzero(~own)
        gone = gone[gone < len(masks[name])]
        shared = table[gone] if len(gone) else jnp.zeros_like(table[:1])  # of padding, if of anything
        rows = [table[stays], jnp.mean(shared, axis=0, keepdims=True)]
        places = np.full(len(table), len(stays))
        places[stays] = np.arange(len(stays))
        codes = places.astype(np.min_scalar_type(len(stays)))[:, None]
        new[name] = ProductRows(jnp.asarray(codes), jnp.concatenate(rows)[None], jnp.zeros((len(table), 0)))
    return with_parameters(model, replaced(parameters, new))


def _owner(tree: Any, name: str) -> Any:
    """What has a parameter of this name: a layer, or the model itself."""
    for part in name.split(".")[:-1]:
        tree = tree[int(part)] if part.isdigit() else getattr(tree, part, None)
    return tree


def zeros_of(model: Any) -> dict[str, float]:
    """The share of zeros of each table, in the rows that are somebody's, and of each matrix of dense layers.

    >>> from affinax.engine.factorization import Factors
    >>> zeros_of(Factors(jnp.ones((1, 4)), jnp.array([[4.0, 0.0, 2.0, 1.0]])))
    {'users': 0.0, 'items': 0.25}
    """
    leaves = compressible(parameters_of(model))
    numbers = {name: in_use(name, leaf.floats() if is_quantized(leaf) else leaf) for name, leaf in leaves.items()}
    return {name: float(jnp.mean(array == 0)) for name, array in numbers.items()}


def prunable(parameters: Any, share: float | Mapping[str, float]) -> dict[str, tuple[Array, float]]:
    """What is to be pruned, and how much of it."""
    among, found = compressible(parameters), {}
    for name, part in chosen(among, share).items():
        leaf = among[name]
        check_share(name, leaf, part)
        if isinstance(leaf, Tracer):
            raise CompressionError(f"{name} is traced: prune outside of jit, and hold the zeros inside by keep_zeros")
        found[name] = jnp.asarray(leaf), part
    return found


def check_share(name: str, leaf: Any, part: Any) -> None:
    """Raises CompressionError for what is no share of weights to be pruned, or for weights that are quantized."""
    if not isinstance(part, Real) or not 0 <= float(part) < 1:
        raise CompressionError(f"{name}: share {part!r} must be a number in [0, 1)")
    if is_quantized(leaf):
        raise CompressionError(f"{name} is quantized: prune first, then quantize")


def in_use(name: str, leaf: Array) -> Array:
    """A matrix of a dense layer, or the rows of a table that are somebody's; see `rows_in_use`."""
    return leaf if is_kernel(name) else leaf[: max(int(rows_in_use(leaf)), 1)]


def _score(name: str, leaf: Array, inputs: Mapping[str, LayerInputs] | None) -> Float[Array, "..."]:
    score = jnp.abs(leaf.astype(jnp.float32))
    if not bool(jnp.all(jnp.isfinite(score))):
        place = np.argwhere(~np.isfinite(np.asarray(score)))[0]
        raise CompressionError(f"{name} is not finite at {place.tolist()}")
    if inputs is None or not is_kernel(name):
        return score
    seen = inputs_of(name.rpartition(".")[0], inputs, leaf.shape[0])
    return score * jnp.sqrt(jnp.asarray(np.diag(seen.gramian), jnp.float32))[:, None]


def largest(scores: Float[Array, "*rows n"], share: Any) -> Array:
    """Where the largest of each row are, all but a share of them, and one at least; of equal ones the first."""
    n = scores.shape[-1]
    gone = jnp.minimum(jnp.rint(jnp.asarray(share, jnp.float32) * n).astype(jnp.int32), n - 1)
    order = jnp.argsort(jnp.flip(scores, -1), axis=-1)
    rank = jnp.flip(jnp.argsort(order, axis=-1), -1)
    return rank >= gone
