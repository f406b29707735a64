"""Attention by cuDNN: what is asked of it, as XLA answers it, and that it goes to a GPU's program."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affinax.kernels import attention_cudnn
from affinax.kernels.attention import attention
from affinax.kernels.op import platforms

from .lowering import lowered
from .test_kernels import close

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def rows_of_one(dtype, depth=16):
    """Rows with padding before, after and around one sequence, with none, and all of one; and a slope."""
    rng = np.random.default_rng(4)
    arrays = (jnp.asarray(rng.normal(size=(5, 50, 2, depth)), dtype) for _ in range(4))
    segments = np.full((5, 50), -1, np.int32)
    for row, (begin, end) in enumerate([(20, 50), (0, 30), (7, 41), (0, 0), (0, 50)]):
        segments[row, begin:end] = row
    return *arrays, jnp.asarray(segments)


def with_slopes(found, slope):
    """What it gives, and its gradients by the first three arguments."""
    return lambda q, k, v: (found(q, k, v), *jax.vjp(found, q, k, v)[1](slope))


@pytest.mark.parametrize("causal", [True, False])
def test_rows_moved_for_cudnn(causal):
    """They come back as the reference has them, forward and back: by XLA, which takes the same arguments as cuDNN."""
    q, k, v, slope, segments = rows_of_one(jnp.float32)
    moved = functools.partial(attention_cudnn.attend, segments=segments, causal=causal, through="xla")
    plain = functools.partial(attention, segments=segments, causal=causal, implementation="reference")
    found, expected = (jax.jit(with_slopes(way, slope))(q, k, v) for way in (moved, plain))
    for one, other in zip(found, expected, strict=True):
        close(one, np.asarray(other), 2e-6)


@pytest.mark.parametrize("row", [[0, 0, 1, 1], [-1, 0, -1, 0]], ids=["two segments", "a hole"])
def test_rows_that_cudnn_would_mistake(row):
    one = jnp.ones((2, 4, 1, 8))
    segments = jnp.array([row, [0, 0, 0, -1]], jnp.int32)
    found = attention_cudnn.attend(one, one, one, segments, causal=True, through="xla")
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1, :, 0, 0], [1, 1, 1, 0], rtol=1e-6)


@pytest.mark.skipif("cuda" not in platforms(), reason="this process has no NVIDIA GPU")
@pytest.mark.parametrize("causal", [True, False])
def test_cudnn_on_a_gpu(causal):
    q, k, v, slope, segments = rows_of_one(jnp.bfloat16)
    way = functools.partial(attention, segments=segments, causal=causal)
    found = jax.jit(with_slopes(functools.partial(way, implementation="cudnn"), slope))(q, k, v)
    wide = (array.astype(jnp.float32) for array in (q, k, v))
    plain = with_slopes(functools.partial(way, implementation="reference"), slope.astype(jnp.float32))
    for one, other in zip(found, plain(*wide), strict=True):
        close(np.asarray(one, np.float32), np.asarray(other), 1e-2)


def test_cudnn_lowers_for_gpu(monkeypatch):
    """To its two programs, forward and back, on a GPU and with a cuDNN that this machine need not have."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    q, k, v, slope, segments = rows_of_one(jnp.bfloat16)
    program = lowered(
        with_slopes(functools.partial(attention_cudnn.attend, segments=segments, causal=True), slope), "cuda", q, k, v
    )
    assert program.count("@__cudnn$fmhaSoftmax(") >= 1
    assert program.count("@__cudnn$fmhaSoftmaxBackward(") == 1


def test_what_cudnn_does_not_take(monkeypatch):
    q, k, v, _, segments = rows_of_one(jnp.bfloat16)
    way = functools.partial(attention, implementation="cudnn")
    with pytest.raises(NotImplementedError, match="must all be bfloat16 or float16"):
        way(*(array.astype(jnp.float32) for array in (q, k, v)), segments)
    with pytest.raises(NotImplementedError, match="softmax alone"):
        way(q, k, v, segments, activation="silu")
    with pytest.raises(NotImplementedError, match="softmax alone"):
        way(q, k, v, segments, position_bias=jnp.zeros((2, 3)))
    with pytest.raises(NotImplementedError, match="16 and 8 numbers must be equally wide"):
        way(q, k, v[..., :8], segments)
    assert way(q[:, :0], k[:, :0], v[:, :0], segments[:, :0]).shape == v[:, :0].shape
    monkeypatch.setattr(attention_cudnn, "platforms", lambda: {"cpu"})
    with pytest.raises(NotImplementedError, match=r'not to be had in this process, which has cpu\. Use "auto"'):
        way(q, k, v, segments)
