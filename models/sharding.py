"""Which part of each parameter lies on which device: a rule by name, for `jit` over a mesh."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Rules = Sequence[tuple[str, P]]
# Tables are shared by rows, all else is small and everywhere.
RULES: Rules = ((r"\btable\b", P("model", None)), (r"", P()))


def partition_specs(tree: Any, rules: Rules = RULES) -> Any:
    """The `PartitionSpec` of each array: that of the first rule whose pattern is found in its name.

    Args:
        tree: A network, or a state of training: what an optimizer remembers of a parameter has its name, too.
        rules: Regular expressions, and what they mean.

    Returns:
        A pytree of the same structure.

    Raises:
        ValueError: A name that no rule is for, or one whose array has fewer axes than its rule.

    >>> from flax import nnx
    >>> from .mlp import MLP
    >>> specs = partition_specs(MLP([3], width=4, hidden=[], rngs=nnx.Rngs(0)))
    >>> tuple(specs.embedding.table.get_value()), tuple(specs.network.layers[0].bias.get_value())
    (('model', None), ())
    """

    def spec(path: Any, leaf: Any) -> P:
        name = jax.tree_util.keystr(path)
        for pattern, found in rules:
            if re.search(pattern, name):
                # A number that belongs to a table, such as a count, has no rows.
                if name.endswith(".centroids"):  # which rows of any device are put together from
                    return P()
                if name.endswith((".scales", ".offsets")):  # of quantized rows, which are shared as these are
                    return P(*found[: leaf.ndim])
                if len(found) > leaf.ndim and leaf.ndim > 0:
                    raise ValueError(f"{name} of shape {list(leaf.shape)} has fewer axes than {found}")
                return found if leaf.ndim else P()
        raise ValueError(f"no rule is for {name}; there are {[pattern for pattern, _ in rules]}")

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The `NamedSharding` of each array on a mesh: what `jax.device_put` and `jax.jit` take.

    Args:
        tree: See `partition_specs`.
        mesh: Its axes are those that the rules name.
        rules: See `partition_specs`.

    Raises:
        ValueError: An axis that the mesh does not have, or that does not divide the array; see also `partition_specs`.
    """

    def sharding(path: Any, leaf: Any, spec: P) -> NamedSharding:
        name = jax.tree_util.keystr(path)
        for size, axes in zip(leaf.shape, spec, strict=False):
            wanted = () if axes is None else (axes,) if isinstance(axes, str) else axes
            missing = [axis for axis in wanted if axis not in mesh.shape]
            if missing:
                raise ValueError(f"{name}: the mesh has the axes {list(mesh.shape)} and no {missing[0]!r}")
            parts = math.prod(mesh.shape[axis] for axis in wanted)
            if size % parts:
                raise ValueError(f"{name} of shape {list(leaf.shape)}: {parts} devices cannot share {size} evenly")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, tree, partition_specs(tree, rules))
