"""Deep and cross networks, version 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..kernels.cross_network import cross
from ..kernels.deep_cross import logits
from ..kernels.op import Implementation
from .layers import Dense, FieldEmbedding, Linear, Sharing, he_normal, side_by_side


class DCN(nnx.Module):
    """Cross layers `x' = x0 * (W x + b) + x` and a network, beside it or behind it.

    With a `rank`, W is a mixture of experts of low rank, gated by x:
    `x' = x + sum_i g_i(x) x0 * (U_i tanh(C_i tanh(V_i^T x)) + b)`.

    Args:
        sizes: How many ids each field has.
        width: Of their vectors, which together are x0.
        hidden: Layers of the network.
        crosses: How many cross layers.
        rank: Of W; full if None.
        experts: Of each layer, where there is a rank.
        structure: "parallel" or "stacked".
        dropout: In the network.
        init_std: Standard deviation of the first vectors.
        sharing: Of rows among the ids of a field; see `layers.FieldEmbedding`.
        hidden_scale: Variance of the first weights of `hidden`, times the number of their inputs; where the network
            begins small, the cross layers learn first.
        dtype, param_dtype, implementation: See `layers.FieldEmbedding`.
        rngs: Random numbers.

    Source: Wang et al. 2021, "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to
    Rank Systems", equations 1, 3 and 4.

    >>> DCN([3, 2], width=4, hidden=[8], rngs=nnx.Rngs(0))(jnp.array([2, 1])).shape
    ()
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        width: int = 16,
        hidden: Sequence[int] = (64, 64),
        crosses: int = 2,
        rank: int | None = None,
        experts: int = 4,
        structure: Literal["parallel", "stacked"] = "parallel",
        dropout: float = 0.0,
        init_std: float = 0.01,
        sharing: Sharing | None = None,
        hidden_scale: float = 2.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        if structure not in ("parallel", "stacked"):
            raise ValueError(f'{structure=} must be "parallel" or "stacked"')
        if crosses < 1 or (rank is not None and (rank < 1 or experts < 1)):
            raise ValueError(f"{crosses=}, {rank=} and {experts=} must be at least 1")
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}
        shared = {**dtypes, "implementation": implementation, "rngs": rngs}
        self.embedding = FieldEmbedding(sizes, width, init_std=init_std, sharing=sharing, **shared)
        n = len(sizes) * width
        if rank is None:
            self.crosses = Crosses(n, crosses, **shared)
        else:
            self.crosses = nnx.List(CrossMixture(n, rank, experts, **dtypes, rngs=rngs) for _ in range(crosses))
        self.network = Dense([n, *hidden], dropout=dropout, kernel_init=he_normal(hidden_scale), **shared)
        deep = hidden[-1] if hidden else n
        self.structure = structure
        self.end = Linear(deep + n if structure == "parallel" else deep, 1, **shared)

    def __call__(
        self, fields: Int[Array, "*batch n_fields"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch"]:
        """Logits; with a key there is dropout."""
        vectors = self.embedding(fields)
        start = side_by_side(vectors)
        if isinstance(self.crosses, Crosses) and self._fused(key):
            kernel, bias = self.end.weights()
            ends = kernel[: start.shape[-1], 0], kernel[start.shape[-1] :, 0]
            layers = [linear.weights() for linear in self.network.layers]
            given = jnp.asarray(start, self.end.dtype), self.crosses.weights(), layers, ends
            return logits(*given, implementation=self.end.implementation) + bias[0].astype(jnp.float32)
        if isinstance(self.crosses, Crosses):
            crossed = self.crosses(start)
        else:
            crossed = start
            for layer in self.crosses:
                crossed = layer(start, crossed)
        if self.structure == "stacked":
            return self.end(self.network(crossed, key=key))[..., 0]
        return self.end.of_parts(crossed, self.network(start, key=key))[..., 0]

    def _fused(self, key: PRNGKeyArray | None) -> bool:
        """Whether one kernel can do all that comes after the vectors, where the cross layers are of full rank."""
        parallel = self.structure == "parallel" and len(self.network.layers) > 0
        return parallel and not self.end.alone and self.network.fused(key)


class Crosses(nnx.Module):
    """The layers `x' = x0 * (W x + b) + x`; see `kernels.cross_network`."""

    def __init__(
        self,
        n: int,
        layers: int,
        *,
        dtype: Any,
        param_dtype: Any,
        implementation: Implementation = "auto",
        rngs: nnx.Rngs,
    ):
        start = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)
        self.kernel = nnx.Param(start(rngs.params(), (layers, n, n), param_dtype))
        self.bias = nnx.Param(jnp.zeros((layers, n), param_dtype))
        self.dtype = dtype
        self.implementation: Implementation = implementation

    def __call__(self, start: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return cross(jnp.asarray(start, self.dtype), *self.weights(), implementation=self.implementation)

    def weights(self) -> tuple[Array, Array]:
        """W and b of all layers, as products take them."""
        return jnp.asarray(self.kernel[...], self.dtype), jnp.asarray(self.bias[...], self.dtype)


class CrossMixture(nnx.Module):
    """`x + sum_i g_i(x) x0 * (U_i tanh(C_i tanh(V_i^T x)) + b)`."""

    def __init__(self, n: int, rank: int, experts: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        start, self.dtype = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0), dtype
        self.down = nnx.Param(start(rngs.params(), (experts, n, rank), param_dtype))
        self.core = nnx.Param(start(rngs.params(), (experts, rank, rank), param_dtype))
        self.up = nnx.Param(start(rngs.params(), (experts, rank, n), param_dtype))
        self.bias = nnx.Param(jnp.zeros(n, param_dtype))
        self.gates = Linear(n, experts, use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, start: Float[Array, "*batch n"], x: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        def product(equation, a, weights):
            if self.dtype is not None:
                a, weights = a.astype(self.dtype), weights.astype(self.dtype)
            return jnp.einsum(equation, a, weights, preferred_element_type=jnp.float32)

        inner = jnp.tanh(product("...n,enr->...er", x, self.down[...]))
        inner = jnp.tanh(product("...er,ers->...es", inner, self.core[...]))
        gates = jax.nn.softmax(self.gates(x).astype(jnp.float32), axis=-1)
        # The gates sum to 1: so the bias needs none.
        mixed = product("...er,ern->...n", inner * gates[..., None], self.up[...])
        return start * (mixed + jnp.broadcast_to(self.bias[...], mixed.shape)) + x
