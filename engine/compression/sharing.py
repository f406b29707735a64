"""Parameters that are one and the same, and factors of fewer columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from ...kernels.quantized_kernel import is_quantized
from ..errors import CompressionError
from ..factorization.algorithm import Factors
from .parameters import is_whole, name_of, named, parameters_of, require_numbers


def tie(parameters: Any, to: Mapping[str, str]) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]]:
    """The parameters without those that are to be the same as others, and the function that puts them back.

    What is left is a pytree to train: `loss(whole(kept), …)` has the sum of the gradients of what is tied, and begins
    with what is tied *to*. The whole has a copy in each place, and is as large as before: networks that are built to
    share have one, by `share` of `models.SASRec`, `BERT4Rec` and `TwoTower`.

    Args:
        parameters: A network, or any pytree.
        to: For the name of a parameter or of a part of the tree, such as "encoder.blocks.1", the one that it becomes.

    Returns:
        `(kept, whole)`: arrays by name, and `whole(kept) -> parameters`.

    Raises:
        CompressionError: A name that matches nothing, parts that are not of the same shapes, or one that is tied to
            what is tied itself.

    Source: Press, Wolf 2017, "Using the Output Embedding to Improve Language Models"; Lan et al. 2020, "ALBERT: A Lite
    BERT for Self-supervised Learning of Language Representations".

    >>> towers = {"user": {"kernel": jnp.ones((2, 2))}, "item": {"kernel": jnp.zeros((2, 2))}}
    >>> kept, whole = tie(towers, {"user": "item"})
    >>> list(kept), whole(kept)["user"]["kernel"].tolist()
    (['item.kernel'], [[0.0, 0.0], [0.0, 0.0]])
    """
    leaves, source = named(parameters), {}
    for target, origin in to.items():
        inside = [name for name in leaves if name == target or name.startswith(f"{target}.")]
        if not inside:
            raise CompressionError(f"{target!r} names no parameter; there are such as {', '.join(list(leaves)[:3])}")
        for name in inside:
            other = origin + name[len(target) :]
            if other not in leaves or leaves[other].shape != leaves[name].shape:
                has = "missing" if other not in leaves else f"of shape {list(leaves[other].shape)}"
                raise CompressionError(
                    f"{name} of shape {list(leaves[name].shape)} cannot be tied to {other}, which is {has}"
                )
            source[name] = other
    for name, other in source.items():
        if other in source:
            raise CompressionError(f"{name} cannot be tied to {other}, which is tied itself")
    shape = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), parameters, is_leaf=is_quantized)
    kept = {name: leaf for name, leaf in leaves.items() if name not in source}

    def whole(kept: Mapping[str, Any]) -> Any:
        def leaf(path: Any, _: Any) -> Any:
            name = name_of(path)
            return kept[source.get(name, name)]

        return jax.tree_util.tree_map_with_path(leaf, shape, is_leaf=is_quantized)

    return kept, whole


def truncate(model: Factors, rank: int) -> Factors:
    """Factors of fewer columns, whose products are nearest to those of the model: its singular value decomposition.

    Biases stay. Columns come by their share in the products, the first first.

    Args:
        model: Factors of any algorithm.
        rank: Columns that are left.

    Raises:
        CompressionError: Something else than factors of numbers, or a rank that is not below the one that they have.

    Source: Eckart, Young 1936, "The approximation of one matrix by another of lower rank".

    >>> model = Factors(jnp.array([[1.0, 2.0], [2.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    >>> small = truncate(model, 1)
    >>> jnp.rint(small.users @ small.items.T).tolist()
    [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    """
    if not isinstance(parameters_of(model), Factors):
        raise CompressionError(
            f"{type(model).__name__} has no factors to truncate; models.shrink makes networks smaller"
        )
    require_numbers(model, "truncate the factors first, then quantize")
    most = min(*model.users.shape, len(model.items))
    if not is_whole(rank) or not 0 < rank < most:
        raise CompressionError(f"{rank=} must be a whole number above 0 and below {most}, the rank of the products")
    for side, table in (("users", model.users), ("items", model.items)):
        if isinstance(table, Tracer):
            raise CompressionError(f"the {side} are traced: truncate outside of jit")
        if not bool(jnp.all(jnp.isfinite(table))):
            raise CompressionError(f"the {side} have numbers that are not finite")
    (of_users, left), (of_items, right) = (
        jnp.linalg.qr(table.astype(jnp.float32)) for table in (model.users, model.items)
    )
    u, sizes, v = jnp.linalg.svd(left @ right.T, full_matrices=False)
    root = jnp.sqrt(sizes[:rank])
    users, items = of_users @ (u[:, :rank] * root[None, :]), of_items @ (v[:rank].T * root[None, :])
    dtypes = model.users.dtype, model.items.dtype
    return model._replace(users=users.astype(dtypes[0]), items=items.astype(dtypes[1]), slots=None)
