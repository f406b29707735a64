"""Models as flat arrays with a description, and back."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .engine.compression import ProductRows, QuantizedKernel, QuantizedRows
from .engine.data import Modalities
from .engine.factorization import (
    Baseline,
    BayesianFactors,
    BprSgd,
    ExplicitObjective,
    Factors,
    FeedbackFactors,
    ImplicitObjective,
    LogisticSgd,
    RatingSgd,
    SoftmaxSgd,
)
from .engine.factorization.bayesian import Chain
from .engine.factorization.gibbs import RowPrior
from .engine.neighbors import (
    ContentProfiles,
    GraphFilter,
    ItemRatings,
    ItemWeights,
    Popularity,
    Random,
    UserNeighbors,
    UserRatings,
)
from .engine.neighbors.comparison import Comparison
from .engine.regression import PairRegression
from .kernels.csr import CSR, SparseMatrix
from .kernels.half_bytes import row_bytes
from .kernels.quantized_kernel import is_quantized

_KINDS = {
    kind.__name__: kind
    for kind in (
        Baseline,
        BayesianFactors,
        BprSgd,
        CSR,
        Chain,
        Comparison,
        ContentProfiles,
        ExplicitObjective,
        Factors,
        FeedbackFactors,
        GraphFilter,
        ImplicitObjective,
        ItemRatings,
        ItemWeights,
        LogisticSgd,
        Modalities,
        PairRegression,
        Popularity,
        ProductRows,
        QuantizedKernel,
        QuantizedRows,
        Random,
        RatingSgd,
        RowPrior,
        SoftmaxSgd,
        SparseMatrix,
        UserNeighbors,
        UserRatings,
        dict,
        tuple,
    )
}


def flatten(model: Any, name: str = "model") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of a model, a tuple or dict that may nest, its fields named or not, and what `restore` needs besides.

    >>> arrays, described = flatten(Popularity(jnp.ones(3)))
    >>> list(arrays), described
    (['model.counts'], {'type': 'Popularity', 'fields': {'counts': 'model.counts'}})
    """
    arrays: dict[str, np.ndarray] = {}
    fields: dict[str, Any] = {}
    parts = model._asdict() if hasattr(model, "_asdict") else model
    parts = parts if isinstance(parts, dict) else {str(k): part for k, part in enumerate(parts)}
    for field, value in parts.items():
        if value is None:
            fields[field] = None
        elif isinstance(value, tuple | dict):
            inner, fields[field] = flatten(value, f"{name}.{field}")
            arrays |= inner
        elif is_quantized(value):
            inner, fields[field] = _flatten_quantized(value, f"{name}.{field}")
            arrays |= inner
        elif is_dataclass(value) and not isinstance(value, type):
            fields[field] = {"type": type(value).__name__, "static": asdict(value)}
        elif field == "network" and "blueprint" in parts:
            leaves = jax.tree_util.tree_leaves_with_path(value, is_leaf=is_quantized)
            inner, described = flatten({jax.tree_util.keystr(path): leaf for path, leaf in leaves}, f"{name}.{field}")
            arrays, fields[field] = arrays | inner, {"leaves": described["fields"]}
        else:
            fields[field] = f"{name}.{field}"
            arrays[fields[field]] = np.asarray(value)
    return arrays, {"type": type(model).__name__, "fields": fields}


def _flatten_quantized(value: Any, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """As `flatten`, of an array in fewer bits."""
    parts = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    static = {one.name: parts.pop(one.name) for one in dataclasses.fields(value) if one.metadata.get("static")}
    arrays, described = flatten(parts, name)
    return arrays, described | {"type": type(value).__name__, "with": static}


def restore(described: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `flatten`.

    Raises:
        KeyError: A type that is none of ours, or an array that is not there.
        ValueError: Half bytes that are laid out in another way.
    """

    def value(field: Any) -> Any:
        if field is None:
            return None
        return restore(field, arrays) if isinstance(field, dict) else jnp.asarray(arrays[field])

    kind = _KINDS[described["type"]] if described["type"] in _KINDS else _network_kind(described["type"])
    if "static" in described:
        return kind(**{name: _hashable(field) for name, field in described["static"].items()})
    parts = dict(described["fields"])
    leaves = parts.pop("network")["leaves"] if "blueprint" in parts else None
    fields = {name: value(field) for name, field in parts.items()} | described.get("with", {})
    if leaves is not None:
        fields["network"] = _filled(fields["blueprint"], {path: value(leaf) for path, leaf in leaves.items()})
    found = kind(fields.values()) if kind is tuple else kind(**fields)
    if isinstance(found, QuantizedRows) and found.kind == "int4" and found.codes.shape[1] != row_bytes(found.width):
        raise ValueError("half bytes without multipliers, as an earlier affinax wrote them: compress the model again")
    return found


def _network_kind(name: str) -> Any:
    from .models import trained

    return {kind.__name__: kind for kind in trained.KINDS}[name]


def _filled(blueprint: Any, leaves: dict[str, Any]) -> Any:
    """The network of a blueprint with these arrays."""

    def leaf(path: Any, expected: Any) -> Any:
        found = leaves[jax.tree_util.keystr(path)]
        if found.shape != expected.shape:
            raise ValueError(f"{jax.tree_util.keystr(path)} is {found.shape} and must be {expected.shape}")
        return found if is_quantized(found) else jnp.asarray(found, expected.dtype)

    shape = jax.eval_shape(blueprint.build, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(leaf, shape)


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value
