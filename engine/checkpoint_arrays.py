"""The leaves of a pytree as orbax stores them: described, vouched for, written and read."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(state: Any) -> dict[str, Any]:
    """The leaves by their path in the pytree."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    named = {jax.tree_util.keystr(path) or "the state": leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError(f"the leaves of a state need names of their own; of {len(leaves)} some share one")
    return named


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def raw(leaf: Any) -> Any:
    """The leaf as it is stored."""
    if _is_key(leaf):
        read = jax.random.key_data
        return read(leaf) if isinstance(leaf, jax.Array) else jax.eval_shape(read, leaf)
    return leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf)


def described(leaf: Any) -> dict[str, Any]:
    """What has to be equal for a leaf to take the place of another."""
    array = leaf if _is_key(leaf) else raw(leaf)
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def vouched(name: str, leaf: Any) -> dict[str, Any]:
    """What a manifest says of a leaf; a ValueError where it cannot be stored."""
    array = raw(leaf)
    if not _is_storable(array.dtype):
        kind = array.dtype if hasattr(leaf, "dtype") else type(leaf).__name__
        raise ValueError(
            f"{name} is {kind}; a checkpoint holds keys of jax.random, Python's numbers and arrays of bool, of whole "
            "numbers of 8 to 64 bits, int4 and int2, of floats of 4, 8, 16, 32 and 64 bits and of complex numbers"
        )
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        raise ValueError(f"{name} is spread over several processes; a checkpoint holds arrays of one")
    key = {"key": str(jax.random.key_impl(leaf))} if _is_key(leaf) else {}
    return described(leaf) | key | {"sha256": digest(array)}


def _is_storable(dtype: np.dtype) -> bool:
    import tensorstore

    try:
        return dtype.kind != "O" and tensorstore.dtype(str(dtype)).numpy_dtype == dtype
    except (TypeError, ValueError):
        return False


def digest(array: Any) -> str:
    """SHA-256 of the bytes in C order."""
    if isinstance(array, jax.Array):
        # An array keeps the host's copy of it once it was asked for: this one is forgotten with it.
        parts = [shard.data for shard in array.addressable_shards]
        array = jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def as_before(array: np.ndarray, like: Any, key: str | None) -> Any:
    """What was read, as the leaf that it takes the place of; `key` is the kind of key, where it is one."""
    if isinstance(like, np.ndarray):
        return array
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return array[()] if isinstance(like, np.generic) else type(like)(array.item())
    value = array if key is None else jax.random.wrap_key_data(jnp.asarray(array), impl=key)
    # A number that is bound to one device could not be computed with beside arrays that are sharded over several.
    return jax.device_put(value, like.sharding if getattr(like, "committed", True) else None)


def write_arrays(path: Path, arrays: list[Any]) -> None:
    """Writes arrays, by their number, into a new folder."""
    import orbax.checkpoint as ocp

    # Orbax has no arrays of size 0: they are not stored.
    stored = {str(number): array for number, array in enumerate(arrays) if array.size}
    if stored:
        with _quiet(), contextlib.closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as checkpointer:
            checkpointer.save(path.absolute(), args=ocp.args.StandardSave(stored))


def read_arrays(path: Path, shapes: dict[int, Any]) -> dict[int, np.ndarray]:
    """Reads those of the given numbers; `shapes` are anything with their shape and dtype."""
    import orbax.checkpoint as ocp

    # All of one shape's places are one number: orbax asks for an array where it is to answer with one of NumPy.
    wanted = {
        str(place): np.broadcast_to(np.zeros((), like.dtype), like.shape) for place, like in shapes.items() if like.size
    }
    found: dict[str, Any] = {}
    if wanted:
        with _quiet(), contextlib.closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as checkpointer:
            found = checkpointer.restore(path.absolute(), args=ocp.args.StandardRestore(wanted))
    return {
        place: found[str(place)] if like.size else np.zeros(like.shape, like.dtype) for place, like in shapes.items()
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs from its threads, with tracebacks, what it raises as well."""

    def others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
