"""Whole models in fewer bits, by rules on the names of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ...kernels.product_rows import ProductRows
from ...kernels.quantized_kernel import Activations, QuantizedKernel, is_quantized
from ..errors import CompressionError
from .layer_inputs import LayerInputs, inputs_of
from .parameters import chosen, compressible, is_kernel, parameters_of, replaced, with_parameters
from .product_codes import quantize_products
from .quantization import Clip, Kind, quantize
from .second_order import rounded_by_inputs

Storage = Kind | tuple[Literal["product"], int]
Rounding = Literal["nearest", "inputs"]

_OF_CODES = ("int8", "int4")
_OF_TABLES = 1.0  # damping: their rows are read as well, where they are no more than numbers


def quantize_model(
    model: Any,
    rules: Storage | Mapping[str, Storage] = "int8",
    *,
    symmetric: bool = True,
    clip: Clip = "none",
    activations: Activations = "float",
    rounding: Rounding = "nearest",
    inputs: Mapping[str, LayerInputs] | None = None,
    key: PRNGKeyArray | None = None,
) -> Any:
    """A trained model with its tables of vectors and matrices of dense layers in fewer bits, which answers as before.

    It is of the same type, without the state of its optimizer. All that is no such table or matrix stays as it is,
    biases and the cross layers of `DCN` among it, and so does an array that would not be smaller, unless it has a rule
    of its own. Weights that are 0 stay so, unless `symmetric` is false.

    Args:
        model: `Factors`, a network of `affinax.models`, or a model that has one.
        rules: What each is stored as, by patterns of names, the first that matches; or one for all. See `quantize`;
            ("product", 8) is for tables alone, by `quantize_products` in as many parts.
        symmetric, clip: See `quantize`.
        activations: What the inputs of dense layers are multiplied as: "float" saves bytes alone; by "dynamic", or
            "static" with the reach that `inputs` have, the products are of bytes.
        rounding: "nearest", or so that with the `inputs` as they were seen the outputs of dense layers change least,
            and scores by a table that has inputs; see `second_order`. Of int8 and int4; other kinds, and tables
            without inputs, are rounded to the nearest.
        inputs: What `models.inputs_of_layers` saw of each dense layer, and of the vectors of items of a network on
            sequences; the table of another model has, by its name, `LayerInputs.of` the vectors of users.
        key: See `quantize_products`.

    Raises:
        CompressionError: Nothing to quantize, a pattern that matches nothing (nearest names are offered), an array
            with a rule of its own that would not be smaller, parameters that are quantized already or not finite,
            inputs that are missing, unused or of another model, rounding by inputs of nothing in int8 or int4, or
            bytes as inputs of matrices that are none.
        ValueError: An unknown choice.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference"; Guan et al. 2019, "Post-Training 4-bit Quantization on Embedding Tables".

    >>> from affinax.engine.factorization import Factors
    >>> model = Factors(jnp.ones((3, 8)), jnp.ones((5, 8)))
    >>> small = quantize_model(model, {"items": "int4"})
    >>> model.items.nbytes, small.items.nbytes, small.item_table().kind, small.users.dtype
    (160, 35, 'int4', dtype('float32'))
    """
    if activations not in get_args(Activations):
        raise ValueError(f"{activations=} must be one of {get_args(Activations)}")
    if rounding not in get_args(Rounding):
        raise ValueError(f"{rounding=} must be one of {get_args(Rounding)}")
    if inputs is not None and activations != "static" and rounding != "inputs":
        raise CompressionError(
            'inputs are for activations="static" and rounding="inputs": ask for one, or leave them out'
        )
    parameters = parameters_of(model)
    among = compressible(parameters)
    storage: dict[str, Any] = chosen(among, rules)
    for name, kind in storage.items():
        if kind not in get_args(Kind) and not isinstance(kind, tuple | list) and kind != "product":
            raise ValueError(f'{name}: {kind=} must be one of {get_args(Kind)}, or ("product", parts)')
    if activations != "float" and not any(map(is_kernel, storage)):
        raise CompressionError(f"{activations=} is for matrices of dense layers, of which the rules choose none")
    by_inputs = _rounded_by_inputs(storage, inputs or {}) if rounding == "inputs" else set()
    new = {}
    for name, kind in storage.items():
        leaf = among[name]
        if isinstance(leaf, ProductRows):
            raise CompressionError(
                f"{name} is put together from parts, which stay as they are; give rules for the rest"
            )
        if is_quantized(leaf):
            raise CompressionError(f"{name} is quantized already; dequantize the model first")
        try:
            if isinstance(kind, tuple | list) or kind == "product":
                new[name] = _products(name, leaf, (kind,) if kind == "product" else kind, key)
            elif not is_kernel(name):
                new[name] = quantize(leaf, kind, symmetric=symmetric, clip=clip)
                if name in by_inputs and inputs:
                    seen = inputs_of(name, inputs, leaf.shape[1])
                    new[name] = rounded_by_inputs(leaf, new[name], seen.gramian, damping=_OF_TABLES)
            else:
                needed = activations == "static" or name in by_inputs
                if needed and not inputs:
                    raise CompressionError(
                        "static activations and rounding by inputs need inputs: those of models.inputs_of_layers"
                    )
                seen = inputs_of(name.rpartition(".")[0], inputs, leaf.shape[0]) if needed and inputs else None
                new[name] = _kernel(leaf, kind, symmetric, clip, activations, name in by_inputs, seen)
            if new[name].nbytes >= leaf.nbytes:
                if isinstance(rules, Mapping) and name in rules:
                    raise CompressionError(
                        f"{kind} takes {new[name].nbytes:,} bytes, and the array itself {leaf.nbytes:,}"
                    )
                del new[name]  # of few columns a scale takes more than codes save
        except CompressionError as error:
            raise CompressionError(f"{name}: {error}") from None
    return with_parameters(model, replaced(parameters, new))


def _rounded_by_inputs(storage: Mapping[str, Storage], inputs: Mapping[str, LayerInputs]) -> set[str]:
    """The names of what `rounding="inputs"` is for: kept as codes, a dense layer or a table that has inputs."""
    found = {name for name, kind in storage.items() if kind in _OF_CODES and (is_kernel(name) or name in inputs)}
    if not found:
        kinds = ", ".join(f"{name} {kind}" for name, kind in storage.items())
        raise CompressionError(
            'rounding="inputs" is for int8 or int4 of dense layers, and of tables that have inputs: the rules choose '
            f"{kinds}; and there are inputs of {', '.join(sorted(inputs)) or 'none'}"
        )
    return found


def _products(name: str, table: Any, kind: Any, key: PRNGKeyArray | None) -> Any:
    if len(kind) != 2 or kind[0] != "product":
        raise CompressionError(f'{kind} must be int8, int4, float8, bfloat16 or ("product", parts)')
    if is_kernel(name):
        raise CompressionError("products are for tables of vectors, and not for matrices of dense layers")
    if len(table) < 2:
        raise CompressionError("a table of one row has none that it could share parts with")
    return quantize_products(table, kind[1], min(256, table.shape[0]), key=key)


def _kernel(
    kernel: Any,
    kind: Kind,
    symmetric: bool,
    clip: Clip,
    activations: Activations,
    by_inputs: bool,
    seen: LayerInputs | None,
) -> Any:
    rows = quantize(kernel.T, kind, symmetric=symmetric, clip=clip)
    if kind not in _OF_CODES and activations != "float":
        raise CompressionError(f"inputs in bytes are for int8 or int4, and not for {kind}")
    if by_inputs and seen is not None:
        rows = rounded_by_inputs(kernel.T, rows, seen.gramian)
    reach = jnp.float32(seen.reach or 1.0) if activations == "static" and seen is not None else None
    return QuantizedKernel(rows, reach, activations)
