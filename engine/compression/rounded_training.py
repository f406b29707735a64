"""Training for fewer bits: the loss sees what rounding leaves, and gradients pass it as if there were none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jax import lax

from ...kernels.quantized_kernel import QuantizedKernel, is_quantized
from ..errors import CompressionError
from .half_bytes import Clip
from .parameters import chosen, compressible, is_kernel, replaced
from .quantization import Kind, quantize


def rounded(
    rules: Kind | Mapping[str, Kind] = "int8", *, symmetric: bool = True, clip: Clip = "none"
) -> Callable[[Any], Any]:
    """A view of a network in which parameters are rounded as `quantize_model` rounds them by such rules.

    Its gradient is that of the network without it (straight through). It goes around the parameters in any loss,
    `loss(view(parameters), …)`, or to a builder of `affinax.models` as `view=`; a network that was trained so loses
    little by `quantize_model` with the same arguments.

    Args:
        rules, symmetric, clip: As of `quantize_model`.

    Raises:
        CompressionError: In the view, as `quantize_model`.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference"; Bengio, Léonard, Courville 2013, "Estimating or Propagating Gradients Through Stochastic Neurons".

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from affinax.engine.factorization import Factors
    >>> view, model = rounded({"items": "int4"}), Factors(jnp.ones((1, 2)), jnp.array([[8.0, 2.4]]))
    >>> jnp.rint(view(model).items).tolist()
    [[8.0, 2.0]]
    >>> jnp.rint(jax.grad(lambda model: jnp.sum(view(model).items ** 2))(model).items).tolist()
    [[16.0, 4.0]]
    """

    def view(parameters: Any) -> Any:
        among, new = compressible(parameters), {}
        kinds: dict[str, Any] = chosen(among, rules)
        for name, kind in kinds.items():
            leaf = among[name]
            if is_quantized(leaf):
                raise CompressionError(f"{name} is quantized, which leaves nothing to train")
            fixed = lax.stop_gradient(leaf)
            rows = quantize(fixed.T if is_kernel(name) else fixed, kind, symmetric=symmetric, clip=clip)
            whole = QuantizedKernel(rows).floats() if is_kernel(name) else rows.floats()
            new[name] = leaf + (whole - fixed).astype(leaf.dtype)
        return replaced(parameters, new)

    return view
