"""Attention within sequences, in memory that grows with their length and not with its square."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from . import attention_cudnn, attention_numba
from .op import Implementation, Op, dispatch, imported

Activation = Literal["softmax", "silu"]
AttentionImplementation = Implementation | Literal["cudnn"]
_QUERIES = 256  # whose scores are held at a time
_VECTOR_MEMORY = 12 << 20  # bytes that a TPU has for them
_WIDEST = 128  # numbers of a vector, of which a GPU's program sums several blocks
_BUCKETS_A_DECADE = 1 / 0.301  # one for each doubling


def attention(
    queries: Float[Array, "*batch length heads width"],
    keys: Float[Array, "*batch length heads width"],
    values: Float[Array, "*batch length heads depth"],
    segments: Int32[Array, "*batch length"],
    *,
    causal: bool = True,
    activation: Activation = "softmax",
    position_bias: Float[Array, "heads distances"] | None = None,
    time_bias: Float[Array, "heads buckets"] | None = None,
    times: Int32[Array, "*batch length"] | None = None,
    implementation: AttentionImplementation = "auto",
) -> Float[Array, "*batch length heads depth"]:
    """`out_i = sum_j a(s_ij) v_j` over the j of the same segment as i, with `causal` those up to i.

    `s_ij = q_i . k_j / sqrt(width) + position_bias[i - j] + time_bias[bucket(t_i - t_j)]`, and a is the softmax over j,
    or with "silu" `s_ij sigmoid(s_ij) / length`, of which nothing is normalized. Products are summed in float32. The
    scores are never held all at once, but those of some places at a time, in the gradient as well.

    Args:
        queries, keys, values: Of each place and head.
        segments: Which sequence of its row a place belongs to; a negative one belongs to none and has zeros.
        causal: See above.
        activation: See above.
        position_bias: For the distances `i - j` from `-(m - 1)` to `m - 1`, `[heads, 2 m - 1]`; farther ones have that
            of the farthest.
        time_bias: `bucket(t)` is the whole part of `log10(max(|t|, 1)) / 0.301`, or the last there is.
        times: Of the places; with `time_bias`.
        implementation: See `kernels.op.dispatch`. "pallas" takes no biases; on TPU float32 or bfloat16, on NVIDIA GPUs
            bfloat16 or float16 of at most 128 numbers a vector. "cudnn" is NVIDIA's own, of the softmax without biases,
            in these dtypes, for rows of one segment without holes: any other row has NaN.

    Returns:
        In the dtype of the values.

    Raises:
        ValueError: Shapes that do not go together, an unknown activation, or times without their bias.
        NotImplementedError: The explicit choice cannot run here; the message says why.

    Source: Vaswani et al. 2017, "Attention Is All You Need", equation 1; the second activation and the biases: Zhai et
    al. 2024, "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
    Recommendations", equation 2.

    >>> one = jnp.ones((2, 1, 1))
    >>> attention(one, one, jnp.array([[[1.0]], [[3.0]]]), jnp.zeros(2, jnp.int32)).ravel().tolist()
    [1.0, 2.0]
    """
    if queries.ndim < 3 or queries.shape != keys.shape or queries.shape[:-1] != values.shape[:-1]:
        raise ValueError(
            f"kernels.attention: {queries.shape=}, {keys.shape=} and {values.shape=} must be [..., length, heads, "
            "width], those of queries and keys equal"
        )
    *batch, length, heads, _ = queries.shape
    for name, array in {"segments": segments, "times": times}.items():
        if array is not None and (array.shape != (*batch, length) or array.dtype != jnp.int32):
            raise ValueError(
                f"kernels.attention: {name} of {array.dtype}{list(array.shape)} must be int32, {[*batch, length]}"
            )
    if activation not in get_args(Activation):
        raise ValueError(f"kernels.attention: {activation=} must be one of {get_args(Activation)}")
    if (times is None) != (time_bias is None):
        raise ValueError("kernels.attention: times and time_bias go together: give both or neither")
    for name, bias in {"position_bias": position_bias, "time_bias": time_bias}.items():
        if bias is not None and (bias.ndim != 2 or bias.shape[0] != heads or not bias.shape[1]):
            raise ValueError(
                f"kernels.attention: {name} of shape {list(bias.shape)} must have a row for each of {heads=}"
            )
    if position_bias is not None and position_bias.shape[1] % 2 == 0:
        raise ValueError(f"kernels.attention: {position_bias.shape=} must have an odd number of distances")
    if not values.size:
        return jnp.zeros_like(values)
    n = math.prod(batch)
    q, k, v = (a.reshape(n, length, *a.shape[-2:]) for a in (queries, keys, values))
    rows, row_times = (a if a is None else a.reshape(n, length) for a in (segments, times))
    if implementation == "cudnn":
        if why := attention_cudnn.reason(queries, keys, values, position_bias, time_bias, activation=activation):
            raise NotImplementedError(f'kernels.attention: {why}. Use "auto".')
        found: Any = attention_cudnn.attend(q, k, v, rows, causal=causal)
    else:
        found = _attended(q, k, v, rows, row_times, position_bias, time_bias, causal, activation, implementation)
    return found.reshape(*batch, length, heads, values.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9))
def _attended(*arguments: Any) -> Array:
    return _with_logs(*arguments)[0]


def _with_logs(*arguments: Any) -> tuple[Array, Array]:
    """What attention gives, and the logarithm of each softmax's sum."""
    *given, causal, activation, implementation = arguments
    return dispatch(OP, *given, causal=causal, activation=activation, implementation=implementation)


