"""Which arrays of a model are its parameters, and how rules name them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp

from ...kernels.quantized_kernel import is_quantized
from ..errors import CompressionError

T = TypeVar("T")
FOR_TRAINING = ("training", "slots")  # fields of models that no score needs
_TABLES, KERNEL = ("users", "items", "own", "feedback", "table"), "kernel"


def parameters_of(model: Any) -> Any:
    """The pytree of what a model has learned: its network, or the model itself where it has none.

    Raises:
        CompressionError: A `Recommender`, whose `model` it is.
    """
    if hasattr(model, "model") and hasattr(model, "algorithm"):
        raise CompressionError(f"{type(model).__name__} is no model, but has one: give its .model")
    return model.network if _has_network(model) else model


def with_parameters(model: Any, parameters: Any, without: tuple[str, ...] = FOR_TRAINING) -> Any:
    """A model with other parameters, and without what only training needs, where that belongs to those it had."""
    if not hasattr(model, "_replace"):
        return parameters
    gone = {name: None for name in without if name in model._fields}
    return model._replace(network=parameters, **gone) if _has_network(model) else parameters._replace(**gone)


def named(parameters: Any) -> dict[str, Any]:
    """All arrays by their names, such as "encoder.blocks.0.dense.layers.1.kernel"; quantized ones count as one."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(parameters, is_leaf=is_quantized)}


def replaced(parameters: Any, new: Mapping[str, Any]) -> Any:
    """The pytree with other arrays under these names."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: new.get(name_of(path), leaf), parameters, is_leaf=is_quantized
    )


def compressible(parameters: Any) -> dict[str, Any]:
    """The tables of vectors and the matrices of dense layers, by name."""
    return {
        name: leaf
        for name, leaf in named(parameters).items()
        if name.rpartition(".")[2] in (*_TABLES, KERNEL) and not name.startswith("chain.")
        # One column is a bias or a weight of each row.
        if _is_matrix(leaf) and (is_kernel(name) or leaf.shape[1] > 1)
    }


def tables_of(model: Any) -> dict[str, Any]:
    """The tables of vectors of a model, by name."""
    return {name: leaf for name, leaf in compressible(parameters_of(model)).items() if not is_kernel(name)}


def rows_in_use(table: Any) -> Any:
    """How many rows come before those of 0 that a table ends with: these are nobody's, and only there for a mesh."""
    return jnp.max(jnp.where(jnp.any(table != 0, axis=1), jnp.arange(1, table.shape[0] + 1), 0))


def is_kernel(name: str) -> bool:
    """Whether that is a matrix `[n_in, n_out]` of a dense layer, as flax calls it, and no table of rows."""
    return name.rpartition(".")[2] == KERNEL


def chosen(names: Iterable[str], rules: T | Mapping[str, T]) -> dict[str, T]:
    """What the rules say of each name, by the first pattern that it matches; names that match none are left out.

    Args:
        names: Of parameters.
        rules: For each pattern, such as "*.kernel" or "encoder.*", in the manner of file names, what is to be done; or
            that alone, for all.

    Raises:
        CompressionError: No parameter at all, a pattern that matches none (nearest names are offered), or none that
            those before it leave.

    >>> chosen(["items.table", "dense.kernel", "end.kernel"], {"end.*": 4, "*.kernel": 8})
    {'dense.kernel': 8, 'end.kernel': 4}
    """
    names = list(names)
    if not names:
        raise CompressionError("the model has no table of vectors and no dense layer to compress")
    given: Mapping[str, T] = rules if isinstance(rules, Mapping) else {"*": rules}
    if not given:
        raise CompressionError(f"no rules; patterns of names are accepted, such as {names[0]!r} or '*'")
    for pattern in given:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise CompressionError(
                f"pattern {pattern!r} matches none of {len(names)} parameters; near it: {', '.join(near)}"
            )
    found = {name: next((p for p in given if fnmatch.fnmatchcase(name, p)), None) for name in names}
    for pattern in given:
        if pattern != "*" and pattern not in found.values():
            raise CompressionError(f"pattern {pattern!r} is never reached: those before it match all that it matches")
    return {name: given[pattern] for name, pattern in found.items() if pattern is not None}


def is_whole(number: Any) -> TypeGuard[int]:
    """Whether it is a whole number, of Python or NumPy, and no truth value."""
    return isinstance(number, Integral) and not isinstance(number, bool)


def require_numbers(parameters: Any, then: str) -> None:
    """Raises CompressionError where an array is quantized, with what is to be done first."""
    for name, leaf in named(parameters).items():
        if is_quantized(leaf):
            raise CompressionError(f"{name} is quantized: {then}")


def name_of(path: Any) -> str:
    """A path of a pytree with dots; nnx has a further step to what a variable holds."""
    steps = [str(getattr(step, "name", getattr(step, "key", getattr(step, "idx", step)))) for step in path]
    return ".".join(steps[:-1] if len(steps) > 1 and steps[-1] in ("value", "raw_value") else steps)


def _has_network(model: Any) -> bool:
    """Whether it answers by a network, and is none itself."""
    return hasattr(model, "network") and hasattr(model, "blueprint")


def _is_matrix(leaf: Any) -> bool:
    if is_quantized(leaf):
        return True
    return getattr(leaf, "ndim", 0) == 2 and leaf.size > 0 and jnp.issubdtype(leaf.dtype, jnp.floating)
