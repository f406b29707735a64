"""Trained networks with fewer neurons, heads, dimensions and blocks: arrays that really are smaller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..engine.compression import CompressionError, LayerInputs
from ..engine.compression.layer_inputs import inputs_of
from ..engine.compression.parameters import is_whole, name_of, named, require_numbers, with_parameters
from .layers import Dense
from .sequential import BERT4Rec, SASRec
from .trained import Blueprint
from .transformer import Encoder, SelfAttention


def shrink(
    model: Any,
    *,
    hidden: int | Sequence[int] | None = None,
    heads: int | None = None,
    head_width: int | None = None,
    width: int | None = None,
    blocks: int | None = None,
    inputs: Mapping[str, LayerInputs] | None = None,
) -> Any:
    """A model with a smaller network of the same kind, made of what counts most in the one it has.

    What is left out changes the answers: train it on, `fit(algorithm, data, state=shrink(model, …))`.

    Args:
        model: A trained model that has a network.
        hidden: Width between dense layers, as in the network's own settings: neurons are left whose weights are the
            largest, both those that they are computed by and those that they are multiplied with. Widths that a network
            reads elsewhere too have to stay: the last of some, and of `NeuMF` the first.
        heads: Of each attention, for `SASRec` and `BERT4Rec` as are all that follow: those whose values are.
        head_width: Of the vectors of a head: products of queries with keys, and of values with what is made of them,
            are those of the nearest matrices of this rank.
        width: Of the vectors: the dimensions in which the items' are the largest are left.
        blocks: How many, the first ones.
        inputs: What `inputs_of_layers` saw of the model: then neurons count by the root mean square of what they give.

    Returns:
        A model of the same type, without the state of its optimizer, whose `blueprint` has the new sizes.

    Raises:
        CompressionError: A model without a network, nothing to be made smaller, a size that is not below what there is
            (of neurons, above), one that this network does not have, quantized parameters, or inputs of another model.

    Source: neurons, Li et al. 2017, "Pruning Filters for Efficient ConvNets"; heads, Michel et al. 2019, "Are Sixteen
    Heads Really Better than One?"; ranks, Eckart, Young 1936, "The approximation of one matrix by another of lower
    rank".
    """
    if not hasattr(model, "blueprint"):
        raise CompressionError(
            f"{type(model).__name__} is no model with a network, such as SequenceNetwork; truncate is for factors"
        )
    sizes = {"heads": heads, "head_width": head_width, "width": width, "blocks": blocks}
    asked: dict[str, Any] = {name: size for name, size in sizes.items() if size is not None}
    if not asked and hidden is None:
        raise CompressionError("nothing to be made smaller: give hidden, heads, head_width, width or blocks")
    network = jax.tree.map(lambda leaf: leaf, model.network)  # a copy, to be cut down
    require_numbers(network, "make the network smaller first, then quantize")
    of_blocks = isinstance(network, SASRec | BERT4Rec)
    given = {**asked, **({} if hidden is None else {f"hidden[{k}]": n for k, n in enumerate(np.atleast_1d(hidden))})}
    for name, size in given.items():
        if not is_whole(size):
            raise CompressionError(f"{name}={size!r} must be a whole number")
    if asked and not of_blocks:
        raise CompressionError(
            f"{next(iter(asked))} is for SASRec and BERT4Rec alone; {type(network).__name__} can be given less hidden, "
            "if it has dense layers with anything between them"
        )
    if blocks is not None:
        _fewer_blocks(network.encoder, blocks)
    if heads is not None or head_width is not None:
        for block in network.encoder.blocks:
            _smaller_heads(block.attention, heads, head_width)
    if hidden is not None:
        widths = tuple(map(int, np.atleast_1d(hidden)))
        for name, dense in _denses(network):
            _fewer_neurons(name, dense, _hidden_of(dense, widths, type(network).__name__), inputs)
        asked["hidden"] = widths[0] if of_blocks else widths
    if width is not None:
        network = _narrower(network, width, model.n_items)
    if of_blocks:  # what else would follow from the width
        block = network.encoder.blocks[0]
        asked |= {"head_width": _inner(block.attention), "hidden": block.dense.layers[0].kernel.shape[1]}
    plan = Blueprint(model.blueprint.network, tuple((dict(model.blueprint.settings) | asked).items()))
    return with_parameters(model, _as_built(plan, network))._replace(blueprint=plan)


def share_blocks(model: Any) -> Any:
    """A `SASRec` or `BERT4Rec` all of whose blocks have the same parameters, the mean of what they were.

    Its encoder is smaller by the number of blocks; train it on, as what `shrink` gives.

    Raises:
        CompressionError: Another network, or one whose blocks are shared or fewer than two.

    Source: Lan et al. 2020, "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations".
    """
    network = getattr(model, "network", None)
    if not isinstance(network, SASRec | BERT4Rec):
        raise CompressionError(f"{type(network or model).__name__} has no blocks to share; SASRec and BERT4Rec have")
    if len(network.encoder.blocks) < 2:
        raise CompressionError("the blocks are shared already, or there is but one")
    require_numbers(network, "share its blocks first, then quantize")
    network = jax.tree.map(lambda leaf: leaf, network)
    mean = jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / len(leaves), *network.encoder.blocks)
    network.encoder.blocks = nnx.List([mean])
    plan = Blueprint(model.blueprint.network, tuple((dict(model.blueprint.settings) | {"share": True}).items()))
    return with_parameters(model, _as_built(plan, network))._replace(blueprint=plan)


def _as_built(plan: Blueprint, network: Any) -> Any:
    """The parameters of a network that was cut down, in one that is built as small."""
    shape, leaves = jax.eval_shape(plan.build, jax.random.key(0)), named(network)
    if leaves.keys() != named(shape).keys():
        raise CompressionError(
            f"{plan.network} cannot be cut so: its layers would not be as many as they are; give hidden all widths"
        )

    def leaf(path: Any, expected: Any) -> Any:
        found = leaves[name_of(path)]
        if found.shape != expected.shape:
            sizes = f"is {list(found.shape)} and must be {list(expected.shape)}"
            raise CompressionError(f"{plan.network} cannot be cut so: {name_of(path)} {sizes}")
        return found

    return jax.tree_util.tree_map_with_path(leaf, shape)


def _below(name: str, size: int, there: int) -> None:
    if not 0 < size < there:
        raise CompressionError(f"{name}={size} must be above 0 and below {there}, of which there are")


def _fewer_blocks(encoder: Encoder, blocks: int) -> None:
    if encoder.rounds > 1:
        raise CompressionError("the blocks share their parameters: fewer of them are no smaller")
    _below("blocks", blocks, len(encoder.blocks))
    encoder.blocks = nnx.List(list(encoder.blocks)[:blocks])


def _denses(network: Any) -> list[tuple[str, Dense]]:
    """All dense networks with something between their first and last layer."""
    found = [(".".join(map(str, path)), node) for path, node in nnx.iter_graph(network) if isinstance(node, Dense)]
    # Some have settings of their own.
    others = {"attention", "bottom", "fusion"}
    found = [(name, dense) for name, dense in found if len(dense.layers) > 1 and others.isdisjoint(name.split("."))]
    if not found:
        raise CompressionError(f"{type(network).__name__} has no dense layers with anything between them")
    return found


def _hidden_of(dense: Dense, hidden: tuple[int, ...], network: str) -> tuple[int, ...]:
    """The new widths between the layers."""
    there = [layer.kernel.shape[1] for layer in dense.layers]
    between = len(there) - 1
    # Some networks read the last of their hidden layers elsewhere too, where it has to stay.
    if len(hidden) == between + 1 and hidden[-1] != there[-1]:
        raise CompressionError(f"hidden={hidden}: the last width of {network} has to stay {there[-1]}")
    if len(hidden) not in (between, between + 1):
        raise CompressionError(f"hidden={hidden} must have a width for each of {there[:between]}")
    for size, width in zip(hidden, there[:between], strict=False):
        if not 0 < size <= width:
            raise CompressionError(f"hidden={hidden} must be above 0 and at most {there[:between]}, which there are")
    return hidden[:between]


def _fewer_neurons(name: str, dense: Dense, sizes: tuple[int, ...], inputs: Mapping[str, LayerInputs] | None) -> None:
    for number, size in enumerate(sizes):
        first: Any = dense.layers[number]
        second: Any = dense.layers[number + 1]
        kernel, bias, after = (
            np.asarray(array[...], np.float32) for array in (first.kernel, first.bias, second.kernel)
        )
        reach = np.sqrt((kernel**2).sum(axis=0) + bias**2)
        if inputs is not None:
            reach = np.sqrt(np.diag(inputs_of(f"{name}.layers.{number + 1}", inputs, len(after)).gramian))
        kept = _largest(reach * np.linalg.norm(after, axis=1), size)
        first.kernel, first.bias = nnx.Param(first.kernel[...][:, kept]), nnx.Param(first.bias[...][kept])
        second.kernel = nnx.Param(second.kernel[...][kept])


def _largest(sizes: np.ndarray, n: int) -> np.ndarray:
    """Where the n largest are, in their order."""
    return np.sort(np.argsort(-sizes, kind="stable")[:n])


def _inner(attention: SelfAttention) -> int:
    return attention.output.kernel.shape[0] // attention.heads


def _smaller_heads(attention: Any, heads: int | None, head_width: int | None) -> None:
    inner, n = _inner(attention), attention.heads
    # [1 + width, 3, heads, inner]: the bias is one more row.
    weights = np.concatenate([np.asarray(attention.inputs.kernel[...]), np.asarray(attention.inputs.bias[...])[None]])
    weights = weights.astype(np.float64).reshape(-1, 3, n, inner)
    after = np.asarray(attention.output.kernel[...], np.float64).reshape(n, inner, -1)
    if heads is not None:
        _below("heads", heads, n)
        products = np.array([np.linalg.norm(weights[:, 2, head] @ after[head]) for head in range(n)])
        kept = _largest(products, heads)
        weights, after, attention.heads = weights[:, :, kept], after[kept], heads
    if head_width is not None:
        _below("head_width", head_width, inner)
        if head_width > len(weights):
            raise CompressionError(f"{head_width=} must be at most {len(weights)}: products have no higher rank")
        if attention.rotary:
            raise CompressionError(
                "rotary positions turn pairs of numbers, which a smaller head_width would tear apart"
            )
        small = np.empty((*weights.shape[:3], head_width))
        last = np.empty((after.shape[0], head_width, after.shape[2]))
        # Queries are divided by the root of the width, which is another now.
        scale = (head_width / inner) ** 0.5
        for head in range(after.shape[0]):
            queries, keys = _nearest(weights[:, 0, head], weights[:, 1, head].T, head_width)
            small[:, 0, head], small[:, 1, head] = queries * scale, keys.T
            small[:, 2, head], last[head] = _nearest(weights[:, 2, head], after[head], head_width)
        weights, after = small, last
    flat = jnp.asarray(weights.reshape(weights.shape[0], -1), attention.inputs.kernel.dtype)
    attention.inputs.kernel, attention.inputs.bias = nnx.Param(flat[:-1]), nnx.Param(flat[-1])
    attention.output.kernel = nnx.Param(jnp.asarray(after.reshape(-1, after.shape[2]), attention.output.kernel.dtype))


def _nearest(a: np.ndarray, b: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices of this rank whose product is nearest to that of two."""
    left, sizes, right = np.linalg.svd(a @ b, full_matrices=False)
    root = np.sqrt(sizes[:rank])
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _narrower(network: Any, width: int, n_items: int) -> Any:
    """Every axis that is the width of the vectors, cut to the dimensions that count."""
    there = network.items.width
    if network.items.embedding is None or network.items.fusion is not None or network.items.mark is not None:
        raise CompressionError("width: the vectors of these items are put together, and are no rows of one table")
    _below("width", width, there)
    kept = _largest(np.linalg.norm(np.asarray(network.items.embedding.table[...][:n_items], np.float32), axis=0), width)

    def axes(name: str) -> tuple[int, ...]:
        """Which axes of a parameter are."""
        last = name.rpartition(".")[2]
        if name.endswith(("attention.inputs.kernel", "dense.layers.0.kernel")):
            return (0,)
        if name.endswith(("attention.inputs.bias", "dense.layers.0.bias")) or name == "bias":
            return ()
        if name == "projection.kernel":
            return (0, 1)
        return (0,) if last in ("bias", "scale") else (1,)

    def cut(path: Any, leaf: Any) -> Any:
        for axis in axes(name_of(path)):
            leaf = jnp.take(leaf, kept, axis=axis)
        return leaf

    return jax.tree_util.tree_map_with_path(cut, network)