def _attended_forward(*arguments: Any):
    out, logs = _with_logs(*arguments)
    return out, (*arguments[:7], out, logs)


def _attended_backward(causal: bool, activation: Activation, implementation: Implementation, saved: Any, slope: Array):
    static = {"causal": causal, "activation": activation, "implementation": implementation}
    of_queries, of_keys, of_values, of_position_bias, of_time_bias = dispatch(GRADIENT, *saved, slope, **static)
    return of_queries, of_keys, of_values, None, None, of_position_bias, of_time_bias


_attended.defvjp(_attended_forward, _attended_backward)


def _reference(queries, keys, values, segments, times, position_bias, time_bias, *, causal: bool, activation: str):
    length, width = queries.shape[1], queries.shape[-1]
    places = jnp.arange(length, dtype=jnp.int32)
    precise = {"preferred_element_type": jnp.float32}

    def block(given):
        """Of some queries, whose places are the first axis."""
        q, places_of, segments_of, times_of = given
        scores = jnp.einsum("ibhd,bjhd->bhij", q, keys, **precise) * width**-0.5
        distance = places_of[:, None] - places[None, :]
        if position_bias is not None:
            far = position_bias.shape[1] // 2
            scores += position_bias[:, jnp.clip(distance, -far, far) + far].astype(jnp.float32)[None]
        if time_bias is not None:
            gaps = jnp.abs(jnp.swapaxes(times_of, 0, 1)[:, :, None] - times[:, None, :])
            exponents = jnp.log10(jnp.maximum(gaps, 1).astype(jnp.float32)) * _BUCKETS_A_DECADE
            buckets = jnp.minimum(exponents.astype(jnp.int32), time_bias.shape[1] - 1)
            scores += jnp.swapaxes(time_bias[:, buckets], 0, 1).astype(jnp.float32)
        own = jnp.swapaxes(segments_of, 0, 1)
        allowed = (own[:, :, None] == segments[:, None, :]) & (own >= 0)[:, :, None]
        if causal:
            allowed &= (distance >= 0)[None]
        allowed = allowed[:, None]
        if activation == "softmax":
            # Of a place without anything the greatest is -inf, which would make NaN.
            greatest = jnp.max(scores, axis=-1, keepdims=True, where=allowed, initial=jnp.finfo(jnp.float32).min)
            weights = jnp.where(allowed, jnp.exp(jnp.where(allowed, scores - lax.stop_gradient(greatest), 0.0)), 0.0)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            some, total = total > 0, jnp.where(total > 0, total, 1.0)
            weights, logs = weights / total, jnp.where(some, greatest + jnp.log(total), 0.0)
        else:
            weights, logs = jnp.where(allowed, jax.nn.silu(scores), 0.0) / length, jnp.zeros_like(scores[..., :1])
        found = jnp.einsum("bhij,bjhd->ibhd", weights.astype(values.dtype), values, **precise).astype(values.dtype)
        return found, jnp.moveaxis(logs[..., 0], 2, 0)

    n_blocks = -(-length // _QUERIES)
    rows = [jnp.swapaxes(a, 0, 1) for a in (queries, segments, segments if times is None else times)]
    given = rows[0], places, *rows[1:]
    if n_blocks <= 1:
        found, logs = block(given)
    else:
        size = -(-length // n_blocks)
        padded = [jnp.pad(a, [(0, n_blocks * size - length), *[(0, 0)] * (a.ndim - 1)]) for a in given]
        blocks = lax.map(jax.checkpoint(block), [a.reshape(n_blocks, size, *a.shape[1:]) for a in padded])
        found, logs = (a.reshape(n_blocks * size, *a.shape[2:])[:length] for a in blocks)
    return jnp.swapaxes(found, 0, 1), jnp.moveaxis(logs, 0, 2)


def _gradient_reference(
    queries, keys, values, segments, times, position_bias, time_bias, out, logs, slope, *, causal: bool, activation: str
):
    def found(queries, keys, values, position_bias, time_bias):
        static = {"causal": causal, "activation": activation}
        return _reference(queries, keys, values, segments, times, position_bias, time_bias, **static)[0]

    return jax.vjp(found, queries, keys, values, position_bias, time_bias)[1](slope)


def _supports(*arrays: Any, **static: Any) -> str | None:
    kinds = {str(a.dtype) for a in arrays if a is not None and jnp.issubdtype(a.dtype, jnp.floating)}
    if kinds != {"float32"}:
        return f"arrays of {sorted(kinds)} must all be float32"
    return None if all(a.size for a in arrays[:3]) else "nothing is to be attended to"


def _tpu_supports(queries, keys, values, segments, times, position_bias, time_bias, *_: Any, **static: Any):
    reason = _pallas_reason(queries, keys, values, position_bias, time_bias, ("float32", "bfloat16"))
    widest = -(-max(keys.shape[-1], values.shape[-1]) // 128) * 128
    taken = 4 * keys.shape[1] * widest * keys.dtype.itemsize  # two arrays, the next head's behind this one's
    if reason is None and taken > _VECTOR_MEMORY:
        return f"{keys.shape[1]:,} places take {taken:,} bytes of {_VECTOR_MEMORY:,}"
    return reason


def _gpu_supports(queries, keys, values, segments, times, position_bias, time_bias, *_: Any, **static: Any):
    reason = _pallas_reason(queries, keys, values, position_bias, time_bias, ("bfloat16", "float16"))
    widest = max(keys.shape[-1], values.shape[-1])
    if reason is None and widest > _WIDEST:
        return f"vectors of {widest} numbers are wider than the {_WIDEST} whose sums the registers hold"
    return reason


def _pallas_reason(queries, keys, values, position_bias, time_bias, kinds: tuple[str, str]) -> str | None:
    if not all(a.size for a in (queries, keys, values)):
        return "nothing is to be attended to"
    if position_bias is not None or time_bias is not None:
        return "biases of distance and time are not looked up on accelerators"
    if {str(a.dtype) for a in (queries, keys, values)} not in [{kind} for kind in kinds]:
        return f"arrays of {queries.dtype}, {keys.dtype} and {values.dtype} must all be {' or '.join(kinds)}"
    return None


OP = Op(
    "attention",
    _reference,
    _supports,
    numba=attention_numba.attend,
    pallas_gpu=imported("attention_gpu", "attend"),
    pallas_tpu=imported("attention_tpu", "attend"),
    gpu_supports=_gpu_supports,
    tpu_supports=_tpu_supports,
)
GRADIENT = Op(
    "attention_gradient",
    _gradient_reference,
    _supports,
    numba=attention_numba.gradient,
    pallas_gpu=imported("attention_gpu", "gradient"),
    pallas_tpu=imported("attention_tpu", "gradient"),
    gpu_supports=_gpu_supports,
    tpu_supports=_tpu_supports,
)
