"""Attention and cross entropy over a catalogue: against float64 oracles, under every transformation."""

from __future__ import annotations

import functools
from inspect import unwrap  # what a user has, without the type checker of the tests

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from affinax.kernels import attention_tpu
from affinax.kernels.attention import GRADIENT, OP, attention
from affinax.kernels.attention import attention as attend
from affinax.kernels.cross_entropy import cross_entropy
from affinax.kernels.op import dispatch, platforms

from . import naive
from .cases import ATTENTION, CROSS_ENTROPY
from .lowering import gpu_interpreter, lowered
from .test_kernels import close, devices, each_implementation

pytestmark = pytest.mark.usefixtures("strict_dtypes")

each_attention = pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
each_catalogue = pytest.mark.parametrize("case", CROSS_ENTROPY, ids=lambda case: case.name)
KINDS = {
    "softmax": {},
    "both directions": {"causal": False},
    "silu": {"activation": "silu"},
    "biased": {"bias": True},
    "biased silu": {"activation": "silu", "bias": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_plain_kind = pytest.mark.parametrize("kind", [kind for kind, chosen in KINDS.items() if "bias" not in chosen])


def sequences(case, seed=0):
    rng = np.random.default_rng(seed)
    shape = case.batch, case.length, case.heads
    q, k, v = (rng.normal(size=(*shape, width)).astype(np.float32) for width in (case.width, case.width, case.depth))
    segments = np.sort(rng.integers(-1, 3, (case.batch, case.length)), axis=1).astype(np.int32)
    times = np.sort(rng.integers(0, 100_000, (case.batch, case.length)), axis=1).astype(np.int32)
    return q, k, v, segments, times


def options(case, kind):
    chosen = dict(KINDS[kind])
    rng = np.random.default_rng(1)
    if chosen.pop("bias", False):
        chosen["position_bias"] = rng.normal(size=(case.heads, 7)).astype(np.float32)
        chosen["time_bias"] = rng.normal(size=(case.heads, 5)).astype(np.float32)
    return chosen


def attended(case, kind, **more):
    """Attention as a function of its float arguments, and these."""
    q, k, v, segments, times = sequences(case)
    chosen = options(case, kind)
    biases = {name: jnp.asarray(chosen.pop(name)) for name in ("position_bias", "time_bias") if name in chosen}
    more |= {"times": jnp.asarray(times)} if biases else {}

    def found(q, k, v, biases):
        return attention(q, k, v, jnp.asarray(segments), **chosen, **biases, **more)

    return found, (jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), biases)


def exact(case, kind, implementation):
    found, arguments = attended(case, kind, implementation=implementation)
    q, k, v, segments, times = sequences(case)
    chosen = options(case, kind)
    more = {"times": times} if "time_bias" in chosen else {}
    for row, result in enumerate(jax.jit(found)(*arguments)):
        given = {name: value[row] for name, value in more.items()}
        close(result, naive.attention(q[row], k[row], v[row], segments[row], **chosen, **given), 2e-5)


@each_implementation
@each_attention
@each_kind
def test_attention_is_exact(case, kind, implementation):
    exact(case, kind, implementation)


@each_attention
@each_plain_kind
def test_pallas_is_exact(case, kind):
    exact(case, kind, "interpret")


@pytest.mark.on_cpu
@each_attention
@each_kind
def test_gradients_of_attention(case, kind):
    """Those of the reference are JAX's own, of what is exact above."""
    mix = jnp.asarray(np.random.default_rng(2).normal(size=sequences(case)[2].shape), jnp.float32)
    slopes = {}
    for implementation in ("reference", "numba"):
        found, arguments = attended(case, kind, implementation=implementation)
        slopes[implementation] = jax.jit(jax.grad(lambda *a, f=found: jnp.sum(f(*a) * mix), (0, 1, 2, 3)))(*arguments)
    for one, other in zip(jax.tree.leaves(slopes["numba"]), jax.tree.leaves(slopes["reference"]), strict=True):
        close(one, np.asarray(other), 2e-5)


@each_plain_kind
def test_blocks_of_tpu(kind):
    """Several of them, forward and back, as the reference has it; interpreted, as there may be no such device."""
    rng = np.random.default_rng(3)
    q, k, v, slope = (jnp.asarray(rng.normal(size=(2, 150, 2, width)), jnp.float32) for width in (20, 20, 9, 9))
    segments = jnp.asarray(np.sort(rng.integers(-1, 3, (2, 150)), axis=1), jnp.int32)
    static = {"causal": True, "activation": "softmax"} | KINDS[kind]
    given = (q, k, v, segments, None, None, None)
    blocks = static | {"interpret": True}
    out, logs = expected = OP.reference(*given, **static)
    for one, other in zip(attention_tpu.attend(*given, **blocks), expected, strict=True):
        close(one, np.asarray(other), 2e-6)
    expected = GRADIENT.reference(*given, out, logs, slope, **static)
    found = attention_tpu.gradient(*given, out, logs, slope, **blocks)
    for one, other in zip(found[:3], expected[:3], strict=True):
        close(one, np.asarray(other), 2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_pallas_lowers_for_tpu(dtype):
    q = jnp.zeros((2, 150, 2, 20), dtype)
    static = {"causal": True, "activation": "softmax"}

    def both(q, k, v, segments):
        out, logs = attention_tpu.attend(q, k, v, segments, None, None, None, **static)
        return attention_tpu.gradient(q, k, v, segments, None, None, None, out, logs, out, **static)

    assert lowered(both, "tpu", q, q, q, jnp.zeros((2, 150), jnp.int32)).count("tpu_custom_call") >= 3


each_half = pytest.mark.parametrize(
    ("kind", "dtype"), [("softmax", jnp.bfloat16), ("both directions", jnp.float16), ("silu", jnp.bfloat16)]
)


def halves(kind, dtype=jnp.bfloat16):
    """Arguments of several blocks in 16 bits, widths that fill no tile, and the slope of what comes out."""
    rng = np.random.default_rng(3)
    q, k, v, slope = (jnp.asarray(rng.normal(size=(2, 150, 2, width)), dtype) for width in (20, 20, 9, 9))
    segments = jnp.asarray(np.sort(rng.integers(-1, 3, (2, 150)), axis=1), jnp.int32)
    static = {"causal": True, "activation": "softmax"} | KINDS[kind]
    return (q, k, v, segments, None, None, None), slope, static


def exact_in_halves(kind, dtype, attend, gradient):
    """Forward and back, as the reference has it in float32 from the same numbers."""
    given, slope, static = halves(kind, dtype)
    wide = (*(array.astype(jnp.float32) for array in given[:3]), *given[3:])
    out, logs = OP.reference(*wide, **static)
    expected = GRADIENT.reference(*wide, out, logs, slope.astype(jnp.float32), **static)
    for one, other in zip(attend(*given, **static), (out, logs), strict=True):
        close(np.asarray(one, np.float32), np.asarray(other), 5e-3)
    found = gradient(*given, out.astype(dtype), logs, slope, **static)
    for one, other in zip(found[:3], expected[:3], strict=True):
        close(np.asarray(one, np.float32), np.asarray(other), 1e-2)
    assert found[3:] == (None, None)


@each_half
def test_blocks_of_gpu(kind, dtype):
    from affinax.kernels import attention_gpu

    how = {"interpret": gpu_interpreter()}
    exact_in_halves(
        kind, dtype, functools.partial(attention_gpu.attend, **how), functools.partial(attention_gpu.gradient, **how)
    )


@pytest.mark.skipif("cuda" not in platforms(), reason="this process has no NVIDIA GPU")
@each_half
def test_attention_on_a_gpu(kind, dtype):
    ops = (functools.partial(dispatch, op, implementation="pallas") for op in (OP, GRADIENT))
    exact_in_halves(kind, dtype, *map(jax.jit, ops))


@each_plain_kind
def test_pallas_lowers_for_gpu(kind):
    from affinax.kernels import attention_gpu

    given, slope, static = halves(kind)

    def both(q, k, v, segments, slope):
        arguments = q, k, v, segments, None, None, None
        out, logs = attention_gpu.attend(*arguments, **static)
        return attention_gpu.gradient(*arguments, out, logs, slope, **static)

    assert lowered(both, "cuda", *given[:4], slope).count("mosaic_gpu_v2") >= 3


def test_what_a_gpu_does_not_take():
    given, _, _ = halves("softmax")
    wide = (jnp.zeros((2, 150, 2, 130), jnp.bfloat16),) * 3
    single = (array.astype(jnp.float32) for array in given[:3])
    assert OP.gpu_supports(*given) is None
    assert "130 numbers are wider than the 128" in OP.gpu_supports(*wide, *given[3:])
    assert "must all be bfloat16 or float16" in OP.gpu_supports(*single, *given[3:])
    assert "are not looked up on accelerators" in OP.gpu_supports(*given[:5], jnp.zeros((2, 3)), None)


@pytest.mark.parametrize("shape", [(2, 0, 1, 4), (0, 3, 1, 4)], ids=["no places", "no rows"])
def test_nothing_to_attend_to(shape):
    x, segments = jnp.zeros(shape), jnp.zeros(shape[:2], jnp.int32)
    found, slopes = jax.value_and_grad(lambda x: jnp.sum(attention(x, x, x, segments)))(x)
    assert (found, slopes.shape) == (0, shape)


@pytest.mark.on_cpu
def test_what_pallas_does_not_take():
    found, arguments = attended(ATTENTION[2], "biased", implementation="interpret")
    with pytest.raises(NotImplementedError, match=r"are not looked up on accelerators.*would take \"numba\""):
        found(*arguments)
    found, arguments = attended(ATTENTION[2], "softmax", implementation="pallas")
    with pytest.raises(NotImplementedError, match="not to be had in this process"):
        found(*arguments)


@each_kind
def test_long_sequences_go_by_blocks(kind, monkeypatch):
    """In the same numbers, and so in the gradients; the scores of all places are never there at once."""
    case = ATTENTION[2]
    found, arguments = attended(case, kind, implementation="reference")
    mix = jnp.asarray(
        np.random.default_rng(2).normal(size=(case.batch, case.length, case.heads, case.depth)), jnp.float32
    )
    slopes = jax.grad(lambda *a: jnp.sum(found(*a) * mix), argnums=(0, 1, 2, 3))
    whole = found(*arguments), slopes(*arguments)
    monkeypatch.setattr("affinax.kernels.attention._QUERIES", 5)
    for one, other in zip(
        jax.tree.leaves((found(*arguments), slopes(*arguments))), jax.tree.leaves(whole), strict=True
    ):
        close(one, np.asarray(other), 2e-5)


def test_memory_of_attention_grows_with_the_length():
    def temporary(length):
        q = jnp.zeros((1, length, 1, 8))
        segments = jnp.zeros((1, length), jnp.int32)
        slope = jax.grad(lambda q: attention(q, q, q, segments, implementation="reference").sum())
        return jax.jit(slope).lower(q).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 3 * temporary(2048)
    assert temporary(4096) < 4 * 4096 * 4096 / 3  # of the scores, float32


@each_implementation
def test_attention_under_transformations(implementation):
    case = ATTENTION[1]
    found, arguments = attended(case, "softmax", implementation=implementation)
    expected = np.asarray(found(*arguments))
    attention = functools.partial(attend, implementation=implementation)
    q, k, v, segments, _ = (jnp.asarray(a) for a in sequences(case))
    close(jax.vmap(attention)(q, k, v, segments), expected, 1e-6)
    _, scanned = lax.scan(lambda c, row: (c, attention(*row)), 0, (q, k, v, segments))
    close(scanned, expected, 1e-6)
    twice = tuple(jnp.concatenate([a] * 8) for a in (q, k, v, segments))
    shared = jax.shard_map(attention, mesh=devices(), in_specs=P("rows"), out_specs=P("rows"))
    close(jax.jit(shared)(*twice)[: len(expected)], expected, 1e-6)
    if implementation == "reference":
        close(attention(*(a.astype(jnp.bfloat16) for a in (q, k, v)), segments), expected, 0.05)


def test_padding_is_zero_and_has_finite_gradients():
    q = jnp.ones((2, 3, 1, 4))
    segments = jnp.full((2, 3), -1, jnp.int32)
    assert (attention(q, q, q, segments) == 0).all()
    assert jnp.isfinite(jax.grad(lambda q: attention(q, q, q, segments).sum())(q)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": jnp.ones((2, 3, 1, 5))}, "those of queries and keys equal"),
        ({"segments": jnp.zeros((2, 4), jnp.int32)}, r"segments of int32\[2, 4\] must be int32, \[2, 3\]"),
        ({"activation": "tanh"}, "must be one of"),
        ({"times": jnp.zeros((2, 3), jnp.int32)}, "give both or neither"),
        ({"position_bias": jnp.ones((1, 4))}, "odd number of distances"),
        ({"position_bias": jnp.ones((2, 3))}, "must have a row for each of heads=1"),
    ],
)
def test_attention_refuses(change, message):
    arguments = {name: jnp.ones((2, 3, 1, 4)) for name in ("queries", "keys", "values")}
    arguments["segments"] = jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(ValueError, match=message):
        unwrap(attention)(**(arguments | change))


def catalogue(case, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(case.rows, case.width)).astype(np.float32)
    table = rng.normal(size=(case.items, case.width)).astype(np.float32)
    bias, weights = rng.normal(size=case.items).astype(np.float32), rng.random(case.rows).astype(np.float32)
    weights[: case.rows // 3] = 0  # which a loss may be differentiated in as well
    return hidden, table, bias, rng.integers(-1, case.items, case.rows).astype(np.int32), weights


@each_implementation
@each_catalogue
@pytest.mark.parametrize("logits", [1, 1 << 21])
def test_cross_entropy_and_its_gradients_are_exact(case, logits, implementation, monkeypatch):
    monkeypatch.setattr("affinax.kernels.cross_entropy._LOGITS", logits)
    hidden, table, bias, labels, weights = catalogue(case)

    def found(hidden, table, bias, weights):
        return cross_entropy(hidden, table, jnp.asarray(labels), weights, bias=bias, implementation=implementation)

    arguments = [jnp.asarray(a) for a in (hidden, table, bias, weights)]
    value, slopes = jax.jit(jax.value_and_grad(found, argnums=(0, 1, 2, 3)))(*arguments)
    expected, *others = naive.cross_entropy(hidden, table, bias, labels, weights)
    close(value, expected, 1e-5)
    for slope, other in zip(slopes, others, strict=True):
        close(slope, other, 2e-5)
    close(found(*arguments), expected, 1e-5)
    # Of a row that does not count anything may be given.
    odd = jnp.where(labels[:, None] < 0, jnp.nan, hidden)
    close(jax.jit(jax.grad(found, argnums=1))(odd, *arguments[1:]), others[1], 2e-5)


@each_implementation
def test_cross_entropy_holds_a_part_of_the_logits(implementation):
    n, items = 4096, 8192
    found = functools.partial(cross_entropy, implementation=implementation)
    slope = jax.jit(jax.grad(lambda h, t: found(h, t, jnp.zeros(n, jnp.int32)), argnums=(0, 1)))
    compiled = slope.lower(jnp.zeros((n, 8)), jnp.zeros((items, 8))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < n * items  # a quarter of what they take


@each_implementation
def test_cross_entropy_under_transformations(implementation):
    hidden, table, bias, labels, weights = (jnp.asarray(a) for a in catalogue(CROSS_ENTROPY[1]))
    found = functools.partial(cross_entropy, bias=bias, implementation=implementation)
    expected = found(hidden, table, labels, weights)
    several = jax.vmap(found, in_axes=(0, None, None, None))(jnp.stack([hidden, 2 * hidden]), table, labels, weights)
    close(several[0], np.asarray(expected), 1e-5)
    half = cross_entropy(*(a.astype(jnp.bfloat16) for a in (hidden, table)), labels, weights, bias=bias)
    close(half, np.asarray(expected), 0.05)
    n = 8 * (len(hidden) // 8)
    alone = jnp.sum(
        jax.jit(
            jax.shard_map(
                lambda h, y, w: found(h, table, y, w)[None],
                mesh=devices(),
                in_specs=P("rows"),
                out_specs=P("rows"),
            )
        )(hidden[:n], labels[:n], weights[:n])
    )
    close(alone, np.asarray(found(hidden[:n], table, labels[:n], weights[:n])), 1e-5)
    assert jnp.isnan(found(hidden, table, labels.at[0].set(len(table)), weights))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": jnp.ones((5, 3))}, r"must be \[n, d\] and \[n_items, d\]"),
        ({"labels": jnp.zeros(3, jnp.int32)}, r"labels of int32\[3\] must be int32, \[2\]"),
        ({"weights": jnp.ones(3)}, r"weights of shape \[3\] must be \[2\]"),
        ({"bias": jnp.ones(3)}, r"bias of shape \[3\] must be \[5\]"),
    ],
)
def test_cross_entropy_refuses(change, message):
    arguments = {"hidden": jnp.ones((2, 4)), "table": jnp.ones((5, 4)), "labels": jnp.zeros(2, jnp.int32)}
    with pytest.raises(ValueError, match=message):
        unwrap(cross_entropy)(**(arguments | change))
